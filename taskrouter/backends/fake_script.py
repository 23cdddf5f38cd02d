"""What a fake model is scripted to do, and what it answers.

The settings of ``engine_args`` (all optional)::

    load_s, call_s, unload_s   seconds each takes; a streamed call spreads call_s over its pieces
    late_free_s                after an unload, seconds until its bytes are seen free
    stop_s                     seconds a cancelled call or load goes on working before it stops
    bytes                      what it really takes on each device: a number, or a size such as 2GiB (default 1GiB)
    estimate                   what preflight believes it takes (default: bytes)
    can_sleep                  true: its weights can wait in host RAM (default false)
    sleep_s, wake_s            seconds each takes
    sleep_ram, sleep_residue   bytes of host RAM its sleep takes (default: bytes), and what stays on each device (0)
    fail                       oom | error: its load fails so; die: it dies in its first call; preflight, sleep, wake:
                               so fails that
    fail_times                 only the first so many fail (default: always)
    hang                       load | call | unload | sleep | wake: never ends itself (``FakeBackend.resume`` ends it)
    slots                      operations at a time (default: any number)
    serial_group               a name: loads of one group run one at a time
    exclusive                  true: nothing else on its device starts or is freed while it loads
    cancellable                false: its load can't be cancelled (default true)
    verbs                      what it can be asked (default: everything)
    lacks                      what its preflight says it can't take: a list of image, audio, video, document, tools
    context                    the most tokens it takes, as its preflight says
    answer                     what it answers instead of its own: a text for chat, generate, transcribe (or text,
                               segments, language and duration_s of a transcript); labels for classify (one, a list
                               from best to worst, or a mapping to scores); rows for depth; things for detect, segment
                               and track
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from taskrouter.config.sizes import parse_size
from taskrouter.demands import DEMANDS, demands_of
from taskrouter.errors import BadInput, PreflightFailed, UnsupportedInput
from taskrouter.types import GIB
from taskrouter.verbs import (
    VERBS_OF_KIND,
    Box,
    ChatAnswer,
    ChatRequest,
    ClassifyRequest,
    Depth,
    Detection,
    DetectRequest,
    Embeddings,
    EmbedRequest,
    GenerateAnswer,
    GenerateRequest,
    Label,
    Region,
    Segment,
    SegmentRequest,
    Sighting,
    Track,
    TrackRequest,
    Transcript,
    Usage,
)

ALL_VERBS: frozenset[str] = frozenset().union(*VERBS_OF_KIND.values())


@dataclass(frozen=True, slots=True)
class FakeScript:
    """What one fake model does; the fields are the settings of ``engine_args``."""

    load_s: float = 0.0
    call_s: float = 0.0
    unload_s: float = 0.0
    late_free_s: float = 0.0
    stop_s: float = 0.0
    can_sleep: bool = False
    sleep_s: float = 0.0
    wake_s: float = 0.0
    sleep_ram: int | None = None
    sleep_residue: int = 0
    bytes: int = GIB
    estimate: int | None = None
    fail: str | None = None
    fail_times: int | None = None
    hang: str | None = None
    slots: int | None = None
    serial_group: str | None = None
    exclusive: bool = False
    cancellable: bool = True
    verbs: frozenset[str] = ALL_VERBS
    lacks: frozenset[str] = frozenset()
    context: int | None = None
    answer: Any = None


def read_script(label: str, engine_args: Mapping[str, Any], base: FakeScript | None = None) -> FakeScript:
    """The script that ``engine_args`` describe, over ``base``; every problem at once in a ``PreflightFailed``."""
    values: dict[str, Any] = {}
    problems = []
    for name, value in engine_args.items():
        reader = _READERS.get(name)
        if reader is None:
            problems.append(f"engine_args.{name} is no setting of the fake backend{_nearest(name, _READERS)}")
            continue
        try:
            values[name] = reader(value)
        except ValueError as error:
            problems.append(f"engine_args.{name}: {value!r} is not {error}")
    script = replace(base or FakeScript(), **values)
    if not problems and script.fail_times is not None and script.fail is None:
        problems.append("engine_args.fail_times does nothing without engine_args.fail")
    if problems:
        raise PreflightFailed(f"{label} can't be loaded: " + "; ".join(problems))
    return script


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any] | frozenset[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f" (it knows {', '.join(sorted(known))})"


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("a number of seconds, 0 or more")
    return float(value)


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a number of bytes, or a size such as 2GiB")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number, 1 or more")
    return value


def _flag(value: Any) -> bool:
    if value is not True and value is not False:
        raise ValueError("true or false")
    return bool(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a name")
    return value


def _one_of(*known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if isinstance(value, str) and value in known:
            return value
        close = difflib.get_close_matches(str(value), known, 1)
        raise ValueError(" or ".join(known) + (f"; did you mean {close[0]}?" if close else ""))

    return read


def _verbs(value: Any) -> frozenset[str]:
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, Sequence) or not wanted:
        raise ValueError("a list of verbs")
    for verb in wanted:
        if verb not in ALL_VERBS:
            raise ValueError(f"a list of verbs: {verb!r} is none{_nearest(str(verb), ALL_VERBS)}")
    return frozenset(wanted)


def _demands(value: Any) -> frozenset[str]:
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, Sequence) or not set(wanted) <= DEMANDS:
        raise ValueError(f"a list of {', '.join(sorted(DEMANDS))}")
    return frozenset(wanted)


def _anything(value: Any) -> Any:
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "load_s": _seconds,
    "call_s": _seconds,
    "unload_s": _seconds,
    "late_free_s": _seconds,
    "stop_s": _seconds,
    "can_sleep": _flag,
    "sleep_s": _seconds,
    "wake_s": _seconds,
    "sleep_ram": _bytes,
    "sleep_residue": _bytes,
    "bytes": _bytes,
    "estimate": _bytes,
    "fail": _one_of("oom", "error", "die", "preflight", "sleep", "wake"),
    "fail_times": _count,
    "hang": _one_of("load", "call", "unload", "sleep", "wake"),
    "slots": _count,
    "serial_group": _name,
    "exclusive": _flag,
    "cancellable": _flag,
    "verbs": _verbs,
    "lacks": _demands,
    "context": _count,
    "answer": _anything,
}


# --- answers ----------------------------------------------------------------------------------------------------------


def answer(label: str, script: FakeScript, verb: str, request: Any) -> Any:
    """What the model answers, the same each time for the same question.

    chat, generate
        the model's label and the last user message, or the prompt; a word counts as a token, ``max_tokens`` cuts.
    classify
        a tuple of ``Label``s, best first; without an ``answer`` one, named like the model.
    embed
        for each text (or picture) a vector of 8 numbers from -1 to 1, made from its digest.
    transcribe
        a transcript with the model's label, or what `answer` says.
    detect
        one thing that covers everything, or what `answer` lists: `[{label: cup, score: 0.9, box: [0, 0, 8, 8]}]`.
    depth
        one row of one pixel, or the rows that `answer` lists; relative.
    segment
        as detect, each with a mask that fills its box.
    track
        as detect, each an object that is seen once, at the beginning.
    """
    match verb:
        case "chat" | "stream_chat":
            if not isinstance(request, ChatRequest) or not request.messages:
                raise BadInput(f"{label}: {verb} takes a ChatRequest with at least one message")
            if refused := sorted(demands_of(request) & script.lacks):
                raise UnsupportedInput(f"{label} takes no {refused[0]}: it is scripted so")
            return _chat(label, script, _last_user_text(request), _words_in(request), request.max_tokens)
        case "generate":
            if not isinstance(request, GenerateRequest):
                raise BadInput(f"{label}: {verb} takes a GenerateRequest")
            said = _chat(label, script, request.prompt, len(request.prompt.split()), request.max_tokens)
            return GenerateAnswer(said.text, said.finish_reason, said.usage)
        case "classify":
            if not isinstance(request, ClassifyRequest) or request.top_k < 1:
                raise BadInput(f"{label}: classify takes a ClassifyRequest, top_k 1 or more")
            if request.labels:
                return tuple(Label(each, 1 / len(request.labels)) for each in request.labels[: request.top_k])
            return tuple(_labels(label if script.answer is None else script.answer)[: request.top_k])
        case "embed":
            if not isinstance(request, EmbedRequest):
                raise BadInput(f"{label}: {verb} takes an EmbedRequest")
            if refused := sorted(demands_of(request) & script.lacks):
                raise UnsupportedInput(f"{label} takes no {refused[0]}: it is scripted so")
            texts = [each if isinstance(each, str) else f"[image] {each.source!r}" for each in request.inputs]
            words = sum(len(each.split()) for each in request.inputs if isinstance(each, str))
            return Embeddings(tuple(_vector(text) for text in texts), Usage(words, 0))
        case "transcribe":
            return _transcript(f"{label}: something was said" if script.answer is None else script.answer)
        case "detect":
            if not isinstance(request, DetectRequest):
                raise BadInput(f"{label}: detect takes a DetectRequest")
            return _detections(label, script, request)
        case "depth":
            import numpy as np

            return Depth(np.asarray([[0.0]] if script.answer is None else script.answer, np.float32), "relative")
        case "segment":
            if not isinstance(request, SegmentRequest):
                raise BadInput(f"{label}: segment takes a SegmentRequest")
            return _regions(label, script)
        case "track":
            if not isinstance(request, TrackRequest):
                raise BadInput(f"{label}: track takes a TrackRequest")
            seen = _detections(label, script, DetectRequest(None, request.labels, request.threshold))
            return tuple(
                Track(number, each.label, (Sighting(0, 0.0, each.box, each.score),))
                for number, each in enumerate(seen, 1)
            )
        case _:
            raise BadInput(f"{label} has no answer to {verb}")


def _chat(label: str, script: FakeScript, text: str, prompt_words: int, max_tokens: int | None) -> ChatAnswer:
    words = (f"{label}: {text}" if script.answer is None else str(script.answer)).split(" ")
    cut = words[:max_tokens]
    reason = "stop" if len(cut) == len(words) else "length"
    return ChatAnswer(" ".join(cut), reason, Usage(prompt_words, len(cut)))


def _transcript(said: Any) -> Transcript:
    """A text alone, or what is said of it beside (``segments`` as lists of start, end and text)."""
    if not isinstance(said, Mapping):
        return Transcript(str(said))
    segments = tuple(Segment(float(start), float(end), str(text)) for start, end, text in said.get("segments", ()))
    text = said.get("text", " ".join(each.text for each in segments))
    return Transcript(str(text), said.get("language"), said.get("duration_s"), segments)


def _detections(label: str, script: FakeScript, request: DetectRequest) -> tuple[Detection, ...]:
    """What the script answers (``label``, ``score``, ``box``), or one thing that covers everything."""
    said = script.answer if script.answer is not None else [{"label": each} for each in request.labels or (label,)]
    found = (
        Detection(str(each["label"]), float(each.get("score", 1.0)), Box(*each.get("box", (0.0, 0.0, 1.0, 1.0))))
        for each in said
    )
    return tuple(each for each in found if each.score >= request.threshold)


def _regions(label: str, script: FakeScript) -> tuple[Region, ...]:
    """Those of ``_detections``, each with a mask that fills its box."""
    import numpy as np

    found = []
    for each in _detections(label, script, DetectRequest(None, threshold=0.0)):
        left, top, right, bottom = map(round, each.box)
        mask = np.zeros((bottom, right), np.bool_)
        mask[top:, left:] = True
        found.append(Region(each.label, each.score, each.box, mask))
    return tuple(found)


def _last_user_text(request: ChatRequest) -> str:
    asked = [message for message in request.messages if message.get("role") == "user"]
    return _text(asked[-1] if asked else request.messages[-1])


def _words_in(request: ChatRequest) -> int:
    return sum(len(_text(message).split()) for message in request.messages)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    return " ".join(str(part["text"]) if part.get("type") == "text" else f"[{part.get('type')}]" for part in content)


def _labels(wanted: Any) -> list[Label]:
    if isinstance(wanted, Mapping):
        return [Label(str(name), float(score)) for name, score in sorted(wanted.items(), key=lambda item: -item[1])]
    names = [str(wanted)] if isinstance(wanted, str) or not isinstance(wanted, Sequence) else [str(n) for n in wanted]
    shares = [2.0**-place for place in range(len(names))]
    return [Label(name, share / sum(shares)) for name, share in zip(names, shares, strict=True)]


def _vector(text: str) -> tuple[float, ...]:
    return tuple(byte / 127.5 - 1.0 for byte in hashlib.sha256(text.encode()).digest()[:8])
