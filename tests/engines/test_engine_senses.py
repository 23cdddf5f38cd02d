"""Pictures, clips and sounds, as the OpenAI API has them, answered by vLLM and SGLang from the same two checkpoints."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager import StillMachine
from taskrouter.samples.manifest import MEDIA
from taskrouter.types import GIB
from tests.engines.clip_checkpoint import clip_checkpoint
from tests.engines.sound_checkpoint import sound_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engines"), pytest.mark.timeout(400)]

ENGINES = ("vllm", "sglang")
CONTEXT = 2048
TOKENS = 16
QUESTION = {"type": "text", "text": "what is it?"}
ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
SIDE, SQUARE, FRAMES = 64, 16, 8


@pytest.fixture(scope="module", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The module's own, as long as its engines run: instead of one for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {"watch": clip_checkpoint(folder / "clips"), "listen": sound_checkpoint(folder / "sounds")}


@pytest.fixture(scope="module", params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(
    name: str,
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    engine_python: Callable[[str], str],
) -> Iterator[Any]:
    """A manager, for callers that block, whose two tasks one engine serves."""
    whole = {"framework": name, "dtype": "float32", "env": ENV, "max_context": CONTEXT, "vram_gb": 3}
    whole["engine_args"] = {"enforce_eager": True} if name == "vllm" else {"enable_metrics": True}
    tasks = {
        task: {"selected": "it", "options": {"it": {"model_id": str(checkpoint), **whole}}}
        for task, checkpoint in checkpoints.items()
    }
    file = tmp_path_factory.mktemp(name) / "models.yaml"
    # Room for both at once: in whatever order the tests come, each is started once.
    sections = {"engines": {name: {"python": engine_python(name)}}, "inference": {"warmup_on_startup": False}}
    file.write_text(json.dumps({"tasks": tasks, **sections}), encoding="utf-8")
    with ModelManager(file, machine=StillMachine({"cpu": 16 * GIB})).blocking() as manager:
        yield manager
        manager._core.check()


def picture(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url("image/png", (MEDIA / name).read_bytes())}}


def clip(*, rightward: bool) -> dict[str, Any]:
    """A red square that crosses the frame, as MP4."""
    import av

    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for at in range(FRAMES):
            frame = np.zeros((SIDE, SIDE, 3), np.uint8)
            left = (at if rightward else FRAMES - 1 - at) * (SIDE - SQUARE) // FRAMES
            frame[20:40, left : left + SQUARE] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return {"type": "video_url", "video_url": {"url": data_url("video/mp4", written.getvalue())}}


def sound(name: str) -> dict[str, Any]:
    data = base64.b64encode((MEDIA / name).read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def about(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, QUESTION]}]


def told(engine: Any, task: str, *parts: dict[str, Any]) -> str:
    answer = engine.get_model(task).chat(about(*parts), max_tokens=TOKENS)
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.prompt_tokens > len(QUESTION["text"]) + len(parts)
    return str(answer.text)


def test_pictures_and_clips_are_told_apart(engine: Any) -> None:
    seen = [picture("red-circle.png"), picture("blue-star.png"), clip(rightward=True), clip(rightward=False)]
    answers = [told(engine, "watch", each) for each in seen]
    assert len(set(answers)) == len(seen)
    assert [told(engine, "watch", each) for each in seen] == answers
    both = told(engine, "watch", seen[0], seen[2])
    assert both not in answers


def test_sounds_are_told_apart_in_either_form(engine: Any) -> None:
    names = ("beeps.wav", "siren.wav", "noise.wav")
    answers = [told(engine, "listen", sound(name)) for name in names]
    assert len(set(answers)) == len(names)
    other = {"type": "audio_url", "audio_url": {"url": data_url("audio/wav", (MEDIA / names[0]).read_bytes())}}
    assert told(engine, "listen", other) == answers[0]


def test_an_answer_about_a_clip_comes_in_pieces_too(engine: Any) -> None:
    with engine.get_model("watch").stream_chat(about(clip(rightward=True)), max_tokens=TOKENS) as chunks:
        pieces = list(chunks)
    # How many pieces is the engine's to say: one that finds its reader busy sends several tokens in one.
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason is not None
    assert "".join(piece.text for piece in pieces) == told(engine, "watch", clip(rightward=True))


def test_cancelled_calls_are_computed_no_further(engine: Any) -> None:
    """By the engine's own count of tokens. It is kept from computing until it has heard: a starved machine's engine may
    have computed all before.
    """
    most, calls = CONTEXT - 100, 3
    whole = {"max_tokens": most, "extra": {"ignore_eos": True}}
    assert engine.get_model("watch").chat(about(), **whole).usage.completion_tokens == most

    async def after_cancelling() -> float:
        model = await engine._manager.get_model("watch")
        before = await generated(engine)
        async with engine._manager.lease("watch") as lease:
            computing = psutil.Process(lease.info["pid"]).children(recursive=True)
        assert computing
        for process in computing:
            process.suspend()
        try:
            asking = [asyncio.ensure_future(model.chat(about(), **whole)) for _ in range(calls)]
            await asyncio.wait(asking, timeout=1)
            assert not any(call.done() for call in asking)
            for call in asking:
                call.cancel()
            await asyncio.wait(asking)
            await asyncio.sleep(3)  # SGLang looks once a second whether its callers are there
        finally:
            for process in computing:
                process.resume()
        return await settled(engine) - before

    assert engine._run(after_cancelling()) < calls * most / 2


def test_an_abandoned_stream_is_computed_no_further(engine: Any) -> None:
    """By the engine's own count, too; a starved reader may see the first of many tokens late, so it has some tries."""
    most = CONTEXT - 100

    async def after_abandoning() -> float:
        model = await engine._manager.get_model("watch")
        before = await generated(engine)
        async with model.stream_chat(about(), max_tokens=most, extra={"ignore_eos": True}) as chunks:
            await anext(chunks)
        return await settled(engine) - before

    abandoned = [engine._run(after_abandoning())]
    abandoned += [engine._run(after_abandoning()) for _ in range(4) if min(abandoned) >= most]
    assert any(0 < tokens < most for tokens in abandoned), abandoned


async def generated(engine: Any) -> float:
    """How many tokens the engine has computed."""
    async with engine._manager.lease("watch") as lease:
        raw = lease.raw
        headers = {"Authorization": f"Bearer {raw.api_key}"}
        async with aiohttp.ClientSession(raw.base_url, headers=headers) as session, session.get("/metrics") as response:
            lines = (await response.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(r"(vllm|sglang):generation_tokens_total\{", line))


async def settled(engine: Any) -> float:
    """The same, once it grows no more. SGLang counts a request's tokens when that is over."""
    seen = [-1.0]
    while len(seen) < 60 and (len(seen) < 6 or len(set(seen[-5:])) > 1):
        await asyncio.sleep(0.4)
        seen.append(await generated(engine))
    assert len(set(seen[-5:])) == 1, seen
    return seen[-1]


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ("watch", {"type": "image_url", "image_url": {"url": data_url("image/png", b"no picture")}}),
        ("watch", {"type": "video_url", "video_url": {"url": data_url("video/mp4", b"no clip")}}),
        ("listen", {"type": "input_audio", "input_audio": {"data": "bm8gc291bmQ=", "format": "wav"}}),
    ],
    ids=["picture", "clip", "sound"],
)
def test_what_is_damaged_is_refused_and_costs_nobody_else_anything(
    engine: Any, task: str, part: dict[str, Any]
) -> None:
    with pytest.raises(errors.BadInput, match="400"):
        told(engine, task, part)
    assert told(engine, "watch", picture("red-circle.png"))


def test_pictures_are_seen_as_transformers_sees_them(engine: Any, checkpoints: dict[str, Path]) -> None:
    for name in ("red-circle.png", "blue-star.png"):
        assert told(engine, "watch", picture(name)) == seen_by_transformers(checkpoints["watch"], MEDIA / name)


def test_sounds_are_heard_as_transformers_hears_them(name: str, engine: Any, checkpoints: dict[str, Path]) -> None:
    for file in ("beeps.wav", "noise.wav"):
        heard = heard_by_transformers(checkpoints["listen"], MEDIA / file, padding=name == "sglang")
        assert told(engine, "listen", sound(file)) == heard


def seen_by_transformers(folder: Path, file: Path) -> str:
    import torch
    import transformers
    from PIL import Image

    processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = dict(processor([Image.open(file).convert("RGB")], return_tensors="pt"))
    count = int(inputs["image_grid_thw"].prod()) // processor.merge_size**2
    pad = "<|image_pad|>"
    text = f"<user><|vision_start|>{pad * count}<|vision_end|>{QUESTION['text']}<bot>"
    inputs["input_ids"] = words(text, return_tensors="pt")["input_ids"]
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == words.convert_tokens_to_ids(pad)).int()
    torch.set_num_threads(1)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return continued(model, inputs, words)


def heard_by_transformers(folder: Path, file: Path, *, padding: bool) -> str:
    """What is answered about a sound; with ``padding``, its silence up to 30 s is heard too, as SGLang 0.5.23 does."""
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder)
    rate = processor.feature_extractor.sampling_rate
    with wave.open(str(file)) as opened:
        assert (opened.getframerate(), opened.getnchannels(), opened.getsampwidth()) == (rate, 1, 2)
        samples = np.frombuffer(opened.readframes(opened.getnframes()), np.int16).astype(np.float32) / 2**15
    text = f"<user><|audio_bos|><|AUDIO|><|audio_eos|>{QUESTION['text']}<bot>"
    inputs = processor(text=text, audio=[samples], sampling_rate=rate, return_tensors="pt")
    torch.set_num_threads(1)
    model = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if padding:
        ids = inputs.pop("input_ids")
        places = ids == processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
        with torch.no_grad():
            embeddings = model.get_input_embeddings()(ids)
            heard = model.model.audio_tower(inputs.pop("input_features")).last_hidden_state
            embeddings[places] = model.model.multi_modal_projector(heard)[0, : int(places.sum())]
        inputs = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
    return continued(model, inputs, processor.tokenizer)


def continued(model: Any, inputs: Any, words: Any) -> str:
    written = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0]
    return str(words.decode(written[-TOKENS:]))
