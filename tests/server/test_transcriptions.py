"""``/v1/audio/transcriptions``, by the ``openai`` SDK over a real socket, and by bodies that no SDK would send."""

from __future__ import annotations

import http.client
import http.server
import io
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import openai
import pytest

from taskrouter.backends import fake_model
from taskrouter.backends.fake_script import answer
from taskrouter.http import forms, subtitles
from taskrouter.verbs import Segment, TranscribeRequest

from .noting import Noting
from .serving import API_KEY, Served, keys, serving, written

SOUND = b"RIFF" + bytes(range(256)) * 8
MOST = 1 << 17


def option(name: str, **engine_args: Any) -> dict[str, Any]:
    return {"framework": "fake", "model_id": name, "vram_gb": 0.5, "engine_args": engine_args}


HEARD = {"segments": [[0, 1.5, " Hello <there>"], [3661.5, 3662, "a --> b"]], "language": "en", "duration_s": 3662.5}
TASKS: dict[str, Any] = {
    "hear": {
        "kind": "transcription",
        "selected": "ear",
        "options": {
            "ear": option("e", answer=HEARD),
            "plain": option("p"),
            "words": option("w", answer={"segments": [[0, 0.5, "so"], [0.5, 1, "it"]]}),
            "stuck": option("s", hang="call"),
        },
    },
    "say": {"kind": "chat", "selected": "parrot", "options": {"parrot": option("q")}},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = written(tmp_path_factory.mktemp("served"), TASKS, default_task="hear", media={"max_bytes": "128KiB"})
    with serving(file, keys(), fake=Noting()) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=API_KEY, max_retries=0) as found:
        yield found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TranscribeRequest, bytes]]:
    """What models are asked, and the bytes of the sound as each of two readers would find them."""
    found: list[tuple[TranscribeRequest, bytes]] = []

    def noted(label: str, script: Any, verb: str, request: Any) -> Any:
        once, again = request.audio.read(1 << 30), request.audio.read(1 << 30)
        assert once == again
        found.append((request, once))
        return answer(label, script, verb, request)

    monkeypatch.setattr(fake_model, "answer", noted)
    return found


def ask(client: openai.OpenAI, model: str = "hear", file: Any = ("a.wav", SOUND), **more: Any) -> Any:
    return client.audio.transcriptions.create(model=model, file=file, **more)


def test_a_sound_is_written_down(client: openai.OpenAI, asked: list[tuple[TranscribeRequest, bytes]]) -> None:
    raw = client.audio.transcriptions.with_raw_response.create(
        model="default", file=("speech.MP3", SOUND), language="en", prompt="Names: Ada"
    )
    assert raw.parse().text == " Hello <there> a --> b"
    assert raw.headers["x-taskrouter-option"] == "ear"
    request, sound = asked[0]
    assert sound == SOUND
    assert (request.language, request.prompt, request.extra) == ("en", "Names: Ada", {})
    assert request.audio.name == "audio.mp3"
    assert request.limits.max_bytes == MOST
    assert ask(client, "hear/plain").text == "plain: something was said"


def test_each_format_is_the_apis(client: openai.OpenAI) -> None:
    assert ask(client, response_format="text") == " Hello <there> a --> b\n"
    assert ask(client, response_format="srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello <there>\n\n2\n01:01:01,500 --> 01:01:02,000\na -> b\n\n"
    )
    assert ask(client, response_format="vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello &lt;there&gt;\n\n01:01:01.500 --> 01:01:02.000\na --&gt; b\n\n"
    )
    whole = ask(client, response_format="verbose_json")
    assert (whole.language, whole.duration, whole.text) == ("en", 3662.5, " Hello <there> a --> b")
    assert [(each.id, each.start, each.end) for each in whole.segments] == [(0, 0, 1.5), (1, 3661.5, 3662)]
    assert whole.words is None
    assert ask(client).usage.seconds == 3662.5


def test_times_of_words_are_told_by_models_that_know_them(client: openai.OpenAI) -> None:
    found = ask(client, "hear/words", response_format="verbose_json", timestamp_granularities=["word"])
    assert [(each.word, each.start, each.end) for each in found.words] == [("so", 0, 0.5), ("it", 0.5, 1)]
    assert found.segments is None
    both = ask(client, "hear/words", response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert len(both.words) == len(both.segments) == 2
    with pytest.raises(openai.UnprocessableEntityError, match="doesn't tell the times of words"):
        ask(client, "hear/ear", response_format="verbose_json", timestamp_granularities=["word"])
    with pytest.raises(openai.UnprocessableEntityError, match="there can be no srt"):
        ask(client, "hear/plain", response_format="srt")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"response_format": "docx"}, "response_format is 'docx'"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"timestamp_granularities": ["word"]}, "verbose_json only"),
        ({"response_format": "verbose_json", "timestamp_granularities": ["letter"]}, "word and segment"),
        ({"temperature": 2}, "temperature is '2'"),
        ({"temperature": float("nan")}, "temperature is 'nan'"),
        ({"extra_body": {"temperature": "hot"}}, "temperature is 'hot'"),
        ({"stream": True}, "stream: transcripts come whole here"),
        ({"extra_body": {"speakers": "2"}}, "speakers: this server can't do"),
        ({"extra_body": {"language": ["en", "de"]}}, "language"),
        ({"file": ("a.wav", b"")}, "the file in file is empty"),
        ({"model": ""}, "model"),
        ({"model": "x" * 1000}, "model has 1,000 letters"),
        ({"model": "say"}, "of kind chat, which can't transcribe"),
    ],
)
def test_what_makes_no_sense_is_refused(client: openai.OpenAI, more: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, **more)


def test_what_only_some_models_know_is_handed_on(
    client: openai.OpenAI, asked: list[tuple[TranscribeRequest, bytes]]
) -> None:
    ask(client, temperature=0)
    ask(client, temperature=0.25)
    assert [request.extra for request, _ in asked] == [{}, {"temperature": 0.25}]


def test_errors_are_the_sdks_own(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no task 'nobody'"):
        ask(client, "nobody")
    other = openai.OpenAI(base_url=f"{served.url}/v1", api_key="not-the-key", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        ask(other)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\boot.ini", "a.wav/../../x", '\u202e.mp3"x'])
def test_a_files_name_is_never_a_path(
    client: openai.OpenAI, asked: list[tuple[TranscribeRequest, bytes]], name: str
) -> None:
    assert ask(client, file=(name, SOUND)).text
    request, sound = asked[0]
    assert request.audio.name == "audio"
    assert sound == SOUND


def post(
    served: Served, body: Any, kind: str | None, *, chunked: bool = False, key: str = API_KEY
) -> tuple[int, bytes]:
    """A body as it is."""
    parts = urlsplit(served.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    headers = {"authorization": f"Bearer {key}", **({"content-type": kind} if kind is not None else {})}
    try:
        connection.request("POST", "/v1/audio/transcriptions", body, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


FORM = "multipart/form-data; boundary=edge"


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    found = b"".join(
        b"--edge\r\ncontent-disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return found + (b"--edge--\r\n" if end else b"")


FILE, MODEL = ('name="file"; filename="a.wav"', SOUND), ('name="model"', b"hear")


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b'{"model": "hear"}', "application/json", 415, b"multipart/form-data form"),
        (b"model=hear", "application/x-www-form-urlencoded", 415, b"multipart/form-data form"),
        (b"anything", None, 415, b"no content-type"),
        (form(MODEL, FILE), "multipart/form-data", 400, b"Missing boundary"),
        (b"", FORM, 400, b"cut short"),
        (b"nothing of a form", FORM, 400, b"can't be read"),
        (form(MODEL), FORM, 400, b"needs a file"),
        (form(MODEL, ('name="file"', SOUND)), FORM, 400, b"needs a file"),
        (form(MODEL, FILE, FILE), FORM, 400, b"Too many files"),
        (form(MODEL, MODEL, FILE), FORM, 400, b"model 2 times"),
        (form(('name="model"; filename="m"', b"hear")), FORM, 400, b"must be a text"),
        (form(MODEL, FILE, end=False), FORM, 400, b"cut short"),
        (form(MODEL, FILE)[:-60], FORM, 400, b"cut short"),
        (form(FILE, *[MODEL] * 70), FORM, 400, b"Too many fields"),
        (form(("filename=x", b"")), FORM, 400, b"can't be read"),
        (form((f'name="{"x" * 100_000}"', b"")), FORM, 400, b"can't be read"),
        (form(FILE), FORM, 400, b"model is missing"),
        (form(MODEL, FILE), "multipart/form-data; boundary=" + "e" * 5000, 400, b""),
    ],
)  # fmt: skip
def test_bodies_that_are_no_such_form(served: Served, body: bytes, kind: str | None, status: int, said: bytes) -> None:
    found, text = post(served, body, kind)
    assert found == status, text
    assert said in text
    assert b"Traceback" not in text
    assert b"starlette" not in text


def test_more_than_media_allows_is_refused(client: openai.OpenAI, served: Served) -> None:
    assert ask(client, file=("a.wav", bytes(MOST))).text
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, file=("a.wav", bytes(MOST + 1)))
    assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, file=("a.wav", bytes(MOST + (2 << 20))))
    assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError, match="a field of the form has more than") as caught:
        ask(client, extra_body={"prompt": "x" * 70_000})
    assert caught.value.status_code == 413


def test_a_body_of_no_declared_length_is_bounded_too(served: Served) -> None:
    """Read no further than it may: the server answers while there is more to come."""
    piece = bytes(1 << 16)
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n"
        connection.sendall(f"{head}content-type: {FORM}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        begun = b"--edge\r\ncontent-disposition: form-data; " + FILE[0].encode() + b"\r\n\r\n"
        for each in (begun, *[piece] * ((MOST + forms.BESIDE) // len(piece) + 1)):
            connection.sendall(b"%x\r\n%s\r\n" % (len(each), each))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_large_files_are_on_disk_while_they_wait(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms._Parser, "spool_max_size", 1 << 12)
    files: list[Told] = []

    class Told(tempfile.SpooledTemporaryFile[bytes]):
        """Says when it is closed."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.ended = threading.Event()
            files.append(self)

        def close(self) -> None:
            self.on_disk = self._rolled  # type: ignore[attr-defined]
            super().close()
            self.ended.set()

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", Told)
    assert ask(client, file=("a.wav", bytes(50_000))).text
    with pytest.raises(openai.BadRequestError):
        ask(client, file=("a.wav", bytes(50_000)), response_format="docx")
    assert len(files) == 2
    assert all(each.ended.wait(30) for each in files)
    assert [each.on_disk for each in files] == [True, True]


def test_who_goes_away_ends_the_call(served: Served) -> None:
    backend = served.backend
    assert isinstance(backend, Noting)
    backend.event("call-start").clear()
    backend.event("call-cancelled").clear()
    body = form(('name="model"', b"hear/stuck"), FILE)
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n"
        connection.sendall(f"{head}content-type: {FORM}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        assert backend.event("call-start").wait(30)
    assert backend.event("call-cancelled").wait(30)


def test_who_vanishes_in_mid_upload_leaves_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    class Told(io.BytesIO):
        def close(self) -> None:
            super().close()
            closed.set()

    opened = threading.Event()

    def made(**_: Any) -> Any:
        opened.set()
        return Told()

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", made)
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n"
        body = form(FILE, end=False)
        connection.sendall(f"{head}content-type: {FORM}\r\ncontent-length: {len(body) + 10}\r\n\r\n".encode() + body)
        assert opened.wait(30)
    assert closed.wait(30)


def test_cues_hold_what_no_player_misreads() -> None:
    odd = [Segment(-1.0, -2.0, "a\n\nb"), Segment(59.9996, 3599.9999, "")]
    assert subtitles.srt(odd) == ("1\n00:00:00,000 --> 00:00:00,000\na b\n\n2\n00:01:00,000 --> 01:00:00,000\n\n\n")
    assert subtitles.vtt([]) == "WEBVTT\n\n"


class Provider(http.server.BaseHTTPRequestHandler):
    """Fails under ``/one``, and answers under ``/two``."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[bytes]] = []

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        segment = {"id": 0, "start": 0.0, "end": 1.0, "text": "so it", "avg_logprob": -0.1}
        words = [{"word": "so", "start": 0.0, "end": 0.5}, {"word": "it", "start": 0.5, "end": 1.0}]
        heard = {"text": "so it", "language": "english", "duration": 1.0, "segments": [segment], "words": words}
        failed = self.path.startswith("/one")
        data = json.dumps({"error": {"message": "broken"}} if failed else heard).encode()
        self.send_response(500 if failed else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def provider() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_providers_are_given_the_whole_file_each(
    tmp_path: Path, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "test-key-1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    far = {"model_id": "whisper-1", "framework": "external_api", "provider": "openai", "api_key_env": "OUR_KEY",
           "requires_api_key": True, "max_retries": 0, "timeout_s": 30}  # fmt: skip
    options = {name: {**far, "api_endpoint": f"{provider}/{name}/v1"} for name in ("one", "two")}
    tasks = {"hear": {"kind": "transcription", "selected": "one", "fallback": ["two"], "options": options}}
    Provider.bodies.clear()
    with (
        serving(written(tmp_path, tasks)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        raw = client.audio.transcriptions.with_raw_response.create(
            model="hear", file=("../talk.flac", SOUND), response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )  # fmt: skip
    found: Any = raw.parse()
    assert raw.headers["x-taskrouter-option"] == "two"
    assert raw.headers["x-taskrouter-reason"].startswith("one: ")
    assert [(each.word, each.end) for each in found.words] == [("so", 0.5), ("it", 1.0)]
    assert found.segments[0].avg_logprob == -0.1
    assert len(Provider.bodies) == 2
    for body in Provider.bodies:
        assert SOUND in body
        assert b'filename="audio.flac"' in body
        assert b"timestamp_granularities" in body
