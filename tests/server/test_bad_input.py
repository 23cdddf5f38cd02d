"""Nonsense over the wire: each is told what is wrong, within limits, and nobody else notices."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter.http import exchange
from taskrouter.http.metrics import KINDS

from .administering import shared
from .clients import CHAT, Raw, chat, json_of, status_of
from .serving import API_KEY, Served, keys, serving, written
from .test_streams import seen

FAKE = {"framework": "fake", "model_id": "m", "vram_gb": 1}
TASKS: dict[str, Any] = {
    "say": {"kind": "chat", "selected": "parrot", "options": {"parrot": FAKE}},
    "stuck": {"kind": "chat", "selected": "it", "options": {"it": {**FAKE, "engine_args": {"hang": "call"}}}},
    "fold": {"kind": "embedding", "selected": "it", "options": {"it": FAKE}},
}
SHOWN = {"authorization": f"Bearer {API_KEY}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = written(tmp_path_factory.mktemp("served"), TASKS, media={"max_bytes": "1MiB"})
    with serving(file, keys()) as server:
        yield server


def asked(served: Served, path: str, body: Any, headers: dict[str, str] | None = None, method: str = "POST") -> Any:
    with Raw(served.url) as client:
        client.ask(path, body, {**SHOWN, **(headers or {})}, method)
        answer = client.until(b"}}")
    return status_of(answer), json_of(answer)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "the body is a list; an object is wanted"),
        (b"null", "the body is null; an object is wanted"),
        (b"true", "the body is true; an object is wanted"),
        (b'"text"', "the body is a text; an object is wanted"),
        (b"0.5", "the body is a number; an object is wanted"),
        (b"nan", "no JSON"),
        (b'{"model": "say", "messages": "\xff"}', "no JSON"),
        ({}, "model is missing"),
        ({"model": 3}, "model is a number"),
        ({"model": ["say"]}, "model is a list"),
        ({"model": "say"}, "messages must be a list"),
        ({"model": "say", "messages": "hello"}, "messages must be a list"),
        ({"model": "say", "messages": []}, "messages is empty"),
        ({"model": "say", "messages": [3]}, "messages[0]"),
        ({"model": "say", "messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        (chat(max_tokens="many"), "max_tokens"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(temperature=-1), "temperature"),
        (chat(temperature=[1]), "temperature"),
        (chat(top_p=7), "top_p"),
        (chat(stop=7), "stop"),
        (chat(stop=["a", 7]), "stop"),
        (chat(seed="x"), "seed"),
        (chat(model="m" * 1_000_000), "model has 1,000,000 letters"),
    ],
)
def test_a_chat_that_is_none_is_told_what_is_wrong(served: Served, body: Any, says: str) -> None:
    status, data = asked(served, CHAT, body)
    assert status == 400, data
    assert says in data["error"]["message"]
    assert data["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("model", ["nobody", "say/nobody", "../say", "say/../say", "", "say\n", "default"])
def test_a_model_that_is_none_is_not_found(served: Served, model: str) -> None:
    status, data = asked(served, CHAT, chat(model))
    assert status in (400, 404), data


def test_a_default_that_no_file_names_is_told(served: Served) -> None:
    for model in ("default", "default/parrot"):
        status, data = asked(served, CHAT, chat(model))
        assert (status, data["error"]["code"]) == (404, "unknown_task")
        assert "no default_task is set in models.yaml" in data["error"]["message"]


def test_embeddings_of_nonsense_are_refused(served: Served) -> None:
    for given in (None, 3, [], [3], [[1, 2]], {"a": 1}):
        status, data = asked(served, "/v1/embeddings", {"model": "fold", "input": given})
        assert status == 400, data
    status, data = asked(served, "/v1/embeddings", {"model": "fold", "input": "x", "encoding_format": "hex"})
    assert (status, "encoding_format" in data["error"]["message"]) == (400, True)


def test_a_body_of_a_gigabyte_is_refused_unread(served: Served) -> None:
    status, data = asked(served, CHAT, b"{", {"content-length": str(1 << 30)})
    assert status == 413
    assert "1,073,741,824 bytes" in data["error"]["message"]


@pytest.mark.parametrize("told", [True, False])
def test_large_bodies_together_are_bounded_as_one_alone_is(served: Served, told: bool) -> None:
    """Of 1.5 MiB each, where one may have 2.3; what is small goes on all the while."""
    large = json.dumps(chat("stuck", text="x" * (3 << 19))).encode()

    def refused() -> int:
        """As the server counts: a client that still sends may never see its answer."""
        return shared(served).metrics.nameless[KINDS.index("5xx")]

    before = refused()
    with Raw(served.url) as holds:
        holds.ask(CHAT, large, SHOWN)
        seen(lambda: any(model.leases for model in served.manager.statistics().models.values()))
        with Raw(served.url) as another:
            if told:
                another.ask(CHAT, b"{", {**SHOWN, "content-length": str(len(large))})
            else:
                lines = [f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: Bearer {API_KEY}"]
                another.socket.sendall("\r\n".join([*lines, "transfer-encoding: chunked"]).encode() + b"\r\n\r\n")
                try:
                    for place in range(0, len(large), 1 << 16):
                        another.socket.sendall(b"10000\r\n" + large[place : place + (1 << 16)] + b"\r\n")
                except (BrokenPipeError, ConnectionResetError):
                    pass
            if told:
                answer = another.until(b"}}")
                assert status_of(answer) == 503
                assert b"retry-after: 1" in answer
                assert json_of(answer)["error"]["code"] == "bodies"
            seen(lambda: refused() == before + 1)
        assert asked(served, CHAT, chat())[0] == 200
    seen(lambda: not any(model.leases for model in served.manager.statistics().models.values()))
    status, answer = asked(served, CHAT, chat("say", text="x" * (3 << 19)))
    assert status == 200, answer


def test_an_upload_of_which_nothing_comes_any_more_is_over(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds what others want to send: here all but a byte of what may be in memory."""
    monkeypatch.setattr(exchange, "STALLED_S", 0.3)
    large = json.dumps(chat(text="x" * (2 << 20))).encode()
    with Raw(served.url) as stalls:
        stalls.ask(CHAT, large[:-1], {**SHOWN, "content-length": str(len(large))})
        answer = stalls.until(b"}}")
    assert status_of(answer) == 408
    assert json_of(answer)["error"]["code"] == "stalled"
    assert asked(served, CHAT, large)[0] == 200


def test_fields_of_a_form_that_are_no_files_are_bounded_together(served: Served) -> None:
    """Each may have 1 MiB, and there may be 64 of them; all of them stay in memory."""
    field = b'--b\r\ncontent-disposition: form-data; name="f%d"\r\n\r\n' + b"x" * (700 << 10) + b"\r\n"
    form = b"".join(field % number for number in range(2))
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert asked(served, "/v1/tasks/fold", form + b"--b--\r\n", kind)[0] == 400, "no such fields"
    status, answer = asked(served, "/v1/tasks/fold", form + field % 2 + b"--b--\r\n", kind)
    assert (status, "send it as a file" in answer["error"]["message"]) == (413, True)


def test_a_body_without_a_length_is_bounded_too(served: Served) -> None:
    with Raw(served.url) as client:
        lines = [f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: Bearer {API_KEY}", "transfer-encoding: chunked"]
        client.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        try:
            for _ in range(200):
                client.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert status_of(client.until(b"}}") or b"x 413 ") == 413


def test_headers_with_line_ends_in_them_come_back_as_none(served: Served) -> None:
    status, data = asked(served, CHAT, chat("say/par\r\nx-evil: 1"))
    assert status == 404
    with Raw(served.url) as client:
        client.ask(CHAT, chat("say/par\r\nx-evil: 1"), SHOWN)
        head = client.until(b"}}").partition(b"\r\n\r\n")[0]
    assert b"x-evil" not in head
    assert "x-evil" in data["error"]["message"]


def test_a_body_with_a_key_twice_means_nothing(served: Served) -> None:
    for text in (
        json.dumps(chat())[:-1] + ', "model": "say"}',
        '{"model": "say", "messages": [{"role": "user", "role": "x"}]}',
    ):
        status, data = asked(served, CHAT, text.encode())
        assert status == 400
        assert "twice" in data["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/models/" + "x" * 5000, 400),
        ("GET", "/v1/models/%2e%2e%2fsay", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_same_shape(served: Served, method: str, path: str, status: int) -> None:
    found, data = asked(served, path, b"", method=method)
    assert found == status, data
    assert data["error"]["message"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions? The base URL of this client ends in /v1"),
        ("/tasks/say", "did you mean /v1/tasks/say?"),
        ("/v1/v1/messages", "did you mean /v1/messages? Leave out the /v1 at the end of the base URL"),
        ("/v1/admin/reload", "did you mean /admin/reload? Leave out the /v1"),
        ("/v1/nothing", ""),
        ("/nothing", ""),
    ],
)
def test_a_base_url_with_a_v1_too_much_or_too_little_is_told(served: Served, path: str, says: str) -> None:
    status, data = asked(served, path, b"{}")
    assert status == 404
    assert data["error"]["message"].startswith(f"there is nothing at {path!r}")
    assert says in data["error"]["message"]
    assert bool(says) == ("did you mean" in data["error"]["message"])


@pytest.mark.parametrize(
    ("path", "theirs"),
    [("/v1/messages/batches", True), ("/v1/v1/messages", True), ("/messages", True), ("/v1/messagesx", False)],
)
def test_what_is_not_there_below_anthropics_paths_is_said_in_its_shape(served: Served, path: str, theirs: bool) -> None:
    status, data = asked(served, path, b"{}")
    assert status == 404
    assert (data.get("type") == "error") == theirs


def test_nothing_is_logged_that_should_not_be(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "what-nobody-else-may-read"
    asked(served, CHAT, chat(text=secret))
    asked(served, CHAT, chat(text=secret, max_tokens=-1))
    asked(served, CHAT, chat("nobody", text=secret))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("taskrouter", "uvicorn"))]
    assert not [line for line in ours if secret in line or API_KEY in line]


@pytest.mark.slow
def test_a_key_may_ask_its_tasks_only_and_so_often(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    one, two = "the-first-long-enough", "the-second-long-enough"
    file.write_text(
        json.dumps([{"name": "a", "key": one, "tasks": ["say"]}, {"name": "b", "key": two, "requests_per_minute": 2}])
    )
    with serving(written(tmp_path, TASKS), keys({}, file)) as server:

        def ask(key: str, path: str, body: Any, method: str = "POST") -> Any:
            return asked(server, path, body, {"authorization": f"Bearer {key}"}, method)

        assert ask(one, CHAT, chat())[0] == 200
        for model in ("fold", "nobody"):  # which of them is there isn't for this key to know
            status, data = ask(one, "/v1/embeddings", {"model": model, "input": "x"})
            assert (status, data["error"]["code"]) == (403, "task_not_allowed")
        assert {row["id"] for row in ask(one, "/v1/models", b"", "GET")[1]["data"]} == {"say", "say/parrot"}
        statuses: list[int] = []
        for _ in range(3):
            with Raw(server.url) as client:
                client.ask(CHAT, chat(stream=True), {"authorization": f"Bearer {two}"})
                answer = client.until(b"[DONE]") if len(statuses) < 2 else client.until(b"}}")
                statuses.append(status_of(answer))
        assert statuses == [200, 200, 429]
        assert b"retry-after: 30" in answer.lower()
