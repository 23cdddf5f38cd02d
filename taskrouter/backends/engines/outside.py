"""What callers from outside may have a model's own server do: compute on what they send, by paths that do only that.

Who holds the library may call any path but those that are ours. Over HTTP it is the other way round: a path is refused
unless it is known, and a body in which the server would find something to fetch, or to read from this machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from taskrouter.backends.engines.openai import SOUND, is_base64, names_remote
from taskrouter.errors import BadInput

_TEXTS = frozenset(
    {"text", "content", "prompt", "input", "query", "queries", "documents", "texts", "inputs", "title", "name"}
    | {"suffix", "stop", "arguments", "reasoning", "reasoning_content", "text_1", "text_2", "data_1", "data_2", "items"}
    | {"description", "refusal"}
)
"""Where a string is a text, which may begin with a URL."""
_BESIDE: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"annotations", "arguments"}),
    "tools": frozenset({"parameters", "input_schema"}),
    "functions": frozenset({"parameters"}),
    "response_format": frozenset({"schema"}),
    "structured_outputs": frozenset({"json", "schema", "regex", "choice", "grammar"}),
}
"""What isn't looked at below a body's field: schemas, which name themselves by URLs that nobody fetches, grammars, what
tools were called with, and an answer's sources."""
_ASIDE = frozenset({"guided_json", "json_schema", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf"})
"""Fields that are a schema or a grammar."""
_LABELS = frozenset({"model", "user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Fields that only name who asks, and whom."""
_MEDIA = frozenset(
    f"{kind}{form}" for kind in ("image", "audio", "video", "file") for form in ("", "s", "_url", "_data")
) | {"url"}  # fmt: skip
"""Where a server takes a string for a medium: a path, if it is neither a URL nor base64."""


def is_open(path: str, inference: Collection[str], controls: Iterable[str]) -> bool:
    """Whether this path, as it stands, is one of ``inference``, and no control, however servers may read that."""
    return path in inference and not is_control(path, controls)


def is_control(path: str, controls: Iterable[str]) -> bool:
    """Whether a server may take this path for one of those: some don't tell capitals, or a slash at the end."""
    return path.rstrip("/").casefold() in {each.rstrip("/").casefold() for each in controls}


def check_body(body: Mapping[str, Any], *, stream: bool = False) -> None:
    """Raises ``BadInput`` for a body with something to fetch or to read, or that names another model.

    Or that asks for a stream where none is read, and the other way round: the answer would be taken for a failure.
    """
    if "model" in body:
        raise BadInput("the body names a model; over HTTP the task says which, so leave model out")
    if body.get("stream", stream) is not stream or (not stream and "stream_options" in body):
        raise BadInput('the body says how it is streamed, and not as the call does: write "stream": true beside path')
    check_media(body)


def check_passed(body: Mapping[str, Any]) -> None:
    """Raises ``BadInput`` for a body that is passed on as it was sent, with something to fetch or to read in it.

    All of it is looked at, whatever the path: servers tell bodies apart by what stands in them. To vLLM an embedding's
    is a conversation's once it has ``messages`` beside its ``input``.
    """
    check_media({name: value for name, value in body.items() if name not in _LABELS})


def check_media(body: Mapping[str, Any]) -> None:
    """Raises ``BadInput`` for a body with something to fetch or to read."""
    for top, under in body.items():
        if top not in _ASIDE:
            _check(top, under, _BESIDE.get(top, frozenset()))


def _check(top: str, under: Any, aside: Collection[str]) -> None:
    """Raises ``BadInput`` for a text in a body's field that leads away; what is ``aside`` in it isn't looked at."""
    left: list[tuple[str, str, Any]] = [("", top, under)]
    while left:
        outer, name, value = left.pop()
        if isinstance(value, Mapping):
            left += [(name, inner, each) for inner, each in value.items() if inner not in aside]
        elif isinstance(value, (list, tuple)):
            left += [(outer, name, each) for each in value]
        elif isinstance(value, str) and _leads_away(outer, name, value):
            raise BadInput(f"{name[:80]} is {value!r:.200}: nothing is fetched or read there; send it as a data: URL")


def _leads_away(outer: str, name: str, value: str) -> bool:
    if name in _MEDIA:
        return not value.startswith("data:")
    if f"{outer}.{name}" == SOUND:
        return not (value.startswith("data:") or is_base64(value))
    return name not in _TEXTS and names_remote(value)
