"""The connections to one server: requests out, answers in, and whatever goes wrong between as one of our errors."""

from __future__ import annotations

import asyncio
import io
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from taskrouter.client.refusals import refusal
from taskrouter.client.sending import Sent
from taskrouter.errors import (
    BadInput,
    Forked,
    ManagerClosed,
    MissingDependency,
    ServerUnreachable,
    TaskRouterError,
    WrongLoop,
)

if TYPE_CHECKING:
    import aiohttp

CONNECT_S = 10.0
MOST_CONNECTIONS = 1000
"""Calls beyond so many at once wait for one of them to end: often a process has 1024 descriptors."""
KEEP_ALIVE_S = 4.0
"""Shorter than any server's, so that a request doesn't meet a connection that is being closed just then."""
SILENT_S = 20.0
"""A server that shows signs of life shows one every five seconds: how long it may be without, at least."""
_AT_ONCE = 1 << 16
"""Bytes of a body that are written in one go."""
_EXPECT = 1 << 20
"""Larger files are sent once the server has said that it wants them."""


class Transport:
    """One server's address, the keys for it, and the connections, which belong to the loop of the first request."""

    def __init__(self, url: str, api_key: str | None, admin_key: str | None, timeout_s: float | None) -> None:
        self.url = checked_url(url)
        self._keys = {"api": _checked_key(api_key), "admin": _checked_key(admin_key)}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._closed = False

    @property
    def has_admin_key(self) -> bool:
        return self._keys["admin"] is not None

    def _connections(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ManagerClosed(f"this client of {self.url} has been closed; make a new one")
        if self._session is None:
            self._session, self._loop, self._process = self._connect(), loop, os.getpid()
        elif os.getpid() != self._process:
            # Two processes on one connection would read each other's answers.
            raise Forked(f"this client of {self.url} was used before this process was forked; make one in the child")
        elif self._loop is not loop:
            raise WrongLoop(f"this client of {self.url} belongs to another event loop; make one in each, or blocking()")
        return self._session

    def _connect(self) -> aiohttp.ClientSession:
        try:
            import aiohttp
        except ImportError as error:
            raise MissingDependency(
                "a client needs aiohttp, which isn't installed: pip install 'taskrouter[engines]'"
            ) from error
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 18,
        )

    async def close(self) -> None:
        """Close the connections; calls under way fail. Idempotent."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None and os.getpid() == self._process:
            await session.close()

    async def ask(
        self, path: str, sent: Sent, timeout: float | None, more: Mapping[str, str]
    ) -> tuple[Any, Mapping[str, str]]:
        """Ask a task: the answer's JSON and its headers. ``more`` are headers of the request."""
        async with self.asked(path, sent, timeout, more) as response:
            return self._parsed(await self._read(response)), response.headers

    async def manage(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, key: str = "admin",
        timeout: float | None = None,
    ) -> Any:  # fmt: skip
        """Ask what isn't a task: with the ``admin`` or the ``api`` key."""
        data = None if body is None else json.dumps(body).encode()
        async with self._open(method, path, data, self._headers(key, None), timeout) as response:
            return self._parsed(await self._read(response))

    @asynccontextmanager
    async def opened(
        self, path: str, body: Mapping[str, Any], timeout: float | None, more: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that lasts until it is left, and shows signs of life meanwhile."""
        headers = {**self._headers("api", timeout), **more}
        data = json.dumps(body).encode()
        async with self._open("POST", path, data, headers, None, silence_s=self._silence_s) as response:
            yield response

    @property
    def _silence_s(self) -> float | None:
        return None if self._timeout_s is None else max(self._timeout_s, SILENT_S)

    @asynccontextmanager
    async def asked(
        self, path: str, sent: Sent, timeout: float | None, more: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a call, to be read by the caller; leaving before its end closes the connection."""
        headers = {**self._headers("api", timeout), **more}
        if not sent.files:
            async with self._open("POST", path, sent.body, headers, timeout) as response:
                yield response
            return
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("request", sent.body.decode(), content_type="application/json")
        for each in sent.files:
            form.add_field(each.name, each.file, filename=each.name, content_type="application/octet-stream")
        large = sum(each.size for each in sent.files) > _EXPECT
        async with self._open("POST", path, form, headers, timeout, expect=large) as response:
            yield response

    def _headers(self, key: str, timeout: float | None) -> dict[str, str]:
        headers = {"Accept": "application/json, text/event-stream"}
        if self._keys[key] is not None:
            headers["Authorization"] = f"Bearer {self._keys[key]}"
        if timeout is not None:
            headers["x-taskrouter-timeout"] = f"{timeout:.3f}"
        return headers

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, data: bytes | aiohttp.FormData | None, headers: dict[str, str],
        wait_s: float | None, *, expect: bool = False, silence_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        session = self._connections()
        import aiohttp
        from yarl import URL

        how: dict[str, Any] = {"headers": headers, "allow_redirects": False, "expect100": expect}
        if isinstance(data, bytes):
            headers["Content-Type"] = "application/json"
            how["data"] = data if len(data) <= _AT_ONCE else io.BytesIO(data)
        elif data is not None:
            how["data"] = data
        if wait_s is not None and self._timeout_s is not None:
            silence_s = self._timeout_s + wait_s
        if silence_s is not None:
            how["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        try:
            async with session.request(method, URL(self.url + path, encoded=True), **how) as response:
                if response.status >= 300:
                    body = await response.read()
                    raise refusal(response.status, body, response.headers.get("Retry-After"), self.url)
                yield response
        except TaskRouterError:
            raise  # some are a TimeoutError or a ConnectionError, too
        except TimeoutError as error:
            raise ServerUnreachable(f"{self.url} {_silent(error, silence_s or self._timeout_s)}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        import aiohttp

        if self._closed:
            return ServerUnreachable(f"the client of {self.url} was closed during the call")
        if isinstance(error, aiohttp.ClientConnectorError):
            return ServerUnreachable(
                f"nothing answers at {self.url} ({_reason(error)}): start it there with taskrouter serve, or "
                "look at the address"
            )
        return ServerUnreachable(f"the connection to {self.url} broke: {str(error) or type(error).__name__}")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        return await response.read()

    def _parsed(self, body: bytes) -> Any:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ServerUnreachable(f"{self.url} answered with no JSON: is that a taskrouter server?") from error
        if not isinstance(data, Mapping):
            raise ServerUnreachable(f"{self.url} answered with a {type(data).__name__}: is that a taskrouter server?")
        return data


def _reason(error: Exception) -> str:
    """In a few words: where several addresses were tried, the system's own are many."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(cause, (ssl.SSLError, ssl.CertificateError)):
        return f"no TLS: {getattr(cause, 'verify_message', '') or cause.reason or cause}"
    number = getattr(cause, "errno", None) or 0
    return os.strerror(number) if number > 0 else getattr(cause, "strerror", None) or "no connection"


def _silent(error: TimeoutError, silence_s: float | None) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"can't be reached: no connection within {CONNECT_S:g} s"
    long = "too long" if silence_s is None else f"{silence_s:g} s"
    return f"has said nothing for {long} (the client's timeout_s): is that a taskrouter server, and does it still work?"


def checked_url(url: str) -> str:
    """A server's address without a slash at its end, and without the ``/v1`` that an OpenAI client's has there.

    Raises ``BadInput``.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{url!r} is no address of a server: write http://host:port") from error
    bad = any(letter.isspace() or ord(letter) < 32 for letter in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or bad or port == 0:
        raise BadInput(f"{url!r} is no address of a server: write http://host:port")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not the URL itself: it may hold a secret.
        raise BadInput("a server's address holds no user, query or fragment: keys are given as api_key and admin_key")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _checked_key(key: str | None) -> str | None:
    if key is not None and not (isinstance(key, str) and key and key.isascii() and key.isprintable()):
        raise BadInput("a key is printable ASCII, without line ends")
    return key
