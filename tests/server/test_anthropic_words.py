"""The Messages API's words and ours: what a request comes to, what an answer does, and what is no request."""

from __future__ import annotations

from typing import Any

import pytest

from taskrouter.http.anthropic_answers import MessageWriter, message_body
from taskrouter.http.anthropic_words import request_of
from taskrouter.http.failing import Refused
from taskrouter.verbs import ChatAnswer, ChatChunk, Usage

PDF = {"type": "base64", "media_type": "application/pdf"}
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a place",
    "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}},
}


def user(content: Any) -> Any:
    return [{"role": "user", "content": content}]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens is missing"),
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"max_tokens": "7"}, "max_tokens"),
    ({"max_tokens": 1 << 70}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"stop_sequences": "END"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking can't be asked for"),
    ({"container": "c", "mcp_servers": []}, "container, mcp_servers: this server can't do"),
    ({"model": None}, "model is missing"),
    ({"messages": None}, "messages must be a list"),
    ({"messages": []}, "messages must be a list"),
    ({"messages": {}}, "messages must be a list"),
    ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
    ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\] must be an object"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\] must be an object"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\]: content must be"),
    ({"messages": user([])}, r"messages\[0\] has no content"),
    ({"messages": user(["hi"])}, r"messages\[0\].content\[0\] must be an object"),
    ({"messages": user([{"type": "text"}])}, "its text is missing"),
    ({"messages": user([{"type": "search_result"}])}, "of type 'search_result'"),
    ({"messages": [*user("x"), {"role": "assistant", "content": "The"}]}, "the last message is the assistant's"),
    ({"messages": user([{"type": "image"}])}, "its source must be of type base64 or url"),
    ({"messages": user([{"type": "image", "source": {"type": "file", "file_id": "f"}}])}, "base64 or url"),
    ({"messages": user([{"type": "image", "source": {"type": "base64", "media_type": "a;b", "data": ""}}])},
     "media_type"),
    ({"messages": user([{"type": "image", "source": {"type": "url", "url": "/etc/passwd"}}])}, "begins with https://"),
    ({"messages": user([{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}])}, "https://"),
    ({"messages": user([{"type": "document", "source": {"type": "url", "url": "//h/x"}}])}, "https://"),
    ({"messages": user([{"type": "document", "source": None, "citations": {"enabled": True}}])}, "citations"),
    ({"messages": user([{"type": "document", "source": {"type": "content", "content": [{"type": "document"}]}}])},
     "can only be of type text and image"),
    ({"messages": user([{"type": "tool_result", "content": "x"}])}, "needs a tool_use_id"),
    ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "of type 'image', which an assistant's"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}]}, "a tool_use needs"),
    ({"system": 5}, "system: content must be"),
    ({"system": [{"type": "image"}]}, "system must be a text"),
    ({"tools": {}}, "tools must be a list"),
    ({"tools": ["x"]}, r"tools\[0\]: only tools"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[0\]: only tools"),
    ({"tools": [{"name": "x"}]}, r"tools\[0\] needs a name"),
    ({"tools": [{**WEATHER, "defer_loading": True}]}, "defer_loading can't be done here"),
    ({"tool_choice": {"type": "auto"}}, "there are no tools to choose from"),
    ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "tool_choice must be"),
    ({"tools": [WEATHER], "tool_choice": {"type": {}}}, "tool_choice must be"),
    ({"output_config": {"effort": "low"}}, "output_config can only ask for a format"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
]  # fmt: skip


def test_a_conversation_with_tools_is_put_in_the_openai_apis_words() -> None:
    called = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"text": "Paris"}}
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    request = request_of(
        {
            "model": "m",
            "max_tokens": 9,
            "messages": [
                *user("Paris?"),
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "…", "signature": "s"}, called]},
                *user(
                    [
                        {"type": "tool_result", "tool_use_id": "c1", "is_error": True, "content": "no such place"},
                        {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "a"}, image]},
                        {"type": "tool_result", "tool_use_id": "c3"},
                        {"type": "text", "text": "well?"},
                    ]
                ),
                {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, called]},
                {"role": "system", "content": "be quick"},
                *user([{"type": "document", "title": "T", "context": "C. ",
                        "source": {"type": "text", "media_type": "text/plain", "data": "once"}}]),
            ],
            "tools": [{**WEATHER, "strict": True, "cache_control": None}],
            "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            "service_tier": "auto",
        }
    )  # fmt: skip
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"text":"Paris"}'}}
    url = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert request.messages == (
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "The tool failed: no such place"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "a"}, url]},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "user", "content": "well?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "system", "content": "be quick"},
        {"role": "user", "content": [{"type": "text", "text": each} for each in ("T\n\n", "C. ", "once")]},
    )
    function = {
        "name": "weather", "description": "The weather of a place", "strict": True,
        "parameters": WEATHER["input_schema"],
    }  # fmt: skip
    assert request.extra == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ChatAnswer("", "content_filter"), ("refusal", None)),
        (ChatAnswer("a", "length"), ("max_tokens", None)),
        (ChatAnswer("a", raw={"choices": [{"stop_reason": "END"}]}), ("stop_sequence", "END")),
        (ChatAnswer("a", raw={"choices": [{"matched_stop": "END"}]}), ("stop_sequence", "END")),
        (ChatAnswer("a", raw={"choices": [{"matched_stop": 151645}]}), ("end_turn", None)),
        (ChatAnswer("a", raw={"stop_reason": "stop_sequence", "stop_sequence": "END"}), ("stop_sequence", "END")),
        (ChatAnswer("a", raw={"stop_reason": "end_turn", "stop_sequence": None}), ("end_turn", None)),
        (ChatAnswer("a", "something new"), ("end_turn", None)),
    ],
)
def test_why_an_answer_ended(answer: ChatAnswer, told: tuple[str, str | None]) -> None:
    body = message_body(answer, "m", "1", ("END",))
    assert (body["stop_reason"], body["stop_sequence"]) == told
    assert body["usage"] == {"input_tokens": 0, "output_tokens": 0}
    writer = MessageWriter("m", "1", ("END",))
    for piece in (ChatChunk(answer.text), ChatChunk("", answer.finish_reason, Usage(3, 4), raw=answer.raw)):
        list(writer.events(piece))
    ended = dict(writer.end())["message_delta"]
    assert (ended["delta"]["stop_reason"], ended["delta"]["stop_sequence"]) == told
    assert ended["usage"] == {"input_tokens": 3, "output_tokens": 4}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def test_calls_are_blocks_with_their_input_read() -> None:
    body = message_body(ChatAnswer("so", "stop", tool_calls=(call('{"a": 1}', id="x"), call(""))), "m", "7")
    assert body["content"] == [
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "x", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_7-1", "name": "f", "input": {}},
    ]
    assert body["stop_reason"] == "tool_use"
    cut = message_body(ChatAnswer("", "length", tool_calls=(call('{"a": '),)), "m", "7")
    assert (cut["content"], cut["stop_reason"]) == ([], "max_tokens")
    for arguments in ('{"a": ', "[1]", "5", 5):
        with pytest.raises(Refused, match="what is no JSON object") as caught:
            message_body(ChatAnswer("", "tool_calls", tool_calls=(call(arguments),)), "m", "7")
        assert caught.value.status == 502


def test_blocks_follow_one_another() -> None:
    writer = MessageWriter("m", "1")
    pieces = [
        ChatChunk("", reasoning="hm"),
        ChatChunk("a"),
        ChatChunk("", tool_calls=(call("", id="x", index=0),)),
        ChatChunk("", tool_calls=({"index": 0, "function": {"arguments": '{"a":'}},)),
        ChatChunk("", tool_calls=({"index": 0, "function": {"arguments": "1}"}}, call("{}", id="y", index=1))),
        ChatChunk("b"),
        ChatChunk("", "stop"),
    ]
    events = [writer.start(), *(event for piece in pieces for event in writer.events(piece)), *writer.end()]
    told = [(name, data.get("index")) for name, data in events]
    start, delta, stop = (f"content_block_{each}" for each in ("start", "delta", "stop"))
    assert told == [
        ("message_start", None), ("ping", None),
        (start, 0), (delta, 0), (stop, 0),
        (start, 1), (delta, 1), (delta, 1), (stop, 1),
        (start, 2), (delta, 2), (stop, 2),
        (start, 3), (delta, 3), (stop, 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
    with pytest.raises(Refused, match="several calls at once"):
        list(writer.events(ChatChunk("", tool_calls=({"index": 0, "function": {"arguments": "2"}},))))
