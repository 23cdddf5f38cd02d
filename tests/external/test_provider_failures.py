"""What goes wrong at a provider becomes one typed error, after one request and no more."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.verbs import EmbedRequest

from . import anthropic_wire, google_wire, openai_wire
from .failing import failure
from .subjects import ANTHROPIC, GOOGLE, KEY, OPENAI, SUBJECTS, Subject, connected
from .wire import Reply, answer, serving, stream

pytestmark = pytest.mark.anyio
each = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
ways = pytest.mark.parametrize("way", ["call", "stream"])
HTML = Reply(b"<html><body>Welcome to nginx</body></html>", content_type="text/html")


# --- by status --------------------------------------------------------------------------------------------------------


@each
@ways
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadInput),
        (401, errors.ProviderAuth),
        (403, errors.ProviderAuth),
        (404, errors.ProviderFailed),
        (408, errors.ProviderTimeout),
        (413, errors.MediaTooLarge),
        (429, errors.ProviderQuota),
        (500, errors.ProviderOverloaded),
        (503, errors.ProviderOverloaded),
        (529, errors.ProviderOverloaded),
    ],
)
async def test_a_status_has_its_class(subject: Subject, way: str, status: int, kind: type[Exception]) -> None:
    found = await failure(subject, answer(subject.error(status, "said the server"), status), way)
    assert type(found) is kind
    assert f"the provider answered {status}: said the server" in str(found)
    if isinstance(found, errors.ProviderFailed):
        assert found.status == status
    if status == 404:
        assert repr(subject.model) in str(found)


@each
@pytest.mark.parametrize("body", [b"", b"Bad Gateway", b"<html>Bad Gateway</html>", b"[1]", b'"x"', b"{", b'{"a": 1}'])
async def test_a_status_counts_whatever_its_body_is(subject: Subject, body: bytes) -> None:
    assert type(await failure(subject, Reply(body, 502, content_type="text/plain"))) is errors.ProviderOverloaded
    assert type(await failure(subject, Reply(body, 400))) is errors.BadInput


TOO_LONG = [
    (ANTHROPIC, anthropic_wire.error(400, "prompt is too long: 210000 tokens > 200000 maximum")),
    (OPENAI, openai_wire.error(400, "This model's maximum context length is 8192 tokens.")),
    (OPENAI, openai_wire.error(400, "Too much.", code="context_length_exceeded")),
    (OPENAI, openai_wire.error(400, "x " * 400 + "maximum context length")),
    (GOOGLE, google_wire.error(400, "The input token count (1200000) exceeds the maximum number of tokens allowed.")),
]


@pytest.mark.parametrize(("subject", "body"), TOO_LONG)
async def test_a_request_longer_than_the_context_says_so(subject: Subject, body: dict[str, Any]) -> None:
    assert type(await failure(subject, answer(body, 400))) is errors.ContextTooLong


# --- the key ----------------------------------------------------------------------------------------------------------


def tells_nothing(error: BaseException, *others: object) -> None:
    told = [str(error), repr(error), "".join(traceback.format_exception(error)), *map(repr, others)]
    assert not [text for text in told if KEY in text]


@each
@ways
@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_named_by_its_variable_and_never_shown(subject: Subject, way: str, status: int) -> None:
    found = await failure(subject, answer(subject.error(status, f"Incorrect API key provided: {KEY}."), status), way)
    assert isinstance(found, errors.ProviderAuth)
    assert subject.provider().key_env in str(found)
    assert "Incorrect API key provided: [key]." in str(found)
    tells_nothing(found)


@each
@ways
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_server_that_echoes_the_key_doesn_t_get_it_into_an_error(
    subject: Subject, way: str, status: int
) -> None:
    echo = answer({"headers": {"authorization": f"Bearer {KEY}"}, "filler": "x" * 400}, status)
    tells_nothing(await failure(subject, echo, way))
    cut_there = answer({"headers": "x" * (397 - len('{"headers": "') - 5) + KEY, "filler": "y" * 400}, status)
    assert KEY[:5] not in str(await failure(subject, cut_there, way))


@each
async def test_the_key_reaches_the_server_and_nothing_that_is_printed(subject: Subject) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(answer(subject.text("x")))
        await subject.ask(connection)
        assert KEY in " ".join(wire.requests[0].headers.values())
        assert KEY not in wire.requests[0].path
        assert KEY not in repr(connection) + str(connection) + repr(subject.endpoint(wire.url))


@each
@pytest.mark.parametrize("key", [f"{KEY}\nx", f"{KEY}\u20ac"], ids=["line", "euro"])
async def test_a_key_that_can_t_be_sent_is_not_shown(subject: Subject, key: str) -> None:
    async with serving() as wire, connected(subject, subject.endpoint(wire.url, key)) as connection:
        with pytest.raises(errors.ProviderFailed) as caught:
            await subject.ask(connection)
    tells_nothing(caught.value)


async def test_google_s_word_for_a_wrong_key_is_400() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    found = await failure(GOOGLE, answer(google_wire.error(400, "API key not valid.", [info]), 400))
    assert isinstance(found, errors.ProviderAuth)
    assert "GOOGLE_API_KEY" in str(found)


@each
@ways
async def test_a_redirect_is_not_followed_for_the_key_would_go_along(subject: Subject, way: str) -> None:
    async with serving() as elsewhere:
        found = await failure(subject, Reply(status=307, headers={"location": f"{elsewhere.url}/v1/x"}), way)
        assert type(found) is errors.ProviderFailed
        assert elsewhere.requests == []


async def test_a_token_of_the_environment_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "test-token-2")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key-2")
    monkeypatch.setenv("OPENAI_API_KEY", "test-key-2")
    monkeypatch.setenv("GOOGLE_API_KEY", "test-key-2")
    for subject in SUBJECTS:
        async with serving() as wire, connected(subject, subject.endpoint(wire.url, None)) as connection:
            wire.script(answer(subject.text("x")))
            await subject.ask(connection)
            assert "test-key-2" not in str(wire.requests)
            assert "test-token-2" not in str(wire.requests)


# --- when to ask again ------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "soon"}, None), ({}, None)],
)
async def test_a_spent_quota_says_when_to_ask_again(
    subject: Subject, headers: dict[str, str], seconds: float | None
) -> None:
    found = await failure(subject, answer(subject.error(429, "slow down"), 429, headers))
    assert isinstance(found, errors.ProviderQuota)
    assert found.retry_after_s == seconds


@each
async def test_a_date_to_ask_again_becomes_seconds(subject: Subject) -> None:
    headers = {"retry-after": "Wed, 01 Jan 2200 00:00:00 GMT"}
    found = await failure(subject, answer(subject.error(429, "slow down"), 429, headers))
    assert found.retry_after_s is not None
    assert found.retry_after_s > 3600


async def test_google_says_in_the_body_when_to_ask_again() -> None:
    body = google_wire.error(429, "quota", [google_wire.retry_info("37.5s")])
    assert (await failure(GOOGLE, answer(body, 429))).retry_after_s == 37.5


# --- what is no answer ------------------------------------------------------------------------------------------------


@each
@ways
@pytest.mark.parametrize(
    "reply",
    [
        Reply(b'{"id": "x", "choi'), Reply(b""), Reply(b"null"), Reply(b"7"), Reply(b"[]"), Reply(b'"x"'), HTML,
        answer({}), answer({"choices": [], "content": None, "candidates": []}),
        answer({"choices": [{}], "content": [{"type": "text"}], "candidates": "x"}), Reply(b"\xff\xfe{}"),
    ],
    ids=["cut", "nothing", "null", "number", "list", "text", "html", "empty", "hollow", "wrong", "bytes"],
)  # fmt: skip
async def test_what_is_no_answer_of_the_api_is_told_from_a_failure(subject: Subject, way: str, reply: Reply) -> None:
    found = await failure(subject, reply, way)
    assert isinstance(found, errors.ProviderProtocol)


@each
@pytest.mark.parametrize("pieces", [[], [b"data: {\n\n"], [b": comment\n\n"], [b"data: <html>\n\n"], [b"data: {}\n\n"]])
async def test_a_stream_of_nothing_is_no_answer(subject: Subject, pieces: list[bytes]) -> None:
    assert isinstance(await failure(subject, stream(pieces), "stream"), errors.ProviderProtocol)


async def test_events_that_lack_what_they_must_have_are_no_answer() -> None:
    lacking: list[dict[str, Any]] = [
        {"type": "content_block_delta", "index": 0},
        {"type": "content_block_delta", "index": 9, "delta": {"type": "input_json_delta", "partial_json": "{"}},
        {"type": "message_start"},
    ]
    for event in lacking:
        found = await failure(ANTHROPIC, ANTHROPIC.stream([event]), "stream")
        assert isinstance(found, errors.ProviderProtocol)
    nameless = google_wire.response({"functionCall": {}})
    assert isinstance(await failure(GOOGLE, GOOGLE.stream([nameless]), "stream"), errors.ProviderProtocol)
    wrong: list[Any] = ["x", [7], {}, [{"delta": 7}]]
    for choices in wrong:
        found = await failure(OPENAI, OPENAI.stream([{**openai_wire.chunk({}), "choices": choices}]), "stream")
        assert isinstance(found, errors.ProviderProtocol)


async def test_too_few_vectors_are_no_answer() -> None:
    async with serving() as wire, GOOGLE.connected(wire) as connection:
        wire.script(answer(google_wire.embeddings([[1.0]])))
        with pytest.raises(errors.ProviderProtocol, match="1 vectors for 2 texts"):
            await connection.call("embed", EmbedRequest(("a", "b")), GOOGLE.call())
    async with serving() as wire, OPENAI.connected(wire) as connection:
        wire.script(answer(openai_wire.embeddings([[1.0]])))
        with pytest.raises(errors.ProviderProtocol, match="1 vectors for 2 texts"):
            await connection.call("embed", EmbedRequest(("a", "b")), OPENAI.call())


# --- streams that break -----------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("how", [{"cut": True}, {}], ids=["broken", "ended"])
async def test_a_stream_cut_short_never_ends_silently(subject: Subject, count: int, how: dict[str, bool]) -> None:
    """Broken off, or ended properly before the answer was: both are failures."""
    reply = subject.cut(subject.streamed_text(["one", "two", "three"])[:count], **how)
    found = await failure(subject, reply, "stream")
    assert isinstance(found, (errors.ProviderUnreachable, errors.ProviderProtocol))


ERROR_EVENTS = [
    (ANTHROPIC, anthropic_wire.error(529, "busy"), errors.ProviderOverloaded),
    (ANTHROPIC, anthropic_wire.error(429, "busy"), errors.ProviderQuota),
    (ANTHROPIC, anthropic_wire.error(500, "busy"), errors.ProviderOverloaded),
    (ANTHROPIC, anthropic_wire.error(400, "prompt is too long"), errors.ContextTooLong),
    (OPENAI, openai_wire.error(500, "busy"), errors.ProviderOverloaded),
    (OPENAI, openai_wire.error(429, "busy", "rate_limit_exceeded"), errors.ProviderQuota),
    (OPENAI, {"error": {"message": "busy", "code": 429}}, errors.ProviderQuota),
    (OPENAI, {"error": {"message": "busy", "code": "502"}}, errors.ProviderOverloaded),
    (OPENAI, {"error": "busy"}, errors.ProviderOverloaded),
    (GOOGLE, google_wire.error(503, "busy"), errors.ProviderOverloaded),
    (GOOGLE, google_wire.error(429, "busy"), errors.ProviderQuota),
    (GOOGLE, {"error": {"message": "busy"}}, errors.ProviderFailed),
]


@pytest.mark.parametrize(("subject", "event", "kind"), ERROR_EVENTS)
@pytest.mark.parametrize("before", [0, 1])
async def test_an_error_inside_of_a_stream_has_its_class(
    subject: Subject, event: dict[str, Any], kind: type[Exception], before: int
) -> None:
    events = subject.streamed_text(["one", "two"])[:before]
    found = await failure(subject, subject.cut([*events, event]), "stream")
    assert isinstance(found, kind)
