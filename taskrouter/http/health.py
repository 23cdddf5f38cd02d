"""``/health``: the process answers. ``/ready``: requests are answered in time (law 13)."""

from __future__ import annotations

from taskrouter.http.exchange import Exchange
from taskrouter.http.state import State


async def health(state: State, exchange: Exchange) -> None:
    """The process answers."""
    await exchange.answer({"status": "ok"})


async def ready(state: State, exchange: Exchange) -> None:
    """Whether requests should be sent here: not while it shuts down, nor while somebody waits past their bound."""
    seen = state.manager.statistics()
    if state.draining:
        status, why = 503, "shutting down"
    elif not seen.healthy:
        status, why = 503, f"the oldest request has waited for {seen.oldest_wait_s:.1f} s, past its bound"
    else:
        status, why = 200, "requests are answered in time"
    body = {"ready": status == 200, "why": why, "waiting": seen.waiting, "oldest_wait_s": round(seen.oldest_wait_s, 3)}
    await exchange.answer(body, status)
