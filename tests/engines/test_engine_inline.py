"""What callers give an engine in a conversation: paths, bytes, pictures and arrays come to it as ``data:`` URLs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taskrouter import errors
from taskrouter.backends.engines.inline import inlined, is_needed
from taskrouter.media.limits import MediaLimits
from taskrouter.samples.manifest import CLIP, MEDIA
from taskrouter.verbs import ChatRequest

PICTURE = MEDIA / "red-circle.png"


def asked(kind: str, source: Any, **limits: Any) -> ChatRequest:
    parts = [{"type": kind, kind: source}, {"type": "text", "text": "?"}]
    return ChatRequest(({"role": "user", "content": parts},), limits=MediaLimits(**limits))


def url_of(request: ChatRequest) -> str:
    part = inlined(request).messages[0]["content"][0]
    return str(part[part["type"]]["url"])


def bytes_of(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


@pytest.mark.parametrize(
    ("kind", "file", "begins"),
    [
        ("image_url", PICTURE, "data:image/png;base64,"),
        ("image_url", MEDIA / "green-triangle.jpg", "data:image/jpeg;base64,"),
        ("audio_url", MEDIA / "beeps.wav", "data:audio/wav;base64,"),
        ("video_url", CLIP, "data:video/mp4;base64,"),
    ],
)
def test_files_come_as_they_are_whatever_they_are_given_as(kind: str, file: Path, begins: str) -> None:
    with file.open("rb") as opened:
        for source in (str(file), file, file.read_bytes(), opened, {"url": str(file)}):
            request = asked(kind, source)
            assert is_needed(request)
            url = url_of(request)
            assert url.startswith(begins)
            assert bytes_of(url) == file.read_bytes()


def test_pictures_and_arrays_come_as_png() -> None:
    drawn = Image.open(PICTURE).convert("RGB")
    for source in (drawn, np.asarray(drawn)):
        url = url_of(asked("image_url", {"url": source, "detail": "low"}))
        assert url.startswith("data:image/png;base64,")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(bytes_of(url)))), np.asarray(drawn))
    kept = inlined(asked("image_url", {"url": drawn, "detail": "low"})).messages[0]["content"]
    assert kept[0]["image_url"]["detail"] == "low"
    assert kept[1] == {"type": "text", "text": "?"}


@pytest.mark.parametrize("url", ["data:image/png;base64,AA==", "http://127.0.0.1/x.png", "file:///etc/passwd", "//x/y"])
def test_what_is_inside_or_refused_further_on_is_left(url: str) -> None:
    request = asked("image_url", {"url": url})
    assert not is_needed(request)
    assert inlined(request) == request
    assert not is_needed(ChatRequest(({"role": "user", "content": "text"},)))


def test_limits_hold_as_for_models_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(errors.BadInput, match=r"media\.roots"):
        inlined(asked("image_url", str(PICTURE), roots=(str(tmp_path),)))
    with pytest.raises(errors.MediaTooLarge, match=r"media\.max_bytes"):
        inlined(asked("video_url", CLIP.read_bytes(), max_bytes=99))
    with pytest.raises(errors.BadInput, match="isn't there"):
        inlined(asked("image_url", str(tmp_path / "none.png")))
    with pytest.raises(errors.BadInput, match="nothing that video can be read from"):
        inlined(asked("video_url", 7))
