"""Pictures, clips, sounds and documents on their way to a provider, and the limits on them."""

from __future__ import annotations

import base64
import dataclasses
import io
import threading
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.backends.external import content
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import ChatRequest

from .asking import PNG, camel, document, each, image, limit, refused, video, with_parts
from .clips import PDF, clip, data_url, png, shade_of
from .subjects import ANTHROPIC, GOOGLE, OPENAI, Subject

pytestmark = pytest.mark.anyio


def media_of(subject: Subject, body: Any) -> list[tuple[str, str, bytes]]:
    """Kind, media type and bytes of what a body holds beside text."""
    found = []
    if subject is ANTHROPIC:
        for part in body["messages"][0]["content"]:
            if part["type"] != "text":
                source = part["source"]
                found.append((part["type"], source["media_type"], base64.b64decode(source["data"])))
    elif subject is GOOGLE:
        for part in camel(body)["contents"][0]["parts"]:
            if inline := part.get("inlineData"):
                kind = inline["mimeType"].partition("/")[0]
                found.append((kind, inline["mimeType"], base64.urlsafe_b64decode(inline["data"])))
    else:
        for part in body["messages"][0]["content"]:
            if part["type"] != "text":
                inner = part[part["type"]]
                url = inner.get("url") or inner.get("file_data")
                head, _, data = url.partition(";base64,")
                found.append((part["type"], head.removeprefix("data:"), base64.b64decode(data)))
    return found


@each
async def test_an_image_arrives_whole(subject: Subject) -> None:
    ((kind, media_type, data),) = media_of(subject, await subject.sent(with_parts(image())))
    assert (kind.partition("_")[0], media_type, data) == ("image", "image/png", PNG)


@each
async def test_an_image_arrives_whole_whatever_it_is_given_as(subject: Subject, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    for source in (file, str(file), PNG, {"url": io.BytesIO(PNG)}):
        ((_, media_type, data),) = media_of(
            subject, await subject.sent(with_parts({"type": "image_url", "image_url": source}))
        )
        assert (media_type, data) == ("image/png", PNG)
    request = with_parts({"type": "image_url", "image_url": {"url": str(file)}})
    outside = dataclasses.replace(request, limits=MediaLimits(roots=(str(tmp_path / "no"),)))
    assert "media.roots" in str(await refused(subject, outside))


@each
async def test_a_document_arrives_whole(subject: Subject) -> None:
    ((_, media_type, data),) = media_of(subject, await subject.sent(with_parts(document())))
    assert (media_type, data) == ("application/pdf", PDF)


async def test_a_document_of_text_is_text_to_anthropic() -> None:
    part = {"type": "file", "file": {"file_data": data_url("Grüße".encode(), "text/markdown")}}
    body = await ANTHROPIC.sent(with_parts(part))
    source = {"type": "text", "media_type": "text/plain", "data": "Grüße"}
    assert body["messages"][0]["content"][1] == {"type": "document", "source": source}


@pytest.mark.usefixtures("openai_itself")
@pytest.mark.parametrize("subject", [ANTHROPIC, OPENAI], ids=str)
async def test_a_video_arrives_as_frames_where_only_images_are_taken(subject: Subject) -> None:
    body = await subject.sent(with_parts(video(clip([0, 80, 160, 240]))))
    media = media_of(subject, body)
    assert [(kind.partition("_")[0], media_type) for kind, media_type, _ in media] == [("image", "image/jpeg")] * 4
    assert [round(shade_of(data) / 80) for _, _, data in media] == [0, 1, 2, 3]
    texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
    assert texts == ["See:", "A video of 0.4 s, as 4 frames in order:"]


async def test_a_video_arrives_whole_where_it_is_taken() -> None:
    data = clip([0, 240])
    for subject in (GOOGLE, OPENAI):
        ((kind, media_type, arrived),) = media_of(subject, await subject.sent(with_parts(video(data))))
        assert (kind.partition("_")[0], media_type, arrived) == ("video", "video/mp4", data)


@pytest.mark.usefixtures("openai_itself")
@pytest.mark.parametrize("subject", [ANTHROPIC, OPENAI], ids=str)
async def test_a_damaged_video_is_bad_input(subject: Subject) -> None:
    assert type(await refused(subject, with_parts(video(b"no video")))) is errors.BadInput


async def test_a_sound_arrives_whole() -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    ((_, media_type, data),) = media_of(GOOGLE, await GOOGLE.sent(with_parts(part)))
    assert (media_type, data) == ("audio/wav", b"RIFF")
    assert (await OPENAI.sent(with_parts(part)))["messages"][0]["content"][1] == part


@each
async def test_media_of_a_tool_s_result_arrive_where_they_are_taken(subject: Subject) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    request = ChatRequest((
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "there"}, image()]},
    ))  # fmt: skip
    body = await subject.sent(request)
    assert base64.b64encode(PNG).decode()[:40] in str(body).replace("-", "+").replace("_", "/")


@each
async def test_an_image_over_the_limit_is_refused_before_anything_is_sent(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, subject, most_image_bytes=len(PNG))
    await subject.sent(with_parts(image()))
    found = await refused(subject, with_parts(image(), image(PNG + b"\0")))
    assert isinstance(found, errors.MediaTooLarge)
    assert "image 2 has" in str(found)


async def test_anthropic_s_own_limit_is_five_mebibytes() -> None:
    found = await refused(ANTHROPIC, with_parts(image(bytes((5 << 20) + 1))))
    assert isinstance(found, errors.MediaTooLarge)


@each
async def test_a_request_over_the_limit_is_refused_before_anything_is_sent(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, subject, most_request_bytes=1000)
    found = await refused(subject, with_parts(document(), {"type": "text", "text": "x" * 1000}))
    assert isinstance(found, errors.MediaTooLarge)


@each
async def test_too_many_images_are_refused(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, subject, most_images=3)
    assert len(media_of(subject, await subject.sent(with_parts(*[image()] * 3)))) == 3
    found = await refused(subject, with_parts(*[image()] * 4))
    assert type(found) is errors.UnsupportedInput
    assert "takes 3 images in one request; these are 4" in str(found)


@pytest.mark.usefixtures("openai_itself")
@pytest.mark.parametrize("subject", [ANTHROPIC, OPENAI], ids=str)
async def test_kinds_that_are_not_taken_are_unsupported(subject: Subject) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    found = await refused(subject, with_parts(sound))
    assert type(found) is errors.UnsupportedInput
    assert "takes no audio; beside text it takes: document, image" in str(found)
    found = await refused(subject, with_parts(image(b"BM", "image/bmp")))
    assert type(found) is errors.UnsupportedInput
    assert "takes no image/bmp" in str(found)


async def test_a_document_that_is_neither_pdf_nor_text_is_unsupported_by_anthropic() -> None:
    part = {"type": "file", "file": {"filename": "a.doc", "file_data": data_url(b"doc", "application/msword")}}
    found = await refused(ANTHROPIC, with_parts(part))
    assert type(found) is errors.UnsupportedInput
    assert "takes no application/msword; it takes application/pdf, text/*" in str(found)


@pytest.mark.parametrize("subject", [ANTHROPIC, GOOGLE], ids=str)
async def test_media_in_a_system_message_are_unsupported(subject: Subject) -> None:
    request = ChatRequest(({"role": "system", "content": [image()]}, {"role": "user", "content": "x"}))
    assert type(await refused(subject, request)) is errors.UnsupportedInput


@each
@pytest.mark.parametrize(
    "url",
    ["http://example.com/a.png", "https://example.com/a.png", "//example.com/a.png", "file:///etc/passwd", "a.png",
     "data:image/png,abc", "data:image/png;base64,", "data:image/png;base64,a", "data:image/png;base64,!!!!", "",
     "data:image/png;base64," + "A" * 8000 + "!!!!", "data:image/png;base64,====", "gs://bucket/a.png"],
)  # fmt: skip
async def test_what_is_no_data_url_is_bad_input_and_never_fetched(subject: Subject, url: str) -> None:
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": url}):
        assert type(await refused(subject, with_parts(part))) is errors.BadInput


@each
async def test_base64_in_lines_is_base64(subject: Subject) -> None:
    """As mails and some encoders write it."""
    lines = base64.encodebytes(png() * 3).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{lines}"}}
    ((_, _, data),) = media_of(subject, await subject.sent(with_parts(part)))
    assert data == png() * 3


async def test_media_are_sampled_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    real = content.check

    def check(*given: Any) -> None:
        threads.append(threading.current_thread())
        real(*given)

    for module in ("anthropic", "openai", "google"):
        monkeypatch.setattr(f"taskrouter.backends.external.{module}.check", check)
    for subject in (ANTHROPIC, OPENAI, GOOGLE):
        await subject.sent(with_parts(image()))
    assert len(threads) == 3
    assert threading.main_thread() not in threads
