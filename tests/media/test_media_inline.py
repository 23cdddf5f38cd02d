"""What callers put into a conversation that is answered elsewhere: paths, bytes, pictures and arrays go inside it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taskrouter import errors
from taskrouter.media.audio import load_audio
from taskrouter.media.inline import inlined, is_needed
from taskrouter.media.limits import MediaLimits
from taskrouter.media.showing import Showing, pictures_of
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


def test_sounds_come_as_base64_with_their_form_where_the_part_wants_that() -> None:
    sound, samples = MEDIA / "beeps.wav", load_audio(MEDIA / "beeps.wav", sampling_rate=16_000)
    for held in ({"data": sound}, {"data": sound.read_bytes(), "format": "mp3"}, sound):
        asked_ = asked("input_audio", held)
        assert is_needed(asked_)
        part = inlined(asked_).messages[0]["content"][0]["input_audio"]
        assert part["format"] == "wav"
        assert base64.b64decode(part["data"]) == sound.read_bytes()
    part = inlined(asked("input_audio", {"data": samples, "sampling_rate": 16_000})).messages[0]["content"][0]
    assert part["input_audio"].keys() == {"data", "format"}
    written = load_audio(base64.b64decode(part["input_audio"]["data"]), sampling_rate=16_000)
    assert np.abs(written - samples).max() < 1e-4
    with pytest.raises(errors.BadInput, match=r"sampling_rate \(Hz\)"):
        inlined(asked("input_audio", samples))
    inside = asked("input_audio", {"data": "AA==", "format": "wav"})
    assert not is_needed(inside)
    assert inlined(inside) == inside


def test_documents_come_as_data_urls(tmp_path: Path) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(b"%PDF-1.7 ...")
    part = inlined(asked("file", {"filename": "a.pdf", "file_data": file})).messages[0]["content"][0]
    assert part["file"]["filename"] == "a.pdf"
    assert part["file"]["file_data"].startswith("data:application/pdf;base64,")
    assert bytes_of(part["file"]["file_data"]) == file.read_bytes()


@pytest.mark.parametrize(("showing", "count"), [(Showing(3), 3), (Showing(4, "sheet"), 1)])
def test_videos_are_pictures_of_them_where_that_is_wanted(showing: Showing, count: int) -> None:
    request = asked("video_url", {"url": str(CLIP)})
    assert is_needed(request, showing)
    inside = asked("video_url", {"url": url_of(request)})
    assert is_needed(inside, showing)
    expected = [np.asarray(each) for each in pictures_of(CLIP, MediaLimits(), showing)]
    for each in (request, inside):
        *shown, text = inlined(each, showing).messages[0]["content"]
        assert text == {"type": "text", "text": "?"}
        assert [part["type"] for part in shown] == ["image_url"] * count
        found = [np.asarray(Image.open(io.BytesIO(bytes_of(part["image_url"]["url"])))) for part in shown]
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
