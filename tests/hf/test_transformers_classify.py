"""Images and sounds to labels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, CallFailed, MediaTooLarge, UnsupportedVerb
from taskrouter.media.limits import MediaLimits
from taskrouter.types import CPU
from taskrouter.verbs import ClassifyRequest

from .checkpoints import CHARGES, request

pytestmark = pytest.mark.anyio


def picture() -> Any:
    import numpy as np
    import PIL.Image

    return PIL.Image.fromarray((np.arange(40 * 30 * 3) % 251).astype(np.uint8).reshape(30, 40, 3))


def sound(seconds: float = 0.25) -> Any:
    import numpy as np

    return np.sin(np.arange(int(16_000 * seconds)) / 7).astype(np.float32)


async def test_an_image_gets_labels_best_first_however_it_is_given(
    backend: TransformersBackend, image_folder: Path, tmp_path: Path
) -> None:
    model = await backend.load(request(image_folder), (CPU,), CHARGES)
    packed = io.BytesIO()
    picture().save(packed, "PNG")
    (tmp_path / "p.png").write_bytes(packed.getvalue())
    answers = [
        await model.call("classify", ClassifyRequest(source))
        for source in (picture(), packed.getvalue(), str(tmp_path / "p.png"))
    ]
    assert answers[0] == answers[1] == answers[2]
    assert {label.label for label in answers[0]} == {"circle", "square", "star"}
    scores = [label.score for label in answers[0]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    assert await model.call("classify", ClassifyRequest(picture(), top_k=1)) == answers[0][:1]
    assert await backend.unload(model, timeout_s=5) == {}


async def test_the_answer_is_what_transformers_own_pipeline_gives(
    backend: TransformersBackend, image_folder: Path
) -> None:
    import transformers

    model = await backend.load(request(image_folder), (CPU,), CHARGES)
    mine = await model.call("classify", ClassifyRequest(picture()))
    processor = transformers.AutoImageProcessor.from_pretrained(image_folder)
    theirs = transformers.pipeline("image-classification", model=model.raw, image_processor=processor)(picture())
    assert [(label.label, pytest.approx(label.score, abs=1e-5)) for label in mine] == [
        (each["label"], each["score"]) for each in theirs
    ]
    await backend.unload(model, timeout_s=0.1)


async def test_several_labels_at_once_where_the_model_says_so(backend: TransformersBackend, image_folder: Path) -> None:
    model = await backend.load(request(image_folder), (CPU,), CHARGES)
    model.raw.config.problem_type = "multi_label_classification"
    answer = await model.call("classify", ClassifyRequest(picture()))
    assert sum(label.score for label in answer) > 1.2  # three independent chances near one half
    await backend.unload(model, timeout_s=5)


async def test_a_sound_is_classified_in_half_precision_too(backend: TransformersBackend, audio_folder: Path) -> None:
    import numpy as np

    answers = []
    for dtype in ("float32", "bfloat16"):
        model = await backend.load(request(audio_folder, dtype=dtype), (CPU,), CHARGES)
        answers.append(await model.call("classify", ClassifyRequest(sound())))
        doubled = np.repeat(sound(), 2)
        resampled = await model.call("classify", ClassifyRequest(doubled, sampling_rate=32_000))
        assert resampled[0].score == pytest.approx(answers[-1][0].score, abs=0.05)
        assert await backend.unload(model, timeout_s=5) == {}
    assert {label.label for label in answers[0]} == {"low", "high"}
    assert answers[0][0].score == pytest.approx(answers[1][0].score, abs=0.05)


@pytest.mark.parametrize("source", [b"no image at all", "/no/such/file.png", 3])
async def test_what_is_no_image_is_bad_input_and_the_model_stays(
    backend: TransformersBackend, image_folder: Path, source: Any
) -> None:
    model = await backend.load(request(image_folder), (CPU,), CHARGES)
    with pytest.raises(BadInput):
        await model.call("classify", ClassifyRequest(source))
    assert await model.call("classify", ClassifyRequest(picture()))
    await backend.unload(model, timeout_s=5)


async def test_limits_and_nonsense_are_refused(image_folder: Path) -> None:
    backend = TransformersBackend(MediaLimits(max_pixels=100))
    model = await backend.load(request(image_folder), (CPU,), CHARGES)
    with pytest.raises(MediaTooLarge):
        await model.call("classify", ClassifyRequest(picture()))
    for top_k in (0, 1.5, True):
        with pytest.raises(BadInput, match="top_k"):
            await model.call("classify", ClassifyRequest(picture(), top_k=top_k))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedVerb, match="can't chat: it can classify"):
        await model.call("chat", None)
    await backend.unload(model, timeout_s=5)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "ran out of memory while answering",
        ),
        (ZeroDivisionError("a bad day"), "ZeroDivisionError: a bad day"),
    ],
)
async def test_a_model_that_raises_fails_the_call_and_stays(
    backend: TransformersBackend, image_folder: Path, error: Exception, message: str
) -> None:
    model = await backend.load(request(image_folder), (CPU,), CHARGES)

    def fail(*_: Any) -> None:
        raise error

    hook = model.raw.register_forward_pre_hook(fail)
    with pytest.raises(CallFailed, match=message) as failed:
        await model.call("classify", ClassifyRequest(picture()))
    assert failed.value.__cause__ is error
    assert "classify.py" in "".join(error.__notes__)  # where it happened is still told
    hook.remove()
    assert await model.call("classify", ClassifyRequest(picture()))
    assert await backend.unload(model, timeout_s=5) == {}


async def test_a_sound_that_is_heard_whole_may_not_be_long(backend: TransformersBackend, audio_folder: Path) -> None:
    import numpy as np

    model = await backend.load(request(audio_folder), (CPU,), CHARGES)
    with pytest.raises(MediaTooLarge, match="lasts 61 s, and this model would hear all of it at once"):
        await model.call("classify", ClassifyRequest(np.zeros(61 * 16_000, np.float32)))
    await backend.unload(model, timeout_s=5)
