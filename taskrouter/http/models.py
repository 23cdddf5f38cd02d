"""``GET /v1/models``: tasks and their options, in OpenAI's shape, or in Anthropic's for who sends its version."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from taskrouter.http.asked import asked
from taskrouter.http.exchange import Exchange
from taskrouter.http.state import State

VERSION = b"anthropic-version"
"""The header that each of Anthropic's clients sends."""


async def models(state: State, exchange: Exchange) -> None:
    """``GET /v1/models``: the tasks this caller may ask, and their options; all of them at once."""
    assert exchange.caller is not None
    names = [
        name
        for task, config in state.manager.tasks.items()
        if exchange.caller.may_ask(task)
        for name in (task, *(f"{task}/{option}" for option in config.options))
    ]
    rows = [_row(state, exchange, name) for name in names]
    await exchange.answer(_listed(exchange, rows))


async def model(state: State, exchange: Exchange, name: str) -> None:
    """``GET /v1/models/{name}``."""
    await exchange.answer(_row(state, exchange, str(asked(state.manager, exchange, name).named)))


def _row(state: State, exchange: Exchange, name: str) -> dict[str, Any]:
    if exchange.style == "anthropic":
        created = datetime.fromtimestamp(state.begun, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"type": "model", "id": name, "display_name": name, "created_at": created}
    return {"id": name, "object": "model", "created": state.begun, "owned_by": "taskrouter"}


def _listed(exchange: Exchange, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if exchange.style == "anthropic":
        first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (None, None)
        return {"data": rows, "has_more": False, "first_id": first, "last_id": last}
    return {"object": "list", "data": rows}
