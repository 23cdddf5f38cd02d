"""Calling off a load: between two weights, by the progress bar that Transformers makes of them.

``from_pretrained`` can't be interrupted from outside, but it asks a hook for its progress bars, and what goes through
one of them in the thread that loads may end it with an exception, as an error in a file would. Between two weights of
which each takes milliseconds that is soon enough; where a release of Transformers has no such hook, the load goes on to
the next place that looks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from taskrouter.errors import LoadFailed


class Stop(threading.Event):
    """Set by whoever calls the load of ``label`` off."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label

    def check(self) -> None:
        """Raise ``LoadFailed`` if the load was called off."""
        if self.is_set():
            raise LoadFailed(f"{self._label}: its load was called off")

    def acquire(self, lock: threading.Lock, *, look_every_s: float = 0.05) -> None:
        """Wait for the lock as long as nobody calls the load off."""
        while not lock.acquire(timeout=look_every_s):
            self.check()


class _Watched:
    """A progress bar that looks, before each step, whether the load goes on."""

    def __init__(self, bar: Any, stop: Stop) -> None:
        self._bar = bar
        self._stop = stop

    def __iter__(self) -> Iterator[Any]:
        for each in self._bar:
            self._stop.check()
            yield each

    def __enter__(self) -> _Watched:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bar.__exit__(*raised)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


@contextlib.contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Within, what this thread loads ends with ``LoadFailed`` soon after ``stop`` is set.

    The hook is process-wide, so this may be entered only under the load lock; other threads' bars are left alone.
    """
    from transformers.utils import logging as hf_logging

    set_hook = getattr(hf_logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return
    own, before = threading.get_ident(), None

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bar = factory(*args, **kwargs) if before is None else before(factory, args, kwargs)
        return _Watched(bar, stop) if threading.get_ident() == own else bar

    before = set_hook(hook)
    try:
        yield
    finally:
        set_hook(before)
