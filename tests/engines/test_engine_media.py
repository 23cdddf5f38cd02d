"""What vLLM can do beside chatting in text: pictures, JSON schemas, tools, logprobs, vectors, and fields of its own."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager import StillMachine
from taskrouter.media.video import load_video
from taskrouter.samples.manifest import CLIP, MEDIA
from taskrouter.types import GIB
from tests.engines.embedding_checkpoint import DIMENSIONS, embedding_checkpoint
from tests.engines.vision_checkpoint import vision_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engines"), pytest.mark.timeout(300)]

CIRCLE, TRIANGLE = MEDIA / "red-circle.png", MEDIA / "green-triangle.jpg"
QUESTION = "what is it?"
TOKENS = 16
ENV = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # The first request for logprobs would compile for 17 s.
    "TORCHDYNAMO_DISABLE": "1",
}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "strict": True, "parameters": SCHEMA}}


@pytest.fixture(scope="module", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The module's own, as long as its engines run: instead of one for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def serve(folder: Path, python: str, **option: Any) -> Iterator[Any]:
    """One engine's model, for callers that block."""
    whole = {"framework": "vllm", "dtype": "float32", "env": ENV, **option}
    file = folder / "models.yaml"
    sections = {
        "engines": {"vllm": {"python": python}},
        "inference": {"warmup_on_startup": False},
        "media": {"roots": [str(MEDIA)]},
    }
    file.write_text(
        json.dumps({"tasks": {"it": {"selected": "it", "options": {"it": whole}}}, **sections}), encoding="utf-8"
    )
    with ModelManager(file, machine=StillMachine({"cpu": 8 * GIB})).blocking() as manager:
        yield manager.get_model("it")
        manager._core.check()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, engine_python: Callable[[str], str]) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("seeing")
    arguments = {
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 2},
        "video-frames": 2,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    yield from serve(
        folder,
        engine_python("vllm"),
        model_id=str(vision_checkpoint(folder / "vision")),
        max_context=512,
        engine_args=arguments,
    )


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory, engine_python: Callable[[str], str]) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("embedding")
    model_id = str(embedding_checkpoint(folder / "bert"))
    arguments = {"enforce_eager": True, "runner": "pooling"}
    yield from serve(folder, engine_python("vllm"), model_id=model_id, engine_args=arguments)


def about(*pictures: Path) -> list[dict[str, Any]]:
    """A question about pictures, as the OpenAI API has it."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def data_url(picture: Path) -> str:
    kind = "jpeg" if picture.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def said_by_transformers(folder: str, picture: Path) -> str:
    """The same question, asked of the same checkpoint in this process."""
    import torch
    import transformers
    from PIL import Image

    torch.set_num_threads(1)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    parts = [{"type": "image", "image": Image.open(picture).convert("RGB")}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(processor.decode(written))


def test_a_picture_is_seen_as_transformers_sees_it(seeing: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(vision_checkpoint(tmp_path_factory.mktemp("again")))
    answers = [seeing.chat(about(picture), max_tokens=TOKENS) for picture in (CIRCLE, TRIANGLE)]
    assert [answer.text for answer in answers] == [said_by_transformers(folder, each) for each in (CIRCLE, TRIANGLE)]
    assert answers[0].text != answers[1].text
    for source in (CIRCLE.read_bytes(), PIL.Image.open(CIRCLE)):
        parts = [{"type": "image_url", "image_url": source}, {"type": "text", "text": QUESTION}]
        assert seeing.chat([{"role": "user", "content": parts}], max_tokens=TOKENS).text == answers[0].text
    assert {answer.usage.completion_tokens for answer in answers} == {TOKENS}


def test_of_a_video_an_engine_that_reads_none_is_shown_frames(seeing: Any) -> None:
    shown = load_video(CLIP, count=2).frames
    answers = []
    for parts in (
        [{"type": "video_url", "video_url": {"url": str(CLIP)}}],
        [{"type": "video_url", "video_url": CLIP.read_bytes()}],
        [{"type": "image_url", "image_url": frame} for frame in shown],
    ):
        asked = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
        answers.append(seeing.chat(asked, max_tokens=TOKENS))
    assert answers[0].text == answers[1].text == answers[2].text
    assert answers[0].usage.prompt_tokens == answers[2].usage.prompt_tokens


def test_an_answer_about_a_picture_comes_in_pieces_too(seeing: Any) -> None:
    with seeing.stream_chat(about(CIRCLE), max_tokens=TOKENS) as chunks:
        pieces = list(chunks)
    assert len(pieces) > TOKENS / 2
    assert "".join(piece.text for piece in pieces) == seeing.chat(about(CIRCLE), max_tokens=TOKENS).text
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].usage.completion_tokens == TOKENS


def test_several_pictures_are_taken_and_too_many_are_the_callers_mistake(seeing: Any) -> None:
    both = seeing.chat(about(CIRCLE, TRIANGLE), max_tokens=TOKENS)
    one = seeing.chat(about(CIRCLE), max_tokens=TOKENS)
    assert both.text != one.text
    assert both.usage.prompt_tokens > one.usage.prompt_tokens
    with pytest.raises(errors.BadInput, match=r"(?i)at most 2 image"):
        seeing.chat(about(CIRCLE, TRIANGLE, CIRCLE))


def test_an_address_of_a_picture_is_not_fetched(seeing: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/picture.png"}}
    with pytest.raises(errors.BadInput, match="data: URL"):
        seeing.chat([{"role": "user", "content": [part]}])


def test_an_answer_keeps_to_a_json_schema(seeing: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    answer = seeing.chat(about(CIRCLE), max_tokens=128, extra={"response_format": form})
    assert answer.finish_reason == "stop"
    said = json.loads(answer.text)
    assert said["colour"] in ("red", "blue")
    assert said["count"] in range(10)


def test_a_tool_is_called_with_arguments_that_fit(seeing: Any) -> None:
    chosen = {"type": "function", "function": {"name": "look"}}
    answer = seeing.chat(about(CIRCLE), max_tokens=256, extra={"tools": [TOOL], "tool_choice": chosen})
    (call,) = answer.tool_calls
    assert call["function"]["name"] == "look"
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["colour"] in ("red", "blue")
    assert arguments.keys() == {"colour", "count"}


def test_logprobs_are_in_the_raw_answer(seeing: Any) -> None:
    answer = seeing.chat(about(CIRCLE), max_tokens=3, extra={"logprobs": True, "top_logprobs": 2})
    tokens = answer.raw["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answer.text
    for token in tokens:
        best, second = token["top_logprobs"]
        assert best["token"] == token["token"]
        assert second["logprob"] < token["logprob"] < 0


def test_a_text_goes_on_without_a_chat_template(seeing: Any) -> None:
    answer = seeing.generate("hello", max_tokens=8)
    assert len(answer.text) == 8
    assert (answer.finish_reason, answer.usage.prompt_tokens) == ("length", len("hello"))
    assert seeing.generate("hello", max_tokens=8).text == answer.text
    listed = seeing.request("/tokenize", {"prompt": "hello"})
    assert listed["count"] == len("hello")


def test_fields_that_only_the_engine_knows_pass_through(seeing: Any) -> None:
    plain = seeing.generate("hello", max_tokens=8)
    answer = seeing.generate("hello", max_tokens=8, extra={"return_token_ids": True, "no_such_field": 1})
    assert answer.text == plain.text
    assert len(answer.raw["choices"][0]["token_ids"]) == 8
    with pytest.raises(errors.BadInput, match="top_k"):
        seeing.generate("hello", max_tokens=8, extra={"top_k": "many"})


def test_texts_become_the_vectors_that_transformers_makes_of_them(
    embedding: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = embedding_checkpoint(tmp_path_factory.mktemp("again"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    texts = ["the red circle rises", "a blue star falls"]
    found = embedding.embed(texts)
    assert [len(vector) for vector in found.vectors] == [DIMENSIONS, DIMENSIONS]
    assert found.usage.prompt_tokens == 6 + 6
    for text, vector in zip(texts, found.vectors, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0]
        assert vector == pytest.approx(torch.nn.functional.normalize(mean, dim=0).tolist(), abs=1e-4)
    assert embedding.embed(texts[0]).vectors[0] == pytest.approx(found.vectors[0], abs=1e-4)


def test_a_model_of_vectors_scores_pairs_and_does_not_chat(embedding: Any) -> None:
    pairs = {"text_1": "the red circle", "text_2": ["the red circle", "a star"]}
    scores = [pair["score"] for pair in embedding.request("/score", pairs)["data"]]
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert scores[1] < 0.99
    with pytest.raises(errors.UnsupportedVerb):
        embedding.chat("hello")
