"""Leases on a server's models: held by a connection that stays open, and used by calls that name them."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskrouter.client.handles import RemoteModel
from taskrouter.client.inside import held_lease, hold, let_go, pipeline_headers
from taskrouter.client.opened import Opened
from taskrouter.errors import ServerRefused, ServerUnreachable, UnsupportedVerb
from taskrouter.manager.asking import Verbs
from taskrouter.manager.refusals import fresh
from taskrouter.manager.residents import Operation
from taskrouter.manager.streams import Channel, Stream
from taskrouter.media.limits import MediaLimits

if TYPE_CHECKING:
    from taskrouter.client.transport import Transport

_TOLD_S = 1.0
"""How long to wait to hear why a lease ended that the server knows no more."""


class RemoteLease(Verbs):
    """``async with client.lease(task) as model``: this model can't be evicted meanwhile.

    Raises on entry what a call to the task raises before it is answered. A lease is one slot: its calls run one at a
    time. It lasts as long as a connection of its own; should that break, or the server end it (the model died, was
    unloaded by force, the server shuts down), the next call raises what ended it. Handles and leases of this client on
    the same task use it inside the block.
    """

    def __init__(
        self, transport: Transport, task: str, *, only: str | None, timeout: float | None, limits: MediaLimits
    ) -> None:
        self.task = task
        self.left = False
        self._transport = transport
        self._only = only
        self._timeout = timeout
        self._limits = limits
        self._opened: Opened | None = None
        self._model: RemoteModel | None = None
        self._info: Any = None
        self._outer: RemoteLease | None = None

    def __repr__(self) -> str:
        state = "left" if self.left else "held" if self._model is not None else "not entered"
        name = self.task if self.option is None else f"{self.task}/{self.option}"
        return f"<RemoteLease {name} at {self._transport.url} {state}>"

    async def __aenter__(self) -> RemoteLease:
        await self.take()
        hold(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        let_go(self)
        await self.leave()

    async def take(self) -> None:
        """Have it granted. The context of whoever is in it is another's to change."""
        if self._model is not None or self.left:
            raise RuntimeError("a lease is entered once; ask the client for another one")
        self._outer = held_lease(self._transport, self.task, self._only)
        if self._outer is not None:
            self._model, self._info = self._outer._model, self._outer._info
            return
        opened = Opened(self._transport, f"the lease on {self.task}")
        body = {"task": self.task} if self._only is None else {"task": self.task, "option": self._only}
        headers = pipeline_headers(self._transport)
        told = await opened.begin("/v1/leases", body, timeout=self._timeout, headers=headers)
        self._opened = opened
        try:
            name, task, option = told["lease"], told["task"], told["option"]
        except KeyError as error:
            await opened.close()
            raise ServerUnreachable(
                f"{self._transport.url} granted a lease without its {error}: is it a taskrouter of the same version?"
            ) from error
        self._info = told.get("info")
        self._model = RemoteModel(self._transport, task, only=option, timeout=None, limits=self._limits, lease=name)

    async def leave(self) -> None:
        """Let go of it: calls that are under way go on to their end. Idempotent."""
        self.left = True
        if self._opened is not None:
            await self._opened.close()

    def __del__(self) -> None:
        opened = getattr(self, "_opened", None)
        if opened is None or self.left or not opened.open:
            return
        opened.drop()
        # Last: where warnings are errors it raises.
        warnings.warn(f"{self!r} was never released", ResourceWarning, stacklevel=2)

    def serves(self, transport: Transport, task: str, option: str | None) -> bool:
        """Whether whoever is inside and asks this task, or this option of it, is served by this lease."""
        opened, model = (self._outer or self)._opened, self._model
        if self.left or model is None or opened is None or not opened.open:
            return False
        return transport is self._transport and task in (self.task, model.task) and option in (None, model.option)

    @property
    def option(self) -> str | None:
        """The option this lease is of; before it is entered the only one it may be of, or ``None``."""
        return self._only if self._model is None else self._model.option

    @property
    def info(self) -> Any:
        """Small facts about the loaded model, as they were when it was granted."""
        self._inside()
        return self._info

    @property
    def raw(self) -> Any:
        """Raises ``UnsupportedVerb``: the framework's own object is in the server's process."""
        raise UnsupportedVerb(f"{self.task}: its model lives in the server, so there is no object to hand out here")

    def _inside(self) -> RemoteModel:
        if self._model is None or self.left:
            raise RuntimeError(f"{self!r}: use the model inside its `async with`")
        opened = (self._outer or self)._opened
        if opened is not None and opened.lost is not None:
            raise fresh(opened.lost)
        return self._model

    async def _ask(self, verb: str, request: Any) -> Any:
        model = self._inside()
        try:
            return await model.answer(verb, request)
        except ServerRefused as error:
            await self._explain(error)
            raise

    def _stream(self, verb: str, request: Any) -> Stream:
        async def start() -> tuple[Channel, Operation]:
            model = self._inside()
            try:
                return await model.start(verb, request)
            except ServerRefused as error:
                await self._explain(error)
                raise

        return Stream(start)

    async def _explain(self, error: ServerRefused) -> None:
        """Raise why the lease ended, where a call heard of it first; on its own connection that is told just now."""
        opened = (self._outer or self)._opened
        if error.code != "unknown_lease" or opened is None:
            return
        await opened.ended(_TOLD_S)
        if opened.lost is not None:
            raise fresh(opened.lost) from error

    def _media_limits(self) -> MediaLimits:
        return self._limits
