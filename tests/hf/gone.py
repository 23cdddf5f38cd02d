"""A caller who went away before his call was begun on."""

from __future__ import annotations

import threading
from typing import Any

from taskrouter.errors import CallFailed


def passes_for_nobody(model: Any, verb: str, asked: Any) -> int:
    """How often the module of a loaded model is run for him."""
    passes = []
    hooks = [each.register_forward_pre_hook(lambda *_: passes.append(1)) for each in model.raw.children()]
    stop = threading.Event()
    stop.set()
    ended = model._queue(verb, asked, stop, lambda _: None).exception(30)
    for hook in hooks:
        hook.remove()
    assert isinstance(ended, CallFailed)
    return len(passes)
