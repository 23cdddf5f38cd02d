"""The three providers as the tests see them: one way to ask, and each one's words for the same answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from taskrouter.backends.external.anthropic import AnthropicProvider
from taskrouter.backends.external.base import Call, Connection, Endpoint, Provider
from taskrouter.backends.external.google import GoogleProvider
from taskrouter.backends.external.openai import OpenAIProvider
from taskrouter.verbs import ChatAnswer, ChatChunk, ChatRequest

from . import anthropic_wire, google_wire, openai_wire
from .wire import Reply, Wire, serving, stream

KEY = "test-key-1"
WHO = "the option 'far'"
HELLO = ({"role": "user", "content": "hello"},)


@dataclass(frozen=True)
class Subject:
    """A provider, where its server is asked, and what the server says."""

    name: str
    provider: Callable[[], Provider]
    base: str
    path: str
    stream_path: str
    model: str
    text: Callable[[str], dict[str, Any]]
    tool: Callable[[str, dict[str, Any]], dict[str, Any]]
    thought: Callable[[str, str], dict[str, Any]]
    refusal: Callable[[str], dict[str, Any]]
    error: Callable[[int, str], dict[str, Any]]
    event: Callable[[dict[str, Any]], bytes]
    streamed_text: Callable[[Sequence[str]], list[dict[str, Any]]]
    streamed_thought: Callable[[Sequence[str], str], list[dict[str, Any]]]
    streamed_tools: Callable[[Sequence[tuple[str, Sequence[str]]]], list[dict[str, Any]]]
    streamed_refusal: Callable[[Sequence[str]], list[dict[str, Any]]]
    tail: tuple[bytes, ...] = ()

    def __str__(self) -> str:
        return self.name

    def stream(self, events: Sequence[dict[str, Any]], **how: Any) -> Reply:
        """A whole stream of these events."""
        return stream([*(self.event(data) for data in events), *self.tail], **how)

    def cut(self, events: Sequence[dict[str, Any]], **how: Any) -> Reply:
        """A stream of these events, without the mark that ends one."""
        return stream([self.event(data) for data in events], **how)

    def endpoint(self, url: str, key: str | None = KEY) -> Endpoint:
        return Endpoint(self.provider().base_url(url + self.base), key)

    def call(self, timeout_s: float = 10.0) -> Call:
        return Call(WHO, self.model, timeout_s)

    @asynccontextmanager
    async def connected(self, wire: Wire) -> AsyncIterator[Connection]:
        async with connected(self, self.endpoint(wire.url)) as connection:
            yield connection

    async def ask(self, connection: Connection, request: ChatRequest | None = None, timeout_s: float = 10.0) -> Any:
        return await connection.call("chat", request or ChatRequest(HELLO), self.call(timeout_s))

    async def pieces(
        self, connection: Connection, request: ChatRequest | None = None, timeout_s: float = 10.0
    ) -> list[ChatChunk]:
        pieces: Any = connection.stream("stream_chat", request or ChatRequest(HELLO), self.call(timeout_s))
        async with aclosing(pieces):
            return [piece async for piece in pieces]

    async def chat(self, reply: Reply, request: ChatRequest | None = None) -> ChatAnswer:
        """Ask once, with a server of its own."""
        async with serving() as wire, self.connected(wire) as connection:
            wire.script(reply)
            found = await self.ask(connection, request)
            assert isinstance(found, ChatAnswer)
            return found

    async def stream_chat(self, reply: Reply, request: ChatRequest | None = None) -> list[ChatChunk]:
        """Ask once for a stream, with a server of its own."""
        async with serving() as wire, self.connected(wire) as connection:
            wire.script(reply)
            return await self.pieces(connection, request)

    async def sent(self, request: ChatRequest) -> Any:
        """The body that goes over the wire for a request."""
        async with serving() as wire, self.connected(wire) as connection:
            wire.script(answer_text(self))
            await self.ask(connection, request)
            return wire.body


def answer_text(subject: Subject, said: str = "hi") -> Reply:
    from .wire import answer

    return answer(subject.text(said))


@asynccontextmanager
async def connected(subject: Subject, endpoint: Endpoint) -> AsyncIterator[Connection]:
    connection = subject.provider().connect(endpoint)
    try:
        yield connection
    finally:
        await connection.close()


ANTHROPIC = Subject(
    "anthropic",
    AnthropicProvider,
    "",
    "/v1/messages",
    "/v1/messages",
    "claude-x",
    anthropic_wire.text,
    anthropic_wire.tool,
    anthropic_wire.thought,
    anthropic_wire.refusal,
    anthropic_wire.error,
    anthropic_wire.event,
    anthropic_wire.streamed_text,
    anthropic_wire.streamed_thought,
    anthropic_wire.streamed_tools,
    lambda pieces: anthropic_wire.streamed_text(pieces, "refusal"),
)
OPENAI = Subject(
    "openai",
    OpenAIProvider,
    "/v1",
    "/v1/chat/completions",
    "/v1/chat/completions",
    "gpt-x",
    openai_wire.text,
    openai_wire.tool,
    openai_wire.thought,
    openai_wire.refusal,
    openai_wire.error,
    openai_wire.event,
    openai_wire.streamed_text,
    openai_wire.streamed_thought,
    openai_wire.streamed_tools,
    openai_wire.streamed_refusal,
    (openai_wire.DONE,),
)
GOOGLE = Subject(
    "google",
    GoogleProvider,
    "",
    "/v1beta/models/gemini-x:generateContent",
    "/v1beta/models/gemini-x:streamGenerateContent?alt=sse",
    "gemini-x",
    google_wire.text,
    google_wire.tool,
    google_wire.thought,
    google_wire.refusal,
    google_wire.error,
    google_wire.event,
    google_wire.streamed_text,
    google_wire.streamed_thought,
    google_wire.streamed_tools,
    lambda pieces: google_wire.streamed_text(pieces, "SAFETY"),
)
SUBJECTS = (ANTHROPIC, OPENAI, GOOGLE)
