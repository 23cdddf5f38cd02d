"""Preflight: everything that can be known of a checkpoint without loading it.

In order: the packages are there; the arguments parse; the quantization that is asked for can work here; the folder is
found (or fetched); ``config.json`` names an architecture this build can run, and a verb for it; its code is allowed;
its processor's files are there; the quantization it comes with can work here; its weights are whole. The first that
fails is the answer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskrouter.backends.hf.arguments import (
    DTYPES,
    Arguments,
    check_arguments,
    check_context,
    check_dtype,
)
from taskrouter.backends.hf.families import (
    ALSO_NEEDS,
    BATCHED,
    COMPLETES,
    LACKS,
    LOOK_AT_ALL_ROWS,
    NEEDS,
    PREPARES,
    TAKES,
    VERBS,
    Family,
    known_architectures,
    prepared_by,
    rope_types,
)
from taskrouter.backends.hf.gguf import gguf_config
from taskrouter.backends.hf.prepare import check_pictures
from taskrouter.backends.hf.quantization import GGUF, check_stored, check_wanted, share_of, stored_in
from taskrouter.backends.hf.quiet import import_torchao
from taskrouter.backends.hf.recipe import RECIPE, read_recipe
from taskrouter.backends.showing import OF_VIDEOS, spelled
from taskrouter.errors import CheckpointMissing, MissingDependency, ModelUnavailable, PreflightFailed
from taskrouter.memory.checkpoint import Weights, read_config, read_json, read_weights
from taskrouter.memory.estimate import ceiling, estimate, kv_cache_bytes
from taskrouter.memory.gguf import read_gguf
from taskrouter.memory.hub import locate, locate_gguf
from taskrouter.types import Footprint, ModelRequest


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be loaded: where it is and how, and what it can be asked.

    ``dtype`` is torch's name, ``None``: the checkpoint's own. ``cache_bytes`` is the KV cache of a written
    ``max_context``, over all devices.
    """

    folder: Path
    config: Mapping[str, Any]
    architecture: str
    family: Family
    verbs: frozenset[str]
    arguments: Arguments
    dtype: str | None
    context: int | None
    weights: Weights
    cache_bytes: int
    need: Footprint

    @property
    def shares_passes(self) -> bool:
        """Whether its calls may be worked on together.

        Not where places are turned by how long the longest row is: a short text would read like a long one.
        """
        return self.family in BATCHED and not rope_types(self.config) & LOOK_AT_ALL_ROWS


def examine(request: ModelRequest) -> Checkpoint:
    """Check a request. Blocks (imports, downloads): call it in a thread of its own.

    Raises ``PreflightFailed`` and its kin, or ``MissingDependency``; nothing else.
    """
    try:
        return _examine(request)
    except ModelUnavailable:
        raise
    except Exception as error:
        kind = MissingDependency if isinstance(error, ImportError) else PreflightFailed
        raise kind(
            f"{request.label}: {request.model_id} could not be checked: {type(error).__name__}: {error}. "
            "Correct what it names, or choose another option."
        ) from error


def _examine(request: ModelRequest) -> Checkpoint:
    require_packages(("torch", "transformers"))
    import_torchao()
    arguments = check_arguments(request)
    dtype = check_dtype(request)
    check_wanted(request, arguments)
    if request.quantization == GGUF:
        return _examine_gguf(request, arguments, dtype or "float32")
    folder = locate(
        request.model_id,
        revision=request.revision,
        base_dir=request.base_dir,
        allow_pickle=not arguments.use_safetensors,
        allow_code=request.trust_remote_code,
    )
    config = read_config(folder)
    if (folder / RECIPE).is_file():
        architecture, family = _architecture(request, config), Family.EMBEDDING
        if not _own_code(request, config, architecture) and not _built_in(architecture):
            raise _unknown(request, architecture)
        read_recipe(request.label, folder)
    else:
        architecture, family = _family(request, config)
    _refuse_idle_keys(request, family)
    require_packages((*NEEDS[family], *ALSO_NEEDS.get(str(config.get("model_type")), ())))
    _check_files(request, folder, family)
    if PREPARES.get(family) == "AutoImageProcessor" and family is not Family.POINTED and "auto_map" not in config:
        check_pictures(request.label, folder)
    verbs = VERBS[family]
    if family is Family.CHAT and not _has_chat_template(folder):
        verbs &= COMPLETES
    check_stored(request, arguments, config)
    context = check_context(request, ceiling(config)) if family in LACKS else None
    weights = read_weights(folder, allow_pickle=not arguments.use_safetensors)
    loaded_as = dtype or _own_dtype(config)
    cache_bytes = _cache_bytes(request, config, context, loaded_as)
    need = estimate(
        weights,
        dtype=loaded_as,
        cache_bytes=cache_bytes,
        share=share_of(request, config),
        devices=_device_count(request),
    )
    return Checkpoint(
        folder, config, architecture, family, verbs, arguments, dtype, context, weights, cache_bytes, need
    )


def _examine_gguf(request: ModelRequest, arguments: Arguments, dtype: str) -> Checkpoint:
    """The one file brings configuration, tokenizer and chat template, too; its weights are expanded to ``dtype``."""
    file = locate_gguf(request.model_id, arguments.gguf_file, revision=request.revision, base_dir=request.base_dir)
    read = read_gguf(file, dtype)
    config, architecture = gguf_config(request, file)
    _refuse_idle_keys(request, Family.CHAT)
    require_packages(NEEDS[Family.CHAT])
    verbs = VERBS[Family.CHAT]
    # A tokenizer beside the file comes before the one in it, and its template does, too.
    brings = read.has_chat_template and not (file.parent / "tokenizer.json").is_file()
    if not brings and not _has_chat_template(file.parent):
        verbs &= COMPLETES
    context = check_context(request, ceiling(config))
    cache_bytes = _cache_bytes(request, config, context, dtype)
    need = estimate(read.weights, dtype=dtype, cache_bytes=cache_bytes, devices=_device_count(request))
    return Checkpoint(
        file.parent, config, architecture, Family.CHAT, verbs, replace(arguments, gguf_file=file.name), dtype, context,
        read.weights, cache_bytes, need,
    )  # fmt: skip


def _cache_bytes(request: ModelRequest, config: Mapping[str, Any], context: int | None, dtype: str | None) -> int:
    """Bytes of the KV cache, where the option says how long it may become."""
    if context is None or not isinstance(request.max_context, int):
        return 0
    return kv_cache_bytes(config, context, 4 if dtype == "float32" else 2)


def _device_count(request: ModelRequest) -> int:
    return request.devices if isinstance(request.devices, int) else len(request.devices)


def _refuse_idle_keys(request: ModelRequest, family: Family) -> None:
    """A key that could do nothing here is refused, not ignored."""
    if request.revision is not None and (Path(request.base_dir) / request.model_id).is_dir():
        raise PreflightFailed(
            f"{request.label}: revision {request.revision!r} names a version on the hub, and "
            f"{request.model_id} is a folder. Remove revision."
        )
    if request.max_context is not None and family not in LACKS:
        raise PreflightFailed(
            f"{request.label}: max_context bounds the text of a chat model, and {request.model_id} is none. "
            "Remove max_context."
        )
    idle = [key for key in request.engine_args if spelled(key) in OF_VIDEOS]
    if idle and family is not Family.VISION:
        raise PreflightFailed(
            f"{request.label}: engine_args.{idle[0]} says how a vision language model is shown videos, and "
            f"{request.model_id} is none. Remove {idle[0]}."
        )


def require_packages(names: Iterable[str]) -> None:
    """Raise ``MissingDependency`` unless all of these can be imported."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"framework transformers needs {', '.join(missing)}, which is not installed: `pip install "
            "taskrouter[transformers]`."
        )


def _architecture(request: ModelRequest, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise PreflightFailed(
            f"{request.label}: config.json of {request.model_id} names no architecture. Correct model_id."
        )
    return names[0]


def _family(request: ModelRequest, config: Mapping[str, Any]) -> tuple[str, Family]:
    architecture = _architecture(request, config)
    own_code = _own_code(request, config, architecture)
    for family in Family:
        if family is not Family.EMBEDDING and family.value in own_code:
            return architecture, family
    for family, known in known_architectures().items():
        if architecture in known:
            return architecture, family
    if _built_in(architecture):
        raise PreflightFailed(
            f"{request.label}: {architecture} can be loaded, but this version has no verb for it: Transformers "
            "models here chat (causal, vision and audio language models), generate, embed (those of "
            "sentence-transformers), classify (images, audio, videos), detect, track, segment, tell depth and "
            "transcribe."
        )
    raise _unknown(request, architecture)


def _own_code(request: ModelRequest, config: Mapping[str, Any], architecture: str) -> Mapping[str, Any]:
    """The classes that come with the checkpoint, where Transformers has none of its own and they may run."""
    own_code = config.get("auto_map")
    if not isinstance(own_code, dict) or not own_code or _built_in(architecture):
        return {}
    if not request.trust_remote_code:
        raise PreflightFailed(
            f"{request.label}: {request.model_id} brings its own Python code (auto_map in config.json), which "
            "runs with all your rights. If you trust it, write `trust_remote_code: true` in this option; "
            "otherwise choose another model."
        )
    return own_code


def _unknown(request: ModelRequest, architecture: str) -> PreflightFailed:
    import transformers

    return PreflightFailed(
        f"{request.label}: transformers {transformers.__version__} knows no architecture {architecture!r} "
        f"(config.json of {request.model_id}). Upgrade transformers, or choose another model."
    )


def _built_in(architecture: str) -> bool:
    import transformers

    return hasattr(transformers, architecture)


def _check_files(request: ModelRequest, folder: Path, family: Family) -> None:
    for wanted in prepared_by(family):
        if not any((folder / name).is_file() for name in wanted):
            raise CheckpointMissing(
                f"{request.label}: {folder} has none of {', '.join(wanted)}, so its input can't be prepared. Fetch the "
                "whole model."
            )
    if family in TAKES and not _has_chat_template(folder):
        raise PreflightFailed(
            f"{request.label}: {request.model_id} has no chat template, so it can't be asked about media. Choose "
            "its instruct variant, or put a chat_template.jinja into its folder."
        )


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    files = (folder / name for name in ("tokenizer_config.json", "processor_config.json"))
    return any(file.is_file() and read_json(file).get("chat_template") for file in files)


def _own_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype ``auto`` converts to: the configuration's, unless the checkpoint is quantized and stays as it is."""
    if stored_in(config) is not None:
        return None
    name = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return DTYPES.get(name)
