"""``POST /v1/audio/transcriptions`` of the OpenAI API: a sound file in a form; its text, with times or as subtitles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData

from taskrouter.errors import BadInput, UnsupportedInput
from taskrouter.http.asked import Asked
from taskrouter.http.exchange import Exchange
from taskrouter.http.forms import Upload, close, file_of, form_of, text_of
from taskrouter.http.state import State
from taskrouter.http.subtitles import srt, vtt
from taskrouter.verbs import Transcript

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
GRANULARITIES = ("word", "segment")
ENDINGS = frozenset({"flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "opus", "wav", "webm"})
_GRANULARITIES = ("timestamp_granularities[]", "timestamp_granularities")
_KNOWN = frozenset({"file", "model", "language", "prompt", "response_format", "temperature", "stream", *_GRANULARITIES})
_PLAIN = b"text/plain; charset=utf-8"
_VTT = b"text/vtt; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a form asks for beside the model and the sound."""

    language: str | None
    prompt: str | None
    form: str
    granularities: frozenset[str]
    temperature: float | None


async def transcriptions(state: State, exchange: Exchange) -> None:
    """``POST /v1/audio/transcriptions``."""
    form = await form_of(exchange, state.manager.media_limits.max_bytes)
    try:
        it = state.asked(exchange, text_of(form, "model"))
        wanted = _wanted(form)
        file = Upload(file_of(form, "file"), "audio", ENDINGS)
        extra = _extra(it, wanted)
        heard = await it.handle.transcribe(file, language=wanted.language, prompt=wanted.prompt, extra=extra)
        it.answered(heard)
        await _answer(exchange, it, heard, wanted)
    finally:
        close(form)


def _wanted(form: FormData) -> _Wanted:
    unknown = sorted(set(form.keys()) - _KNOWN)
    if unknown:
        raise BadInput(f"{', '.join(unknown)[:200]}: this server can't do what that asks for; leave it out")
    how = text_of(form, "response_format") or "json"
    if how not in FORMATS:
        raise BadInput(f"response_format is {how[:40]!r}; it must be one of {', '.join(FORMATS)}")
    if (text_of(form, "stream") or "false").lower() not in ("false", "0"):
        raise BadInput("stream: transcripts come whole here; leave it out")
    granularities = [each for name in _GRANULARITIES for each in form.getlist(name)]
    if not all(each in GRANULARITIES for each in granularities):
        raise BadInput(f"timestamp_granularities must be of {' and '.join(GRANULARITIES)}")
    if granularities and how != "verbose_json":
        raise BadInput("timestamp_granularities are told in response_format verbose_json only")
    return _Wanted(
        text_of(form, "language") or None, text_of(form, "prompt") or None, how,
        frozenset(map(str, granularities)) or frozenset({"segment"}), _temperature(text_of(form, "temperature")),
    )  # fmt: skip


def _temperature(text: str | None) -> float | None:
    """``None`` for 0, too: that is what models do anyway."""
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadInput(f"temperature is {(text or '')[:40]!r}; it must be a number from 0 to 1")
    return value or None


def _extra(it: Asked, wanted: _Wanted) -> dict[str, Any]:
    """What only some models know: what doesn't, refuses it. Times of words are asked for only where they have to be."""
    found: dict[str, Any] = {}
    if wanted.temperature is not None:
        found["temperature"] = wanted.temperature
    if "word" in wanted.granularities and it.manager.tasks[it.named.task].options[it.option].is_external:
        found["timestamp_granularities"] = sorted(wanted.granularities)
    return found


async def _answer(exchange: Exchange, it: Asked, heard: Transcript, wanted: _Wanted) -> None:
    if wanted.form in ("srt", "vtt"):
        if heard.text.strip() and not heard.segments:
            raise UnsupportedInput(f"{it.named} doesn't tell when what was said, so there can be no {wanted.form}")
        text, kind = (srt(heard.segments), _PLAIN) if wanted.form == "srt" else (vtt(heard.segments), _VTT)
        await exchange.answer_bytes(text.encode(), kind, headers=it.headers())
    elif wanted.form == "text":
        await exchange.answer_bytes(f"{heard.text}\n".encode(), _PLAIN, headers=it.headers())
    else:
        body = {"text": heard.text, **_usage(heard)}
        if wanted.form == "verbose_json":
            body |= _verbose(it, heard, wanted)
        await exchange.answer(body, headers=it.headers())


def _verbose(it: Asked, heard: Transcript, wanted: _Wanted) -> dict[str, Any]:
    body: dict[str, Any] = {"task": "transcribe", "language": heard.language, "duration": heard.duration_s}
    if "segment" in wanted.granularities:
        told = heard.raw.get("segments")
        body["segments"] = told or [
            {"id": number, "start": each.start_s, "end": each.end_s, "text": each.text}
            for number, each in enumerate(heard.segments)
        ]
    if "word" in wanted.granularities:
        body["words"] = _words(it, heard)
    return body


def _words(it: Asked, heard: Transcript) -> list[Mapping[str, Any]]:
    """The times of words, as its server tells them, or where each stretch is one."""
    told = heard.raw.get("words")
    if isinstance(told, list):
        return told
    if any(len(each.text.split()) > 1 for each in heard.segments) or (heard.text.strip() and not heard.segments):
        raise UnsupportedInput(f"{it.named} doesn't tell the times of words; ask for those of segments")
    return [{"word": each.text.strip(), "start": each.start_s, "end": each.end_s} for each in heard.segments]


def _usage(heard: Transcript) -> dict[str, Any]:
    usage = heard.usage
    if usage is not None:
        return {"usage": {"type": "tokens", "input_tokens": usage.prompt_tokens,
                          "output_tokens": usage.completion_tokens, "total_tokens": usage.total_tokens}}  # fmt: skip
    return {} if heard.duration_s is None else {"usage": {"type": "duration", "seconds": heard.duration_s}}
