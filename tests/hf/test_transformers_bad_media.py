"""Bad media through the verbs of resident models: a typed error each, no lease is left, and the model serves on."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taskrouter import ModelManager
from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.manager import StillMachine
from taskrouter.types import GIB
from tests.media.files import sine, wav
from tests.media.test_media_image import bomb
from tests.media.test_media_video import FILM, film

from .checkpoints import audio_checkpoint, image_checkpoint
from .families import wav2vec2_ctc
from .families_talking import TALKERS

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def png() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(written, "PNG")
    return written.getvalue()


PNG, WAV = png(), wav(sine(0.5, rate=16_000), rate=16_000)
NOISE = np.random.default_rng(0).bytes(3_000)
NAN = np.full(8_000, np.nan, np.float32)
BAD: dict[str, list[tuple[Any, type[BadInput]]]] = {
    "look": [(b"", BadInput), (PNG[:60], BadInput), (WAV, BadInput), (NOISE, BadInput), (bomb(10_000), MediaTooLarge)],
    "listen": [
        (b"", BadInput), (WAV[:5_000], BadInput), (PNG, BadInput), (NOISE, BadInput), (NAN, BadInput),
        (wav(np.zeros(0, np.float32)), BadInput), (np.zeros(0, np.float32), BadInput),
        (np.broadcast_to(np.float32(0), (4_000 * 16_000,)), MediaTooLarge),
    ],
    "watch": [
        (b"", BadInput), (FILM[:2_000], BadInput), (WAV, BadInput), (PNG, BadInput), (NOISE, BadInput),
        (film(1, size=(256, 128)), MediaTooLarge),
    ],
}  # fmt: skip


async def test_bad_media_are_refused_by_every_verb_and_the_model_serves_on(tmp_path: Path) -> None:
    image_checkpoint(tmp_path / "looks")
    audio_checkpoint(tmp_path / "listens")
    wav2vec2_ctc(tmp_path / "writes")
    TALKERS["llava"](tmp_path / "talks")
    tasks = {
        name: {"selected": "a", "options": {"a": {"model_id": str(tmp_path / name), "framework": "transformers"}}}
        for name in ("looks", "listens", "writes", "talks")
    }
    file = tmp_path / "models.yaml"
    media = {"max_pixels": 20_000, "max_frames": 9}
    file.write_text(json.dumps({"tasks": tasks, "media": media}), encoding="utf-8")
    async with ModelManager(file, machine=StillMachine({"cpu": 4 * GIB})) as manager:
        looks, listens, writes, talks = [await manager.get_model(name) for name in tasks]

        def shown(kind: str) -> Callable[[Any], Awaitable[Any]]:
            def chat(source: Any) -> Awaitable[Any]:
                parts = [{"type": kind, kind: {"url": source}}, {"type": "text", "text": "w1"}]
                return talks.chat([{"role": "user", "content": parts}], max_tokens=2)

            return chat

        for verb, bad, good in (
            (looks.classify, "look", PNG),
            (shown("image_url"), "look", PNG),
            (listens.classify, "listen", WAV),
            (functools.partial(writes.transcribe, sampling_rate=16_000), "listen", WAV),
            (shown("video_url"), "watch", FILM),
        ):
            for source, kind in BAD[bad]:
                with pytest.raises(kind) as caught:
                    await verb(source)
                assert len(str(caught.value)) > 20
                assert not manager.leases
            assert await verb(good) is not None
        # Eight of each video, and nine pictures in one conversation are the most.
        two = [{"type": "video_url", "video_url": {"url": FILM}}] * 2
        with pytest.raises(MediaTooLarge, match=r"more than the 9 pictures, .* that media\.max_frames allows"):
            await talks.chat([{"role": "user", "content": two}], max_tokens=2)
        assert not manager.leases
