"""A tiny text-embedding checkpoint with random weights: a BERT, with Sentence Transformers' files beside it.

Those say how a text's vector is made (the mean over its tokens, scaled to length 1), as vLLM reads them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

DIMENSIONS = 64
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "red", "blue", "circle", "star", "rises", "falls"]
_MODULES = {
    "": "sentence_transformers.models.Transformer",
    "1_Pooling": "sentence_transformers.models.Pooling",
    "2_Normalize": "sentence_transformers.models.Normalize",
}
_POOLING = {"word_embedding_dimension": DIMENSIONS, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def embedding_checkpoint(folder: Path) -> Path:
    """Write the checkpoint and its tokenizer to ``folder``, and return that."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=DIMENSIONS, intermediate_size=2 * DIMENSIONS, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    places = {word: place for place, word in enumerate(WORDS)}
    words = Tokenizer(models.WordPiece(places, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, places[word]) for word in ("[CLS]", "[SEP]")]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(_MODULES.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(_POOLING))
    return folder
