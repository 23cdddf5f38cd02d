"""Requests with media in them, and what is refused before it is sent."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.backends.external import anthropic, google, openai
from taskrouter.backends.external.base import Takes
from taskrouter.verbs import ChatRequest

from .clips import PDF, data_url, png
from .subjects import SUBJECTS, Subject
from .wire import serving

each = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
PNG = png()
MODULES: dict[str, Any] = {"anthropic": anthropic, "openai": openai, "google": google}
LIMITS = {"anthropic": "_TAKES", "openai": "_COMPATIBLE", "google": "_TAKES"}


def with_parts(*parts: dict[str, Any]) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": [{"type": "text", "text": "See:"}, *parts]},))


def image(data: bytes = PNG, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, media_type)}}


def video(data: bytes) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(data, "video/mp4")}}


def document() -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "a.pdf", "file_data": data_url(PDF, "application/pdf")}}


async def refused(subject: Subject, request: Any, verb: str = "chat") -> errors.TaskRouterError:
    """The error of a request that never left."""
    async with serving() as wire, subject.connected(wire) as connection:
        with pytest.raises(errors.TaskRouterError) as caught:
            await connection.call(verb, request, subject.call())
        assert (wire.requests, wire.connections) == ([], 0)
        if verb == "chat":
            with pytest.raises(type(caught.value)):
                await subject.pieces(connection, request)
            assert wire.connections == 0
    return caught.value


def limit(monkeypatch: pytest.MonkeyPatch, subject: Subject, **limits: Any) -> None:
    module, name = MODULES[subject.name], LIMITS[subject.name]
    takes = getattr(module, name)
    assert isinstance(takes, Takes)
    monkeypatch.setattr(module, name, dataclasses.replace(takes, **limits))


def camel(data: Any) -> Any:
    """Names as the API's documents write them: its servers take both spellings, and its SDK's releases send both."""
    if isinstance(data, dict):
        return {re.sub(r"_(.)", lambda found: found[1].upper(), name): camel(each) for name, each in data.items()}
    return [camel(each) for each in data] if isinstance(data, list) else data
