"""What is said of a path that isn't there: in which shape, and which one was meant."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

_BEFORE = "/v1"
_OF_ANTHROPIC = ("/messages", "/v1/messages", "/v1/v1/messages")


def style_of(path: str, *, theirs: bool) -> str:
    """In whose shape errors are told; ``theirs``: the request has a header that only Anthropic's clients send."""
    of_messages = any(path == each or path.startswith(f"{each}/") for each in _OF_ANTHROPIC)
    return "anthropic" if theirs or of_messages else "openai"


def meant(path: str, routes: Sequence[BaseRoute]) -> str:
    """What is to be added to a refusal where the client's base URL has a ``/v1`` too much or too little; or nothing."""
    shown = path[:200]
    if path.startswith(f"{_BEFORE}/") and _is_there(path.removeprefix(_BEFORE), routes):
        return f": did you mean {shown.removeprefix(_BEFORE)}? Leave out the {_BEFORE} at the end of the base URL"
    if not path.startswith(f"{_BEFORE}/") and _is_there(_BEFORE + path, routes):
        return f": did you mean {_BEFORE}{shown}? The base URL of this client ends in {_BEFORE}"
    return ""


def _is_there(path: str, routes: Sequence[BaseRoute]) -> bool:
    return any(isinstance(each, Route) and each.path_regex.match(path) for each in routes)
