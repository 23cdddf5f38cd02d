"""An option as SGLang's command line. Held to SGLang's own parser by the tests, and before each first start.

``--mem-fraction-static`` is a fraction of what is *free* before the load, and covers weights and KV pool only: what it
works in comes on top, and is left out of the grant's share.
"""

from __future__ import annotations

from taskrouter.backends.engines import flags
from taskrouter.backends.engines.launch import Checkpoint, Launch, Start
from taskrouter.errors import PreflightFailed
from taskrouter.memory.estimate import working_bytes
from taskrouter.types import ModelRequest

MODULE = "sglang.launch_server"

OWN = {
    "model": "write model_id beside framework",
    "model-path": "write model_id beside framework",
    "host": "leave it out: engines listen on loopback",
    "port": "leave it out: a free one is chosen",
    "api-key": "leave it out: each start has a random one",
    "served-model-name": "leave it out: requests are sent under the right name",
    "revision": "write revision beside model_id",
    "dtype": "write dtype beside model_id",
    "quantization": "write quantization beside model_id",
    "context-length": "write max_context beside model_id",
    "max-running-requests": "write max_concurrency beside model_id",
    "tensor-parallel-size": "write devices beside model_id",
    "tp-size": "write devices beside model_id",
    "tp": "write devices beside model_id",
    "mem-fraction-static": "declare vram_gb",
    "max-total-tokens": "declare vram_gb",
    "device": "write devices beside model_id",
    "trust-remote-code": "write trust_remote_code beside model_id",
    "enable-memory-saver": "leave it out: sleeping is not supported yet",
}

REFUSED = {
    "4bit": "SGLang doesn't quantize with bitsandbytes while loading; write fp8, or take an awq or gptq checkpoint",
    "8bit": "SGLang doesn't quantize with bitsandbytes while loading; write fp8 or w8a8_int8",
}

need = flags.need


def launch(
    request: ModelRequest, checkpoint: Checkpoint, start: Start, *, python: str, max_concurrency: int | None
) -> Launch:
    """The command line and environment of one start. Raises ``PreflightFailed`` for what SGLang can't do."""
    argv = [python, "-m", MODULE, "--model-path", checkpoint.folder, "--served-model-name", start.name]
    argv += ["--host", "127.0.0.1", "--port", str(start.port), "--api-key", start.api_key]
    if request.dtype is not None:
        argv += ["--dtype", request.dtype]
    if request.quantization in REFUSED:
        raise PreflightFailed(f"{request.label}: quantization {request.quantization}: {REFUSED[request.quantization]}.")
    if request.quantization not in (None, "none"):
        argv += ["--quantization", str(request.quantization)]
    context = flags.context(request, checkpoint, start)
    if context is not None:
        argv += ["--context-length", str(context)]
    if max_concurrency is not None:
        argv += ["--max-running-requests", str(max_concurrency)]
    if request.trust_remote_code:
        argv += ["--trust-remote-code"]
    if len(start.places) > 1:
        argv += ["--tp-size", str(len(start.places))]
    cache = flags.cache_bytes(request, checkpoint, start)
    if start.on_gpu:
        weights = -(-checkpoint.weight_bytes // len(start.places))
        tightest = min(start.places, key=lambda place: place.granted)
        static = tightest.granted - working_bytes(weights) - flags.overhead(on_gpu=True)
        argv += ["--mem-fraction-static", flags.fraction(static, tightest.free)]
    else:
        argv += ["--device", "cpu"]
        if not {"attention-backend", "attention_backend"} & request.engine_args.keys():
            argv += ["--attention-backend", "torch_native"]
        place = start.places[0]
        argv += ["--mem-fraction-static", flags.fraction(cache + checkpoint.weight_bytes, place.free)]
        if checkpoint.kv_bytes_per_token:
            argv += ["--max-total-tokens", str(max(cache // checkpoint.kv_bytes_per_token, 1))]
    argv += flags.words(request, OWN)
    env = {"DO_NOT_TRACK": "1", **flags.visible(start)}
    return Launch(tuple(argv), env if start.on_gpu else {**env, "SGLANG_USE_CPU_ENGINE": "1"})
