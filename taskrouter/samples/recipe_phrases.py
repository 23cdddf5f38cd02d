"""How the phrases sample is built, what it reads in training, and what it is told about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from taskrouter.samples.renderers import phrases

_PAD, _UNKNOWN, _FIRST, _LAST = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_VOCABULARY = 640
_LONGEST = 128
_WIDTH = 96
_TWINS = 4
"""Sentences of one family in a batch: what differs in a detail only is what it learns most from."""
_TEMPERATURE = 0.05


def build_phrases() -> tuple[Any, Any]:
    """A small BERT, and a tokenizer of whole words and pieces of words."""
    from transformers import BertConfig, BertModel

    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=_LONGEST,
        type_vocab_size=1,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertModel(config), tokenizer


def phrases_batch(rng: np.random.Generator, count: int, tokenizer: Any) -> dict[str, Any]:
    """``count`` paraphrases, then the sentence of each, in families of near twins."""
    pairs: list[phrases.Pair] = []
    while len(pairs) < count:
        pairs += phrases.family(rng, min(_TWINS, count - len(pairs)))
    texts = [pair.paraphrase for pair in pairs] + [pair.sentence for pair in pairs]
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def phrases_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Each paraphrase should be nearer to its own sentence than to all others, and the other way round."""
    import torch

    vectors = pooled(model, batch)
    paraphrases, sentences = vectors.chunk(2)
    near = paraphrases @ sentences.T / _TEMPERATURE
    own = torch.arange(len(near))
    return (torch.nn.functional.cross_entropy(near, own) + torch.nn.functional.cross_entropy(near.T, own)) / 2


def pooled(model: Any, batch: dict[str, Any]) -> Any:
    """The mean over a text's tokens, of length 1: what ``finish_phrases`` writes down."""
    import torch

    mask = batch["attention_mask"][..., None].float()
    states = model(**batch).last_hidden_state
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def finish_phrases(folder: Path) -> None:
    """Write beside the checkpoint how a vector is made of it, as sentence-transformers reads it."""
    steps = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": f"{place}_{step}" if place else "",
            "type": f"sentence_transformers.models.{step}",
        }
        for place, step in enumerate(steps)
    ]
    pooling = {"word_embedding_dimension": _WIDTH, "pooling_mode_mean_tokens": True}
    reading = {"max_seq_length": _LONGEST, "do_lower_case": False}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for file, told in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", reading),
    ):
        (folder / file).write_text(json.dumps(told, indent=2) + "\n")


def _tokenizer() -> Any:
    """WordPiece without capitals: the words of the template language become one token each, others are spelt out."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rng = np.random.default_rng(0)
    pairs = [pair for _ in range(2000) for pair in phrases.family(rng, 2)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY, special_tokens=[_PAD, _UNKNOWN, _FIRST, _LAST], show_progress=False
    )
    backend.train_from_iterator([text for pair in pairs for text in (pair.sentence, pair.paraphrase)], trainer)
    ends = [(token, backend.token_to_id(token)) for token in (_FIRST, _LAST)]
    backend.post_processor = processors.TemplateProcessing(single=f"{_FIRST} $A {_LAST}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        cls_token=_FIRST,
        sep_token=_LAST,
        model_max_length=_LONGEST,
        model_input_names=["input_ids", "attention_mask"],
    )
