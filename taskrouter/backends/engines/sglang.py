"""``framework: sglang``: the SGLang server, under an interpreter of its own."""

from __future__ import annotations

import json
import re

from taskrouter.backends.engines import sglang_flags
from taskrouter.backends.engines.adapter import KvCache
from taskrouter.backends.engines.api import Api, Broken
from taskrouter.backends.engines.backend import EngineBackend
from taskrouter.backends.engines.hub import HubAdapter
from taskrouter.backends.engines.launch import Checkpoint
from taskrouter.types import ModelRequest

INFO_BOUND_S = 5.0

_TOKENS = re.compile(r"max_total_num_tokens=(\d+)|#tokens: (\d+)")


class SglangAdapter(HubAdapter):
    """SGLang's ways. Its health path asks its scheduler, so a health that answers is progress."""

    framework = "sglang"
    distributions = ("sglang",)
    flags_from = 3  # python -m module
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


class SglangBackend(EngineBackend):
    """The backend for ``framework: sglang``."""

    def __init__(self) -> None:
        super().__init__(SglangAdapter())
