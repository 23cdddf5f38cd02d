"""Media from URLs: only where allowed, only from public addresses, and only so much for so long."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media import load_audio, load_image, load_video, remote
from taskrouter.media.limits import MediaLimits
from taskrouter.media.remote import fetch, is_public

from .seeds import FILMS, SOUNDS

Answer = Callable[[BaseHTTPRequestHandler], None]
OPEN = MediaLimits(remote=True, max_bytes=10_000)


class Site:
    """A server on the loopback whose paths answer as a test says, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers["Host"]))
                site.answers[self.path.split("?")[0]](self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Its address stands for a public one: there is no internet here."""
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    made = Site()
    yield made
    made.close()


def gives(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def leads_to(url: str, status: int = 302) -> Answer:
    return gives(b"", status, Location=url)


def test_a_picture_is_read_from_a_url(site: Site) -> None:
    packed = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(packed, "PNG")
    site.answers["/a/p.png"] = gives(packed.getvalue())
    picture = load_image(site.url("/a/p.png?token=x#part"), OPEN)
    assert (picture.size, picture.getpixel((0, 0))) == ((5, 3), (255, 0, 0))
    assert site.asked == [("/a/p.png?token=x", f"127.0.0.1:{site.port}")]


def test_sounds_and_videos_are_read_from_urls_too(site: Site) -> None:
    site.answers["/sound"], site.answers["/film"] = gives(SOUNDS["wav"]()), gives(FILMS["mp4"]())
    assert len(load_audio(site.url("/sound"), OPEN, sampling_rate=16_000)) == 4_800
    assert load_video(site.url("/film"), OPEN, count=2).times_s == (0.0, 0.5)


def test_nothing_is_fetched_where_the_file_does_not_say_so(site: Site) -> None:
    with pytest.raises(BadInput, match=r"only local files are read: .* or set media\.remote"):
        load_image(site.url("/p.png"), MediaLimits())
    assert site.asked == []


def test_only_the_hosts_that_the_file_names_are_asked(site: Site) -> None:
    site.answers["/p"] = gives(b"x")
    allowed = MediaLimits(remote=True, allowed_hosts=("LOCALHOST", "media.example"))
    assert fetch(site.url("/p", host="localhost"), allowed, what="image") == b"x"
    with pytest.raises(BadInput, match=r"127\.0\.0\.1 isn't among the hosts that media\.allowed_hosts names"):
        fetch(site.url("/p"), allowed, what="image")
    site.answers["/away"] = leads_to(site.url("/p"))
    with pytest.raises(BadInput, match="isn't among the hosts"):
        fetch(site.url("/away", host="localhost"), allowed, what="image")


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1%lo",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2001:db8::1",
    ],
)
def test_addresses_of_our_own_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(address)


def test_what_resolves_to_an_address_of_our_own_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(*_: Any, **__: Any) -> Any:
        return [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("10.1.2.3", 80))]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(socket, "getaddrinfo", two)
    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises(BadInput, match=r"media\.example is at 10\.1\.2\.3, which isn't a public address"):
        fetch("http://media.example/p", OPEN, what="image")


def test_a_name_is_looked_up_once_and_that_address_is_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answers["/p"] = gives(b"x")
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: str, *rest: Any, **more: Any) -> Any:
        if host == "media.example":
            looked_up.append(host)
            return [(2, 1, 6, "", ("127.0.0.1" if len(looked_up) == 1 else "10.0.0.1", site.port))]
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert fetch(site.url("/p", host="media.example"), OPEN, what="image") == b"x"
    assert looked_up == ["media.example"]
    assert site.asked == [("/p", f"media.example:{site.port}")]


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("http://169.254.169.254/latest", "is at 169.254.169.254, which isn't a public address"),
        ("http://[::1]:80/", "is at ::1, which isn't"),
        ("file:///etc/passwd", "give an http or https URL"),
        ("gopher://127.0.0.1/", "give an http or https URL"),
        ("//user:secret@127.0.0.1/", "holds a name or a password"),
    ],
)
def test_a_redirect_is_checked_as_any_url(site: Site, to: str, said: str) -> None:
    site.answers["/away"] = leads_to(to)
    with pytest.raises(BadInput, match=said) as failed:
        fetch(site.url("/away"), OPEN, what="image")
    assert "secret" not in str(failed.value)


def test_redirects_are_followed_and_end(site: Site) -> None:
    site.answers["/p"] = gives(b"x")
    for number, status in enumerate((301, 302, 303, 307, 308)):
        site.answers[f"/{number}"] = leads_to(f"/{number + 1}" if number < 4 else "/p", status)
    assert fetch(site.url("/0"), OPEN, what="image") == b"x"
    site.answers["/round"] = leads_to("/round")
    with pytest.raises(BadInput, match="leads from one place to another more than 5 times"):
        fetch(site.url("/round"), OPEN, what="image")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:secret@media.example/p", "holds a name or a password"),
        ("http:///p", "give an http or https URL"),
        ("http://media.example:99999/p", "is no URL"),
        ("http://media.example:0/p", "give an http or https URL"),
        ("http://[::1/p", "is no URL"),
        ("http://media.example/a b", "holds signs that no URL may"),
        ("http://media.example/ü", "holds signs that no URL may"),
        ("http://media.example/p\r\nX-Other: y", "holds signs|is no URL"),
        ("http://nowhere.invalid/p?token=secret", "nowhere.invalid has no address"),
    ],
)
def test_a_url_that_is_none_is_refused_and_its_secrets_are_not_shown(url: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as failed:
        fetch(url, OPEN, what="image")
    assert "secret" not in str(failed.value)


def test_more_than_the_limit_is_not_read(site: Site) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"x" * 1000)

    site.answers["/told"] = gives(b"", Content_Length="999999")
    site.answers["/endless"] = endless
    for path in ("/told", "/endless"):
        with pytest.raises(MediaTooLarge, match=r"more than the 10,000 bytes that media\.max_bytes allows"):
            fetch(site.url(path), OPEN, what="image")


def test_what_is_not_there_or_breaks_off_is_said(site: Site) -> None:
    def nonsense(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"hello\r\n")

    site.answers["/gone"] = gives(b"no", 404)
    site.answers["/short"] = gives(b"half", Content_Length="8")
    site.answers["/nonsense"] = nonsense
    for path, said in (
        ("/gone", "answers with status 404: there is no image to read"),
        ("/short", "broke off 4 bytes before its end"),
        ("/nonsense", "can't be fetched: "),
    ):
        with pytest.raises(BadInput, match=said):
            fetch(site.url(path), OPEN, what="image")
    with pytest.raises(BadInput, match="can't be fetched: "):
        fetch(site.url("/p").replace("http:", "https:"), OPEN, what="image")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(BadInput, match=r"can't be fetched: .*refused"):
        fetch(f"http://127.0.0.1:{port}/p", OPEN, what="image")


@pytest.mark.parametrize("where", ["headers", "body", "handshake"])
def test_who_sends_a_byte_now_and_then_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        if where == "body":
            handler.send_response(200)
            handler.end_headers()
        for _ in range(200):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.05)

    monkeypatch.setattr(remote, "SECONDS", 0.4)
    site.answers["/slow"] = drip
    url = site.url("/slow")
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if where == "handshake":
            url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(BadInput, match="took longer than 0 s"):
            fetch(url, OPEN, what="image")
    assert time.monotonic() - started < 5


def test_a_name_that_is_looked_up_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(remote, "SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(30) and [])
    try:
        with pytest.raises(BadInput, match="took longer than 0 s"):
            fetch("http://example.com/a.png", OPEN, what="image")
    finally:
        over.set()
