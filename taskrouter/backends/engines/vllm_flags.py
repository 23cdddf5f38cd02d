"""An option as vLLM's command line. Held to vLLM's own parser by the tests, and before each first start.

The grant becomes ``--gpu-memory-utilization``, a fraction of the *whole* device: vLLM profiles its peak, CUDA graphs
included, and gives what is left of the fraction to its KV cache. ``--kv-cache-memory-bytes`` would fix the cache by our
estimate of that peak and switch the check off, so it is used on the CPU only, where nothing is profiled.

vLLM 0.32 counts from when its CUDA context and NCCL's buffers are there (``init_device`` of ``v1/worker/gpu_worker.py``
takes its baseline then), so these are taken off the grant first.
"""

from __future__ import annotations

from pathlib import Path

from taskrouter.backends.engines import flags, grant
from taskrouter.backends.engines.launch import Checkpoint, Launch, Start
from taskrouter.backends.hf.arguments import check_dtype
from taskrouter.backends.sleep import why_awake
from taskrouter.errors import PreflightFailed
from taskrouter.types import ModelRequest

STARTER = str(Path(__file__).parent / "parsers" / "vllm_start.py")
"""``-m vllm.entrypoints.openai.api_server``, behind a guard. (``vllm serve`` is the same, but fails under the CPU
wheel, whose distribution has another name.)"""

HABITS = grant.Habits(spare_tokens=256)
"""A block is held back (the null block) and a context takes whole ones: 128 tokens each on the CPU, 16 on GPUs."""

OWN = flags.own(
    {
        "write model_id beside framework instead": ("model", "model-tag"),
        "leave it out: engines listen on loopback": ("host",),
        "leave it out: a free one is chosen": ("port",),
        "leave it out: engines are reached over plain HTTP on a port": (
            "uds", "grpc", "grpc-port", "ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "root-path",
        ),
        "leave it out: each start has a random one": ("api-key",),
        "leave it out: requests are sent under the right name": ("served-model-name",),
        "write its flags in engine_args instead": ("config",),
        "write revision beside model_id instead": ("revision",),
        "write dtype beside model_id instead": ("dtype",),
        "write quantization beside model_id instead": ("quantization",),
        "write max_context beside model_id instead": ("max-model-len",),
        "write max_concurrency beside model_id instead": ("max-num-seqs",),
        "write devices beside model_id instead": ("tensor-parallel-size", "tp"),
        "leave it out: a model spans its devices by tensor parallelism only": (
            "pipeline-parallel-size", "data-parallel-size", "data-parallel-size-local", "data-parallel-backend",
            "api-server-count", "headless", "nnodes", "node-rank", "master-addr", "master-port",
        ),
        "leave it out: an engine's processes must be its own children": ("distributed-executor-backend",),
        "declare vram_gb instead": ("gpu-memory-utilization", "kv-cache-memory-bytes", "num-gpu-blocks-override"),
        "write trust_remote_code beside model_id instead": ("trust-remote-code",),
        "write sleep: auto (the default) or sleep: never beside model_id instead": ("enable-sleep-mode",),
    }
)  # fmt: skip

REFUSED = {
    "4bit": "vLLM doesn't quantize to 4 bits while loading; take a checkpoint quantized by awq, gptq or "
    "compressed-tensors, or framework: transformers",
    "8bit": "vLLM doesn't quantize to 8-bit integers while loading; write fp8, or take a quantized checkpoint",
}
"""Our words for quantizing by bitsandbytes, which vLLM 0.32 no longer has."""

ENVIRONMENT = {**flags.QUIET, **flags.LOOPBACK, "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1",
               "VLLM_LOOPBACK_IP": "127.0.0.1"}  # fmt: skip


def need(request: ModelRequest, checkpoint: Checkpoint, *, on_gpu: bool, max_concurrency: int | None) -> int:
    """Estimated bytes on each device, for an option that declares none."""
    return grant.need(request, checkpoint, HABITS, on_gpu=on_gpu, max_concurrency=max_concurrency)


def launch(
    request: ModelRequest, checkpoint: Checkpoint, start: Start, *, python: str, max_concurrency: int | None = None
) -> Launch:
    """The command line and environment of one start. Raises ``PreflightFailed`` for what vLLM can't do."""
    _check_format(request, checkpoint)
    argv = [python, "-u", STARTER, "--model", checkpoint.folder, "--served-model-name", start.name]
    argv += ["--host", "127.0.0.1", "--port", str(start.port), "--disable-uvicorn-access-log"]
    sleeps = start.on_gpu and why_awake(request) is None
    argv += ["--enable-sleep-mode"] * sleeps
    dtype = check_dtype(request)
    if dtype is not None:
        argv += ["--dtype", dtype]
    if request.quantization not in (None, "none"):
        if request.quantization in REFUSED:
            refused = REFUSED[request.quantization]
            raise PreflightFailed(f"{request.label}: quantization {request.quantization}: {refused}.")
        argv += ["--quantization", str(request.quantization)]
    if max_concurrency is not None:
        argv += ["--max-num-seqs", str(max_concurrency)]
    if request.trust_remote_code:
        argv += ["--trust-remote-code"]
    if len(start.places) > 1:
        argv += ["--tensor-parallel-size", str(len(start.places))]
    argv += _memory(request, checkpoint, start, max_concurrency)
    argv += flags.words(request, OWN)
    # Not --api-key: a command line is everybody's to read, an environment only its user's.
    env = {**ENVIRONMENT, **flags.visible(start), "VLLM_API_KEY": start.api_key}
    # Without it there is no path to put it to sleep by.
    return Launch(tuple(argv), {**env, "VLLM_SERVER_DEV_MODE": "1"} if sleeps else env)


def _memory(request: ModelRequest, checkpoint: Checkpoint, start: Start, max_concurrency: int | None) -> list[str]:
    """The context and the grant, which are settled together."""
    ours = grant.divide(request, checkpoint, start, HABITS, max_concurrency=max_concurrency)
    ceiling = None if "hf-overrides" in flags.said(request) else checkpoint.ceiling
    context = grant.written_context(request, ceiling)
    if request.max_context == "auto":
        context = ours.most()
    # vLLM's own auto: what the model can, and where the cache it finds itself with is too small for that, what fits.
    argv = ["--max-model-len", "auto" if context is None else str(context)]
    cache = ours.cache(context)
    if not start.on_gpu:
        return [*argv, "--kv-cache-memory-bytes", str(cache)]
    uncounted = grant.uncounted(spans=len(start.places))
    share = min(start.places, key=lambda place: (place.granted - uncounted) / max(place.total, 1))
    return [*argv, "--gpu-memory-utilization", flags.fraction(share.granted - uncounted, share.total)]


def _check_format(request: ModelRequest, checkpoint: Checkpoint) -> None:
    if checkpoint.folder.endswith(".gguf") and "load-format" not in flags.said(request):
        raise PreflightFailed(
            f"{request.label}: vLLM doesn't read GGUF files such as {request.model_id}; take a safetensors checkpoint, "
            "or llama.cpp's server under framework: command."
        )
