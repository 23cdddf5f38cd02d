"""``framework: sglang``: the SGLang server, under an interpreter of its own."""

from __future__ import annotations

import asyncio
import json
import re
import time

from taskrouter.backends.engines import sglang_flags
from taskrouter.backends.engines.adapter import SLEEP_BOUND_S, KvCache
from taskrouter.backends.engines.api import Api, Broken
from taskrouter.backends.engines.backend import EngineBackend
from taskrouter.backends.engines.hub import HubAdapter
from taskrouter.backends.engines.launch import Checkpoint
from taskrouter.errors import SleepFailed
from taskrouter.types import ModelRequest

INFO_BOUND_S = 5.0
SLEEP, WAKE, LOADS = "/release_memory_occupation", "/resume_memory_occupation", "/v1/loads"
IDLE_BOUND_S = 10.0
IDLE_LOOKS, LOOK_EVERY_S = 2, 0.05
"""Its scheduler counts a request until the step after its last: it is idle when several looks in a row find none."""

INFERENCE = frozenset(
    {"/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize", "/v1/completions", "/v1/chat/completions"}
    | {"/v1/embeddings", "/v1/classify", "/v1/score", "/v1/rerank"}
)
"""What SGLang computes with a model and forgets. Not its native paths (/generate): they take paths of its machine."""

_TOKENS = re.compile(r"max_total_num_tokens=(\d+)|#tokens: (\d+)")


class SglangAdapter(HubAdapter):
    """SGLang's ways. Its health path asks its scheduler, so a health that answers is progress."""

    framework = "sglang"
    distributions = ("sglang",)
    flags_from = 3  # python -u starter
    inference = INFERENCE
    launcher = staticmethod(sglang_flags.launch)
    needer = staticmethod(sglang_flags.need)

    def ready(self, request: ModelRequest) -> str:
        # Its health path computes a token, and takes a second at least.
        return "/ready"

    def pooling(self, request: ModelRequest) -> bool:
        return any(name.replace("-", "_").lstrip("_") == "is_embedding" for name in request.engine_args)

    async def kv_cache(self, api: Api, checkpoint: Checkpoint, lines: list[str]) -> KvCache | None:
        """Read what it built from its server info; from its log where its version's info doesn't say."""
        tokens = 0
        try:
            _, text = await api.get("/get_server_info", INFO_BOUND_S)
            said = json.loads(text)
            tokens = int(said.get("max_total_num_tokens") or 0) if isinstance(said, dict) else 0
        except (Broken, ValueError, TypeError):
            pass
        if not tokens:
            logged = [found[1] or found[2] for line in lines if (found := _TOKENS.search(line))]
            tokens = int(logged[-1]) if logged else 0
        return KvCache(tokens, tokens * checkpoint.kv_bytes_per_token) if tokens else None

    async def progress(self, api: Api) -> object:
        return None

    def controls(self, request: ModelRequest) -> frozenset[str]:
        return frozenset({SLEEP, WAKE})

    async def sleep(self, api: Api, request: ModelRequest) -> None:
        """Told while a request is at work, its scheduler dies; it notices callers who have gone away late."""
        await _see_idle(api, request.label)
        await api.tell("POST", SLEEP, SLEEP_BOUND_S)

    async def wake(self, api: Api, request: ModelRequest) -> None:
        """Told twice, its scheduler dies."""
        await api.tell("POST", WAKE, SLEEP_BOUND_S)


async def _see_idle(api: Api, label: str) -> None:
    """Wait until it works on nothing. Raises ``SleepFailed``, ``Broken``."""
    until, idle = time.monotonic() + IDLE_BOUND_S, 0
    while idle < IDLE_LOOKS:
        text = await api.tell("GET", LOADS, INFO_BOUND_S)
        try:
            busy = sum(each["num_running_reqs"] + each["num_waiting_reqs"] for each in json.loads(text)["loads"])
        except (ValueError, KeyError, TypeError) as error:
            raise SleepFailed(f"{label}: {LOADS} doesn't say what its engine works on: {text[:200]}") from error
        idle = 0 if busy else idle + 1
        if busy and time.monotonic() > until:
            raise SleepFailed(f"{label}: its engine still works on {busy} requests that nobody waits for")
        await asyncio.sleep(LOOK_EVERY_S)


class SglangBackend(EngineBackend):
    """The backend for ``framework: sglang``."""

    def __init__(self) -> None:
        super().__init__(SglangAdapter())
