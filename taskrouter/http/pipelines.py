"""``POST /v1/pipelines``: these tasks are coming, in this order, for as long as the connection stays open.

What is asked with the id in ``x-taskrouter-pipeline`` counts for it. An id that isn't there (any more) counts for
nothing, and is no error: a pipeline only says what comes next, and a request must not fail for want of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskrouter.errors import BadInput
from taskrouter.http import bodies
from taskrouter.http.bodies import body_of
from taskrouter.http.exchange import EVENTS, Exchange
from taskrouter.http.keys import Caller
from taskrouter.http.lasting import Lasting, Lastings
from taskrouter.http.naming import named
from taskrouter.http.streaming import NO_CACHE
from taskrouter.manager import ModelManager
from taskrouter.manager.pipelines import Pipeline

if TYPE_CHECKING:
    from taskrouter.http.state import State

HEADER = b"x-taskrouter-pipeline"
MOST_DEEP = 8
"""Pipelines that may be inside each other: a request in the innermost moves all of them."""


class Coming(Lasting):
    """One pipeline."""

    def __init__(self, caller: Caller, pipeline: Pipeline) -> None:
        super().__init__(caller)
        self.pipeline = pipeline


class Comings(Lastings[Coming]):
    """Those of one server."""

    def of(self, headers: Mapping[bytes, bytes], caller: Caller) -> Pipeline | None:
        """The pipeline that a request says it belongs to, where there is one."""
        found = self.find(headers[HEADER].decode("latin-1"), caller)
        return None if found is None else found.pipeline


async def pipelines(state: State, exchange: Exchange) -> None:
    """``POST /v1/pipelines``."""
    state.check_outside(exchange)
    body = await body_of(exchange, bodies.Pipeline)
    caller = exchange.caller
    assert caller is not None
    tasks = [_task(state.manager, caller, each) for each in body.tasks]
    if exchange.pipeline is not None and exchange.pipeline.depth >= MOST_DEEP:
        raise BadInput(f"{MOST_DEEP} pipelines are inside each other already, the most there may be: end one first")
    async with state.manager.pipeline(tasks) as pipeline:
        with state.pipelines.kept(Coming(caller, pipeline)) as coming:
            exchange.lasts = True
            await exchange.start(200, EVENTS, NO_CACHE)
            await coming.last(exchange, {"pipeline": coming.id, "tasks": tasks})


def _task(manager: ModelManager, caller: Caller, name: str) -> str:
    (task, option), _ = named(manager, caller, name)
    if option is not None:
        raise BadInput(f"a pipeline is of tasks, and {name[:256]!r} is an option: which answers is settled when asked")
    return task
