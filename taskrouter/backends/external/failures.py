"""From what an SDK raises to one typed error: by status, by kind of error, and by what the provider says."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from taskrouter.backends.external.base import Call
from taskrouter.errors import (
    BadInput,
    ContextTooLong,
    MediaTooLarge,
    ProviderAuth,
    ProviderFailed,
    ProviderOverloaded,
    ProviderProtocol,
    ProviderQuota,
    ProviderTimeout,
    ProviderUnreachable,
    TaskRouterError,
)

_TOO_LONG = re.compile(
    r"context[_ ](length|window)|prompt is too long|maximum context|input token count.*exceeds|too many tokens", re.I
)
_SECRET = re.compile(r"\b(sk|key|AIza)[-_A-Za-z0-9]{8,}")
MOST_TEXT = 400


def of_status(
    call: Call, status: int, said: Any, headers: Mapping[str, str], *, key_env: str, now: float | None = None
) -> TaskRouterError:
    """The error of an HTTP status and what stands in its body."""
    text = words(said)
    what = f"{call.who}: the provider answered {status}: {text}"
    match status:
        case 401 | 403:
            return ProviderAuth(f"{what}. Its key comes from {key_env}; check it there.", status=status)
        case 404:
            return ProviderFailed(f"{what}. Is {call.model_id!r} its name, and api_endpoint right?", status=status)
        case 413:
            return MediaTooLarge(what)
        case 408:
            return ProviderTimeout(what, status=status)
        case 402 | 429:
            return ProviderQuota(what, retry_after_s=retry_after(headers, said, now), status=status)
        case _ if status >= 500:
            return ProviderOverloaded(what, retry_after_s=retry_after(headers, said, now), status=status)
        case _ if status in (400, 422):
            return (ContextTooLong if _TOO_LONG.search(text) else BadInput)(what)
        case _:
            return ProviderFailed(what, status=status)


def of_sdk(sdk: Any, error: Exception, call: Call, *, key_env: str) -> TaskRouterError:
    """The error of what the ``openai`` and ``anthropic`` SDKs raise, which have the same classes."""
    if isinstance(error, sdk.APITimeoutError):
        return timed_out(call)
    if isinstance(error, sdk.APIStatusError):
        said = error.body if error.body is not None else error.message
        if error.status_code < 300:  # an error event inside of a stream that had begun well
            return of_event(call, said, key_env=key_env)
        return of_status(call, error.status_code, said, dict(error.response.headers), key_env=key_env)
    if isinstance(error, sdk.APIResponseValidationError):
        return nonsense(call, error)
    if isinstance(error, sdk.APIConnectionError):
        cause = error.__cause__ or error
        return ProviderUnreachable(f"{call.who} can't be reached: {words(str(cause) or type(cause).__name__)}")
    if isinstance(error, sdk.APIError):
        return of_event(call, error.body if error.body is not None else error.message, key_env=key_env)
    return of_any(error, call)


STATUS_OF_TYPE = {
    "overloaded_error": 529,
    "api_error": 500,
    "server_error": 500,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "request_too_large": 413,
    "timeout_error": 408,
}


def of_event(call: Call, said: Any, *, key_env: str) -> TaskRouterError:
    """The error of an error event in a stream: providers name its type, not its status."""
    inner = said.get("error", said) if isinstance(said, Mapping) else {}
    kind = str(inner.get("type") or inner.get("code") or "") if isinstance(inner, Mapping) else ""
    return of_status(call, STATUS_OF_TYPE.get(kind, 500), said, {}, key_env=key_env)


def of_any(error: Exception, call: Call) -> TaskRouterError:
    """The error of what is none of an SDK's: sockets, parsers, the SDK's own slips."""
    if isinstance(error, TaskRouterError):
        return error
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    text = words(str(error) or name)
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return timed_out(call)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) or "Validation" in name or "Decod" in name:
        return nonsense(call, error)
    if "RemoteProtocol" in name or "ReadError" in name:
        return ProviderUnreachable(f"{call.who}: the connection broke before the answer was whole: {text}")
    if isinstance(error, OSError) or "Connect" in name or "httpx" in name or "httpcore" in name:
        return ProviderUnreachable(f"{call.who} can't be reached: {text}")
    return ProviderFailed(f"{call.who} failed: {name}: {text}")


def timed_out(call: Call) -> ProviderTimeout:
    return ProviderTimeout(f"{call.who} did not answer within {call.timeout_s:g} s (timeout_s)")


def nonsense(call: Call, what: object) -> ProviderProtocol:
    return ProviderProtocol(
        f"{call.who} answered with something else than its API has: {words(str(what))}. Is api_endpoint right?"
    )


def words(said: Any) -> str:
    """What an error's body says, whichever of the usual shapes it has; a key that a provider repeats is left out."""
    found = said
    for name in ("error", "message"):
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    text = found if isinstance(found, str) else json.dumps(found, default=str)
    text = _SECRET.sub("[key]", " ".join(text.split()))
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."


def retry_after(headers: Mapping[str, str], said: Any = None, now: float | None = None) -> float | None:
    """Seconds to wait, as a number, a date, or (Google's) a ``retryDelay`` in the body; ``None``: it doesn't say."""
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        if (milliseconds := lower.get("retry-after-ms")) is not None:
            return max(float(milliseconds) / 1000, 0.0)
        if (value := lower.get("retry-after")) is not None:
            if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
                return float(value)
            when = email.utils.parsedate_to_datetime(value).timestamp()
            return max(when - (time.time() if now is None else now), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
    found = re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', json.dumps(said, default=str)) if said else None
    return float(found[1]) if found else None
