"""``transcribe``: sound becomes text with times, by Transformers' own pipeline, which cuts long recordings."""

from __future__ import annotations

import threading
from typing import Any

from taskrouter.backends.hf.calling import Stopped, interruptible, place
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import BadInput, MediaTooLarge, UnsupportedInput
from taskrouter.media.audio import load_audio
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Segment, TranscribeRequest, Transcript

CHUNK_S = 30.0
"""Seconds of sound that a model hears at once; of a CTC model, neighbours overlap by a sixth on either side."""

LEAST_S = 0.1
"""A shorter sound is filled up with silence: the first layers want some frames."""


def transcribe(
    parts: Parts, family: Family, request: TranscribeRequest, limits: MediaLimits, stop: threading.Event
) -> Transcript:
    """Write down what is said. Blocks. Raises ``BadInput`` and ``UnsupportedInput``.

    Returns nothing of use once ``stop`` is set.
    """
    import numpy as np
    from transformers import AutomaticSpeechRecognitionPipeline

    if request.extra:
        raise UnsupportedInput(
            f"extra has {', '.join(sorted(request.extra))}, which Transformers models here don't take."
        )
    how = _speech(parts, request) if family is Family.SPEECH else _ctc(parts, request)
    extractor = parts.processor.feature_extractor
    rate = int(extractor.sampling_rate)
    if hasattr(request.audio, "__array__") and request.sampling_rate is None:
        raise BadInput("audio is an array of samples: say what they were recorded at, such as sampling_rate=16000.")
    samples = load_audio(request.audio, limits, sampling_rate=rate, source_rate=request.sampling_rate)
    duration_s = samples.size / rate
    if duration_s > CHUNK_S and not _cuts(parts, family):
        raise MediaTooLarge(
            f"the sound lasts {duration_s:.0f} s, and this model hears {CHUNK_S:.0f} at once and can't be given it in "
            "pieces: cut it, or choose a Whisper or wav2vec 2.0 model."
        )
    samples = np.pad(samples, (0, max(0, int(LEAST_S * rate) - samples.size)))
    try:
        with interruptible(parts.module, stop):
            listen = AutomaticSpeechRecognitionPipeline(
                model=parts.module,
                tokenizer=parts.processor.tokenizer,
                feature_extractor=extractor,
                **place(parts.module),
            )
            heard = listen({"raw": samples, "sampling_rate": rate}, batch_size=parts.pieces, **how)
    except Stopped:
        return Transcript("")
    pieces = heard.get("chunks", ())
    language = request.language or _language(parts, pieces)
    return Transcript(str(heard["text"]).strip(), language, duration_s, tuple(_segment(p, duration_s) for p in pieces))


def _cuts(parts: Parts, family: Family) -> bool:
    """Whether the pipeline can cut a recording for it: it has to know how long a frame is, or a token for the time."""
    if family is Family.CTC:
        return hasattr(parts.module.config, "inputs_to_logits_ratio")
    return getattr(parts.module.generation_config, "no_timestamps_token_id", None) is not None


def _ctc(parts: Parts, request: TranscribeRequest) -> dict[str, Any]:
    for name in ("language", "prompt"):
        if getattr(request, name) is not None:
            raise UnsupportedInput(f"{name} is given, and this model (CTC) writes down sounds whatever the {name}.")
    return {"chunk_length_s": CHUNK_S, "return_timestamps": "word"} if _cuts(parts, Family.CTC) else {}


def _speech(parts: Parts, request: TranscribeRequest) -> dict[str, Any]:
    """What a model that writes as it listens is told; those with times have a token for their beginning."""
    told: dict[str, Any] = {}
    if request.language is not None:
        names = _languages(parts)
        if not names:
            raise UnsupportedInput(f"language is {request.language!r}, and this model can't be told one.")
        if request.language not in names:
            raise BadInput(f"language is {request.language!r}; this model knows {', '.join(sorted(names))}.")
        told |= {"language": request.language, "task": "transcribe"}
    if request.prompt is not None:
        if not hasattr(parts.processor, "get_prompt_ids"):
            raise UnsupportedInput("prompt is given, and this model takes none.")
        try:
            ids = parts.processor.get_prompt_ids(request.prompt, return_tensors="pt")
        except ValueError as error:
            raise BadInput(f"prompt can't be given to this model: {error}") from error
        most = int(parts.module.config.max_target_positions) // 2 - 1
        if ids.numel() > most:
            raise BadInput(f"prompt comes to {ids.numel()} tokens, and this model takes {most}: shorten it.")
        told["prompt_ids"] = ids.to(parts.module.device)
    timed = {"return_timestamps": True} if _cuts(parts, Family.SPEECH) else {}
    # Which language it was heard to be is told beside the times.
    named = {"return_language": True} if timed and request.language is None and _languages(parts) else {}
    return {"generate_kwargs": told, **timed, **named}


def _languages(parts: Parts) -> frozenset[str]:
    """The codes of the languages that it tells apart; none of a model of one language."""
    found = getattr(getattr(parts.module, "generation_config", None), "lang_to_id", None) or ()
    return frozenset(name.strip("<|>") for name in found)


def _language(parts: Parts, pieces: Any) -> str | None:
    """The language that most of the pieces were heard in, as a code."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    known = _languages(parts)
    told = [name for piece in pieces if (name := piece.get("language")) is not None]
    codes = [code for name in told if (code := TO_LANGUAGE_CODE.get(name, name)) in known]
    return max(codes, key=codes.count, default=None)


def _segment(piece: dict[str, Any], duration_s: float) -> Segment:
    start, end = piece["timestamp"]
    # The last stretch has no end where the sound breaks off in it; and silence is added to fill the last window.
    begun, ended = min(float(start or 0.0), duration_s), duration_s if end is None else min(float(end), duration_s)
    return Segment(begun, ended, str(piece["text"]).strip())
