"""The client and servers that refuse, misbehave, vanish, or answer in pieces."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from aiohttp import web

from taskrouter import connect, errors
from taskrouter.client import Client
from taskrouter.client.transport import checked_url
from taskrouter.verbs import (
    ChatChunk,
    Usage,
)

from .wire_stub import HEADERS, Stub, run, stub

USAGE = Usage(3, 1)
pytestmark = pytest.mark.usefixtures("no_keys")


def refusing(server: Stub, status: int, code: str | None, message: str = "so it is", **headers: str) -> None:
    async def refuse(request: web.Request) -> web.Response:
        body = {"error": {"message": message, "type": "t", "param": None, "code": code}}
        return web.json_response(body, status=status, headers=headers)

    server.answer = refuse


KINDS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, errors.TaskRouterError) and each is not errors.ServerRefused
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_comes_back_as_itself(server: Stub, kind: type[errors.TaskRouterError]) -> None:
    refusing(server, kind.status_hint, kind.code, **{"Retry-After": "7"})
    with pytest.raises(kind, match="so it is") as caught:
        run(server, lambda client: client.handle("t").chat("x"))
    assert type(caught.value) is kind
    assert caught.value.retry_after_s == (None if issubclass(kind, errors.ConfigError) else 7.0)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "invalid_api_key"),
        (403, "task_not_allowed"),
        (429, "rate_limit"),
        (429, "concurrency"),
        (404, "not_found"),
    ],
)
def test_what_the_server_itself_refuses_says_what(server: Stub, status: int, code: str) -> None:
    refusing(server, status, code, **{"Retry-After": "2"})
    with pytest.raises(errors.ServerRefused, match="so it is") as caught:
        run(server, lambda client: client.tasks())
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (status, code, 2.0)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, errors.BadInput), (415, errors.BadInput), (503, errors.ModelUnavailable), (500, errors.TaskRouterError)],
)
def test_words_of_a_later_version_are_known_by_their_status(server: Stub, status: int, kind: type[Exception]) -> None:
    refusing(server, status, "a_word_of_tomorrow")
    with pytest.raises(kind, match="so it is") as caught:
        run(server, lambda client: client.handle("t").chat("x"))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="<html>nginx</html>", status=502),
        web.Response(text="<html>nginx</html>", status=200),
        web.json_response([1, 2]),
        web.json_response({"result": {"text": 1}}),
        web.json_response({}),
        web.json_response({"error": "a text"}, status=404),
        web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
    ids=["502", "html", "list", "other", "empty", "another's error", "moved"],
)
def test_something_else_that_answers_there_is_told_apart(server: Stub, answer: web.Response) -> None:
    bodies = pickle.dumps((answer.status, answer.body, dict(answer.headers)))

    async def strange(request: web.Request) -> web.Response:
        status, body, headers = pickle.loads(bodies)
        return web.Response(status=status, body=body, headers=headers)

    server.answer = strange
    with pytest.raises(errors.ServerUnreachable, match=server.url):
        run(server, lambda client: client.handle("t").generate("x"))


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_an_address_may_be_that_of_an_openai_client(end: str) -> None:
    assert checked_url(f"http://127.0.0.1:8733{end}") == "http://127.0.0.1:8733"
    assert checked_url(f"https://host/behind{end}") == "https://host/behind"
    assert checked_url(f"http://host/v10{end}") == "http://host/v10"


def test_nobody_there_is_one_short_sentence() -> None:
    with stub() as gone:
        url = gone.url
    with pytest.raises(errors.ServerUnreachable, match=f"nothing answers at {url}") as caught:
        run(Stub(url), lambda client: client.tasks())
    assert isinstance(caught.value, ConnectionError)
    assert "\n" not in str(caught.value)


def test_an_answer_that_breaks_off_is_none(server: Stub) -> None:
    async def breaking(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b'{"result": ')
        assert request.transport is not None
        request.transport.close()
        return response

    server.answer = breaking
    with pytest.raises(errors.ServerUnreachable, match="broke"):
        run(server, lambda client: client.handle("t").generate("x"))


def test_no_tls_where_it_is_wanted_is_said(server: Stub) -> None:
    with pytest.raises(errors.ServerUnreachable, match="no TLS"):
        run(Stub(server.url.replace("http:", "https:")), lambda client: client.tasks())


def test_a_server_that_falls_silent_is_given_up(server: Stub) -> None:
    async def silent(request: web.Request) -> web.Response:
        try:
            await asyncio.Event().wait()
        finally:
            server.closed.set()
        raise AssertionError

    server.answer = silent
    with pytest.raises(errors.ServerUnreachable, match="timeout_s"):
        run(server, lambda client: client.handle("t").generate("x"), timeout_s=0.2)
    assert server.closed.wait(10)


def test_a_cancelled_call_closes_its_connection(server: Stub) -> None:
    async def silent(request: web.Request) -> web.Response:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.closed.set()
        raise AssertionError

    import threading

    asked = threading.Event()
    server.answer = silent

    async def leave(client: Client) -> None:
        call = asyncio.ensure_future(client.handle("t").detect(b"x"))
        assert await asyncio.to_thread(asked.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(server.closed.wait, 10)

    run(server, leave)


def test_a_refusal_is_heard_before_a_large_file_is_sent(server: Stub) -> None:
    refusing(server, 401, "invalid_api_key")

    async def ask(client: Client) -> None:
        await client.handle("t").detect(b"y" * (64 << 20))

    with pytest.raises(errors.ServerRefused):
        run(server, ask)


# --- streams ----------------------------------------------------------------------------------------------------------


def streaming(server: Stub, *pieces: bytes, hang: bool = False) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        assert (await request.json())["stream"] is True
        response = web.StreamResponse(headers={**HEADERS, "content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if hang:
            try:
                await asyncio.Event().wait()
            finally:
                server.closed.set()
        return response

    server.answer = stream


FIRST = 'data: {"text": "hä", "finish_reason": null, "usage": null, "tool_calls": [], "reasoning": "r"}\n\n'.encode()
LAST = (
    b'data: {"text": "", "finish_reason": "stop", "usage": {"prompt_tokens": 3, "completion_tokens": 1}, '
    b'"tool_calls": [], "reasoning": null}\n\n'
)
DONE = b"data: [DONE]\n\n"


async def read(client: Client) -> list[Any]:
    async with client.handle("t").stream_chat("x") as chunks:
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize("cut", [1, 2, 7, 1000])
def test_a_chat_comes_in_pieces_however_they_are_cut(server: Stub, cut: int) -> None:
    whole = b": waiting for the model\n\n" + FIRST + b": waiting\n\n" + LAST.replace(b"\n", b"\r\n") + DONE
    streaming(server, *(whole[place : place + cut] for place in range(0, len(whole), cut)))
    assert run(server, read) == [ChatChunk("hä", reasoning="r"), ChatChunk("", "stop", USAGE)]


def test_an_error_in_the_middle_is_raised_there(server: Stub) -> None:
    streaming(server, FIRST, b'data: {"error": {"message": "it died", "code": "model_died"}}\n\n')
    got = []

    async def ask(client: Client) -> None:
        async for chunk in client.handle("t").stream_chat("x"):
            got.append(chunk.text)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(errors.ModelDied, match="it died"):
        run(server, ask)
    assert got == ["hä"]


@pytest.mark.parametrize("end", [b"", b"data: {", b"data: 7\n\n", b"data: {}}\n\n"])
def test_a_stream_that_breaks_off_is_no_answer(server: Stub, end: bytes) -> None:
    streaming(server, FIRST, end)
    with pytest.raises(errors.ServerUnreachable):
        run(server, read)


@pytest.mark.parametrize("how", ["close", "drop", "leave", "cancel"])
def test_a_reader_that_goes_away_closes_the_connection(server: Stub, how: str) -> None:
    streaming(server, FIRST, hang=True)

    async def ask(client: Client) -> None:
        stream = client.handle("t").stream_chat("x")
        assert (await anext(stream)).text == "hä"
        if how == "close":
            await stream.aclose()
        elif how == "leave":
            async with stream:
                pass
        elif how == "cancel":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
        del stream
        assert await asyncio.to_thread(server.closed.wait, 10)

    run(server, ask)


def test_a_refused_stream_is_an_error(server: Stub) -> None:
    refusing(server, 503, "overloaded")
    with pytest.raises(errors.Overloaded):
        run(server, read)


def test_connections_are_used_again_and_end_with_the_client(server: Stub) -> None:
    streaming(server, FIRST, DONE)

    async def ask(client: Client) -> set[Any]:
        ports = set()
        for _ in range(5):
            await read(client)
            pool = client._transport._connections().connector
            assert pool is not None
            ports |= {id(each[0]) for waiting in pool._conns.values() for each in waiting}
        return ports

    assert len(run(server, ask)) == 1

    async def after() -> None:
        client = connect(server.url)
        await client.close()
        await client.close()
        with pytest.raises(errors.ManagerClosed, match="closed"):
            await client.tasks()

    asyncio.run(after())


def test_another_loop_is_told(server: Stub) -> None:
    client = connect(server.url)
    with asyncio.Runner() as runner:
        runner.run(client.tasks())
        with pytest.raises(errors.WrongLoop):
            asyncio.run(client.tasks())
        runner.run(client.close())
