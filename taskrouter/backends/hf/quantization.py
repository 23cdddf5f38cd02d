"""What each quantization needs to work here, and what Transformers is told of it.

A table, and the questions asked of it: before anything is fetched (what the option asks for), and once the checkpoint's
configuration is read (what it comes with). The needs are those of Transformers' own quantizers (their
``validate_environment``), which are asked last. Where one would only warn and expand the weights to 16 bits, which
takes two to four times the memory, it is refused here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from taskrouter.backends.hf.arguments import Arguments
from taskrouter.errors import PreflightFailed
from taskrouter.memory.estimate import QUANTIZED_BYTES
from taskrouter.types import ModelRequest

GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Quantization:
    """What one needs.

    method
        Its name in a checkpoint's ``quantization_config``.
    packages
        What it can't do without: pip's name of each module.
    capability
        The least compute capability of an NVIDIA GPU; ``None``: any. ``cpu``: it works on the CPU as well.
    share
        Bytes a value of linear layers, where it is done while loading; ``None``: it has to be in the checkpoint.
    """

    method: str
    packages: Mapping[str, str] = field(default_factory=dict)
    capability: tuple[int, int] | None = None
    cpu: bool = True
    share: float | None = None


_BITSANDBYTES = {"bitsandbytes": "bitsandbytes"}
TABLE: Mapping[str, Quantization] = MappingProxyType(
    {
        "4bit": Quantization("bitsandbytes", _BITSANDBYTES, share=QUANTIZED_BYTES["4bit"]),
        "8bit": Quantization("bitsandbytes", _BITSANDBYTES, share=QUANTIZED_BYTES["8bit"]),
        "torchao": Quantization("torchao", {"torchao": "torchao"}, share=1.0),
        # Its kernels come by the package `kernels`; without a GPU that has them it is expanded.
        "fp8": Quantization("fp8", {"kernels": "kernels"}, capability=(8, 9), cpu=False, share=1.0),
        GGUF: Quantization(GGUF, {"gguf": "gguf"}),
        "awq": Quantization("awq", {"gptqmodel": "gptqmodel"}),
        "gptq": Quantization("gptq", {"gptqmodel": "gptqmodel", "optimum": "optimum"}),
        "mxfp4": Quantization("mxfp4", {"kernels": "kernels", "triton": "triton"}, capability=(7, 5)),
        "compressed-tensors": Quantization("compressed-tensors", {"compressed_tensors": "compressed-tensors"}),
        "bitsandbytes": Quantization("bitsandbytes", _BITSANDBYTES),
    }
)
"""By the word an option says. Words that aren't here are checkpoints' own, and Transformers' quantizers are asked."""

ON_LOAD = tuple(word for word, one in TABLE.items() if one.share is not None)
"""Done while loading; any other must already be in the checkpoint."""

TORCHAO: Mapping[str, str] = MappingProxyType(
    {
        "int8wo": "Int8WeightOnlyConfig",
        "int8dq": "Int8DynamicActivationInt8WeightConfig",
        "fp8wo": "Float8WeightOnlyConfig",
    }
)
"""torchao's configurations by the short names that SGLang's flag ``--torchao-config`` has for them."""


def check_wanted(request: ModelRequest, arguments: Arguments) -> None:
    """Whether what the option asks for can work here. Raises ``PreflightFailed`` before anything is fetched."""
    word = request.quantization
    if word is None or word not in TABLE:
        return
    if arguments.torchao_config not in (None, *TORCHAO):
        raise PreflightFailed(
            f"{request.label}: engine_args.torchao_config {arguments.torchao_config!r} is not one of "
            f"{', '.join(TORCHAO)}."
        )
    _require(request, TABLE[word], f"quantization {word}")


def check_stored(request: ModelRequest, arguments: Arguments, config: Mapping[str, Any]) -> None:
    """Whether the checkpoint's own quantization is the one asked for, and can work here. Raises ``PreflightFailed``."""
    method, wanted = _method(config), request.quantization
    if method is None and wanted in ON_LOAD:
        _ask_quantizer(request, on_load(request, arguments, config)["quantization_config"], stored=False)
        return
    if method is None and wanted in (None, "none"):
        return
    bits = _bits(config)
    if wanted not in (None, method, bits):
        has = f"is quantized with {method}{bits and f' to {bits}'}" if method else "is not quantized"
        raise PreflightFailed(
            f"{request.label}: quantization {wanted!r} is written, but {request.model_id} {has}. Transformers can "
            f"quantize what isn't while loading, to {', '.join(ON_LOAD)}; for others point model_id at a checkpoint "
            "made with it."
        )
    if arguments.torchao_config is not None:
        raise PreflightFailed(
            f"{request.label}: {request.model_id} is quantized already, so torchao_config does nothing. Remove it."
        )
    known = [one for one in TABLE.values() if one.method == method]
    for one in known[:1]:
        _require(request, one, f"{request.model_id} is quantized with {method}, which")
    _ask_quantizer(request, dict(stored_in(config) or {}), stored=True)


def stored_in(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How a checkpoint says it is quantized, as a whole or in its language model; ``None``: it isn't."""
    for values in (config, config.get("text_config")):
        if isinstance(values, Mapping) and isinstance(values.get("quantization_config"), Mapping):
            return dict(values["quantization_config"])
    return None


def share_of(request: ModelRequest, config: Mapping[str, Any]) -> float | None:
    """Bytes a value of linear layers that are quantized while loading; ``None``: none are."""
    one = TABLE.get(request.quantization or "")
    return None if one is None or _method(config) is not None else one.share


def on_load(request: ModelRequest, arguments: Arguments, config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``from_pretrained`` is told, so that it quantizes, or reads what is written otherwise."""
    import transformers

    word = request.quantization
    if word == GGUF:
        # Weights that stay packed need kernels from the hub, which would be fetched in the middle of a load.
        return {"gguf_file": arguments.gguf_file, "quantization_config": transformers.GgufConfig(dequantize=True)}
    if word not in ON_LOAD or _method(config) is not None:
        return {}
    if word == "torchao":
        import torchao.quantization as torchao

        made = getattr(torchao, TORCHAO[arguments.torchao_config or "int8wo"])()
        return {"quantization_config": transformers.TorchAoConfig(made)}
    if word == "fp8":
        return {"quantization_config": transformers.FineGrainedFP8Config()}
    in_4bit = word == "4bit"
    return {"quantization_config": transformers.BitsAndBytesConfig(load_in_4bit=in_4bit, load_in_8bit=not in_4bit)}


def _method(config: Mapping[str, Any]) -> str | None:
    """What the checkpoint is quantized with."""
    stored = stored_in(config)
    return None if stored is None else str(stored.get("quant_method"))


def _bits(config: Mapping[str, Any]) -> str:
    """Our word for what bitsandbytes made of it."""
    if _method(config) != "bitsandbytes":
        return ""
    return "4bit" if (stored_in(config) or {}).get("load_in_4bit") else "8bit"


def _require(request: ModelRequest, one: Quantization, what: str) -> None:
    missing = [pip for module, pip in one.packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise PreflightFailed(
            f"{request.label}: {what} needs {' and '.join(missing)}, which is not installed: `pip install "
            f"{' '.join(missing)}`, or choose an option without it."
        )
    if one.cpu and one.capability is None:
        return
    import torch

    gpus = _gpus(request.devices)
    wants = "an NVIDIA GPU" if one.capability is None else f"an NVIDIA GPU of compute capability {_dotted(one)} or more"
    if not gpus and not one.cpu:
        here = "it is to run on the CPU" if torch.cuda.is_available() else "there is none here"
        raise PreflightFailed(f"{request.label}: {what} needs {wants}, and {here}. Choose an option without it.")
    for place in gpus:
        found = torch.cuda.get_device_capability(place)
        if one.capability is not None and found < one.capability:
            raise PreflightFailed(
                f"{request.label}: {what} needs {wants}, and cuda:{place} has {found[0]}.{found[1]}. Name a newer GPU "
                "in devices, or choose an option without it."
            )


def _dotted(one: Quantization) -> str:
    return ".".join(map(str, one.capability or ()))


def _gpus(devices: int | tuple[str, ...]) -> list[int]:
    """The GPUs it may come to lie on; none: it will be on the CPU."""
    import torch

    if not isinstance(devices, int):
        return [int(name.removeprefix("cuda:")) for name in devices if name.startswith("cuda:")]
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def _ask_quantizer(request: ModelRequest, described: Any, *, stored: bool) -> None:
    """Ask Transformers itself: its versions, and what is in no table of ours."""
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(described, pre_quantized=stored).validate_environment(device_map=None)
    except Exception as error:
        what = (
            f"{request.model_id} is quantized with {described['quant_method']}, which"
            if stored
            else (f"quantization {request.quantization}")
        )
        raise PreflightFailed(f"{request.label}: {what} can't run here: {error}") from error
