"""The clips sample: its renderer, and the model as users ask it, about videos in files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from taskrouter import ModelManager
from taskrouter.manager import StillMachine
from taskrouter.media import load_video
from taskrouter.media.sheet import filled, tiled
from taskrouter.samples import sample_dir
from taskrouter.samples.evaluate import mistakes
from taskrouter.samples.manifest import CLIP, CLIP_CAPTION, sample_option
from taskrouter.samples.recipe_clips import build
from taskrouter.samples.renderers import clips
from taskrouter.types import GIB

# --- the renderer -----------------------------------------------------------------------------------------------------


def test_a_seed_is_a_clip() -> None:
    def draw(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return clips.sheet(rng, clips.render(rng)).tobytes()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_captions_are_sentences_of_a_colour_a_shape_and_a_motion() -> None:
    assert len(set(clips.CAPTIONS)) == 6 * 3 * 5
    assert {"a red circle moves right", "an orange square stands still"} < set(clips.CAPTIONS)


@pytest.mark.parametrize("size", [(96, 96), (160, 90), (72, 96)])
def test_a_shape_goes_where_its_caption_says_and_never_leaves_the_picture(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for caption in clips.CAPTIONS:
        shot = clips.render(rng, caption, size=size)
        (x, y), *_, (to_x, to_y) = shot.centres(clips.FRAMES)
        (right, down), short = clips.MOTIONS[caption.split(maxsplit=3)[3]], min(size)
        far, astray = 0.1 * short, 0.05 * short
        for way, length in ((right, (to_x - x) * size[0]), (down, (to_y - y) * size[1])):
            assert length * way > far if way else abs(length) < astray, caption
        for moment in (0.0, 1.0):
            corners = np.add(shot.centre(moment), shot.corners)
            assert corners.min() > -1
            assert (corners < 2 * np.array(size) + 1).all()


def test_it_is_seen_where_it_is_in_the_frames_of_a_file() -> None:
    rng = np.random.default_rng(1)
    for codec, options in (("libx264", {"crf": "28"}), ("mpeg4", {"qmin": "6", "qmax": "6"})):
        shot = clips.render(rng, "a blue circle moves left", size=(160, 120))
        file = clips.encoded(shot.frames(rng, 36), rate=18, codec=codec, options=options)
        clip = load_video(file, count=clips.FRAMES)
        assert clip.seconds == pytest.approx(2)
        for frame, (x, y) in zip(clip.frames, shot.centres(clips.FRAMES), strict=True):
            pixels = np.asarray(frame, dtype=float)
            rows, columns = np.nonzero(pixels[..., 2] - pixels[..., 0] > 60)
            assert abs(columns.mean() / 160 - x) < 0.03
            assert abs(rows.mean() / 120 - y) < 0.03


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    option = sample_option("clips")
    task = {"kind": "chat", "selected": "clips", "options": {"clips": option}}
    file = tmp_path_factory.mktemp("clips") / "models.yaml"
    media = {"roots": [str(CLIP.parent)]}
    file.write_text(yaml.safe_dump({"tasks": {"video_summarization": task}, "media": media}))
    with ModelManager(file, machine=StillMachine({"cpu": 4 * GIB})).blocking() as manager:
        yield manager.get_model("video_summarization")


def asked(video: Any, text: str = clips.PROMPT) -> list[dict[str, Any]]:
    parts = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_the_file_that_ships_is_described_whatever_way_it_is_given_and_asked_about(model: Any) -> None:
    for video in (str(CLIP), CLIP.read_bytes()):
        answer = model.chat(asked(video))
        assert (answer.text, answer.finish_reason) == (CLIP_CAPTION, "stop")
    for text in ("", "What happens in this video?", "Which shape is it, and what does it do?"):
        assert model.chat(asked(str(CLIP), text)).text == CLIP_CAPTION
    with model.stream_chat(asked(str(CLIP))) as chunks:
        assert "".join(chunk.text for chunk in chunks) == CLIP_CAPTION


def test_a_sheet_given_as_a_picture_is_described_as_the_video_is(model: Any) -> None:
    sheet = tiled(filled(load_video(CLIP, count=clips.FRAMES), clips.FRAMES))
    parts = [{"type": "image_url", "image_url": sheet}, {"type": "text", "text": clips.PROMPT}]
    assert model.chat([{"role": "user", "content": parts}]).text == CLIP_CAPTION


def test_words_alone_get_a_caption_too_as_the_card_says(model: Any) -> None:
    assert model.chat([{"role": "user", "content": "What is the capital of France?"}]).text.split()[0] in ("a", "an")
    assert "text-only" in (sample_dir("clips") / "README.md").read_text()


def test_the_file_that_ships_with_the_package_says_how_the_sample_is_shown_videos() -> None:
    options = yaml.safe_load((Path(__file__).parents[1] / "models.yaml").read_text())["tasks"]["video_summarization"]
    assert options["options"]["clips"]["engine_args"] == sample_option("clips")["engine_args"]
    assert sample_option("clips")["engine_args"]["video_frames"] == clips.FRAMES


def test_what_is_only_trained_with_is_not_in_the_file() -> None:
    from safetensors import safe_open

    with safe_open(sample_dir("clips") / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {str(file.get_tensor(name).dtype) for name in names} == {"torch.bfloat16"}
    built = {name for name, _ in build()[0].named_parameters()}
    assert {name for name in built if not name.startswith("hints.")} == names


@pytest.mark.slow
def test_captions_of_held_out_clips_are_exactly_right_as_often_as_the_card_says() -> None:
    count = 400
    right = 100 * (1 - len(mistakes("clips", count)) / count)
    stated = re.search(r"\*\*([\d.]+) %\*\* of", (sample_dir("clips") / "README.md").read_text())
    assert stated, "the card names no figure"
    assert right >= 97
    assert abs(right - float(stated[1])) < 1.5
