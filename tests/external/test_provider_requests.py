"""What is sent to providers: OpenAI-style requests in each one's own words, and what is refused before it is sent."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.verbs import ChatRequest, EmbedRequest, GenerateRequest, RawRequest

from . import anthropic_wire, google_wire
from .asking import camel, refused
from .subjects import ANTHROPIC, GOOGLE, HELLO, OPENAI, Subject
from .wire import answer, serving

pytestmark = pytest.mark.anyio


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA}}
LOOK = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": LOOK}, {"type": "function", "function": {"name": "stop"}}]
TURNS: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": "What is there?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"n": 1}'}},
            {"id": "c2", "type": "function", "function": {"name": "stop", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "a tree"},
    {"role": "tool", "tool_call_id": "c2", "content": "stopped"},
    {"role": "user", "content": "And now?"},
)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "written"),
    [
        (ANTHROPIC, ""), (ANTHROPIC, "/"), (ANTHROPIC, "/v1"), (ANTHROPIC, "/v1/messages"),
        (ANTHROPIC, "/v1/messages/"),
        (OPENAI, "/v1"), (OPENAI, "/v1/"), (OPENAI, "/v1/chat/completions"), (OPENAI, "/v1/embeddings"),
        (GOOGLE, ""), (GOOGLE, "/"), (GOOGLE, "/v1beta"), (GOOGLE, "/v1beta/models"), (GOOGLE, "/v1beta/models/"),
        (GOOGLE, "/v1beta/models/gemini-2.0-flash:generateContent"), (GOOGLE, "/v1beta/models/gemini-2.0-flash"),
        (GOOGLE, "/v1beta/models/gemini-2.0-flash:streamGenerateContent"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", "/gateway/a"])
async def test_a_request_reaches_the_right_path(subject: Subject, written: str, before: str) -> None:
    bare = dataclasses.replace(subject, base=before + written)
    async with serving() as wire, bare.connected(wire) as connection:
        wire.script(answer(subject.text("x")), subject.stream(subject.streamed_text(["x"])))
        await subject.ask(connection)
        await subject.pieces(connection)
        assert [seen.path for seen in wire.requests] == [before + subject.path, before + subject.stream_path]
        assert [seen.method for seen in wire.requests] == ["POST", "POST"]


@pytest.mark.parametrize(
    ("subject", "endpoint", "base"),
    [
        (ANTHROPIC, "https://api.anthropic.com/v1/messages", "https://api.anthropic.com"),
        (ANTHROPIC, "https://api.anthropic.com", "https://api.anthropic.com"),
        (OPENAI, "https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1"),
        (OPENAI, "https://api.openai.com", "https://api.openai.com/v1"),
        (OPENAI, "https://example.com/openai/", "https://example.com/openai"),
    ],
)
async def test_an_endpoint_has_its_base(subject: Subject, endpoint: str, base: str) -> None:
    assert subject.provider().base_url(endpoint) == base


async def test_google_of_another_version_is_asked_in_it() -> None:
    async with serving() as wire, dataclasses.replace(GOOGLE, base="/v1").connected(wire) as connection:
        wire.script(answer(GOOGLE.text("x")))
        await GOOGLE.ask(connection)
        assert wire.requests[0].path == "/v1/models/gemini-x:generateContent"


# --- words ------------------------------------------------------------------------------------------------------------


async def test_a_conversation_in_anthropic_s_words() -> None:
    body = await ANTHROPIC.sent(ChatRequest(TURNS, 50, 0.5, 0.9, ("END",), extra={"tools": TOOLS, "top_k": 3}))
    assert body == {
        "model": "claude-x",
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "stop_sequences": ["END"],
        "system": "Be brief.\n\nBe kind.",
        "tools": [
            {"name": "look", "description": "Looks.", "input_schema": SCHEMA},
            {"name": "stop", "description": "", "input_schema": {"type": "object"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is there?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {"n": 1}},
                    {"type": "tool_use", "id": "c2", "name": "stop", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "a tree"}]},
                    {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "stopped"}]},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
    }


async def test_a_conversation_in_google_s_words() -> None:
    body = camel(await GOOGLE.sent(ChatRequest(TURNS, 50, 0.5, 0.9, ("END",), 7, {"tools": TOOLS, "top_k": 3})))
    config = body.pop("generationConfig")
    assert config == {
        "maxOutputTokens": 50, "temperature": 0.5, "topP": 0.9, "topK": 3, "seed": 7, "stopSequences": ["END"],
    }  # fmt: skip
    assert [part["text"] for part in body.pop("systemInstruction")["parts"]] == ["Be brief.\n\nBe kind."]
    (tools,) = body.pop("tools")
    look, stop = tools["functionDeclarations"]
    assert (look["name"], look["description"], look["parametersJsonSchema"]) == ("look", "Looks.", SCHEMA)
    assert stop["name"] == "stop"
    assert body == {
        "contents": [
            {"role": "user", "parts": [{"text": "What is there?"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "I look."},
                    {"functionCall": {"name": "look", "args": {"n": 1}}},
                    {"functionCall": {"name": "stop", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "look", "response": {"result": "a tree"}}},
                    {"functionResponse": {"name": "stop", "response": {"result": "stopped"}}},
                    {"text": "And now?"},
                ],
            },
        ]
    }


async def test_a_conversation_goes_to_openai_as_it_is() -> None:
    extra = {"tools": TOOLS, "top_k": 3, "response_format": FORM, "tool_choice": "auto"}
    body = await OPENAI.sent(ChatRequest(TURNS, 50, 0.5, 0.9, ("END",), 7, extra))
    sampling = {"max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "stop": ["END"], "seed": 7}
    assert body == {"model": "gpt-x", "messages": list(TURNS), **sampling, **extra}


@pytest.mark.usefixtures("openai_itself")
async def test_openai_itself_bounds_an_answer_by_another_name_and_reasons_without_a_temperature() -> None:
    body = await OPENAI.sent(ChatRequest(HELLO, 50))
    assert body == {"model": "gpt-x", "messages": list(HELLO), "max_completion_tokens": 50}


async def test_what_nobody_asked_for_is_not_sent() -> None:
    assert await OPENAI.sent(ChatRequest(HELLO)) == {"model": "gpt-x", "messages": list(HELLO)}
    assert (await ANTHROPIC.sent(ChatRequest(HELLO))).keys() == {"model", "messages", "max_tokens"}
    assert "temperature" not in json.dumps(await GOOGLE.sent(ChatRequest(HELLO)))


async def test_a_stream_asks_for_its_usage_where_it_must() -> None:
    async with serving() as wire, OPENAI.connected(wire) as connection:
        wire.script(OPENAI.stream(OPENAI.streamed_text(["x"])))
        await OPENAI.pieces(connection)
        assert wire.body["stream_options"] == {"include_usage": True}
        assert wire.body["stream"] is True


async def test_a_schema_is_asked_for_in_each_provider_s_words() -> None:
    request = ChatRequest(HELLO, extra={"response_format": FORM})
    assert (await OPENAI.sent(request))["response_format"] == FORM
    assert (await ANTHROPIC.sent(request))["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    config = (await GOOGLE.sent(request))["generationConfig"]
    assert config == {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
    loose = await GOOGLE.sent(ChatRequest(HELLO, extra={"response_format": {"type": "json_object"}}))
    assert loose["generationConfig"] == {"responseMimeType": "application/json"}
    plain = ChatRequest(HELLO, extra={"response_format": {"type": "text"}})
    assert "output_config" not in await ANTHROPIC.sent(plain)


ANY = {"type": "any"}
NAMED = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("choice", "anthropic_s", "google_s"),
    [
        ("auto", {"type": "auto"}, {"mode": "AUTO"}),
        ("required", {"type": "any"}, {"mode": "ANY"}),
        ("none", {"type": "none"}, {"mode": "NONE"}),
        (NAMED, {"type": "tool", "name": "look"}, {"mode": "ANY", "allowedFunctionNames": ["look"]}),
    ],
)
async def test_which_tool_is_to_be_used_is_translated(choice: Any, anthropic_s: Any, google_s: Any) -> None:
    request = ChatRequest(HELLO, extra={"tools": TOOLS, "tool_choice": choice})
    assert (await ANTHROPIC.sent(request))["tool_choice"] == anthropic_s
    assert (await GOOGLE.sent(request))["toolConfig"] == {"functionCallingConfig": google_s}


async def test_one_tool_at_a_time_is_anthropic_s_choice_too() -> None:
    body = await ANTHROPIC.sent(ChatRequest(HELLO, extra={"tools": TOOLS, "parallel_tool_calls": False}))
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


async def test_a_signature_of_google_s_goes_back_with_its_call() -> None:
    signature = base64.b64encode(b"\xfb\xff signed \xfe").decode()
    asked = google_wire.response({"functionCall": {"name": "look", "args": {}}, "thoughtSignature": signature})
    (call,) = (await GOOGLE.chat(answer(asked))).tool_calls
    turns = ({"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]})
    result = {"role": "tool", "tool_call_id": call["id"], "content": "y"}
    sent = await GOOGLE.sent(ChatRequest((*turns, result)))
    (part,) = sent["contents"][1]["parts"]
    assert base64.urlsafe_b64decode(part["thoughtSignature"]) == b"\xfb\xff signed \xfe"


THOUGHTS = [
    {"type": "thinking", "thinking": "Let me look.", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "aGk="},
]
CALLED = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}


@pytest.mark.parametrize("streamed", [False, True])
async def test_thoughts_of_anthropic_s_go_back_with_the_call_they_led_to(streamed: bool) -> None:
    if streamed:
        deltas = [{"type": "thinking_delta", "thinking": "Let me "}, {"type": "thinking_delta", "thinking": "look."},
                  {"type": "signature_delta", "signature": "c2ln"}]  # fmt: skip
        begin = {"type": "thinking", "thinking": "", "signature": ""}
        events = [anthropic_wire.start(), *anthropic_wire.block(0, begin, deltas),
                  *anthropic_wire.block(1, THOUGHTS[1], []), *anthropic_wire.block(2, CALLED, []),
                  *anthropic_wire.end("tool_use")]  # fmt: skip
        (call,) = [call for piece in await ANTHROPIC.stream_chat(ANTHROPIC.stream(events)) for call in piece.tool_calls]
    else:
        asked = anthropic_wire.message(*THOUGHTS, CALLED, stop_reason="tool_use")
        (call,) = (await ANTHROPIC.chat(answer(asked))).tool_calls
    turns = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "I look.", "tool_calls": [call]})
    result = {"role": "tool", "tool_call_id": "t1", "content": "y"}
    sent = await ANTHROPIC.sent(ChatRequest((*turns, result)))
    assert sent["messages"][1]["content"] == [*THOUGHTS, {"type": "text", "text": "I look."}, CALLED]


@pytest.mark.usefixtures("openai_itself")
async def test_what_others_want_back_with_a_call_does_not_go_to_openai() -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turn = {"role": "assistant", "content": "I look.", "tool_calls": [{**call, "extra_content": {"google": {}}}]}
    sent = await OPENAI.sent(ChatRequest(({"role": "user", "content": "x"}, turn)))
    assert sent["messages"][1]["tool_calls"] == [call]


# --- refused before it is sent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [ANTHROPIC, GOOGLE], ids=str)
@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"name": "look"}]}, {"tools": 7}, {"tools": TOOLS, "tool_choice": "sometimes"},
        {"tool_choice": {"type": "function"}}, {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": 7}}, {"response_format": 7},
        {"response_format": {}},
    ],
)  # fmt: skip
async def test_fields_that_are_not_as_the_openai_api_has_them_are_bad_input(
    subject: Subject, extra: dict[str, Any]
) -> None:
    assert type(await refused(subject, ChatRequest(HELLO, extra=extra))) is errors.BadInput


async def test_what_a_provider_has_no_words_for_is_unsupported() -> None:
    loose = ChatRequest(HELLO, extra={"response_format": {"type": "json_object"}})
    assert type(await refused(ANTHROPIC, loose)) is errors.UnsupportedInput
    assert type(await refused(ANTHROPIC, ChatRequest(HELLO, seed=1))) is errors.UnsupportedInput
    assert type(await refused(GOOGLE, ChatRequest(HELLO, extra={"repetition_penalty": 1.1}))) is errors.BadInput
    assert type(await refused(OPENAI, ChatRequest(HELLO, extra={"stream": True}))) is errors.BadInput


@pytest.mark.parametrize(
    ("subject", "verb", "request_"),
    [
        (ANTHROPIC, "embed", EmbedRequest(("a",))), (ANTHROPIC, "generate", GenerateRequest("x")),
        (GOOGLE, "generate", GenerateRequest("x")), (OPENAI, "request", RawRequest("/x", {})),
    ],
)  # fmt: skip
async def test_verbs_a_provider_can_t_do_are_refused(subject: Subject, verb: str, request_: Any) -> None:
    assert isinstance(await refused(subject, request_, verb), errors.UnsupportedVerb)


@pytest.mark.parametrize("subject", [ANTHROPIC, GOOGLE], ids=str)
@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ""}, {"role": "user"}, {"role": "user", "content": 7},
        {"role": "user", "content": [{"type": "smell"}]}, {"role": "user", "content": ["x"]}, {"content": "x"},
        {"role": "assistant", "tool_calls": [{"id": "c"}]}, {"role": "assistant", "tool_calls": [7]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
    ],
)  # fmt: skip
async def test_messages_that_are_none_are_bad_input(subject: Subject, message: dict[str, Any]) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        with pytest.raises(errors.BadInput):
            await subject.ask(connection, ChatRequest((message,)))
        assert wire.requests == []


@pytest.mark.parametrize("subject", [ANTHROPIC, OPENAI], ids=str)
async def test_half_a_character_is_bad_input(subject: Subject) -> None:
    """Google's SDK escapes it, and leaves it to the server."""
    async with serving() as wire, subject.connected(wire) as connection:
        with pytest.raises(errors.BadInput, match="the request holds what is no text"):
            await subject.ask(connection, ChatRequest(({"role": "user", "content": "\ud800"},)))
        assert wire.requests == []


@pytest.mark.parametrize("subject", [ANTHROPIC, OPENAI], ids=str)
@pytest.mark.parametrize("value", [float("nan"), object()])
async def test_what_json_has_no_word_for_is_bad_input(subject: Subject, value: object) -> None:
    """Nobody else could answer it, and the provider is not to blame."""
    async with serving() as wire, subject.connected(wire) as connection:
        with pytest.raises(errors.BadInput, match="the request holds what JSON has no word for"):
            await subject.ask(connection, ChatRequest(HELLO, extra={"user": value}))
        assert wire.requests == []
