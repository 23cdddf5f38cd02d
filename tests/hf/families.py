"""Tiny random checkpoints of the families that people use, as real folders: built in milliseconds, by no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .checkpoints import save

LABELS: dict[str, Any] = {
    "id2label": {0: "circle", 1: "square", 2: "star"},
    "label2id": {"circle": 0, "square": 1, "star": 2},
}
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIDE = 64
_CLIP_WORDS = ["<pad>", "<|startoftext|>", "<|endoftext|>", "a", "photo", "of", "this", "is", "cat", "dog", "star"]


def rt_detr(folder: Path) -> None:
    """Objects with labels of its own."""
    from taskrouter.samples.recipes import build_scenes

    model, processor = build_scenes()
    save(model, folder)
    processor.save_pretrained(folder)


def detr(folder: Path) -> None:
    """Objects, over a ResNet, with a mask of what is picture."""
    import transformers
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, d_model=32, num_queries=5,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, **LABELS,
    )  # fmt: skip
    save(transformers.DetrForObjectDetection(config), folder)
    DetrImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE}).save_pretrained(folder)


def yolos(folder: Path) -> None:
    """Objects, by a plain vision transformer."""
    import transformers
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    config = transformers.YolosConfig(
        **SMALL, image_size=[SIDE, SIDE], patch_size=16, num_detection_tokens=5, use_mid_position_embeddings=False,
        **LABELS,
    )  # fmt: skip
    save(transformers.YolosForObjectDetection(config), folder)
    YolosImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": SIDE}).save_pretrained(folder)


def owlv2(folder: Path) -> None:
    """Objects by words."""
    import transformers
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    config = transformers.Owlv2Config(
        text_config={**SMALL, "vocab_size": len(_CLIP_WORDS), "max_position_embeddings": 16, "pad_token_id": 0,
                     "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16}, projection_dim=32,
    )  # fmt: skip
    save(transformers.Owlv2ForObjectDetection(config), folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.Owlv2Processor(Owlv2ImageProcessorPil(size=size), _words(16)).save_pretrained(folder)


def grounding_dino(folder: Path) -> None:
    """Objects by a caption."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    # The model cuts its caption at the ids that [CLS], [SEP], a full stop and a question mark have in BERT.
    names = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?", 1: "cat", 2: "dog", 3: "star"}
    vocabulary = {names.get(place, f"w{place}"): place for place in range(1030)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=transformers.BertConfig(**SMALL, vocab_size=1030, max_position_embeddings=64),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5, encoder_n_points=2, decoder_n_points=2,
        num_feature_levels=4, max_text_len=32,
    )  # fmt: skip
    save(transformers.GroundingDinoForObjectDetection(config), folder)
    size = {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}
    transformers.GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=size), tokenizer).save_pretrained(folder)


def clip(folder: Path) -> None:
    """Pictures by words, as chances that add up to 1."""
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = transformers.CLIPConfig(
        text_config={**SMALL, "vocab_size": len(_CLIP_WORDS), "max_position_embeddings": 16, "pad_token_id": 0,
                     "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16}, projection_dim=32,
    )  # fmt: skip
    save(transformers.CLIPModel(config), folder)
    size = {"shortest_edge": SIDE}
    crop = {"height": SIDE, "width": SIDE}
    transformers.CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=crop), _words(16)).save_pretrained(folder)


def siglip(folder: Path) -> None:
    """Pictures by words, each with a chance of its own."""
    import transformers
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    config = transformers.SiglipConfig(
        text_config={**SMALL, "vocab_size": len(_CLIP_WORDS), "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16},
    )  # fmt: skip
    save(transformers.SiglipModel(config), folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.SiglipProcessor(SiglipImageProcessorPil(size=size), _words(64)).save_pretrained(folder)


def clap(folder: Path) -> None:
    """Sounds of up to ten seconds by words."""
    import transformers

    # The window of its attention and its four stages are the smallest that its own code takes.
    config = transformers.ClapConfig(
        text_config={**SMALL, "vocab_size": len(_CLIP_WORDS), "max_position_embeddings": 32, "pad_token_id": 0},
        audio_config={"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1],
                      "num_attention_heads": [1, 1, 2, 2]},
        projection_dim=32,
    )  # fmt: skip
    save(transformers.ClapModel(config), folder)
    extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
    transformers.ClapProcessor(extractor, _words(16)).save_pretrained(folder)


def xclip(folder: Path) -> None:
    """Videos of four frames by words."""
    import transformers
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    config = transformers.XCLIPConfig(
        text_config={**SMALL, "vocab_size": len(_CLIP_WORDS), "max_position_embeddings": 16, "pad_token_id": 0,
                     "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16, "num_frames": 4, "mit_hidden_size": 32,
                       "mit_intermediate_size": 32, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 2},
        projection_dim=32,
    )  # fmt: skip
    save(transformers.XCLIPModel(config), folder)
    frames = VideoMAEImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    transformers.XCLIPProcessor(frames, _words(16)).save_pretrained(folder)


def wav2vec2_ctc(folder: Path) -> None:
    """Sounds to letters."""
    import json

    import transformers

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ENO"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(letters)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    config = transformers.Wav2Vec2Config(
        **SMALL, conv_dim=[8, 8], conv_kernel=[10, 4], conv_stride=[8, 4], num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=len(letters), pad_token_id=0,
        ctc_zero_infinity=True,
    )  # fmt: skip
    save(transformers.Wav2Vec2ForCTC(config), folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)


def whisper(folder: Path) -> None:
    """Sounds to text by half a minute, with times and languages."""
    import json

    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["!", "\u0120", "a", "b", "\u0120a", "\u0120b"]
    (folder / "vocab.json").write_text(json.dumps({piece: place for place, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n\u0120 a\n\u0120 b\n")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|de|>", "<|en|>", "<|translate|>", "<|transcribe|>",
               "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip
    times = [f"<|{step / 50:.2f}|>" for step in range(1501)]
    tokenizer = transformers.WhisperTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="<|endoftext|>", bos_token="<|endoftext|>",
        eos_token="<|endoftext|>", pad_token="<|endoftext|>", additional_special_tokens=special[1:],
    )  # fmt: skip
    tokenizer.add_tokens([transformers.AddedToken(each, special=False) for each in times])
    at = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    end = at["<|endoftext|>"]
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        decoder_start_token_id=at["<|startoftranscript|>"], eos_token_id=end, pad_token_id=end, bos_token_id=end,
        max_target_positions=64, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=at["<|startoftranscript|>"], eos_token_id=end, pad_token_id=end, bos_token_id=end,
        max_length=48, is_multilingual=True, lang_to_id={name: at[name] for name in ("<|de|>", "<|en|>")},
        task_to_id={name: at[f"<|{name}|>"] for name in ("transcribe", "translate")},
        no_timestamps_token_id=at["<|notimestamps|>"], prev_sot_token_id=at["<|startofprev|>"],
        max_initial_timestamp_index=50, return_timestamps=False, begin_suppress_tokens=[end], suppress_tokens=[],
        forced_decoder_ids=None,
    )  # fmt: skip
    save(model, folder)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


def _words(length: int) -> Any:
    """A tokenizer of whole words in CLIP's form."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(_CLIP_WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 1), ("<|endoftext|>", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<|endoftext|>", unk_token="a",
        model_max_length=length, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


DETECTORS: Mapping[str, Callable[[Path], None]] = {"rt_detr": rt_detr, "detr": detr, "yolos": yolos}
ZERO_SHOT_DETECTORS: Mapping[str, Callable[[Path], None]] = {"owlv2": owlv2, "grounding_dino": grounding_dino}
ZERO_SHOT_CLASSIFIERS: Mapping[str, Callable[[Path], None]] = {"clip": clip, "siglip": siglip}
"""Of pictures."""
WORD_HEARING: Mapping[str, Callable[[Path], None]] = {"clap": clap}
"""Sounds, by words."""
WORD_WATCHERS: Mapping[str, Callable[[Path], None]] = {"xclip": xclip}
"""Videos, by words."""


def sentence_bert(folder: Path, *, pooling: str = "mean", normalized: bool = False, side: str = "right") -> None:
    """Texts to vectors, in the form of sentence-transformers."""
    import json

    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from .checkpoints import WORDS

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<user> $A <eos>", special_tokens=[("<user>", 3), ("<eos>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side=side,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = transformers.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=64)
    save(transformers.BertModel(config), folder)
    tokenizer.save_pretrained(folder)
    steps = ["Transformer", "Pooling", *(["Normalize"] if normalized else [])]
    modules = [
        {"idx": place, "name": str(place), "path": f"{place}_{step}" if place else "",
         "type": f"sentence_transformers.models.{step}"}
        for place, step in enumerate(steps)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    names = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    told = {"word_embedding_dimension": 32, **{f"pooling_mode_{each}": key == pooling for key, each in names.items()}}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
