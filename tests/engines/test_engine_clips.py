"""The clips sample under vLLM: of the same sheets it says the same as in this process, to the letter."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskrouter import ModelManager
from taskrouter.manager import StillMachine
from taskrouter.samples.manifest import CLIP, CLIP_CAPTION, MEDIA, VIDEO, VIDEO_ANSWERS, sample_option
from taskrouter.samples.renderers import clips
from taskrouter.types import GIB

from .test_engine_media import ENV

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engines"), pytest.mark.timeout(300)]

SHEETS = 30
SEED = 120_001


@pytest.fixture
def manager(tmp_path: Path, engine_python: Callable[[str], str]) -> Iterator[Any]:
    # In bfloat16 their roundings differ, and where it is unsure so may a word.
    here = {**sample_option("clips"), "dtype": "float32"}
    engine = {
        "model_id": here["model_id"],
        "framework": "vllm",
        "dtype": "float32",
        "max_context": 512,
        "env": ENV,
        # Videos go to both as the sample's option says: as a sheet of four frames.
        "engine_args": {"enforce_eager": True, "limit_mm_per_prompt": {"image": 1}, **here["engine_args"]},
    }
    tasks = {
        name: {"kind": "chat", "selected": name, "options": {name: option}, "max_wait_s": 240}
        for name, option in {"here": here, "engine": engine}.items()
    }
    sections = {
        "engines": {"vllm": {"python": engine_python("vllm")}},
        "inference": {"warmup_on_startup": False},
        "media": {"roots": [str(MEDIA)]},
    }
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"tasks": tasks, **sections}), encoding="utf-8")
    with ModelManager(file, machine=StillMachine({"cpu": 8 * GIB})).blocking() as manager:
        yield manager
        manager._core.check()


def messages(url: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": clips.PROMPT}]
    return [{"role": "user", "content": parts}]


def test_its_captions_are_those_of_transformers_to_the_letter(manager: Any) -> None:
    rng = np.random.default_rng(SEED)
    asked = []
    for _ in range(SHEETS):
        written = io.BytesIO()
        clips.sheet(rng, clips.render(rng)).save(written, "PNG")
        asked.append(messages(f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"))
    said = [[manager.get_model(task).chat(each) for each in asked] for task in ("here", "engine")]
    here, engine = ([(answer.text, answer.finish_reason) for answer in answers] for answers in said)
    assert engine == here
    assert len({text for text, _ in here}) > SHEETS / 2


def test_of_a_video_file_both_say_what_is_shown_through_the_same_call(manager: Any) -> None:
    for file, caption in ((CLIP, CLIP_CAPTION), (VIDEO, VIDEO_ANSWERS["video_summarization"])):
        parts = [{"type": "video_url", "video_url": {"url": file}}, {"type": "text", "text": clips.PROMPT}]
        asked = [{"role": "user", "content": parts}]
        assert [manager.get_model(task).chat(asked).text for task in ("here", "engine")] == [caption, caption]
