"""What a request asks of a model, and what a checkpoint's files say it can't take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskrouter.demands import demands_of, fields_of, kinds_of, least_tokens, surely_longer
from taskrouter.memory.senses import lacks
from taskrouter.verbs import ChatRequest, EmbedRequest, GenerateRequest, Picture, TranscribeRequest

SIGHT = {"image", "video"}


def test_kinds_are_told_without_reading() -> None:
    messages: list[Any] = [
        {"content": "x"}, {"content": None}, {}, 7,
        {"content": [{"type": "text"}, {"type": "image_url"}, {"type": "file"}, {"type": "new"}, 7, {}]},
        {"content": ({"type": "video_url"}, {"type": "audio_url"}, {"type": ["x"]})},
    ]  # fmt: skip
    assert kinds_of(messages) == {"image", "document", "video", "audio"}
    assert kinds_of([{"content": "x"}]) == frozenset()


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({"tools": [{}]}, {"tools", "automatic tools"}),
        ({"tools": [{}], "tool_choice": "auto"}, {"tools", "automatic tools"}),
        ({"tools": [{}], "tool_choice": None}, {"tools", "automatic tools"}),
        ({"tools": [{}], "tool_choice": {"type": "function"}}, {"tools"}),
        ({"tools": [{}], "tool_choice": "required"}, {"tools"}),
        ({"tools": [{}], "tool_choice": "none"}, set()),
        ({"tools": []}, set()),
        ({"response_format": {}}, set()),
    ],
)
def test_tools_are_told_apart_by_who_chooses(extra: dict[str, Any], wanted: set[str]) -> None:
    """An engine that can't read calls can still be bound to write one."""
    assert demands_of(ChatRequest(({"role": "user", "content": "x"},), extra=extra)) == wanted | {"extra"}


def test_the_fields_that_only_some_models_know_are_named() -> None:
    assert fields_of(ChatRequest(({"role": "user", "content": "x"},), extra={"top_k": 3, "min_p": 0.1})) == (
        "top_k",
        "min_p",
    )
    assert fields_of(ChatRequest(({"role": "user", "content": "x"},))) == ()
    assert fields_of(object()) == ()


def test_other_requests_ask_for_nothing_more() -> None:
    for request in (EmbedRequest(("x",)), TranscribeRequest("a.wav"), GenerateRequest("x"), None):
        assert demands_of(request) == frozenset()


def test_the_least_tokens_are_an_eighth_of_the_characters() -> None:
    parts = [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "y" * 800}}, {"text": 7}, 7]
    messages: tuple[Any, ...] = ({"content": "x" * 40}, {"content": parts}, {}, 7)
    assert least_tokens(ChatRequest(messages)) == 10
    assert least_tokens(GenerateRequest("x" * 81)) == 10
    assert least_tokens(None) == 0


def test_what_is_surely_too_long_has_no_long_runs_of_one_sign() -> None:
    """Those are a few tokens to any tokenizer."""
    assert surely_longer(GenerateRequest("ab" * 400), 99) == 100
    assert surely_longer(GenerateRequest("ab" * 400), 100) is None
    assert surely_longer(GenerateRequest("-" * 80_000), 99) is None


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"model_type": "llama", "hidden_size": 8}, SIGHT | {"audio"}),
        ({"model_type": "llama", "vision_config": {"depth": 2}}, {"audio"}),
        ({"model_type": "llava", "text_config": {"deep": [{"image_token_index": 3}]}}, {"audio"}),
        ({"model_type": "x", "audio_config": {}}, SIGHT),
        ({"model_type": "x", "architectures": ["SomethingVisionForCausalLM"]}, {"audio"}),
        ({"model_type": "any_omni"}, set()),
        ({"model_type": "llama", "auto_map": {"AutoModel": "code.Model"}}, set()),
    ],
)
def test_a_checkpoint_without_a_word_of_sight_or_sound_has_none(
    tmp_path: Path, config: dict[str, Any], missing: set[str]
) -> None:
    assert lacks(tmp_path, config).keys() == missing


def test_a_processor_of_its_own_may_be_for_anything(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert lacks(tmp_path, {"model_type": "llama"}) == {}
    assert lacks(tmp_path, {"model_type": "x", "vision_config": {}}).keys() == {"audio"}


@pytest.mark.slow
def test_no_model_that_sees_or_hears_is_taken_for_one_that_does_not(tmp_path: Path) -> None:
    """All that the installed Transformers has, by their default configurations."""
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def missing(name: str) -> set[str]:
        return set(lacks(tmp_path, CONFIG_MAPPING[name]().to_dict()))

    # In spite of the lists they are in, these read proteins, and text; and dia only speaks.
    others = {"evolla", "mistral4"}
    seeing = set(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - others
    blind = {name for name in seeing & set(CONFIG_MAPPING) if "image" in missing(name)}
    hearing = set(auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES) - {"dia"} | {
        "qwen2_audio",
        "voxtral",
        "phi4_multimodal",
    }
    deaf = {name for name in hearing & set(CONFIG_MAPPING) if "audio" in missing(name)}
    texts = {"llama", "qwen3", "mistral", "gemma2", "phi3", "gpt2", "olmo2", "deepseek_v3", "glm4", "granite"}
    known = {name for name in texts if missing(name) == SIGHT | {"audio"}}
    assert (blind, deaf, known) == (set(), set(), texts)
    assert len(seeing) > 20


def test_a_picture_to_embed_is_a_demand_and_a_text_is_none() -> None:
    assert demands_of(EmbedRequest(("a text", Picture(b"")))) == {"image"}
    assert demands_of(EmbedRequest(("a text",))) == frozenset()
