"""What a server said instead of an answer, as the error that the library raises in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taskrouter import errors
from taskrouter.errors import ConfigError, Problem, ServerRefused, ServerUnreachable, TaskRouterError

_LONGEST = 2000


_CLASSES: Mapping[str, type[TaskRouterError]] = {
    each.code: each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, TaskRouterError) and each is not ServerRefused
}
_REFUSING = (401, 403, 404, 405, 409, 429)
_WRONG = (400, 413, 415, 422)


def refusal(status: int, body: bytes, retry_after: str | None, where: str) -> TaskRouterError:
    """The error of an answer; ``where`` is the server's address, for messages."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    told = data.get("error") if isinstance(data, Mapping) else None
    if not isinstance(told, Mapping):
        return ServerUnreachable(
            f"{where} answered with {status} and nothing that a taskrouter server says: look at the address, and at "
            "what stands between"
        )
    return error_of(told, status, _seconds(retry_after), where)


def error_of(told: Mapping[str, Any], status: int, retry_after_s: float | None, where: str) -> TaskRouterError:
    """The error that stands in an ``error`` object; ``status`` is 0 where it came in the middle of a stream."""
    code, message = told.get("code"), str(told.get("message") or "the server gave no reason")[:_LONGEST]
    kind = _CLASSES.get(code) if isinstance(code, str) else None
    if kind is not None and issubclass(kind, ConfigError):
        return kind(_problems(told, message, where))
    if kind is not None:
        return kind(message, retry_after_s=retry_after_s)
    if status in _REFUSING:
        return ServerRefused(message, retry_after_s=retry_after_s, status=status, code=str(code or "refused"))
    if status in _WRONG:
        return errors.BadInput(message, retry_after_s=retry_after_s)
    if status in (503, 529):
        return errors.ModelUnavailable(message, retry_after_s=retry_after_s)
    return TaskRouterError(message, retry_after_s=retry_after_s)


def _problems(told: Mapping[str, Any], message: str, where: str) -> list[Problem]:
    """What is wrong with the server's file: one by one, where it says so."""
    try:
        return [
            Problem(each["file"], int(each["line"]), int(each["column"]), each["path"], each["message"], each["hint"])
            for each in told["problems"]
        ]
    except (KeyError, TypeError, ValueError):
        return [Problem(f"at {where}", 0, 0, "", line) for line in message.splitlines()]


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After in seconds; dates are for caches."""
    return float(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdigit() else None
