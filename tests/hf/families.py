"""Tiny random checkpoints of the families that people use, as real folders: built in milliseconds, by no network."""

from __future__ import annotations

import importlib.util
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


def depth_anything(folder: Path, *, metres: float | None = None) -> None:
    """Depth, relative or up to so many metres."""
    import transformers

    backbone = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14,
        out_indices=[1, 2], reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=32, reassemble_factors=[4, 2],
        neck_hidden_sizes=[16, 16], fusion_hidden_size=16, head_hidden_size=8, max_depth=metres or 1,
        depth_estimation_type="relative" if metres is None else "metric",
    )  # fmt: skip
    save(transformers.DepthAnythingForDepthEstimation(config), folder)
    _dpt_processor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(
        folder
    )


def dpt(folder: Path) -> None:
    """Depth, relative."""
    import transformers

    config = transformers.DPTConfig(
        **{**SMALL, "num_hidden_layers": 4}, image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
    )  # fmt: skip
    save(transformers.DPTForDepthEstimation(config), folder)
    _dpt_processor(size={"height": 32, "width": 32}).save_pretrained(folder)


def glpn(folder: Path) -> None:
    """Depth, in metres."""
    import transformers
    from transformers.models.glpn.image_processing_pil_glpn import GLPNImageProcessorPil

    config = transformers.GLPNConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8,
        mlp_ratios=[2] * 4,
    )  # fmt: skip
    save(transformers.GLPNForDepthEstimation(config), folder)
    GLPNImageProcessorPil().save_pretrained(folder)


def _dpt_processor(**how: Any) -> Any:
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    return DPTImageProcessorPil(**how)


def segformer(folder: Path) -> None:
    """A label for each pixel."""
    import transformers
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8,
        mlp_ratios=[2] * 4, **LABELS,
    )  # fmt: skip
    save(transformers.SegformerForSemanticSegmentation(config), folder)
    SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def mask2former(folder: Path) -> None:
    """Things told apart."""
    import transformers
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=5, **LABELS,
    )  # fmt: skip
    save(_sure(transformers.Mask2FormerForUniversalSegmentation(config)), folder)
    Mask2FormerImageProcessorPil(size={"height": SIDE, "width": SIDE}, ignore_index=255).save_pretrained(folder)


def maskformer(folder: Path) -> None:
    """Things told apart, by the elder of the two."""
    import transformers
    from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil

    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    decoder = transformers.DetrConfig(
        backbone_config=resnet, use_timm_backbone=False, d_model=32, num_queries=5, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=_swin(), fpn_feature_size=32, mask_feature_size=32, decoder_config=decoder, **LABELS
    )
    save(_sure(transformers.MaskFormerForInstanceSegmentation(config)), folder)
    size = {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}
    MaskFormerImageProcessorPil(size=size, ignore_index=255).save_pretrained(folder)


def _sure(model: Any) -> Any:
    """Random, but so sure of itself that something is found."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "class_predictor" in name:
                weight *= 40
            if "mask_embedder" in name or "mask_projection" in name:
                weight *= 6
    return model


def _swin() -> Any:
    import transformers

    return transformers.SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


_ASKED: dict[str, Any] = {
    "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                            "iou_head_hidden_dim": 16},
}  # fmt: skip


def sam(folder: Path) -> None:
    """What it is pointed at, in a square that the picture fills in part."""
    import transformers
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    config = transformers.SamConfig(
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
                       "patch_size": 16, "output_channels": 32, "mlp_dim": 32, "window_size": 4,
                       "global_attn_indexes": [1], "num_pos_feats": 16},
        **_ASKED,
    )  # fmt: skip
    save(transformers.SamModel(config), folder)
    square, quarter = {"height": SIDE, "width": SIDE}, {"height": SIDE // 4, "width": SIDE // 4}
    pictures = SamImageProcessorPil(
        size={"longest_edge": SIDE}, pad_size=square, mask_size={"longest_edge": SIDE // 4}, mask_pad_size=quarter
    )
    transformers.SamProcessor(pictures).save_pretrained(folder)


def sam2(folder: Path, *, video: bool = False) -> None:
    """What it is pointed at, in a square that the picture is stretched over; as the checkpoint for videos, too."""
    import json

    import transformers

    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[SIDE, SIDE], blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[4],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    if video:
        config = transformers.Sam2VideoConfig(vision_config=vision, image_size=SIDE, **_ASKED)
        save(transformers.Sam2VideoModel(config), folder)
    else:
        save(transformers.Sam2Model(transformers.Sam2Config(vision_config=vision, **_ASKED)), folder)
    told = {"image_processor_type": "Sam2ImageProcessorFast", "size": {"height": SIDE, "width": SIDE}}
    # The class that would write this file needs torchvision.
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": told}))


def videomae(folder: Path) -> None:
    """Videos of four frames to labels."""
    import transformers

    config = transformers.VideoMAEConfig(**SMALL, image_size=32, patch_size=8, num_frames=4, **LABELS)
    save(transformers.VideoMAEForVideoClassification(config), folder)
    _frames().save_pretrained(folder)


def timesformer(folder: Path) -> None:
    """Videos of four frames to labels, time and place attended to in turn."""
    import transformers

    config = transformers.TimesformerConfig(**SMALL, image_size=32, patch_size=8, num_frames=4, **LABELS)
    save(transformers.TimesformerForVideoClassification(config), folder)
    _frames().save_pretrained(folder)


def vivit(folder: Path) -> None:
    """Videos of four frames to labels, by tubes of two frames."""
    import transformers

    config = transformers.VivitConfig(**SMALL, image_size=32, num_frames=4, tubelet_size=[2, 8, 8], **LABELS)
    save(transformers.VivitForVideoClassification(config), folder)
    transformers.VivitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )


def _frames() -> Any:
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    return VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


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
WATCHERS: Mapping[str, Callable[[Path], None]] = {"videomae": videomae, "timesformer": timesformer, "vivit": vivit}
LABELLERS: Mapping[str, Callable[[Path], None]] = {
    "segformer": segformer, "mask2former": mask2former, "maskformer": maskformer
}  # fmt: skip
POINTED: Mapping[str, Callable[[Path], None]] = {"sam": sam, "sam2": sam2}
DEPTHS: Mapping[str, Callable[[Path], None]] = {"depth_anything": depth_anything, "dpt": dpt, "glpn": glpn}
ZERO_SHOT_DETECTORS: Mapping[str, Callable[[Path], None]] = {"owlv2": owlv2, "grounding_dino": grounding_dino}
ZERO_SHOT_CLASSIFIERS: Mapping[str, Callable[[Path], None]] = {"clip": clip, "siglip": siglip}


def idefics3(folder: Path) -> None:
    """Pictures and text to text, each picture as a few tokens."""
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = _chatting(("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"))
    config = transformers.Idefics3Config(
        text_config=_text(transformers.LlamaConfig, tokenizer),
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, tie_word_embeddings=False,
        pad_token_id=0,
    )  # fmt: skip
    longest = {"longest_edge": SIDE}
    pictures = Idefics3ImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False)
    processor = transformers.Idefics3Processor(
        pictures, tokenizer, image_seq_len=(SIDE // 16) ** 2 // 4, chat_template=_TEMPLATE
    )
    save(transformers.Idefics3ForConditionalGeneration(config), folder)
    processor.save_pretrained(folder)


def llava(folder: Path) -> None:
    """Pictures and text to text, each picture as all its patches."""
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _chatting(("<image>",))
    config = transformers.LlavaConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer),
        vision_config=transformers.CLIPVisionConfig(**SMALL, image_size=SIDE, patch_size=16),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )  # fmt: skip
    save(transformers.LlavaForConditionalGeneration(config), folder)
    processor.save_pretrained(folder)


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


_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('no such role: ' + message['role']) }}{% endif %}<{{ message['role'] }}> "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _chatting(more: tuple[str, ...]) -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from .checkpoints import WORDS

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        extra_special_tokens={name.strip("<>").replace("-", "_") + "_token": name for name in more},
    )  # fmt: skip
    return tokenizer


def _text(kind: Any, tokenizer: Any) -> Any:
    return kind(
        **SMALL, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def qwen2_5_vl(folder: Path) -> None:
    """Pictures and text to text, each picture as its own size makes it."""
    import transformers

    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "window_size": 32, "fullatt_block_indexes": [1]}  # fmt: skip
    _qwen(folder, "Qwen2_5_VL", transformers.Qwen2_5_VLConfig, vision)


def qwen3_vl(folder: Path) -> None:
    """The same, what is seen handed to several layers."""
    import transformers

    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}  # fmt: skip
    _qwen(folder, "Qwen3VL", transformers.Qwen3VLConfig, vision)


def _qwen(folder: Path, name: str, kind: Any, vision: dict[str, Any]) -> None:
    import json

    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _chatting(marks)
    at = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
                  tokenizer.convert_tokens_to_ids(list(marks)), strict=True))  # fmt: skip
    text = {**SMALL, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512,
            "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip
    seeing = {**vision, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = kind(text_config=text, vision_config=seeing, tie_word_embeddings=False, **at)
    save(getattr(transformers, f"{name}ForConditionalGeneration")(config), folder)
    tokenizer.chat_template = _TEMPLATE.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>")
    tokenizer.save_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": SIDE * SIDE}
    )
    told = {**json.loads(pictures.to_json_string()), "processor_class": f"{name}Processor"}
    # The class that would write this file needs torchvision.
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def smolvlm(folder: Path) -> None:
    """Pictures and text to text, by Idefics3's younger brother."""
    import json

    import transformers
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    marks = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = _chatting(marks)
    config = transformers.SmolVLMConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer),
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, tie_word_embeddings=False,
        pad_token_id=0,
    )  # fmt: skip
    save(transformers.SmolVLMForConditionalGeneration(config), folder)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    longest = {"longest_edge": SIDE}
    pictures = SmolVLMImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False)
    told = {"image_seq_len": (SIDE // 16) ** 2 // 4, "processor_class": "SmolVLMProcessor"}
    # The class that would write these files needs torchvision.
    (folder / "preprocessor_config.json").write_text(pictures.to_json_string())
    (folder / "processor_config.json").write_text(json.dumps(told))


TALKERS: Mapping[str, Callable[[Path], None]] = {
    "idefics3": idefics3, "llava": llava, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl,
    **({"smolvlm": smolvlm} if importlib.util.find_spec("num2words") else {}),
}  # fmt: skip
