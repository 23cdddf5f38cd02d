"""Media from other machines: fetched only where the file allows it, and never from inside our own network.

A URL that a caller names makes this process connect somewhere, so it may reach what the caller could not: a metadata
service, a database, a router. What counts is therefore the address that is really connected to. It is looked up here,
refused unless it is public, and the connection is made to that very address, so that a name that answers differently
the next moment is no way in. Each redirect is a new URL with a new address, and checked as one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from taskrouter.errors import BadInput, MediaTooLarge

if TYPE_CHECKING:
    from taskrouter.media.limits import MediaLimits

MOST_REDIRECTS = 5
SECONDS = 30.0
"""The whole fetch: looking up, connecting, redirects, and every byte."""

_MOVED = frozenset({301, 302, 303, 307, 308})
_PIECE = 1 << 16
_TLS = ssl.create_default_context
_PORTS = {"http": 80, "https": 443}
_TRANSLATED = IPv6Network("64:ff9b::/96")
"""NAT64: an IPv4 address inside an IPv6 one."""


def fetch(url: str, limits: MediaLimits, *, what: str) -> bytes:
    """The body behind an http(s) URL. Blocks, for half a minute at most.

    Raises ``BadInput`` for a host that isn't allowed, an address that isn't public, and what can't be fetched;
    ``MediaTooLarge`` beyond ``limits.max_bytes``, as soon as that is known.
    """
    at = url
    with _Bound(SECONDS, _shown(url)) as bound:
        for _ in range(MOST_REDIRECTS + 1):
            answer = _get(_checked(at, limits, what), limits, what, bound)
            if isinstance(answer, bytes):
                return answer
            at = urljoin(at, answer)
    raise BadInput(f"{_shown(url)} leads from one place to another more than {MOST_REDIRECTS} times.")


class _Bound:
    """An end of all waiting: sockets have timeouts for each byte only, and a byte may come now and then for ever."""

    def __init__(self, seconds: float, shown: str) -> None:
        self._shown = shown
        self._until = time.monotonic() + seconds
        self._socket: socket.socket | None = None
        self._over = False
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Bound:
        self._timer.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._timer.cancel()

    def watch(self, connected: socket.socket) -> None:
        """Let this be the socket that is cut off."""
        self._socket = connected
        if self._over:
            self._cut()

    def left(self) -> float:
        """Seconds that are left. Raises ``BadInput`` where none are."""
        left = self._until - time.monotonic()
        if left <= 0 or self._over:
            raise self.error()
        return left

    def error(self, failed: Exception | None = None) -> BadInput:
        """What to say of a failure: that it took too long, where that is why."""
        if failed is None or self._over or isinstance(failed, TimeoutError):
            return BadInput(f"{self._shown} took longer than {SECONDS:.0f} s: give the bytes, or a quicker host.")
        return BadInput(f"{self._shown} can't be fetched: {str(failed) or type(failed).__name__}.")

    def _cut(self) -> None:
        self._over = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # The plain one's: an encrypted socket's own forgets its state under whoever is using it.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _checked(url: str, limits: MediaLimits, what: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadInput(f"{_shown(url)} is no URL: {error}.") from error
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise BadInput(f"{_shown(url)} can't be fetched: give an http or https URL.")
    if parts.username is not None or parts.password is not None:
        raise BadInput(f"{_shown(url)} holds a name or a password: give a URL without one.")
    if not url.isascii() or any(sign <= " " or sign == "\x7f" for sign in url):
        raise BadInput(f"{_shown(url)} holds signs that no URL may: percent-encode them.")
    if limits.allowed_hosts and parts.hostname.rstrip(".") not in {host.lower() for host in limits.allowed_hosts}:
        raise BadInput(
            f"{parts.hostname} isn't among the hosts that media.allowed_hosts names "
            f"({', '.join(limits.allowed_hosts)}): give the {what}'s bytes, or add the host."
        )
    return parts


def _get(parts: SplitResult, limits: MediaLimits, what: str, bound: _Bound) -> bytes | str:
    """The body, or where it is said to be."""
    shown = _shown(parts.geturl())
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    connection = HTTPConnection(host, port)
    # The standard ports are left out of the Host header, as browsers do.
    connection.default_port = _PORTS[parts.scheme]
    try:
        connection.sock = _connected(host, port, parts.scheme, bound)
        connection.request(
            "GET",
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "taskrouter"},
        )
        answer = connection.getresponse()
        place = answer.headers.get("Location")
        if answer.status in _MOVED and place:
            return str(place)
        if answer.status != HTTPStatus.OK:
            raise BadInput(f"{shown} answers with status {answer.status}: there is no {what} to read.")
        _check_size(int(answer.length or 0), shown, limits)
        body = _body(answer, shown, limits)
    except (HTTPException, OSError) as error:
        raise bound.error(error) from error
    else:
        bound.left()  # Cut off, what has no length told looks as if it had ended.
        return body
    finally:
        connection.close()


def _connected(host: str, port: int, scheme: str, bound: _Bound) -> socket.socket:
    """A socket at the address that was checked, whatever the name means by then."""
    failed: OSError = OSError("the name has no address")
    for address in _looked_up(host, port, bound):
        try:
            plain = socket.create_connection((address, port), timeout=bound.left())
        except OSError as error:
            failed = error
            continue
        bound.watch(plain)
        if scheme == "http":
            return plain
        try:
            secret = _TLS().wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        except OSError:
            plain.close()
            raise
        bound.watch(secret)
        try:
            secret.do_handshake()
        except OSError:
            secret.close()
            raise
        return secret
    raise failed


def _body(answer: HTTPResponse, shown: str, limits: MediaLimits) -> bytes:
    body = bytearray()
    while piece := answer.read1(_PIECE):
        body += piece
        _check_size(len(body), shown, limits)
    if answer.length:
        raise OSError(f"it broke off {answer.length:,} bytes before its end")
    return bytes(body)


def _check_size(size: int, shown: str, limits: MediaLimits) -> None:
    if size > limits.max_bytes:
        raise MediaTooLarge(
            f"{shown} has more than the {limits.max_bytes:,} bytes that media.max_bytes allows: "
            "give a smaller file, or raise the limit."
        )


def _shown(url: str) -> str:
    """A URL for messages: without its query, which may hold a secret."""
    bare = url.split("?")[0].split("#")[0]
    scheme, mark, rest = bare.partition("://")
    host, slash, path = rest.partition("/")
    return repr(f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"[:200])


def _looked_up(host: str, port: int, bound: _Bound) -> list[str]:
    """Its addresses, within the time that is left: looking a name up has no timeout of its own."""
    found: Future[list[str]] = Future()

    def look() -> None:
        try:
            found.set_result(addresses(host, port))
        except Exception as error:  # noqa: BLE001  it is raised where it is waited for
            found.set_exception(error)

    threading.Thread(target=look, name=f"look up {host}", daemon=True).start()
    try:
        return found.result(timeout=bound.left())
    except TimeoutError as error:
        raise bound.error(error) from error


def addresses(host: str, port: int) -> list[str]:
    """What a name means now. Raises ``BadInput`` where it means nothing, or, among others, an address of our own."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadInput(f"{host} has no address: {error}.") from error
    told = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in told:
        if not is_public(address):
            raise BadInput(f"{host} is at {address}, which isn't a public address: give the bytes instead of the URL.")
    return told


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's, also where it is wrapped in another."""
    found = ip_address(address.split("%")[0])
    if isinstance(found, IPv6Address):
        teredo = found.teredo
        inner = [found.ipv4_mapped, found.sixtofour, *(teredo or ())]
        if found in _TRANSLATED:
            inner.append(IPv4Address(int(found) & 0xFFFFFFFF))
        if any(each is not None and not is_public(str(each)) for each in inner):
            return False
        if found.ipv4_mapped is not None or found in _TRANSLATED:
            return True
    return found.is_global and not found.is_multicast
