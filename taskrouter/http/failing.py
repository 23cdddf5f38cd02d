"""The one place where errors become responses: a status, headers, and a body in the shape that the client knows.

What a caller can mend is told in full. What only the operator can (a log's last lines, a folder, a variable) is told to
the admin, and stays in the log for others, under the request's id.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

from taskrouter import errors
from taskrouter.http.telling import told_of
from taskrouter.verbs import Passed

logger = logging.getLogger("taskrouter.http")

TOLD: tuple[type[Exception], ...] = (
    errors.UnknownTask,
    errors.UnknownOption,
    errors.NotExternal,
    errors.UnsupportedVerb,
    errors.BadInput,
    errors.InsufficientMemory,
    errors.WouldDeadlock,
    errors.Overloaded,
    errors.Cold,
    errors.CoolingDown,
    errors.Unloaded,
    errors.FilesBeingRemoved,
    errors.FilesKept,
    errors.RemovalFailed,
    errors.ManagerClosed,
    errors.ReaderGone,
)
"""Errors whose message is for whoever asked; of the others ``telling`` says what is."""

_LONGEST = 2000
"""Letters of a message."""
_LONGEST_NAME = 200
_OPENAI_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 409: "conflict_error", 413: "invalid_request_error", 422: "invalid_request_error",
    429: "rate_limit_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 409: "invalid_request_error", 413: "request_too_large",
    422: "invalid_request_error", 429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


class Refused(errors.TaskRouterError):
    """The server itself refuses: no key, not this task, too much at once."""

    def __init__(self, status: int, message: str, *, code: str | None = None, retry_after_s: float | None = None):
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status
        self.code = code or "refused"


class Failure(NamedTuple):
    """An error as it is sent."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: dict[str, Any]


def failure_of(
    error: BaseException, style: str, request_id: str, *, model: str = "", to_admin: bool = False
) -> Failure:
    """How an error is told, in the ``openai`` or ``anthropic`` shape. Logs what isn't told to every caller.

    ``model``: the task and option that was asked, where that is known. ``to_admin``: our errors are told in full.
    """
    status, code, message = _told(error, request_id, model, to_admin=to_admin)
    if len(message) > _LONGEST:
        # What a caller sent is quoted in some of them.
        message = f"{message[:_LONGEST]}…"
    headers: list[tuple[bytes, bytes]] = []
    retry_s = getattr(error, "retry_after_s", None)
    if retry_s is not None and status in (409, 429, 500, 502, 503, 504, 507):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_s))))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if style == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    else:
        kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        param = error.param[:_LONGEST_NAME] if isinstance(error, errors.UnsupportedInput) and error.param else None
        body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Failure(status, tuple(headers), body)


def _told(error: BaseException, request_id: str, model: str, *, to_admin: bool) -> tuple[int, str, str]:
    """Status, code and message."""
    if isinstance(error, Refused):
        return error.status, error.code, str(error)
    if isinstance(error, errors.TaskRouterError):
        status, code = error.status_hint, error.code
        if isinstance(error, errors.NoOptionLeft):
            passed = "; ".join(f"{each.option}: {each.why.value}" for each in error.passed if isinstance(each, Passed))
            logger.warning("request %s: %s", request_id, error)
            of = f"task {model.partition('/')[0]}" if model else "this task"
            return status, code, f"every option of {of} was passed over or failed ({passed})"
        if isinstance(error, TOLD):
            return status, code, str(error)
        logger.warning("request %s: %s: %s", request_id, type(error).__name__, error)
        if to_admin:
            return status, code, str(error)
        return status, code, f"{told_of(error, model)}. The server's log says more, under {request_id}."
    logger.error("request %s failed", request_id, exc_info=error)
    return 500, "internal_error", f"the server failed to answer; its log says more, under {request_id}."
