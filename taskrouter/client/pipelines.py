"""Pipelines over a server: which tasks are coming, for as long as a connection of their own stays open."""

from __future__ import annotations

import weakref
from contextlib import suppress
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING

from taskrouter.client.inside import RUN, pipeline_headers
from taskrouter.client.opened import Opened
from taskrouter.errors import ServerUnreachable

if TYPE_CHECKING:
    from taskrouter.client.transport import Transport


class RemotePipeline:
    """``async with client.pipeline([task, …])``: these tasks are coming, in this order, from whoever is inside.

    Should its connection break, the calls inside are answered all the same: nothing is loaded ahead for them any more.
    """

    def __init__(self, transport: Transport, tasks: tuple[str, ...]) -> None:
        self._transport = transport
        self._tasks = tasks
        self._opened = Opened(transport, f"the pipeline {' → '.join(tasks)}")
        self._name: str | None = None
        self._token: Token[RemotePipeline | None] | None = None
        self._begun = False
        weakref.finalize(self, self._opened.drop).atexit = False

    def __repr__(self) -> str:
        return f"<RemotePipeline {' → '.join(self._tasks)} at {self._transport.url}>"

    async def __aenter__(self) -> RemotePipeline:
        await self.begin()
        self.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        await self.end()

    async def begin(self) -> None:
        """Say what is coming. Raises ``UnknownTask``, ``ServerRefused`` for a task that this key may not ask."""
        if self._begun:
            raise RuntimeError("a pipeline is entered once; ask the client for another one")
        self._begun = True
        # Inside another one, both go on.
        headers = pipeline_headers(self._transport)
        told = await self._opened.begin("/v1/pipelines", {"tasks": list(self._tasks)}, headers=headers)
        name = told.get("pipeline")
        if not isinstance(name, str):
            await self._opened.close()
            raise ServerUnreachable(
                f"{self._transport.url} began a pipeline without a name: is it a taskrouter of the same version?"
            )
        self._name = name

    def enter(self) -> None:
        """The caller, in its own context, is inside now."""
        self._token = RUN.set(self)

    def leave(self) -> None:
        """The caller has left. In another context than it entered in (a generator's), that one is gone anyway."""
        if self._token is not None:
            with suppress(ValueError):
                RUN.reset(self._token)

    async def end(self) -> None:
        """Nothing more is coming. Idempotent."""
        self._name = None
        await self._opened.close()

    def name_for(self, transport: Transport) -> str | None:
        """What requests of this client call it, while it lasts."""
        return self._name if transport is self._transport and self._opened.open else None
