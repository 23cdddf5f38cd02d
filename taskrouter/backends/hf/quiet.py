"""Silence around Transformers: a library draws no progress bar on its user's terminal and gives no advice there."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator

_TORCHAO = "transformers.quantizers.quantizer_torchao"


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


def import_torchao() -> None:
    """Import torchao, where it is installed, without its remarks on kernels for other machines and on torch's future.

    Transformers imports it with its first model, whatever that is. Those who speak are held to errors meanwhile.
    """
    if _TORCHAO in sys.modules or importlib.util.find_spec("torchao") is None:
        return
    speakers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [speaker.level for speaker in speakers]
    for speaker in speakers:
        speaker.setLevel(logging.ERROR)
    try:
        # What is broken is told by whoever imports it next, and says for what.
        with contextlib.suppress(Exception):
            importlib.import_module(_TORCHAO)
    finally:
        for speaker, level in zip(speakers, levels, strict=True):
            speaker.setLevel(level)
