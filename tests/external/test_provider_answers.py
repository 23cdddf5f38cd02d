"""What providers answer, whole and in pieces, through their real SDKs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskrouter.verbs import ChatRequest, Embeddings, EmbedRequest, GenerateAnswer, GenerateRequest, Usage

from . import anthropic_wire, google_wire, openai_wire
from .subjects import ANTHROPIC, GOOGLE, HELLO, OPENAI, SUBJECTS, Subject
from .wire import answer, serving

pytestmark = pytest.mark.anyio
each = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
USED = Usage(13, 7)
TOOLS = [("look", ['{"whe', 're": "left"}']), ("stop", ["{}"])]


@each
async def test_an_answer_has_its_text_and_its_usage(subject: Subject) -> None:
    found = await subject.chat(answer(subject.text("Grüße, 世界")))
    assert (found.text, found.finish_reason, found.usage) == ("Grüße, 世界", "stop", USED)
    assert (found.tool_calls, found.reasoning) == ((), None)
    assert found.raw


@each
async def test_a_stream_comes_in_pieces_and_the_last_has_the_usage(subject: Subject) -> None:
    pieces = await subject.stream_chat(subject.stream(subject.streamed_text(["one ", "two ", "drei: ß"])))
    assert "".join(piece.text for piece in pieces) == "one two drei: ß"
    assert len([piece for piece in pieces if piece.text]) == 3
    *early, last = pieces
    assert [(piece.finish_reason, piece.usage) for piece in early] == [(None, None)] * len(early)
    assert (last.finish_reason, last.usage) == ("stop", USED)


@each
async def test_a_tool_call_is_as_the_openai_api_has_it(subject: Subject) -> None:
    found = await subject.chat(answer(subject.tool("look", {"where": "links", "n": 2})))
    (call,) = found.tool_calls
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) == {"where": "links", "n": 2}
    assert (found.text, found.finish_reason) == ("", "tool_calls")


@each
async def test_streamed_tool_calls_carry_their_index(subject: Subject) -> None:
    pieces = await subject.stream_chat(subject.stream(subject.streamed_tools(TOOLS)))
    asked: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for call in piece.tool_calls:
            known = asked.setdefault(call["index"], {"arguments": ""})
            known |= {name: call[name] for name in ("id", "type") if name in call}
            known["name"] = call["function"].get("name") or known["name"]
            known["arguments"] += call["function"].get("arguments") or ""
    assert list(asked) == [0, 1]
    assert [(call["name"], json.loads(call["arguments"])) for call in asked.values()] == [
        ("look", {"where": "left"}),
        ("stop", {}),
    ]
    assert all(call["type"] == "function" for call in asked.values())
    assert len({call["id"] for call in asked.values()}) == 2
    assert "".join(piece.text for piece in pieces) == "I look."
    assert (pieces[-1].finish_reason, pieces[-1].usage) == ("tool_calls", USED)


@each
async def test_reasoning_is_kept_apart(subject: Subject) -> None:
    found = await subject.chat(answer(subject.thought("Let me see.", "Yes.")))
    assert (found.text, found.reasoning) == ("Yes.", "Let me see.")


@each
async def test_streamed_reasoning_is_kept_apart(subject: Subject) -> None:
    pieces = await subject.stream_chat(subject.stream(subject.streamed_thought(["Let ", "me see."], "Yes.")))
    assert "".join(piece.text for piece in pieces) == "Yes."
    assert "".join(piece.reasoning or "" for piece in pieces) == "Let me see."


@each
async def test_a_refusal_is_an_answer(subject: Subject) -> None:
    found = await subject.chat(answer(subject.refusal("I can't help with that.")))
    assert (found.text, found.finish_reason, found.usage) == ("I can't help with that.", "content_filter", USED)


@each
async def test_a_streamed_refusal_is_an_answer(subject: Subject) -> None:
    pieces = await subject.stream_chat(subject.stream(subject.streamed_refusal(["I can't ", "help."])))
    assert "".join(piece.text for piece in pieces) == "I can't help."
    assert (pieces[-1].finish_reason, pieces[-1].usage) == ("content_filter", USED)


async def test_google_refusing_the_question_is_an_answer_too() -> None:
    found = await GOOGLE.chat(answer(google_wire.blocked()))
    assert (found.text, found.finish_reason, found.usage) == ("", "content_filter", Usage(13, 0))
    (only,) = await GOOGLE.stream_chat(GOOGLE.stream([google_wire.blocked()]))
    assert (only.text, only.finish_reason, only.usage) == ("", "content_filter", Usage(13, 0))


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        (ANTHROPIC, anthropic_wire.message({"type": "text", "text": "x"}, stop_reason="max_tokens")),
        (OPENAI, openai_wire.completion({"content": "x"}, "length")),
        (GOOGLE, google_wire.response({"text": "x"}, finish_reason="MAX_TOKENS")),
    ],
    ids=["anthropic", "openai", "google"],
)
async def test_an_answer_cut_by_its_bound_says_so(subject: Subject, data: dict[str, Any]) -> None:
    assert (await subject.chat(answer(data))).finish_reason == "length"


async def test_an_answer_of_google_with_nothing_in_it_is_an_empty_one() -> None:
    """Thoughts can use up the whole bound: then a candidate has no content at all."""
    found = await GOOGLE.chat(answer({"candidates": [{"finishReason": "MAX_TOKENS", "index": 0}]}))
    assert (found.text, found.finish_reason, found.usage) == ("", "length", None)


async def test_an_answer_has_what_the_server_said_beside_its_text() -> None:
    data = {**openai_wire.text("x"), "provider": "elsewhere"}
    assert (await OPENAI.chat(answer(data))).raw == data


async def test_a_field_of_a_wrong_type_warns_nobody() -> None:
    """Servers that nearly speak the API are many; the SDK's own types would warn at each answer."""
    data = {**openai_wire.text("x"), "created": "yesterday", "model": 7}
    assert (await OPENAI.chat(answer(data))).text == "x"
    message = {**anthropic_wire.text("x"), "model": 7, "stop_sequence": 3}
    assert (await ANTHROPIC.chat(answer(message))).text == "x"


async def test_unknown_blocks_and_events_of_anthropic_are_passed_over() -> None:
    found = await ANTHROPIC.chat(
        answer(anthropic_wire.message({"type": "new_kind", "x": 1}, {"type": "text", "text": "x"}))
    )
    assert found.text == "x"
    start, *rest = anthropic_wire.streamed_text(["x"])
    events = [start, {"type": "ping"}, {"type": "new_event", "y": 1}, *rest]
    pieces = await ANTHROPIC.stream_chat(ANTHROPIC.stream(events))
    assert "".join(piece.text for piece in pieces) == "x"


@pytest.mark.parametrize(
    ("subject", "data", "usage"),
    [
        (OPENAI, openai_wire.embeddings([[1.0, 0.5], [0.25, 2.0]]), Usage(4, 0)),
        (GOOGLE, google_wire.embeddings([[1.0, 0.5], [0.25, 2.0]]), None),
    ],
    ids=["openai", "google"],
)
async def test_texts_become_vectors_in_order(subject: Subject, data: dict[str, Any], usage: Usage | None) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(answer(data))
        found = await connection.call("embed", EmbedRequest(("a", "b")), subject.call())
        assert isinstance(found, Embeddings)
        assert (found.vectors, found.usage) == (((1.0, 0.5), (0.25, 2.0)), usage)
        assert "a" in json.dumps(wire.body)
        assert wire.requests[0].path in ("/v1/embeddings", "/v1beta/models/gemini-x:batchEmbedContents")


async def test_a_prompt_goes_on_where_the_server_completes_text() -> None:
    async with serving() as wire, OPENAI.connected(wire) as connection:
        wire.script(answer(openai_wire.generated(" and on")))
        found = await connection.call("generate", GenerateRequest("go", 3), OPENAI.call())
        assert isinstance(found, GenerateAnswer)
        assert (found.text, found.finish_reason, found.usage) == (" and on", "length", USED)
        assert wire.requests[0].path == "/v1/completions"
        assert wire.body == {"model": "gpt-x", "prompt": "go", "max_tokens": 3}


@each
async def test_one_connection_serves_one_call_after_another(subject: Subject) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(*[answer(subject.text(str(turn))) for turn in range(4)])
        said = [(await subject.ask(connection)).text for _ in range(4)]
        assert said == ["0", "1", "2", "3"]
        assert (len(wire.requests), wire.connections) == (4, 1)


@each
async def test_a_stream_read_to_its_end_leaves_the_connection_for_the_next(subject: Subject) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(*[subject.stream(subject.streamed_text(["x"])) for _ in range(3)])
        for _ in range(3):
            assert (await subject.pieces(connection, ChatRequest(HELLO)))[-1].finish_reason == "stop"
        assert (len(wire.requests), wire.connections) == (3, 1)
