"""Content parts: read, checked and sampled, without a provider."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.backends.external.base import Takes
from taskrouter.backends.external.content import (
    Part,
    arguments,
    check,
    parts_of,
    split_extra,
    with_frames,
)
from taskrouter.verbs import ChatRequest

from .clips import clip, data_url

TAKES = Takes(frozenset({"chat"}), frozenset({"image"}), frozenset({"image/png"}), most_images=2, most_image_bytes=3)


def of(*parts: Any) -> list[Part]:
    return parts_of({"role": "user", "content": list(parts)}, "messages[0]")


def picture(size: int, media_type: str = "image/png") -> Part:
    return Part("image", "", media_type, base64.b64encode(bytes(size)).decode())


def test_text_and_nothing_are_contents_too() -> None:
    assert parts_of({"role": "user", "content": "x"}, "m") == [Part("text", "x")]
    assert parts_of({"role": "user", "content": ""}, "m") == []
    assert parts_of({"role": "assistant", "content": None}, "m") == []
    assert parts_of({"role": "assistant"}, "m") == []
    assert parts_of({"content": ({"type": "text", "text": "x"},)}, "m") == [Part("text", "x")]


@pytest.mark.parametrize("content", [7, {"type": "text"}, b"x"])
def test_other_contents_are_bad_input(content: Any) -> None:
    with pytest.raises(errors.BadInput, match="it must be text or a list of parts"):
        parts_of({"role": "user", "content": content}, "m")


@pytest.mark.parametrize(
    "part",
    [
        7, {}, {"type": 7}, {"type": "smell"}, {"type": "image_url"}, {"type": "image_url", "image_url": {"url": 7}},
        {"type": "input_audio"}, {"type": "input_audio", "input_audio": {"data": 7}}, {"type": "file"},
        {"type": "file", "file": {"file_id": "f1"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "no-base64!", "format": "wav"}},
    ],
)  # fmt: skip
def test_a_part_that_is_none_is_bad_input_and_says_where(part: Any) -> None:
    with pytest.raises(errors.BadInput, match=r"messages\[0\]\.content\[1\]"):
        of({"type": "text", "text": "x"}, part)


@pytest.mark.parametrize(
    ("url", "media_type"),
    [
        ("data:image/png;base64,YWI=", "image/png"),
        ("data:image/svg+xml;base64,YWI=", "image/svg+xml"),
        ("data:;base64,YWI=", "application/octet-stream"),
        ("data:text/plain;charset=utf-8;base64,YWI=", "text/plain"),
        ("data:image/png;base64,YW\nI=\r\n", "image/png"),
    ],
)
def test_data_urls_are_read(url: str, media_type: str) -> None:
    (part,) = of({"type": "image_url", "image_url": {"url": url}})
    assert (part.media_type, part.data, part.bytes) == (media_type, "YWI=", 2)


def test_bytes_are_those_of_the_medium() -> None:
    for size in range(1, 8):
        assert picture(size).bytes == size


@pytest.mark.parametrize(("form", "media_type"), [("wav", "audio/wav"), ("mp3", "audio/mpeg"), ("opus", "audio/opus")])
def test_a_sound_has_the_type_of_its_format(form: str, media_type: str) -> None:
    (part,) = of({"type": "input_audio", "input_audio": {"data": "YWI=", "format": form}})
    assert (part.kind, part.media_type) == ("audio", media_type)


def test_limits_hold_at_their_edge() -> None:
    check("m", [picture(3), picture(3)], TAKES)
    with pytest.raises(errors.MediaTooLarge, match="image 2 has"):
        check("m", [picture(1), picture(4)], TAKES)
    with pytest.raises(errors.UnsupportedInput, match="these are 3"):
        check("m", [picture(1)] * 3, TAKES)
    with pytest.raises(errors.UnsupportedInput, match="takes no image/gif; it takes image/png"):
        check("m", [picture(1, "image/gif")], TAKES)
    with pytest.raises(errors.UnsupportedInput, match="takes no video; beside text it takes: image"):
        check("m", [Part("video", "", "video/mp4", "YWI=")], TAKES)
    with pytest.raises(errors.UnsupportedInput, match="beside text it takes: none"):
        check("m", [picture(1)], Takes(frozenset()))


def test_a_video_becomes_frames_only_where_it_must() -> None:
    (part,) = of({"type": "video_url", "video_url": {"url": data_url(clip([0, 240]), "video/mp4")}})
    text, first, second = with_frames([part], TAKES)
    assert (text.kind, first.media_type, second.media_type) == ("text", "image/jpeg", "image/jpeg")
    assert with_frames([part], Takes(frozenset(), frozenset({"image", "video"}))) == [part]
    assert with_frames([part], Takes(frozenset())) == [part]


@pytest.mark.parametrize("given", [None, "", "{}", {}])
def test_a_call_without_arguments_has_none(given: Any) -> None:
    assert arguments({"id": "c", "function": {"name": "f", "arguments": given}}, "m") == ("c", "f", {})


@pytest.mark.parametrize(
    "call", [{}, 7, {"function": 7}, {"function": {}}, {"function": {"name": "f", "arguments": "{"}},
             {"function": {"name": "f", "arguments": "7"}}, {"function": {"name": "f", "arguments": [1]}}],
)  # fmt: skip
def test_a_call_that_is_none_is_bad_input(call: Any) -> None:
    with pytest.raises(errors.BadInput, match="a tool call needs an id and a function"):
        arguments(call, "m")


def test_extra_is_split_into_what_is_translated_and_what_is_not() -> None:
    request = ChatRequest((), extra={"tools": [], "top_k": 3, "response_format": None})
    assert split_extra(request) == ({"tools": [], "response_format": None}, {"top_k": 3})
