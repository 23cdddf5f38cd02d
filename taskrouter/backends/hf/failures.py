"""From whatever Transformers and torch raise to the typed error, letting go of the memory that tracebacks hold."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator

from taskrouter.errors import (
    CallFailed,
    CheckpointCorrupt,
    LoadFailed,
    ModelUnavailable,
    OutOfMemory,
)

_ALLOCATION_TEXTS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDA error: out of memory")


def load_error(error: BaseException, label: str) -> ModelUnavailable:
    """The typed error of a failed load; the caller raises it ``from error``."""
    forget_frames(error, note=not isinstance(error, ModelUnavailable))
    if isinstance(error, ModelUnavailable):
        return error
    if out_of_memory(error):
        return OutOfMemory(
            f"{label} ran out of memory while loading: {_said(error)}. Give it a larger vram_gb, or unload others."
        )
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            # Of a copy the error names source and target, and it is the target's disk that is full.
            place = each.filename2 or each.filename
            where = f" ({place})" if place else ""
            return LoadFailed(
                f"{label} could not be loaded: the disk is full{where}. Free some room there and ask again."
            )
        if type(each).__name__ == "SafetensorError":
            return CheckpointCorrupt(
                f"{label} could not be loaded: its weights are damaged ({_said(each)}). Download them again."
            )
    return LoadFailed(f"{label} could not be loaded: {type(error).__name__}: {_said(error)}")


def call_error(error: BaseException, label: str) -> CallFailed:
    """The typed error of a failed call; the caller raises it ``from error``."""
    forget_frames(error)
    if out_of_memory(error):
        return CallFailed(
            f"{label} ran out of memory while answering: {_said(error)}. It stays loaded; send less at once, or "
            "give it more room (vram_gb)."
        )
    return CallFailed(f"{label} failed while answering: {type(error).__name__}: {_said(error)}")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, whichever allocator said so."""
    return any(
        isinstance(each, MemoryError)
        or type(each).__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError")
        or (isinstance(each, RuntimeError) and any(text in str(each) for text in _ALLOCATION_TEXTS))
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        for each in _chain(error)
    )


def forget_frames(error: BaseException, *, note: bool = True) -> None:
    """Drop an error's tracebacks, which keep half-loaded models and activations alive as long as the error itself.

    Clearing the frames is not enough: a cleared frame still holds its function, and with it the function's closure.
    What the traceback would have told is kept as a note, unless ``note`` is false (the caller's own mistakes).
    """
    for each in _chain(error):
        trace, each.__traceback__ = each.__traceback__, None
        if trace is None:
            continue
        if note:
            each.add_note("Raised in (most recent call last):\n" + "".join(traceback.format_tb(trace)).rstrip())
        traceback.clear_frames(trace)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += [each.__cause__, each.__context__]


def _said(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:400]
