"""Texts to vectors, as the checkpoint's own recipe says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.hf.embed import MOST_TOKENS, _batches
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import (
    BadInput,
    CheckpointCorrupt,
    CheckpointMissing,
    ContextTooLong,
    PreflightFailed,
    UnsupportedInput,
)
from taskrouter.types import CPU
from taskrouter.verbs import Embeddings, EmbedRequest

from .checkpoints import CHARGES, request, save
from .families import SMALL, sentence_bert

pytestmark = pytest.mark.anyio
TEXTS = ("w1 w2 w3 w4 w5 w6", "w7", "w1 w2 w3")


async def vectors(backend: TransformersBackend, folder: Path, *texts: str) -> Embeddings:
    model = await backend.load(request(folder), (CPU,), CHARGES)
    try:
        answer = await model.call("embed", EmbedRequest(texts))
    finally:
        assert await backend.unload(model, timeout_s=5) == {}
    assert isinstance(answer, Embeddings)
    return answer


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
async def test_a_text_alone_and_beside_others_has_the_vector_that_the_recipe_makes(
    backend: TransformersBackend, tmp_path: Path, pooling: str, side: str
) -> None:
    import torch
    import transformers

    sentence_bert(tmp_path / "bert", pooling=pooling, side=side)
    together = await vectors(backend, tmp_path / "bert", *TEXTS)
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    assert tokenizer.padding_side == side
    model = transformers.AutoModel.from_pretrained(tmp_path / "bert").eval()
    for text, vector in zip(TEXTS, together.vectors, strict=True):
        padded = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
        alone = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            # A model that counts places from the left sees other places where the padding is there.
            batch = model(**padded).last_hidden_state[TEXTS.index(text)]
            own = batch[padded["attention_mask"][TEXTS.index(text)].bool()]
            states = own if side == "left" else model(**alone).last_hidden_state[0]
        expected = {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[pooling]
        assert vector == pytest.approx(expected.tolist(), abs=1e-5)


async def test_many_texts_come_back_in_their_order_each_of_length_one_where_the_recipe_says_so(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    sentence_bert(tmp_path / "bert", normalized=True)
    texts = [" ".join(["w1"] * (1 + place * 7 % 11)) + f" w{place % 50}" for place in range(70)]
    many = await vectors(backend, tmp_path / "bert", *texts)
    assert [len(vector) for vector in many.vectors] == [32] * 70
    assert all(math.hypot(*vector) == pytest.approx(1) for vector in many.vectors)
    one = await vectors(backend, tmp_path / "bert", texts[41])
    assert many.vectors[41] == pytest.approx(one.vectors[0], abs=1e-5)


async def test_a_text_is_never_cut(backend: TransformersBackend, tmp_path: Path) -> None:
    sentence_bert(tmp_path / "bert")
    found = await backend.preflight(request(tmp_path / "bert"))
    assert found.verbs == {"embed"}
    assert found.lacks.keys() == {"image", "extra"}
    assert found.context == 64
    with pytest.raises(ContextTooLong, match="text 1 comes to 82 tokens, and the model's context is 64"):
        await vectors(backend, tmp_path / "bert", "w1", "w1 " * 80)
    model = await backend.load(request(tmp_path / "bert"), (CPU,), CHARGES)
    with pytest.raises(UnsupportedInput, match="extra has dimensions"):
        await model.call("embed", EmbedRequest(("w1",), {"dimensions": 8}))
    await backend.unload(model, timeout_s=5)


@pytest.mark.parametrize("family", ["BertModel", "RobertaModel"])
async def test_exactly_as_much_is_read_as_the_model_has_places_for(
    backend: TransformersBackend, tmp_path: Path, family: str
) -> None:
    import transformers

    sentence_bert(tmp_path / "bert")
    if family == "RobertaModel":
        config = transformers.RobertaConfig(**SMALL, vocab_size=64, max_position_embeddings=64, pad_token_id=0)
        save(transformers.RobertaModel(config), tmp_path / "bert")
    most = 64 if family == "BertModel" else 63
    assert (await backend.preflight(request(tmp_path / "bert"))).context == most
    await vectors(backend, tmp_path / "bert", "w1 " * (most - 2))
    with pytest.raises(ContextTooLong, match=f"comes to {most + 1} tokens, and the model's context is {most}"):
        await vectors(backend, tmp_path / "bert", "w1 " * (most - 1))


async def test_the_rest_of_the_recipe_is_followed_too(backend: TransformersBackend, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    sentence_bert(folder)
    plain = await vectors(backend, folder, "w1 w2", "w3 w1 w2")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10, "do_lower_case": True}))
    prompts = {"default_prompt_name": "query", "prompts": {"query": "w3 ", "passage": "w4 "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    told = await vectors(backend, folder, "W1 w2")
    assert told.vectors[0] == pytest.approx(plain.vectors[1], abs=1e-5)
    with pytest.raises(ContextTooLong, match="the model's context is 10"):
        await vectors(backend, folder, "w1 " * 9)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**prompts, "default_prompt_name": "x"}))
    with pytest.raises(PreflightFailed, match="its default prompt 'x' isn't among its prompts"):
        await backend.preflight(request(folder))


def test_what_is_read_at_once_is_bounded_by_its_tokens() -> None:
    batches = list(_batches([MOST_TOKENS, 1, 8000, 8000, 8000, *[1] * 40]))
    assert sorted(place for batch in batches for place in batch) == list(range(45))
    assert [len(batch) for batch in batches] == [32, 9, 2, 1, 1]


async def test_a_text_without_tokens_has_no_vector(backend: TransformersBackend, tmp_path: Path) -> None:
    sentence_bert(tmp_path / "bert")
    file = tmp_path / "bert" / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    with pytest.raises(BadInput, match="text 1 comes to no tokens at all"):
        await vectors(backend, tmp_path / "bert", "w1", "")


async def test_code_of_its_own_is_not_run_unasked_and_an_unknown_model_is_named(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    sentence_bert(tmp_path / "bert")
    file = tmp_path / "bert" / "config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.OwnModel"}}))
    with pytest.raises(PreflightFailed, match="trust_remote_code: true"):
        await backend.preflight(request(tmp_path / "bert"))
    file.write_text(json.dumps({**known, "architectures": ["NeverHeardOfModel"]}))
    with pytest.raises(PreflightFailed, match="knows no architecture 'NeverHeardOfModel'"):
        await backend.preflight(request(tmp_path / "bert"))


@pytest.mark.parametrize(
    ("modules", "pooling", "kind", "said"),
    [
        ([{"type": "sentence_transformers.models.Dense"}], {}, PreflightFailed, "a step 'Dense', which isn't known"),
        ([{"type": "Transformer"}], {}, PreflightFailed, "doesn't say which one of mean, cls or lasttoken"),
        (None, {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, PreflightFailed, "doesn't say which"),
        (None, {"pooling_mode": "max"}, PreflightFailed, "doesn't say which one"),
        ({"type": "Pooling"}, {}, CheckpointCorrupt, "should hold a JSON list of objects"),
        ([{"type": "Pooling", "path": "2_Pooling"}], {}, CheckpointMissing, "2_Pooling/config.json, which isn't there"),
    ],
)
async def test_a_recipe_that_is_not_known_is_refused_before_anything_is_loaded(
    backend: TransformersBackend,
    tmp_path: Path,
    modules: Any,
    pooling: dict[str, Any],
    kind: type[Exception],
    said: str,
) -> None:
    folder = tmp_path / "bert"
    sentence_bert(folder)
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(kind, match=said):
        await backend.preflight(request(folder))


async def test_an_encoder_without_a_recipe_is_refused(backend: TransformersBackend, tmp_path: Path) -> None:
    sentence_bert(tmp_path / "bert")
    (tmp_path / "bert" / "modules.json").unlink()
    with pytest.raises(PreflightFailed, match="BertModel can be loaded, but this version has no verb for it"):
        await backend.preflight(request(tmp_path / "bert"))
