"""What the stub answers, in the OpenAI API's shapes: the same to the same question, so tests know what is right."""

from __future__ import annotations

import json
import time
from typing import Any


class Answer:
    """What it answers: its own name and the last message, word by word; what it was given is sent back beside it."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.body = body
        self.chat = path.endswith("/chat/completions")
        asked = text_of(body["messages"][-1]["content"]) if self.chat else str(body["prompt"])
        self.calls: list[dict[str, Any]] = []
        text = f"{body['model']} heard: {asked}"
        for stop in body.get("stop") or ():
            text = text.partition(stop)[0]
        words = text.split(" ")
        most = body.get("max_tokens") or len(words)
        self.reason = "length" if most < len(words) else "stop"
        self.pieces = [word if not number else " " + word for number, word in enumerate(words[:most])]
        if self.chat and body.get("tools") and body.get("tool_choice") != "none":
            called = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps({"text": asked})}
            self.calls = [{"index": 0, "id": "call-1", "type": "function", "function": called}]
            self.reason, self.pieces = "tool_calls", []
        read = len(" ".join(text_of(each["content"]) for each in body["messages"]).split()) if self.chat else len(words)
        written = max(len(self.pieces), 1)
        self.usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        kind = "chat.completion" if self.chat else "text_completion"
        self.frame = {"id": "stub-1", "object": kind, "created": int(time.time()), "model": body["model"]}

    def whole(self) -> dict[str, Any]:
        text = "".join(self.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text if text else None}
        if self.calls:
            message["tool_calls"] = self.calls
        said = {"message": message} if self.chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": self.reason}
        return {**self.frame, "choices": [choice], "usage": self.usage, "stub": {"got": self.body}}

    def events(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in self.pieces]
        deltas += [{"tool_calls": self.calls}] if self.calls else []
        events = [self._event(delta, None) for delta in deltas]
        events[0]["stub"] = {"got": self.body}
        events.append(self._event({}, self.reason))
        if (self.body.get("stream_options") or {}).get("include_usage"):
            events.append({**self.frame, "choices": [], "usage": self.usage})
        return events

    def _event(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        said = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        return {**self.frame, "choices": [{"index": 0, **said, "finish_reason": reason}]}


def text_of(content: Any) -> str:
    if content is None:  # of an assistant's message that only calls tools
        return ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", part["type"]) for part in content)


def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    """Four numbers for each text, the same for the same text."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    rows = [[float(len(text)), float(sum(text.encode()) % 97), float(text.count(" ")), 1.0] for text in texts]
    data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
    read = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "model": body["model"], "data": data, "usage": usage, "stub": {"got": body}}
