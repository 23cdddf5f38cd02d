"""Chat about pictures and videos."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.hf import conversation
from taskrouter.backends.hf.arguments import Arguments
from taskrouter.backends.hf.calling import Stopped
from taskrouter.backends.hf.chat import chat
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.prepare import pictures_and_text
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, ContextTooLong, MediaTooLarge, PreflightFailed, UnsupportedInput
from taskrouter.media import load_video
from taskrouter.media.limits import MediaLimits
from taskrouter.media.sheet import tiled
from taskrouter.types import CPU
from taskrouter.verbs import ChatRequest
from tests.media.test_media_video import FILM

from .checkpoints import CHARGES, request
from .families_talking import TALKERS
from .test_transformers_classify import picture

pytestmark = pytest.mark.anyio


def ask(*parts: Any, role: str = "user", **how: Any) -> ChatRequest:
    """One message of these parts: words, or things to look at."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return ChatRequest(({"role": role, "content": content},), **{"max_tokens": 6, **how})


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


async def loaded(backend: TransformersBackend, folder: Path, name: str) -> LoadedModel:
    TALKERS[name](folder / name)
    return await backend.load(request(folder / name), (CPU,), CHARGES)


@pytest.mark.parametrize("name", TALKERS)
async def test_the_answer_is_that_of_transformers_own_pipeline(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import transformers

    model = await loaded(backend, tmp_path, name)
    mine = await model.call("chat", ask(image(picture()), "w1 w2"))
    # By itself the pipeline of those that have a class for videos wants torchvision.
    processor = pictures_and_text(tmp_path / name)
    look = transformers.pipeline("image-text-to-text", model=str(tmp_path / name), processor=processor)
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "w1 w2"}]
    theirs = look(
        text=[{"role": "user", "content": content}], return_full_text=False,
        generate_kwargs={"do_sample": False, "max_new_tokens": 6},
    )  # fmt: skip
    assert mine.text.split() == theirs[0]["generated_text"].split()
    assert mine.usage.completion_tokens <= 6
    pieces = [piece.text async for piece in model.stream("stream_chat", ask(image(picture()), "w1 w2"))]
    assert "".join(pieces) == mine.text
    assert await backend.unload(model, timeout_s=5) == {}


async def test_a_picture_is_one_however_it_is_given_and_is_looked_at(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    model = await loaded(backend, tmp_path, "llava")
    packed = io.BytesIO()
    picture().save(packed, "PNG")
    (tmp_path / "p.png").write_bytes(packed.getvalue())
    url = "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()
    same = [picture(), packed.getvalue(), str(tmp_path / "p.png"), url]
    answers = [await model.call("chat", ask(image(each), "w1", max_tokens=8)) for each in same]
    answers.append(await model.call("chat", ask({"type": "image_url", "image_url": picture()}, "w1", max_tokens=8)))
    assert len({answer.text for answer in answers}) == 1
    blank = picture().point(lambda _: 0)
    assert (await model.call("chat", ask(image(blank), "w1", max_tokens=8))).text != answers[0].text
    without = await model.call("chat", ChatRequest(({"role": "user", "content": "w1"},), max_tokens=8))
    assert without.usage.prompt_tokens < answers[0].usage.prompt_tokens
    await backend.unload(model, timeout_s=5)


async def test_a_video_is_some_of_its_frames(backend: TransformersBackend, tmp_path: Path) -> None:
    model = await loaded(backend, tmp_path, "idefics3")
    count = Arguments().showing.frames
    frames = load_video(FILM, count=count).frames
    assert len(frames) == count == 8
    film = {"type": "video_url", "video_url": {"url": FILM}}
    said = await model.call("chat", ask("w1", film, "w2"))
    assert said == await model.call("chat", ask("w1", *map(image, frames), "w2"))
    assert said.usage.prompt_tokens > count * 4
    await backend.unload(model, timeout_s=5)


async def test_an_option_says_how_many_frames_of_a_video_are_shown_and_whether_in_one_sheet(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    TALKERS["idefics3"](tmp_path)
    film = {"type": "video_url", "video_url": {"url": FILM}}
    for arguments, pictures in (
        ({"video_frames": 3}, list(load_video(FILM, count=3).frames)),
        ({"video-frames": 4, "video-layout": "sheet"}, [tiled(load_video(FILM, count=4).frames)]),
    ):
        model = await backend.load(request(tmp_path, engine_args=arguments), (CPU,), CHARGES)
        said = await model.call("chat", ask("w1", film, "w2"))
        assert said == await model.call("chat", ask("w1", *map(image, pictures), "w2"))
        await backend.unload(model, timeout_s=5)


async def test_what_it_cannot_look_at_is_refused_and_says_why(backend: TransformersBackend, tmp_path: Path) -> None:
    found = await backend.preflight(request(_built(tmp_path)))
    assert found.verbs == {"chat", "stream_chat"}
    assert "image" not in found.lacks
    assert "video" not in found.lacks
    assert "audio" in found.lacks
    model = await backend.load(request(tmp_path / "idefics3"), (CPU,), CHARGES)
    (tmp_path / "p.png").write_bytes(b"no picture")
    shut = MediaLimits(roots=())
    for wanted, kind, said in (
        (
            ask({"type": "input_audio", "input_audio": {}}),
            UnsupportedInput,
            "type 'input_audio'; this model takes",
        ),
        (ask(image(str(tmp_path / "p.png"))), BadInput, "is no image"),
        (ask(image(str(tmp_path / "p.png")), limits=shut), BadInput, "outside the folders that media.roots allows"),
        (ask(image("https://example.com/p.png")), BadInput, "is a URL, and only local files are read"),
        (ask(image(None)), BadInput, "with nothing in it"),
        (ask({"type": "video_url", "video_url": {"url": b"no video"}}), BadInput, "can't be decoded as video"),
        (ask("w1", role="judge"), BadInput, "no such role: judge"),
        (ask("w1 <image> w2"), BadInput, "has '<image>' in its text, which stands for a picture"),
        (ChatRequest(({"role": "user", "content": 3},)), BadInput, "content wants text or a list of parts, not int"),
        (ChatRequest(()), BadInput, "at least one message"),
        (ChatRequest(({"content": "w1"},)), BadInput, "message 0 wants a role"),
        (
            ask(*[image(picture())] * 9, limits=MediaLimits(max_pixels=1200)),
            MediaTooLarge,
            "more than 8 times the 1,200",
        ),
        (ask(*[image(picture())] * 80), ContextTooLong, "the model's context is 512"),
    ):
        with pytest.raises(kind, match=said):
            await model.call("chat", wanted)
    assert (await model.call("chat", ask("w1"))).text
    await backend.unload(model, timeout_s=5)


async def test_who_has_gone_is_read_nothing_more(
    backend: TransformersBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await loaded(backend, tmp_path, "llava")
    stop = threading.Event()
    read = []

    def slow(source: Any, limits: Any) -> Any:
        read.append(source)
        stop.set()
        return picture()

    monkeypatch.setattr(conversation, "load_image", slow)
    wanted = ask(*[image(picture())] * 5)
    steps = chat(model._ready(), Family.VISION, wanted, None, MediaLimits(), stop, lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(Stopped):
        next(steps)
    assert len(read) == 1
    await backend.unload(model, timeout_s=5)


def _built(folder: Path) -> Path:
    TALKERS["idefics3"](folder / "idefics3")
    return folder / "idefics3"


async def test_one_that_has_no_chat_template_is_refused_before_it_is_loaded(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    folder = _built(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(PreflightFailed, match="no chat template"):
        await backend.preflight(request(folder))
