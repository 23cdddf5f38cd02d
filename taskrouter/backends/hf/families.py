"""The families of checkpoints, as tables: what each can be asked, what it needs, and which architectures are of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Family(Enum):
    """What a checkpoint is for; the value is the Transformers class that loads it."""

    VISION = "AutoModelForImageTextToText"
    HEARING = "AutoModelForMultimodalLM"
    CHAT = "AutoModelForCausalLM"
    IMAGE = "AutoModelForImageClassification"
    ZERO_SHOT_IMAGE = "AutoModelForZeroShotImageClassification"
    ZERO_SHOT_AUDIO = "ClapModel"
    ZERO_SHOT_VIDEO = "XCLIPModel"
    AUDIO = "AutoModelForAudioClassification"
    VIDEO = "AutoModelForVideoClassification"
    EMBEDDING = "AutoModel"
    DETECTION = "AutoModelForObjectDetection"
    ZERO_SHOT_DETECTION = "AutoModelForZeroShotObjectDetection"
    DEPTH = "AutoModelForDepthEstimation"
    SEGMENTS = "AutoModelForUniversalSegmentation"
    CLASSES = "AutoModelForSemanticSegmentation"
    POINTED = "AutoModelForMaskGeneration"
    CTC = "AutoModelForCTC"
    SPEECH = "AutoModelForSpeechSeq2Seq"


VERBS: Mapping[Family, frozenset[str]] = {
    Family.VISION: frozenset({"chat", "stream_chat"}),
    Family.HEARING: frozenset({"chat", "stream_chat"}),
    Family.CHAT: frozenset({"chat", "stream_chat", "generate"}),
    Family.EMBEDDING: frozenset({"embed"}),
    Family.IMAGE: frozenset({"classify"}),
    Family.ZERO_SHOT_IMAGE: frozenset({"classify", "embed"}),
    Family.ZERO_SHOT_AUDIO: frozenset({"classify"}),
    Family.ZERO_SHOT_VIDEO: frozenset({"classify"}),
    Family.AUDIO: frozenset({"classify"}),
    Family.VIDEO: frozenset({"classify"}),
    Family.DETECTION: frozenset({"detect", "track"}),
    Family.ZERO_SHOT_DETECTION: frozenset({"detect", "track"}),
    Family.DEPTH: frozenset({"depth"}),
    Family.SEGMENTS: frozenset({"segment", "track"}),
    Family.CLASSES: frozenset({"segment"}),
    Family.POINTED: frozenset({"segment"}),
    Family.CTC: frozenset({"transcribe"}),
    Family.SPEECH: frozenset({"transcribe"}),
}

BATCHED = frozenset(
    {
        Family.CHAT,
        Family.EMBEDDING,
        Family.IMAGE,
        Family.AUDIO,
        Family.VIDEO,
        Family.DETECTION,
        Family.ZERO_SHOT_DETECTION,
        Family.DEPTH,
        Family.SEGMENTS,
        Family.CLASSES,
    }
)
"""Those whose calls may be worked on together; the others' inputs have parts that can't be stacked."""

LOOK_AT_ALL_ROWS = frozenset({"dynamic", "longrope", "su"})
"""Ways of turning places (RoPE) by the longest row of a batch, whatever a row's own length is."""


def rope_types(config: Mapping[str, Any]) -> frozenset[str]:
    """How a checkpoint's layers turn places, as its configuration names it under any of the names there were."""
    text = config.get("text_config")
    found: set[str] = set()
    for values in (config, text if isinstance(text, dict) else {}):
        for key in ("rope_parameters", "rope_scaling"):
            told = values.get(key)
            each = [told, *told.values()] if isinstance(told, dict) else []
            found |= {str(one.get("rope_type") or one.get("type")) for one in each if isinstance(one, dict)}
    return frozenset(found)


TAKES: Mapping[Family, tuple[str, ...]] = {Family.VISION: ("image", "video"), Family.HEARING: ("audio",)}
"""What models of each of these families are told in a chat, beside text."""
_EXTRA = {"extra": "Transformers models here know no further fields"}
COMPLETES = frozenset({"generate"})
"""What is left of a language model's verbs where it has no chat template."""
LACKS: Mapping[Family, Mapping[str, str]] = {
    Family.CHAT: {**dict.fromkeys(("image", "audio", "video", "document", "tools"), "it chats in text"), **_EXTRA},
    Family.VISION: {**dict.fromkeys(("audio", "document", "tools"), "it chats in text, images and videos"), **_EXTRA},
    Family.HEARING: {
        **dict.fromkeys(("image", "video", "document", "tools"), "it chats in text and sounds"),
        **_EXTRA,
    },
    Family.EMBEDDING: {"image": "it embeds texts", **_EXTRA},
}
"""What a request can't hold, by family, of those that read text; their context is told, too."""

_PICTURES = ("torch", "transformers", "PIL", "numpy")
_SOUNDS = ("torch", "transformers", "av", "numpy")
NEEDS: Mapping[Family, tuple[str, ...]] = {
    Family.VISION: (*_PICTURES, "av", "jinja2"),
    Family.HEARING: (*_SOUNDS, "jinja2"),
    Family.CHAT: ("torch", "transformers", "jinja2"),
    Family.EMBEDDING: ("torch", "transformers"),
    Family.IMAGE: _PICTURES,
    Family.ZERO_SHOT_IMAGE: _PICTURES,
    Family.ZERO_SHOT_AUDIO: _SOUNDS,
    Family.ZERO_SHOT_VIDEO: (*_PICTURES, "av"),
    Family.AUDIO: _SOUNDS,
    Family.VIDEO: (*_PICTURES, "av"),
    Family.DETECTION: _PICTURES,
    Family.ZERO_SHOT_DETECTION: _PICTURES,
    Family.DEPTH: _PICTURES,
    Family.SEGMENTS: _PICTURES,
    Family.CLASSES: _PICTURES,
    Family.POINTED: _PICTURES,
    Family.CTC: _SOUNDS,
    Family.SPEECH: _SOUNDS,
}
"""The packages it can't do without."""

ALSO_NEEDS: Mapping[str, tuple[str, ...]] = {"smolvlm": ("num2words",)}
"""What some model types need beside."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PREPARES: Mapping[Family, str] = {
    Family.CHAT: "AutoTokenizer",
    Family.EMBEDDING: "AutoTokenizer",
    Family.IMAGE: "AutoImageProcessor",
    Family.AUDIO: "AutoFeatureExtractor",
    Family.VIDEO: "AutoImageProcessor",
    Family.DETECTION: "AutoImageProcessor",
    Family.DEPTH: "AutoImageProcessor",
    Family.SEGMENTS: "AutoImageProcessor",
    Family.CLASSES: "AutoImageProcessor",
    Family.POINTED: "AutoImageProcessor",
}
"""The Transformers class that prepares its input; of the others, which take text beside it, ``AutoProcessor``."""


def known_architectures() -> dict[Family, frozenset[str]]:
    """The architectures of each family that Transformers has itself; of two families the first is meant."""
    from transformers.models.auto import modeling_auto as auto

    def names(mapping: Mapping[str, str | tuple[str, ...]]) -> frozenset[str]:
        return frozenset(name for value in mapping.values() for name in ((value,) if isinstance(value, str) else value))

    return {
        # Some that take pictures can be loaded as language models, too, and are blind then: pictures come first.
        Family.VISION: names(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        # The others only write down what is said, or have their own way of being asked.
        Family.HEARING: frozenset({"Qwen2AudioForConditionalGeneration"}),
        Family.CHAT: names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        Family.IMAGE: names(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        Family.AUDIO: names(auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES),
        Family.DETECTION: names(auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES),
        # The others need torchvision, or more than a picture, or mean something else by depth.
        Family.DEPTH: frozenset({"DPTForDepthEstimation", "DepthAnythingForDepthEstimation", "GLPNForDepthEstimation"}),
        Family.SEGMENTS: frozenset({"Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation"}),
        Family.CLASSES: names(auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES),
        Family.POINTED: frozenset({"SamModel", "Sam2Model", "Sam2VideoModel"}),
        Family.ZERO_SHOT_DETECTION: names(auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES),
        Family.CTC: names(auto.MODEL_FOR_CTC_MAPPING_NAMES),
        # The others have video processors, which need torchvision.
        Family.VIDEO: frozenset(
            {"VideoMAEForVideoClassification", "VivitForVideoClassification", "TimesformerForVideoClassification"}
        ),
        # Of these two the others want to be asked otherwise than by the pipeline of their kind.
        Family.SPEECH: frozenset({"WhisperForConditionalGeneration"}),
        Family.ZERO_SHOT_IMAGE: frozenset({"CLIPModel", "SiglipModel", "Siglip2Model", "AltCLIPModel", "AlignModel"}),
        Family.ZERO_SHOT_AUDIO: frozenset({"ClapModel"}),
        Family.ZERO_SHOT_VIDEO: frozenset({"XCLIPModel"}),
    }


def prepared_by(family: Family) -> tuple[tuple[str, ...], ...]:
    """Of each of these at least one file must be there."""
    if family in (Family.CHAT, Family.EMBEDDING):
        return (TOKENIZER_FILES,)
    return (PROCESSOR_FILES,) if family in PREPARES else (PROCESSOR_FILES, TOKENIZER_FILES)
