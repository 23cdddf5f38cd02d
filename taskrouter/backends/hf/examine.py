"""Preflight: everything that can be known of a checkpoint without loading it.

In order: the packages are there; the arguments parse; the folder is found (or fetched); ``config.json`` names an
architecture this build can run, and a verb for it; its code is allowed; its processor's files are there; its
quantization can work here; its weights are whole. The first that fails is the answer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from taskrouter.backends.hf.arguments import (
    DTYPES,
    OF_VIDEOS,
    QUANTIZED_ON_LOAD,
    Arguments,
    check_arguments,
    check_context,
    check_dtype,
)
from taskrouter.backends.hf.recipe import RECIPE, read_recipe
from taskrouter.errors import CheckpointMissing, MissingDependency, ModelUnavailable, PreflightFailed
from taskrouter.memory.checkpoint import Weights, read_config, read_json, read_weights
from taskrouter.memory.estimate import ceiling, estimate, kv_cache_bytes
from taskrouter.memory.hub import locate
from taskrouter.types import Footprint, ModelRequest


class Family(Enum):
    """What a checkpoint is for; the value is the Transformers class that loads it."""

    VISION = "AutoModelForImageTextToText"
    CHAT = "AutoModelForCausalLM"
    IMAGE = "AutoModelForImageClassification"
    ZERO_SHOT_IMAGE = "AutoModelForZeroShotImageClassification"
    AUDIO = "AutoModelForAudioClassification"
    EMBEDDING = "AutoModel"
    DETECTION = "AutoModelForObjectDetection"
    ZERO_SHOT_DETECTION = "AutoModelForZeroShotObjectDetection"
    CTC = "AutoModelForCTC"
    SPEECH = "AutoModelForSpeechSeq2Seq"


VERBS: Mapping[Family, frozenset[str]] = {
    Family.VISION: frozenset({"chat", "stream_chat"}),
    Family.CHAT: frozenset({"chat", "stream_chat", "generate"}),
    Family.EMBEDDING: frozenset({"embed"}),
    Family.IMAGE: frozenset({"classify"}),
    Family.ZERO_SHOT_IMAGE: frozenset({"classify"}),
    Family.AUDIO: frozenset({"classify"}),
    Family.DETECTION: frozenset({"detect"}),
    Family.ZERO_SHOT_DETECTION: frozenset({"detect"}),
    Family.CTC: frozenset({"transcribe"}),
    Family.SPEECH: frozenset({"transcribe"}),
}

_EXTRA = {"extra": "Transformers models here know no further fields"}
COMPLETES = frozenset({"generate"})
"""What is left of a language model's verbs where it has no chat template."""
LACKS: Mapping[Family, Mapping[str, str]] = {
    Family.CHAT: {**dict.fromkeys(("image", "audio", "video", "document", "tools"), "it chats in text"), **_EXTRA},
    Family.VISION: {**dict.fromkeys(("audio", "document", "tools"), "it chats in text, images and videos"), **_EXTRA},
    Family.EMBEDDING: _EXTRA,
}
"""What a request can't hold, by family, of those that read text; their context is told, too."""

_PICTURES = ("torch", "transformers", "PIL", "numpy")
_SOUNDS = ("torch", "transformers", "av", "numpy")
NEEDS: Mapping[Family, tuple[str, ...]] = {
    Family.VISION: (*_PICTURES, "av", "jinja2"),
    Family.CHAT: ("torch", "transformers", "jinja2"),
    Family.EMBEDDING: ("torch", "transformers"),
    Family.IMAGE: _PICTURES,
    Family.ZERO_SHOT_IMAGE: _PICTURES,
    Family.AUDIO: _SOUNDS,
    Family.DETECTION: _PICTURES,
    Family.ZERO_SHOT_DETECTION: _PICTURES,
    Family.CTC: _SOUNDS,
    Family.SPEECH: _SOUNDS,
}
"""The packages it can't do without."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PREPARES: Mapping[Family, str] = {
    Family.CHAT: "AutoTokenizer",
    Family.EMBEDDING: "AutoTokenizer",
    Family.IMAGE: "AutoImageProcessor",
    Family.AUDIO: "AutoFeatureExtractor",
    Family.DETECTION: "AutoImageProcessor",
}
"""The Transformers class that prepares its input; of the others, which take text beside it, ``AutoProcessor``."""


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
    if request.isolation != "in_process":
        raise PreflightFailed(
            f"{request.label}: isolation {request.isolation!r} isn't available for Transformers in this version. "
            "Write isolation: in_process."
        )
    arguments = check_arguments(request)
    dtype = check_dtype(request)
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
    require_packages(NEEDS[family])
    _check_files(request, folder, family)
    verbs = VERBS[family]
    if family is Family.CHAT and not _has_chat_template(folder):
        verbs &= COMPLETES
    _check_quantization(request, config)
    context = check_context(request, ceiling(config)) if family in LACKS else None
    weights = read_weights(folder, allow_pickle=not arguments.use_safetensors)
    loaded_as = dtype or _own_dtype(config)
    cache_bytes = 0
    if context is not None and isinstance(request.max_context, int):
        cache_bytes = kv_cache_bytes(config, context, 4 if loaded_as == "float32" else 2)
    need = estimate(
        weights,
        dtype=loaded_as,
        cache_bytes=cache_bytes,
        quantization=request.quantization,
        devices=request.devices if isinstance(request.devices, int) else len(request.devices),
    )
    return Checkpoint(
        folder, config, architecture, family, verbs, arguments, dtype, context, weights, cache_bytes, need
    )


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
    idle = [key for key in request.engine_args if key.replace("-", "_") in OF_VIDEOS]
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
    for family, known in _known_architectures().items():
        if architecture in known:
            return architecture, family
    if _built_in(architecture):
        raise PreflightFailed(
            f"{request.label}: {architecture} can be loaded, but this version has no verb for it: Transformers "
            "models here chat (causal and vision language models), generate, embed (those of sentence-transformers), "
            "classify (images, audio), detect and transcribe."
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


def _known_architectures() -> dict[Family, frozenset[str]]:
    from transformers.models.auto import modeling_auto as auto

    def names(mapping: Mapping[str, str | tuple[str, ...]]) -> frozenset[str]:
        return frozenset(name for value in mapping.values() for name in ((value,) if isinstance(value, str) else value))

    return {
        # Some that take pictures can be loaded as language models, too, and are blind then: pictures come first.
        Family.VISION: names(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        Family.CHAT: names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        Family.IMAGE: names(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        Family.AUDIO: names(auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES),
        Family.DETECTION: names(auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES),
        Family.ZERO_SHOT_DETECTION: names(auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES),
        Family.CTC: names(auto.MODEL_FOR_CTC_MAPPING_NAMES),
        # Of these two the others want to be asked otherwise than by the pipeline of their kind.
        Family.SPEECH: frozenset({"WhisperForConditionalGeneration"}),
        Family.ZERO_SHOT_IMAGE: frozenset({"CLIPModel", "SiglipModel", "Siglip2Model", "AltCLIPModel", "AlignModel"}),
    }


def _built_in(architecture: str) -> bool:
    import transformers

    return hasattr(transformers, architecture)


def _check_files(request: ModelRequest, folder: Path, family: Family) -> None:
    for wanted in _prepared_by(family):
        if not any((folder / name).is_file() for name in wanted):
            raise CheckpointMissing(
                f"{request.label}: {folder} has none of {', '.join(wanted)}, so its input can't be prepared. Fetch the "
                "whole model."
            )
    if family is Family.VISION and not _has_chat_template(folder):
        raise PreflightFailed(
            f"{request.label}: {request.model_id} has no chat template, so it can't be asked about pictures. Choose "
            "its instruct variant, or put a chat_template.jinja into its folder."
        )


def _prepared_by(family: Family) -> tuple[tuple[str, ...], ...]:
    """Of each of these at least one file must be there."""
    if family in (Family.CHAT, Family.EMBEDDING):
        return (TOKENIZER_FILES,)
    return (PROCESSOR_FILES,) if family in PREPARES else (PROCESSOR_FILES, TOKENIZER_FILES)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    files = (folder / name for name in ("tokenizer_config.json", "processor_config.json"))
    return any(file.is_file() and read_json(file).get("chat_template") for file in files)


def _own_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype ``auto`` converts to: the configuration's, unless the checkpoint is quantized and stays as it is."""
    if isinstance(config.get("quantization_config"), dict):
        return None
    name = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return DTYPES.get(name)


def _check_quantization(request: ModelRequest, config: Mapping[str, Any]) -> None:
    stored = config.get("quantization_config")
    method = str(stored.get("quant_method")) if isinstance(stored, dict) else None
    wanted = request.quantization
    if wanted in QUANTIZED_ON_LOAD and method in (None, "bitsandbytes"):
        import torch

        if importlib.util.find_spec("bitsandbytes") is None:
            raise PreflightFailed(
                f"{request.label}: quantization {wanted} needs bitsandbytes, which is not installed: `pip install "
                "bitsandbytes`, or choose an option without quantization."
            )
        if not torch.cuda.is_available():
            raise PreflightFailed(
                f"{request.label}: quantization {wanted} needs an NVIDIA GPU, and there is none here. Choose an "
                "option without it."
            )
    elif wanted is not None and wanted != method:
        has = f"is quantized with {method}" if method else "is not quantized"
        raise PreflightFailed(
            f"{request.label}: quantization {wanted!r} is written, but {request.model_id} {has}. Transformers can "
            f"quantize while loading only to {' or '.join(QUANTIZED_ON_LOAD)}; for others point model_id at a "
            "checkpoint made with it."
        )
    if method is not None:
        _check_quantizer(request, stored)


def _check_quantizer(request: ModelRequest, stored: Any) -> None:
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(dict(stored), pre_quantized=True).validate_environment(device_map=None)
    except Exception as error:
        raise PreflightFailed(
            f"{request.label}: {request.model_id} is quantized with {stored.get('quant_method')}, which can't run "
            f"here: {error}"
        ) from error
