"""An option as SGLang's command line. Held to SGLang's own parser by the tests, and before each first start.

``--mem-fraction-static`` is a fraction of what is *free* before the load, counted after the CUDA context and NCCL's
buffers are there, and covers weights and KV pool only: CUDA graphs and what it works in come on top, and are left out
of the grant's share. On the CPU, where what is free moves with everything else on the machine, the pool is fixed in
tokens and the fraction only stays out of its way.
"""

from __future__ import annotations

from pathlib import Path

from taskrouter.backends.engines import flags, grant
from taskrouter.backends.engines.launch import Checkpoint, Launch, Start
from taskrouter.backends.hf.arguments import check_dtype
from taskrouter.backends.sleep import why_awake
from taskrouter.errors import PreflightFailed
from taskrouter.types import ModelRequest

STARTER = str(Path(__file__).parent / "parsers" / "sglang_start.py")
"""``-m sglang.launch_server``, with what can't stand in a command line."""

HABITS = grant.Habits(spare_tokens=128, slots=2048, slot_bytes=4)
"""A page of the pool may be lost to rounding. A table of int32 has a row for each request it may run (at least 2048
where it isn't told) and a column for each token of context (``ReqToTokenPool``, ``resolve_max_num_reqs``)."""

CPU_FRACTION = "0.9000"

OWN = flags.own(
    {
        "write model_id beside framework instead": ("model", "model-path"),
        "leave it out: engines listen on loopback": (
            "host", "nccl-port", "dist-init-addr", "nccl-init-addr", "gated-launch-port",
        ),
        "leave it out: a free one is chosen": ("port",),
        "leave it out: engines are reached over plain HTTP on a port": (
            "grpc-mode", "smg-grpc-mode", "grpc-port", "sidecar", "enable-http2", "ssl-keyfile", "ssl-certfile",
            "ssl-ca-certs", "ssl-keyfile-password", "enable-ssl-refresh", "fastapi-root-path",
        ),
        "leave it out: each start has a random one": ("api-key", "admin-api-key"),
        "leave it out: with several, SGLang asks nobody for the API key": ("tokenizer-worker-num",),
        "leave it out: requests are sent under the right name": ("served-model-name",),
        "write its flags in engine_args instead": ("config",),
        "write revision beside model_id instead": ("revision",),
        "write dtype beside model_id instead": ("dtype",),
        "write quantization beside model_id instead": ("quantization",),
        "write max_context beside model_id instead": ("context-length",),
        "write max_concurrency beside model_id instead": ("max-running-requests",),
        "write devices beside model_id instead": (
            "device", "tp-size", "tensor-parallel-size", "tp", "base-gpu-id", "gpu-id-step",
        ),
        "leave it out: a model spans its devices by tensor parallelism only": (
            "dp-size", "data-parallel-size", "pp-size", "pipeline-parallel-size", "nnodes", "node-rank",
        ),
        "leave it out: an engine's processes must be its own children": ("use-ray",),
        "declare vram_gb instead": ("mem-fraction-static", "max-total-tokens"),
        "write trust_remote_code beside model_id instead": ("trust-remote-code",),
        "write sleep: auto (the default) or sleep: never beside model_id instead": (
            "enable-memory-saver", "enable-weights-cpu-backup", "enable-draft-weights-cpu-backup",
        ),
    }
)  # fmt: skip

SWITCHES = ("sleep-on-idle", "skip-server-warmup")
"""Switched on, unless engine_args say false. Idle, its scheduler would keep a core at 100 %; and its own warm-up takes
seconds, after which the one token that every engine is asked for would come once more."""

REFUSED = {
    "8bit": "SGLang doesn't quantize to 8-bit integers while loading; write fp8, or take a quantized checkpoint",
}


def need(request: ModelRequest, checkpoint: Checkpoint, *, on_gpu: bool, max_concurrency: int | None) -> int:
    """Estimated bytes on each device, for an option that declares none."""
    return grant.need(request, checkpoint, HABITS, on_gpu=on_gpu, max_concurrency=max_concurrency)


def launch(
    request: ModelRequest, checkpoint: Checkpoint, start: Start, *, python: str, max_concurrency: int | None = None
) -> Launch:
    """The command line and environment of one start. Raises ``PreflightFailed`` for what SGLang can't do."""
    said = flags.said(request)
    argv = [python, "-u", STARTER, "--model-path", checkpoint.folder, "--served-model-name", start.name]
    argv += ["--host", "127.0.0.1", "--port", str(start.port), "--log-level-http", "warning"]
    argv += [f"--{switch}" for switch in SWITCHES if said.get(switch) is not False]
    if start.on_gpu and why_awake(request) is None:
        # Without the backup it would wake with whatever then lies where its weights were.
        argv += ["--enable-memory-saver", "--enable-weights-cpu-backup"]
    dtype = check_dtype(request)
    if dtype is not None:
        argv += ["--dtype", dtype]
    argv += _quantization(request, start)
    if max_concurrency is not None:
        argv += ["--max-running-requests", str(max_concurrency)]
    if request.trust_remote_code:
        argv += ["--trust-remote-code"]
    if len(start.places) > 1:
        argv += ["--tp-size", str(len(start.places))]
    if not start.on_gpu:
        argv += ["--device", "cpu"]
        if "attention-backend" not in said:
            argv += ["--attention-backend", "torch_native"]
    argv += _memory(request, checkpoint, start, max_concurrency)
    argv += flags.words(request, OWN, without=SWITCHES)
    return Launch(tuple(argv), _environment(start))


def _memory(request: ModelRequest, checkpoint: Checkpoint, start: Start, max_concurrency: int | None) -> list[str]:
    """The context and the grant, which are settled together."""
    ours = grant.divide(request, checkpoint, start, HABITS, max_concurrency=max_concurrency)
    ceiling = None if "json-model-override-args" in flags.said(request) else checkpoint.ceiling
    context = grant.written_context(request, ceiling)
    if context is None:
        context = ours.most() if request.max_context == "auto" else ours.fitting()
    argv = [] if context is None else ["--context-length", str(context)]
    cache = ours.cache(context if context is not None else ceiling)
    if not start.on_gpu:
        if ours.per_token:
            return [*argv, "--mem-fraction-static", CPU_FRACTION, "--max-total-tokens", str(cache // ours.per_token)]
        free = start.places[0].free - ours.beside
        return [*argv, "--mem-fraction-static", flags.fraction(ours.weights + cache, free)]
    # What is free on the fullest GPU is taken for all of them, by SGLang too.
    free = min(place.free for place in start.places) - grant.uncounted(spans=len(start.places))
    return [*argv, "--mem-fraction-static", flags.fraction(ours.weights + cache, free)]


def _quantization(request: ModelRequest, start: Start) -> list[str]:
    word = request.quantization
    if word in (None, "none"):
        return []
    refused = REFUSED.get(word)
    if word == "4bit" and not start.on_gpu:
        refused = "SGLang quantizes to 4 bits while loading (bitsandbytes) on GPUs only; take a quantized checkpoint"
    if refused is not None:
        raise PreflightFailed(f"{request.label}: quantization {word}: {refused}.")
    if word != "4bit":
        return ["--quantization", word]
    format_said = "load-format" in flags.said(request)
    return ["--quantization", "bitsandbytes", *([] if format_said else ["--load-format", "bitsandbytes"])]


def _environment(start: Start) -> dict[str, str]:
    environment = {**flags.QUIET, **flags.LOOPBACK, **flags.visible(start), "TASKROUTER_API_KEY": start.api_key}
    # Its CPU kernels name their shared memory by these, which without a TCP rendezvous nobody else sets.
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(start.port)}
    # A whole answer's caller who has gone away is noticed this often (s); its default is 4.
    environment["SGLANG_REQUEST_STATE_WAIT_TIMEOUT"] = "1"
    if not start.on_gpu:
        environment["SGLANG_USE_CPU_ENGINE"] = "1"
    if len(start.places) > 1:
        # It would refuse GPUs that others use unequally; their grants were settled before.
        environment["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] = "0"
    return environment
