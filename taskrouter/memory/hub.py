"""From a ``model_id`` to the folder that holds it: a local path, or a snapshot in the Hugging Face cache.

What isn't in the cache is downloaded, weights in safetensors only (of GGUF the one file), unless the process is
offline. A complete snapshot is used without asking the network.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from taskrouter.errors import CheckpointMissing, PreflightFailed, TaskRouterError
from taskrouter.memory.checkpoint import read_config, read_weights
from taskrouter.memory.gguf import find_gguf, has_gguf

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "LICENSE*")
"""What a checkpoint needs beside its weights."""


def locate(
    model_id: str,
    *,
    revision: str | None = None,
    base_dir: str | Path = ".",
    allow_pickle: bool = False,
    allow_code: bool = False,
) -> Path:
    """Find, or fetch, the folder of a model. Blocks, for as long as a download takes: call it in a thread of its own.

    Raises ``CheckpointMissing`` (no such folder; not in the cache and the hub can't be asked or has no such model),
    ``CheckpointCorrupt``, and ``PreflightFailed`` where the disk is full or access is denied.
    """
    local = _local(model_id, base_dir)
    if local.is_dir():
        return local
    snapshot = _cached(model_id, revision)
    if snapshot is not None and _complete(snapshot, allow_pickle=allow_pickle):
        return snapshot
    weights = ["*.safetensors", *(["*.bin"] if allow_pickle else []), *(["*.py"] if allow_code else [])]
    return _download(model_id, revision, local, weights)


def locate_gguf(model_id: str, name: str | None, *, revision: str | None = None, base_dir: str | Path = ".") -> Path:
    """Find a model's one GGUF file, or fetch it, and of a model on the hub no other. Blocks, and raises, as ``locate``.

    ``model_id`` may be the file itself. ``name`` says which, where there are several; it is needed for a model that
    isn't in the cache yet.
    """
    itself = Path(base_dir) / os.path.expanduser(model_id)
    if name is None and itself.suffix == ".gguf" and itself.is_file():
        return find_gguf(itself.parent, itself.name)
    local = _local(model_id, base_dir)
    if local.is_dir():
        return find_gguf(local, name)
    snapshot = _cached(model_id, revision)
    if snapshot is not None and has_gguf(snapshot, name):
        return find_gguf(snapshot, name)
    if name is None:
        raise CheckpointMissing(
            f"{model_id} is not in the Hugging Face cache, and repositories of GGUF hold many files of which one is "
            "wanted. Write its name: engine_args: {gguf_file: NAME.gguf}."
        )
    return find_gguf(_download(model_id, revision, local, [name]), name)


def on_hub(model_id: str, base_dir: str | Path = ".") -> bool:
    """Whether ``locate`` would look for this in the Hugging Face cache: a hub id that is no file or folder here."""
    local = Path(base_dir) / os.path.expanduser(model_id)
    return _HUB_ID.fullmatch(model_id) is not None and not local.exists()


def _local(model_id: str, base_dir: str | Path) -> Path:
    """The folder that a ``model_id`` may name; where there is none, it is the name of a model on the hub."""
    local = Path(base_dir) / os.path.expanduser(model_id)
    if local.is_file():
        hint = " Of a GGUF file write quantization: gguf." if local.suffix == ".gguf" else ""
        raise CheckpointMissing(
            f"{local} is a file; model_id wants the folder that holds config.json and the weights.{hint}"
        )
    if not local.is_dir() and not _HUB_ID.fullmatch(model_id):
        raise CheckpointMissing(
            f"no such folder: {local}. model_id wants a folder (relative to models.yaml) or a hub id."
        )
    return local


def _cached(model_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _complete(snapshot: Path, *, allow_pickle: bool) -> bool:
    """Whether a snapshot has its configuration and all its weights (an interrupted download leaves parts)."""
    try:
        read_config(snapshot)
        read_weights(snapshot, allow_pickle=allow_pickle)
    except CheckpointMissing:
        return False
    except TaskRouterError:
        return True  # all there, and wrong: whoever reads it says so
    return True


def _download(model_id: str, revision: str | None, local: Path, weights: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    at = f" at revision {revision}" if revision else ""
    fetch = f"`hf download {model_id}{f' --revision {revision}' if revision else ''}`"
    if constants.HF_HUB_OFFLINE:
        raise CheckpointMissing(
            f"{model_id}{at} is neither a folder ({local}) nor complete in the Hugging Face cache, and "
            f"HF_HUB_OFFLINE is set. Fetch it with {fetch} on a machine that is online, or correct model_id."
        )
    logger.info("downloading %s%s to %s", model_id, at, constants.HF_HUB_CACHE)
    try:
        with _no_bars():
            return Path(snapshot_download(model_id, revision=revision, allow_patterns=[*SMALL_FILES, *weights]))
    except GatedRepoError as error:
        raise PreflightFailed(
            f"{model_id} is gated: accept its terms on the hub, then set HF_TOKEN or run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointMissing(f"{model_id} has no revision {revision!r} on the hub. Correct `revision`.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointMissing(
            f"{model_id} is neither a folder ({local}) nor a model on the hub that you may see. Correct model_id, "
            "or set HF_TOKEN for a private one."
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PreflightFailed(
                f"the disk is full: {model_id} could not be downloaded to {constants.HF_HUB_CACHE}. Free some room, "
                "or set HF_HOME to a larger disk."
            ) from error
        if isinstance(error, (OSError, HfHubHTTPError, ValueError)) or type(error).__module__.startswith(
            ("httpx", "httpcore")
        ):
            raise CheckpointMissing(
                f"{model_id}{at} is neither a folder ({local}) nor complete in the Hugging Face cache, and the hub "
                f"can't be reached ({type(error).__name__}). Fetch it with {fetch}, or correct model_id."
            ) from error
        raise


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
