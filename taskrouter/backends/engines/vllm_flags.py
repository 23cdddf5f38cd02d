"""An option as vLLM's command line. Held to vLLM's own parser by the tests, and before each first start.

The grant becomes ``--gpu-memory-utilization``, a fraction of the *whole* device: vLLM profiles its peak and gives what
is left of the fraction to its KV cache. ``--kv-cache-memory-bytes`` would fix the cache by our estimate of that peak
and switch the check off, so it is used on the CPU only, where nothing is profiled.
"""

from __future__ import annotations

from taskrouter.backends.engines import flags
from taskrouter.backends.engines.launch import Checkpoint, Launch, Start
from taskrouter.errors import PreflightFailed
from taskrouter.types import ModelRequest

MODULE = "vllm.entrypoints.openai.api_server"
"""``vllm serve`` is the same, but fails under the CPU wheel, whose distribution has another name."""

OWN = {
    "model": "write model_id beside framework",
    "host": "leave it out: engines listen on loopback",
    "port": "leave it out: a free one is chosen",
    "uds": "leave it out: engines are reached over TCP",
    "api-key": "leave it out: each start has a random one",
    "served-model-name": "leave it out: requests are sent under the right name",
    "revision": "write revision beside model_id",
    "dtype": "write dtype beside model_id",
    "quantization": "write quantization beside model_id",
    "max-model-len": "write max_context beside model_id",
    "max-num-seqs": "write max_concurrency beside model_id",
    "tensor-parallel-size": "write devices beside model_id",
    "gpu-memory-utilization": "declare vram_gb",
    "kv-cache-memory-bytes": "declare vram_gb",
    "trust-remote-code": "write trust_remote_code beside model_id",
    "enable-sleep-mode": "leave it out: sleeping is not supported yet",
}

ON_LOAD = {"4bit": "bitsandbytes", "nf4": "bitsandbytes"}
"""Our words for quantizing while loading, and vLLM's."""
REFUSED = {
    "8bit": "vLLM quantizes to 4 bits while loading, not to 8: write 4bit or fp8, or take a quantized checkpoint"
}

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1"}
"""Sends nothing home; its processes find each other on loopback."""

need = flags.need


def launch(
    request: ModelRequest, checkpoint: Checkpoint, start: Start, *, python: str, max_concurrency: int | None
) -> Launch:
    """The command line and environment of one start. Raises ``PreflightFailed`` for what vLLM can't do."""
    argv = [python, "-m", MODULE, "--model", checkpoint.folder, "--served-model-name", start.name]
    argv += ["--host", "127.0.0.1", "--port", str(start.port), "--disable-uvicorn-access-log"]
    if request.dtype is not None:
        argv += ["--dtype", request.dtype]
    quantization = _quantization(request)
    if quantization is not None:
        argv += ["--quantization", quantization]
    context = flags.context(request, checkpoint, start)
    if context is not None:
        argv += ["--max-model-len", str(context)]
    if max_concurrency is not None:
        argv += ["--max-num-seqs", str(max_concurrency)]
    if request.trust_remote_code:
        argv += ["--trust-remote-code"]
    if len(start.places) > 1:
        argv += ["--tensor-parallel-size", str(len(start.places))]
    if start.on_gpu:
        share = min(start.places, key=lambda place: place.granted / max(place.total, 1))
        argv += ["--gpu-memory-utilization", flags.fraction(share.granted, share.total)]
    else:
        argv += ["--kv-cache-memory-bytes", str(flags.cache_bytes(request, checkpoint, start))]
    argv += flags.words(request, OWN)
    return Launch(tuple(argv), {**QUIET, **flags.visible(start), "VLLM_API_KEY": start.api_key})


def _quantization(request: ModelRequest) -> str | None:
    word = request.quantization
    if word in (None, "none"):
        return None
    if word in REFUSED:
        raise PreflightFailed(f"{request.label}: quantization {word}: {REFUSED[word]}.")
    return ON_LOAD.get(word, word)
