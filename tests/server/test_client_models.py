"""The client and models that really look: what went over the wire is answered as what stayed in the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskrouter import connect
from taskrouter.media import load_audio, load_image
from taskrouter.samples import sample_dir

from .serving import API_KEY, Served, keys, serving, written

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_keys")]
MEDIA = Path(__file__).resolve().parents[2] / "taskrouter" / "samples" / "media"
RATE = 16_000


def one(kind: str, sample: str) -> dict[str, Any]:
    option = {"framework": "transformers", "model_id": str(sample_dir(sample)), "vram_gb": 0.1}
    return {"kind": kind, "selected": "it", "options": {"it": option}}


TASKS = {
    "shapes": one("image_classification", "shapes"),
    "tones": one("audio_classification", "tones"),
    "scenes": one("detection", "scenes"),
    "digits": one("transcription", "digits"),
    "phrases": one("embedding", "phrases"),
    "clips": one("chat", "clips"),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("transformers")
    with serving(written(tmp_path_factory.mktemp("served"), TASKS, media={"roots": [str(MEDIA)]}), keys()) as server:
        yield server


def pixels(name: str) -> Any:
    return np.asarray(load_image(MEDIA / name))


def sound(name: str) -> Any:
    return load_audio(MEDIA / name, sampling_rate=RATE)


def clip() -> list[dict[str, Any]]:
    part = {"type": "video_url", "video_url": {"url": str(MEDIA / "clip.mp4")}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What moves?"}]}]


CALLS: tuple[tuple[str, Callable[[Any], Awaitable[Any]]], ...] = (
    ("shapes", lambda model: model.classify(MEDIA / "red-circle.png")),
    ("shapes", lambda model: model.classify(pixels("blue-star.png"), top_k=2)),
    ("tones", lambda model: model.classify(str(MEDIA / "beeps.wav"))),
    ("tones", lambda model: model.classify(sound("siren.wav"), sampling_rate=RATE)),
    ("scenes", lambda model: model.detect((MEDIA / "scene.png").read_bytes())),
    ("scenes", lambda model: model.detect(pixels("scene.png"), threshold=0.8)),
    ("digits", lambda model: model.transcribe(MEDIA / "digits.wav")),
    ("digits", lambda model: model.transcribe(sound("digits.wav"), sampling_rate=RATE)),
    ("phrases", lambda model: model.embed(["one sentence", "and another"])),
    ("clips", lambda model: model.chat(clip(), max_tokens=20)),
)


@pytest.mark.parametrize(("task", "call"), CALLS, ids=[f"{task}-{place}" for place, (task, _) in enumerate(CALLS)])
def test_a_model_sees_and_hears_the_same(served: Served, task: str, call: Callable[[Any], Awaitable[Any]]) -> None:
    here = served.run(call(served.manager.handle(task)))

    async def ask() -> Any:
        async with connect(served.url, api_key=API_KEY) as client:
            return await call(client.handle(task))

    there = asyncio.run(asyncio.wait_for(ask(), 60))
    assert there == here
