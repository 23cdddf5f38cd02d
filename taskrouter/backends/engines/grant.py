"""What a grant is spent on: weights, working memory, what an engine takes beside them, and its KV cache.

All of it is per device, in bytes. ``left`` is ``granted − weights − working − beside``, the plan of docs/design.md.
Only weights, the cache that is asked for and the least an engine was ever seen to take are certain; the rest is
estimated. So ``auto``, whose answer the estimate is, is refused where ``left`` holds no context, and a context that
somebody wrote only where what is certain doesn't fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from taskrouter.backends.engines.launch import Checkpoint, Start
from taskrouter.errors import PreflightFailed
from taskrouter.memory.estimate import working_bytes
from taskrouter.residency.messages import size
from taskrouter.types import GIB, MIB, DeviceId, ModelRequest

CUDA_CONTEXT = int(0.6 * GIB)
"""A CUDA context and loaded kernels: 0.3 to 0.6 GiB a process were seen."""
CUDA_CONTEXT_LEAST = int(0.3 * GIB)
COLLECTIVES = GIB // 2
"""NCCL's buffers, where a model spans several GPUs (estimated)."""
GRAPHS = GIB
"""CUDA graphs. SGLang 0.5.23 itself reckons 2 MiB a decode batch size, up to 256, and 8 MiB for each of some 50 prefill
sizes (``arg_groups/memory_hook.py``); vLLM measures its own, inside the share it is given."""
PROCESSES = 2 * GIB
"""An engine's processes on the cpu device, imports included: 1.5 to 1.9 GiB (vLLM 0.32) and 1.6 GiB (SGLang 0.5.23)
were measured, as proportional set sizes."""
PROCESSES_LEAST = int(1.2 * GIB)
CONTEXT_STEP = 512
USUAL_CONTEXT = 8192
"""Tokens that are counted for where the option doesn't say, and the model can hold more."""
LEAST_CACHE = 64 * MIB


@dataclass(frozen=True, slots=True)
class Habits:
    """What is one engine's own in how it deals out its KV cache.

    spare_tokens
        Cache that no request ever gets: what is held back, and the rest of a block.
    slots, slot_bytes
        It keeps a table of so many requests (unless it is told how many), with so many bytes for each token of context.
    """

    spare_tokens: int
    slots: int = 0
    slot_bytes: int = 0

    def table(self, max_concurrency: int | None) -> int:
        """Bytes of that table for each token of context."""
        return (max_concurrency or self.slots) * self.slot_bytes


@dataclass(frozen=True, slots=True)
class Grant:
    """One device's grant, divided. Bytes, and bytes per token."""

    label: str
    device: DeviceId
    granted: int
    weights: int
    working: int
    beside: int
    beside_least: int
    per_token: int
    table: int
    spare_tokens: int
    ceiling: int | None

    @property
    def left(self) -> int:
        """What the estimate leaves for the cache; negative where it leaves nothing."""
        return self.granted - self.weights - self.working - self.beside

    def wants(self, tokens: int) -> int:
        """Cache and table for one request of so many tokens."""
        return max((tokens + self.spare_tokens) * self.per_token, LEAST_CACHE) + tokens * self.table

    def usual(self, context: int | None) -> int:
        """The tokens that are counted for: as written, else the usual."""
        return context if context is not None else min(self.ceiling or USUAL_CONTEXT, USUAL_CONTEXT)

    def most(self) -> int | None:
        """The longest context that ``left`` holds, in steps of 512; ``None``: all that the model can, or nobody knows.

        Raises ``PreflightFailed`` where it holds none.
        """
        least = min(self.ceiling or CONTEXT_STEP, CONTEXT_STEP)
        fits = (self.left - self.spare_tokens * self.per_token) // max(self.per_token + self.table, 1)
        if fits < least:
            raise self._refusal(self.wants(least))
        if not self.per_token or self.ceiling is None or fits >= self.ceiling:
            return None
        return fits // CONTEXT_STEP * CONTEXT_STEP

    def fitting(self) -> int | None:
        """The same for an option that asks for nothing: at least the usual, which ``cache`` then holds to the grant."""
        usual = self.usual(None)
        if self.left >= self.wants(usual):
            return self.most()
        return usual if self.per_token and self.ceiling is not None else None

    def cache(self, context: int | None) -> int:
        """Bytes for the KV cache beside the table: what is left, at least what one request of ``context`` wants.

        Raises ``PreflightFailed`` where what is certain doesn't fit.
        """
        tokens = self.usual(context)
        wanted = self.wants(tokens)
        if self.weights + self.beside_least + wanted > self.granted:
            raise self._refusal(wanted, None if context is None else f"a max_context of {context}")
        return max(self.left, wanted) - tokens * self.table

    def _refusal(self, wanted: int, what: str | None = None) -> PreflightFailed:
        lowest = self.weights + self.working + self.beside + wanted
        shorter = ", write a smaller max_context" if what else ""
        return PreflightFailed(
            f"{self.label}: {size(self.granted)} on {self.device} are too little: {size(self.weights)} are weights, "
            f"{size(self.working)} to work in and {size(self.beside)} the engine's own (estimated), and "
            f"{what or 'a KV cache'} wants {size(wanted)}. Raise vram_gb to {-(-lowest * 10 // GIB) / 10:.1f}"
            f"{shorter}, or pick a smaller option."
        )


def divide(
    request: ModelRequest, checkpoint: Checkpoint, start: Start, habits: Habits, *, max_concurrency: int | None
) -> Grant:
    """Divide the smallest grant of a placement. Pure."""
    spans = len(start.places)
    tightest = min(start.places, key=lambda place: place.granted)
    weights = -(-checkpoint.weight_bytes // spans)
    return Grant(
        request.label,
        tightest.device,
        tightest.granted,
        weights,
        working_bytes(weights),
        beside(on_gpu=start.on_gpu, spans=spans),
        CUDA_CONTEXT_LEAST if start.on_gpu else PROCESSES_LEAST,
        -(-checkpoint.kv_bytes_per_token // spans),
        habits.table(max_concurrency),
        habits.spare_tokens,
        checkpoint.ceiling,
    )


def need(
    request: ModelRequest, checkpoint: Checkpoint, habits: Habits, *, on_gpu: bool, max_concurrency: int | None
) -> int:
    """Estimated bytes on each device, for an option that declares none.

    Weights, working memory (as everywhere: 20 %), what the engine takes beside them, and the KV cache of one request of
    ``max_context`` tokens. More cache, for more requests side by side, is what a declared ``vram_gb`` is for.
    """
    spans = request.devices if isinstance(request.devices, int) else max(len(request.devices), 1)
    weights = -(-checkpoint.weight_bytes // spans)
    context = request.max_context if isinstance(request.max_context, int) else None
    tokens = context if context is not None else min(checkpoint.ceiling or USUAL_CONTEXT, USUAL_CONTEXT)
    per_token = -(-checkpoint.kv_bytes_per_token // spans)
    cache = max((tokens + habits.spare_tokens) * per_token, LEAST_CACHE) + tokens * habits.table(max_concurrency)
    return weights + working_bytes(weights) + beside(on_gpu=on_gpu, spans=spans) + cache


def beside(*, on_gpu: bool, spans: int) -> int:
    """What an engine takes on each device beside weights, working memory and KV cache."""
    if not on_gpu:
        return PROCESSES
    return uncounted(spans=spans) + GRAPHS


def uncounted(*, spans: int) -> int:
    """What is on a GPU before an engine begins to count: its context, and what its processes talk through."""
    return CUDA_CONTEXT + (COLLECTIVES if spans > 1 else 0)


def written_context(request: ModelRequest, ceiling: int | None) -> int | None:
    """``max_context`` where it is a number the model was built for; ``None`` for ``auto`` and where it isn't said.

    Raises ``PreflightFailed`` for anything else.
    """
    wanted = request.max_context
    if wanted is None or wanted == "auto":
        return None
    if isinstance(wanted, str) or wanted < 1:
        raise PreflightFailed(f"{request.label}: max_context wants a number of tokens or auto, not {wanted!r}.")
    if ceiling is not None and wanted > ceiling:
        raise PreflightFailed(
            f"{request.label}: max_context is {wanted}, but {request.model_id} was built for at most {ceiling} tokens. "
            f"Write {ceiling} or less."
        )
    return wanted
