"""``transcribe``: sound becomes text with times, by Transformers' own pipeline, which cuts long recordings."""

from __future__ import annotations

import threading
from typing import Any

from taskrouter.backends.hf.calling import Stopped, interruptible
from taskrouter.backends.hf.examine import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import BadInput, UnsupportedInput
from taskrouter.media.audio import load_audio
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Segment, TranscribeRequest, Transcript

CHUNK_S = 30.0
"""Seconds of sound that a CTC model hears at once; neighbours overlap by a sixth on either side."""


def transcribe(
    parts: Parts, family: Family, request: TranscribeRequest, limits: MediaLimits, stop: threading.Event
) -> Transcript:
    """Write down what is said. Blocks. Raises ``BadInput`` and ``UnsupportedInput``.

    Returns nothing of use once ``stop`` is set.
    """
    from transformers import AutomaticSpeechRecognitionPipeline

    if request.extra:
        raise UnsupportedInput(
            f"extra has {', '.join(sorted(request.extra))}, which Transformers models here don't take."
        )
    how = _speech(parts, request) if family is Family.SPEECH else _ctc(request)
    extractor = parts.processor.feature_extractor
    rate = int(extractor.sampling_rate)
    samples = load_audio(request.audio, limits, sampling_rate=rate)
    duration_s = samples.size / rate
    try:
        with interruptible(parts.module, stop):
            listen = AutomaticSpeechRecognitionPipeline(
                model=parts.module,
                tokenizer=parts.processor.tokenizer,
                feature_extractor=extractor,
                device=parts.module.device,
            )
            heard = listen({"raw": samples, "sampling_rate": rate}, **how)
    except Stopped:
        return Transcript("")
    segments = tuple(_segment(piece, duration_s) for piece in heard.get("chunks", ()))
    return Transcript(str(heard["text"]).strip(), request.language, duration_s, segments)


def _ctc(request: TranscribeRequest) -> dict[str, Any]:
    for name in ("language", "prompt"):
        if getattr(request, name) is not None:
            raise UnsupportedInput(f"{name} is given, and this model (CTC) writes down sounds whatever the {name}.")
    return {"chunk_length_s": CHUNK_S, "return_timestamps": "word"}


def _speech(parts: Parts, request: TranscribeRequest) -> dict[str, Any]:
    """What a model that writes as it listens is told; those with times have a token for their beginning."""
    told: dict[str, Any] = {}
    settings = parts.module.generation_config
    if request.language is not None:
        languages = getattr(settings, "lang_to_id", None)
        if not languages:
            raise UnsupportedInput(f"language is {request.language!r}, and this model can't be told one.")
        names = {name.strip("<|>") for name in languages}
        if request.language not in names:
            raise BadInput(f"language is {request.language!r}; this model knows {', '.join(sorted(names))}.")
        told |= {"language": request.language, "task": "transcribe"}
    if request.prompt is not None:
        if not hasattr(parts.processor, "get_prompt_ids"):
            raise UnsupportedInput("prompt is given, and this model takes none.")
        ids = parts.processor.get_prompt_ids(request.prompt, return_tensors="pt")
        told["prompt_ids"] = ids.to(parts.module.device)
    times = getattr(settings, "no_timestamps_token_id", None) is not None
    return {"generate_kwargs": told, **({"return_timestamps": True} if times else {})}


def _segment(piece: dict[str, Any], duration_s: float) -> Segment:
    start, end = piece["timestamp"]
    # The last stretch has no end where the sound breaks off in it; and silence is added to fill the last window.
    begun, ended = min(float(start or 0.0), duration_s), duration_s if end is None else min(float(end), duration_s)
    return Segment(begun, ended, str(piece["text"]).strip())
