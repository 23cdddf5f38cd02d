"""Handles on the tasks of a running server: the verbs of the library, asked over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from taskrouter.client.answers import VERBS, answer_of, chunk_of, own_answer_of, routed_of
from taskrouter.client.events import Events
from taskrouter.client.inside import LEASE, held_lease, pipeline_headers
from taskrouter.client.sending import Sent, has_no_media, sent
from taskrouter.errors import ServerUnreachable
from taskrouter.manager.asking import Verbs
from taskrouter.manager.residents import Operation
from taskrouter.manager.streams import Channel, Stream
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import STREAMING_VERBS

if TYPE_CHECKING:
    import aiohttp

    from taskrouter.client.leases import RemoteLease
    from taskrouter.client.transport import Transport

_UNREAD_S = 86_400.0
"""The server ends a stream that nobody reads long before."""
_END_S = 0.25
_UNPACKED = frozenset({"segment", "track", "depth"})


class RemoteModel(Verbs):
    """A handle on a task of a server. It never dangles: each call asks the server, which loads if need be.

    ``timeout`` bounds the queue and the load of each call, in seconds; by default the server's own bound holds. Media
    are read here and sent: a path is one of this machine.
    """

    __slots__ = ("__weakref__", "_answered", "_lease", "_limits", "_only", "_timeout", "_transport", "task")

    def __init__(
        self, transport: Transport, task: str, *, only: str | None, timeout: float | None, limits: MediaLimits,
        lease: str | None = None,
    ) -> None:  # fmt: skip
        self._transport = transport
        self.task = task
        self._only = only
        self._timeout = timeout
        self._limits = limits
        self._lease = lease
        """The id of the lease that its calls are made inside of, whoever makes them."""
        self._answered: str | None = None

    def __repr__(self) -> str:
        name = self.task if self._only is None else f"{self.task}/{self._only}"
        return f"<RemoteModel {name} at {self._transport.url}>"

    @property
    def option(self) -> str | None:
        """The option that answered the latest call, or the only one that is asked; ``None`` before the first."""
        return self._only or self._answered

    def _path(self) -> str:
        path = f"/v1/tasks/{quote(self.task, safe='')}"
        return path if self._only is None else f"{path}/{quote(self._only, safe='')}"

    @asynccontextmanager
    async def _sent(self, verb: str, request: Any) -> AsyncIterator[Sent]:
        """The request as it is sent; media are read off the loop, for that takes its time."""
        making = sent(verb, request, self._limits)
        if has_no_media(verb, request):
            what = making.__enter__()
        else:
            entering = asyncio.ensure_future(asyncio.to_thread(making.__enter__))
            try:
                what = await asyncio.shield(entering)
            except asyncio.CancelledError:
                # The caller is gone; the thread, which may read from a pipe, isn't waited for.
                entering.add_done_callback(lambda done: None if done.exception() else making.__exit__(None, None, None))
                raise
        try:
            yield what
        finally:
            making.__exit__(None, None, None)

    def _held(self) -> RemoteLease | None:
        """The lease that the caller is in, on what this handle may ask."""
        return None if self._lease is not None else held_lease(self._transport, self.task, self._only)

    def _inside(self) -> dict[str, str]:
        """What the request is inside of, as headers."""
        said = pipeline_headers(self._transport)
        return said if self._lease is None else {**said, LEASE: self._lease}

    async def _ask(self, verb: str, request: Any) -> Any:
        lease = self._held()
        return await (self.answer(verb, request) if lease is None else lease._ask(verb, request))

    async def answer(self, verb: str, request: Any) -> Any:
        """Ask the server, whatever lease the caller is in."""
        transport = self._transport
        async with self._sent(verb, request) as what:
            data, headers = await transport.ask(self._path(), what, self._timeout, self._inside())
        self._note(headers)
        if verb not in VERBS:
            kind = None if isinstance(request, Mapping) else type(request)
            return await asyncio.to_thread(own_answer_of, verb, kind, data, transport.url)
        if verb in _UNPACKED:
            return await asyncio.to_thread(answer_of, verb, data, headers, transport.url)
        return answer_of(verb, data, headers, transport.url)

    def _note(self, headers: Mapping[str, str]) -> None:
        self._answered = headers.get("x-taskrouter-option") or self._answered

    def _stream(self, verb: str, request: Any) -> Stream:
        assert verb in STREAMING_VERBS
        lease = self._held()
        return Stream(partial(self.start, verb, request)) if lease is None else lease._stream(verb, request)

    async def start(self, verb: str, request: Any) -> tuple[Channel, Operation]:
        """Begin a stream at the server, whatever lease the caller is in."""
        stack = AsyncExitStack()
        try:
            what = await stack.enter_async_context(self._sent(verb, request))
            asking = self._transport.asked(self._path(), what, self._timeout, self._inside())
            response = await stack.enter_async_context(asking)
        except BaseException:
            await stack.aclose()
            raise
        self._note(response.headers)
        return self._begin(stack, response, verb)

    def _begin(self, stack: AsyncExitStack, response: aiohttp.ClientResponse, verb: str) -> tuple[Channel, Operation]:
        """Read a stream as the work of a task of its own, so that it ends however its reader goes away."""
        loop = asyncio.get_running_loop()
        operation = Operation(loop.create_future())
        channel = Channel(operation.result)
        channel.routed = routed_of(response.headers)
        where = self._transport.url

        async def read() -> None:
            raw = verb == "stream_request"
            events = Events(where, of_any=raw)
            async with stack:
                async for chunk in response.content.iter_any():
                    for event in events.take(chunk):
                        piece = event if raw else chunk_of(event, where)
                        await channel.put(piece, idle_s=_UNREAD_S, label=f"{self.task} at {where}")
                    if events.done:
                        break
                else:
                    raise ServerUnreachable(f"{where} broke off in the middle of an answer")
                # Read to its end, the connection serves the next call too.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_END_S):
                        await response.content.read()

        def ended(task: asyncio.Task[None]) -> None:
            operation.task = None
            error = None if task.cancelled() else task.exception()
            if not operation.result.done():
                if task.cancelled():
                    operation.result.cancel()
                elif error is not None:
                    operation.result.set_exception(error)
                else:
                    operation.result.set_result(None)

        operation.task = loop.create_task(read(), name=f"stream of {self.task}")
        operation.task.add_done_callback(ended)
        return channel, operation

    def _media_limits(self) -> MediaLimits:
        return self._limits
