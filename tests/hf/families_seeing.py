"""Tiny random checkpoints of the families that tell depths and regions, and of those that watch videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .checkpoints import save
from .families import LABELS, SIDE, SMALL


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


WATCHERS: Mapping[str, Callable[[Path], None]] = {"videomae": videomae, "timesformer": timesformer, "vivit": vivit}
LABELLERS: Mapping[str, Callable[[Path], None]] = {
    "segformer": segformer, "mask2former": mask2former, "maskformer": maskformer
}  # fmt: skip
POINTED: Mapping[str, Callable[[Path], None]] = {"sam": sam, "sam2": sam2}
DEPTHS: Mapping[str, Callable[[Path], None]] = {"depth_anything": depth_anything, "dpt": dpt, "glpn": glpn}
