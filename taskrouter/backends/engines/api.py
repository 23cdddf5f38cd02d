"""Talking to one engine over HTTP on loopback: JSON calls and server-sent events, with errors told apart.

Bytes are handed on as they come. A connection that the server closed while it was idle is no failure: the call is sent
once more, on a new one, as long as nothing of an answer had arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from taskrouter.backends.engines.openai import message_of, parse_event
from taskrouter.errors import (
    BadInput,
    CallFailed,
    ContextTooLong,
    MissingDependency,
    TaskRouterError,
    UnsupportedInput,
    UnsupportedVerb,
)

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger("taskrouter")

CONNECT_S = 10.0
KEEP_ALIVE_S = 3.0
"""Idle connections are closed before the servers close them: uvicorn's default, which the engines keep, is 5 s."""
AT_ONCE_S = 1.0
"""A connection that had been closed while it was idle is noticed within so long."""
LONGEST_LINE = 64 << 20
LARGE = 1 << 18
"""Bytes that are written at once."""
_JSON = {"Content-Type": "application/json"}


_TOO_LONG = re.compile(r"maximum context length|model's context length|context window|exceeds? .{0,30}context", re.I)
_UNABLE = re.compile(
    r"not a multimodal model|at most 0 |does not support (image|audio|video|multi|tool)"
    r"|requires --enable-auto-tool-choice|(image|audio|video)\w* (input )?(is|are) not supported",
    re.I,
)


def refusal_of(text: str) -> BadInput:
    """What a server that says "bad request" means: engines tell what only *they* can't do in words alone.

    Another option may have a longer context, or eyes.
    """
    if _TOO_LONG.search(text):
        return ContextTooLong(text)
    return (UnsupportedInput if _UNABLE.search(text) else BadInput)(text)


class Broken(Exception):
    """The connection failed, or the answer was cut off: whether the engine died is for its owner to find out."""


class Api:
    """One engine's HTTP side. ``who`` begins every message.

    ``heard_of_calls`` is when a call last got a byte, in monotonic seconds; ``in_flight`` how many calls are under way.
    """

    def __init__(self, who: str, port: int, key: str) -> None:
        try:
            import aiohttp
        except ImportError as error:
            raise MissingDependency(
                f"{who}: engines need aiohttp, which isn't installed: pip install 'taskrouter[engines]'"
            ) from error
        self.who = who
        self.base_url = f"http://127.0.0.1:{port}"
        self.key = key
        self.heard_of_calls = time.monotonic()
        self.in_flight = 0
        self.breaks: tuple[type[Exception], ...] = (aiohttp.ClientError, ConnectionError, RuntimeError)
        """What a connection that breaks raises; a ``RuntimeError`` only once our side was closed."""
        self._idle_breaks = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
        """What one raises that the server had closed while it was idle."""
        self._session = self._connect(aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S))

    def _connect(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        import aiohttp

        return aiohttp.ClientSession(
            self.base_url,
            headers={"Authorization": f"Bearer {self.key}"},
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # A proxy of the environment is not for loopback.
            trust_env=False,
        )

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._session.close()

    async def healthy(self, path: str, timeout_s: float) -> bool:
        """Whether the health path answers 200 in time. Raises nothing but cancellation."""
        import aiohttp

        try:
            async with asyncio.timeout(timeout_s), self._session.get(path) as response:
                await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RuntimeError):
            return False  # RuntimeError: our side was closed meanwhile
        return bool(response.status == 200)

    async def get(self, path: str, timeout_s: float) -> tuple[int, str]:
        """A small answer's status and text. Raises ``Broken``."""
        import aiohttp

        try:
            async with asyncio.timeout(timeout_s), self._session.get(path) as response:
                return response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise Broken(f"{path}: {type(error).__name__}: {error}") from error

    async def call(
        self, path: str, body: Mapping[str, Any] | None, timeout_s: float | None = None, *, anybodys: bool = False
    ) -> Any:
        """POST (or GET, without a body) and parse the answer.

        ``anybodys``: the path and the body are the caller's own, who may have asked for what is no JSON. Raises
        ``Broken``, ``BadInput`` (400, 422, 413), ``UnsupportedVerb`` (404, 405, 501) or ``CallFailed``.
        """
        async with asyncio.timeout(timeout_s), self._open(path, body) as response:
            text = await self._read(response)
            try:
                return json.loads(text)
            except (ValueError, RecursionError) as error:
                shown = text[:200].decode(errors="replace")
                said = f"{self.who} answered {path} with what is no JSON: {shown!r}"
                if anybodys:
                    raise BadInput(
                        f"{said}. Events are asked for by stream_request, other answers not at all"
                    ) from error
                raise CallFailed(said) from error

    async def try_out(self, path: str, body: Mapping[str, Any]) -> None:
        """Ask for a token, to see that it computes one. Raises as ``call`` does.

        What the server doesn't offer (400, 404) is no reason to do without the rest.
        """
        with contextlib.suppress(UnsupportedVerb, BadInput):
            await self.call(path, body)

    async def tell(self, method: str, path: str, timeout_s: float, body: Mapping[str, Any] | None = None) -> str:
        """Send what is no call (it isn't counted in ``in_flight``); a POST's body is JSON, by default an empty object.

        On a connection of its own, and once: what it asks for must not happen twice. Raises ``Broken`` where nobody
        knows whether it happened, and what ``call`` raises where it was refused.
        """
        import aiohttp

        if body is None and method != "GET":
            body = {}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._connect(aiohttp.TCPConnector(force_close=True)) as session,
                session.request(method, path, json=body, allow_redirects=False) as response,
            ):
                text = await response.read()
        except TimeoutError as error:
            raise Broken(f"{path}: no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(f"{path}: {type(error).__name__}: {error}") from error
        if not 200 <= response.status < 300:
            raise self._refused(response.status, path, text)
        return text.decode(errors="replace")

    def path_of(self, path: str) -> str:
        """The path that a request for this one really asks for: without its query, dots and trailing slashes."""
        from yarl import URL

        return URL(self.base_url).join(URL(path)).path.rstrip("/")

    async def events(self, path: str, body: Mapping[str, Any], *, anybodys: bool = False) -> AsyncGenerator[Any, None]:
        """POST and give out the data of each server-sent event as it comes, until ``[DONE]``.

        Raises as ``call`` does, and ``anybodys`` means the same; ``Broken`` where the stream is cut off.
        """
        async with self._open(path, body) as response:
            rest = bytearray()
            async for chunk in self._chunks(response):
                rest += chunk
                if b"\n" not in chunk:
                    if len(rest) > LONGEST_LINE:
                        raise CallFailed(f"{self.who} streamed {len(rest)} bytes without a line's end")
                    continue
                *lines, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                for line in lines:
                    field, _, value = line.strip().partition(b":")
                    if field != b"data":
                        continue  # comments, event names, the blank line between two events
                    value = value.strip()
                    if value == b"[DONE]":
                        return
                    yield parse_event(value, self.who)
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                said = f"{self.who} answered {path} with no event stream: {rest[:200].decode('utf-8', 'replace')}"
                raise BadInput(said) if anybodys else CallFailed(said)
            # Some servers (transformers serve) just end: then a chunked body's own end says that it is whole.
            if response.headers.get("Transfer-Encoding", "").lower() != "chunked":
                raise Broken(f"{path}: the stream ended without [DONE]")

    async def post(self, path: str, body: bytes) -> bytes:
        """The bytes of the answer to a POST of JSON that is written already. Raises as ``call`` does.

        Not by way of ``_open``: this is the path of every request that a gateway passes on. Read to its end, or not, an
        answer gives its connection back by itself.
        """
        self.in_flight += 1
        begun = time.monotonic()
        try:
            try:
                response = await self._session.request("POST", path, data=_sent(body), headers=_JSON)
            except self._idle_breaks:
                if time.monotonic() - begun > AT_ONCE_S:
                    raise  # it was at work on this
                response = await self._session.request("POST", path, data=_sent(body), headers=_JSON)
            data = await response.read()
        except self.breaks as error:
            self.check_broken(path, error)
            raise
        finally:
            self.in_flight -= 1
        self._hear()
        if response.status >= 400:
            raise self._refused(response.status, path, data)
        return data

    @asynccontextmanager
    async def pieces(self, path: str, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of the answer to a POST of JSON that is written already, as they come. Raises as ``call`` does."""
        async with self._open(path, body) as response:
            yield self._chunks(response)

    @asynccontextmanager
    async def _open(self, path: str, body: Mapping[str, Any] | bytes | None) -> AsyncIterator[aiohttp.ClientResponse]:
        with _Calling(self, path):
            response = await self._send(path, body)
            self._hear()
            async with response:
                if response.status >= 400:
                    raise self._refused(response.status, path, await self._read(response))
                yield response

    async def _send(self, path: str, body: Mapping[str, Any] | bytes | None) -> aiohttp.ClientResponse:
        import aiohttp

        method = "GET" if body is None else "POST"

        def how() -> dict[str, Any]:
            return {"data": _sent(body), "headers": _JSON} if isinstance(body, bytes) else {"json": body}

        start = time.monotonic()
        try:
            return await self._session.request(method, path, **how())
        except self._idle_breaks:
            if time.monotonic() - start > AT_ONCE_S:
                raise  # it was at work on this
            return await self._session.request(method, path, **how())
        except aiohttp.InvalidURL as error:
            raise BadInput(f"{self.who}: {path!r} is no path: {error}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"{self.who}: the request can't be written as JSON: {error}") from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts = [chunk async for chunk in self._chunks(response)]
        return b"".join(parts)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async for chunk in response.content.iter_any():
            self._hear()
            yield chunk

    def check_broken(self, path: str, error: Exception) -> None:
        """Raise ``Broken`` for an error of ``breaks`` that is one."""
        if not (isinstance(error, RuntimeError) and not self.closed):
            raise Broken(f"{path}: {type(error).__name__}: {error}") from error

    def _hear(self) -> None:
        self.heard_of_calls = time.monotonic()

    def _refused(self, status: int, path: str, body: bytes) -> TaskRouterError:
        try:
            said = message_of(json.loads(body))
        except (ValueError, RecursionError):
            said = body[:600].decode(errors="replace").strip()
        text = f"{self.who} refused {path} with {status}: {said or 'no reason given'}"
        if status in (400, 413, 415, 422):
            return refusal_of(text)
        if status in (404, 405, 501):
            return UnsupportedVerb(text)
        return CallFailed(text)


def _sent(body: bytes) -> bytes | io.BytesIO:
    """A body for one request: a large one is written in pieces, so that other calls go on meanwhile."""
    return body if len(body) <= LARGE else io.BytesIO(body)


class _Calling:
    """A call under way: counted, and a connection that breaks inside is ``Broken``."""

    __slots__ = ("_api", "_path")

    def __init__(self, api: Api, path: str) -> None:
        self._api = api
        self._path = path

    def __enter__(self) -> None:
        self._api.in_flight += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._api.in_flight -= 1
        if isinstance(error, self._api.breaks):
            self._api.check_broken(self._path, error)
