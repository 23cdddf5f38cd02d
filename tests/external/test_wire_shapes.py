"""The tests' servers speak the providers' protocols: every shape is read by the SDKs' own types, strictly."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from google.genai.types import GenerateContentResponse
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from . import anthropic_wire, google_wire, openai_wire

TOOLS = [("look", ['{"wh', 'ere": 1}']), ("stop", ["{}"])]
ANTHROPIC = [
    anthropic_wire.text("x"),
    anthropic_wire.tool("look", {"where": 1}),
    anthropic_wire.thought("hm", "x"),
    anthropic_wire.refusal("no"),
]
ANTHROPIC_STREAMS = [
    anthropic_wire.streamed_text(["a", "b"]),
    anthropic_wire.streamed_text(["no"], "refusal"),
    anthropic_wire.streamed_thought(["h", "m"], "x"),
    anthropic_wire.streamed_tools(TOOLS),
]
OPENAI = [
    openai_wire.text("x"),
    openai_wire.tool("look", {"where": 1}),
    openai_wire.thought("hm", "x"),
    openai_wire.refusal("no"),
]
OPENAI_STREAMS = [
    openai_wire.streamed_text(["a", "b"]),
    openai_wire.streamed_refusal(["no"]),
    openai_wire.streamed_thought(["h", "m"], "x"),
    openai_wire.streamed_tools(TOOLS),
]
GOOGLE = [
    google_wire.text("x"),
    google_wire.tool("look", {"where": 1}),
    google_wire.thought("hm", "x"),
    google_wire.refusal("no"),
    google_wire.blocked(),
    *google_wire.streamed_text(["a", "b"]),
    *google_wire.streamed_thought(["h", "m"], "x"),
    *google_wire.streamed_tools(TOOLS),
]


@pytest.mark.parametrize("data", ANTHROPIC)
def test_an_answer_of_anthropic_is_a_message(data: dict[str, Any]) -> None:
    assert Message.model_validate(data, strict=True).model_dump(exclude_unset=True, mode="json") == data


@pytest.mark.parametrize("events", ANTHROPIC_STREAMS)
def test_events_of_anthropic_are_stream_events(events: list[dict[str, Any]]) -> None:
    adapter = TypeAdapter[Any](RawMessageStreamEvent)
    for data in events:
        assert adapter.validate_python(data).type == data["type"]


@pytest.mark.parametrize("data", OPENAI)
def test_an_answer_of_openai_is_a_chat_completion(data: dict[str, Any]) -> None:
    assert ChatCompletion.model_validate(data, strict=True).model_dump(exclude_unset=True, mode="json") == data


@pytest.mark.parametrize("events", OPENAI_STREAMS)
def test_events_of_openai_are_chunks(events: list[dict[str, Any]]) -> None:
    for data in events:
        assert ChatCompletionChunk.model_validate(data, strict=True).model_dump(exclude_unset=True, mode="json") == data


def test_vectors_and_completions_of_openai_are_as_its_types_have_them() -> None:
    assert CreateEmbeddingResponse.model_validate(openai_wire.embeddings([[1.0, 0.5]])).data[0].embedding == [1.0, 0.5]
    assert Completion.model_validate(openai_wire.generated("on")).choices[0].text == "on"


@pytest.mark.parametrize("data", GOOGLE)
def test_an_answer_and_an_event_of_google_are_its_response(data: dict[str, Any]) -> None:
    found = GenerateContentResponse.model_validate(data)
    assert found.model_dump(exclude_unset=True, exclude_none=True, mode="json", by_alias=True) == data
