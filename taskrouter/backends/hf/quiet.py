"""Silence around Transformers: a library draws no progress bar on its user's terminal and gives no advice there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, Transformers draws no progress bar and logs errors only.

    The settings are process-wide, so this may be entered only under the load lock. Python's warning filters are left
    alone: changing them from a thread would silence everybody else's warnings too.
    """
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    verbosity = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
