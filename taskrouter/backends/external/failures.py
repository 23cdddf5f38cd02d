"""From what an SDK raises to one typed error: by status, by kind of error, and by what the provider says."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from taskrouter.backends.engines.api import refusal_of
from taskrouter.backends.external.base import Call
from taskrouter.errors import (
    BadInput,
    CallFailed,
    ContextTooLong,
    MediaTooLarge,
    Overloaded,
    ProviderAuth,
    ProviderBrokeOff,
    ProviderFailed,
    ProviderOverloaded,
    ProviderProtocol,
    ProviderQuota,
    ProviderTimeout,
    ProviderUnreachable,
    TaskRouterError,
    UnsupportedInput,
)

_TOO_LONG = re.compile(
    r"context[_ ](length|window)|prompt is too long|maximum context|input token count.*exceeds|too many tokens", re.I
)
_UNABLE = re.compile(
    r'"code": "unsupported_(parameter|value)"|only supported by certain models|unsupported mime type', re.I
)
"""What only this model can't take, though its provider calls it a bad request."""
_NO_MONEY = re.compile(r"credit balance is too low|billing_error|billing_hard_limit_reached", re.I)
_NO_JSON = re.compile(r"JSON serializable|JSON compliant|Circular reference detected")
"""What Python's own writer says of a request; the SDKs pass it on."""
_SECRET = re.compile(r"\b(sk|key|AIza)[-_A-Za-z0-9]{8,}")
MOST_TEXT = 400
_SHORTEST_KEY = 8
"""Shorter keys are no secrets (``none``, ``EMPTY``), and words of a message could be the same."""


@contextmanager
def typed(call: Call, key: str | None, of: Callable[[Exception], TaskRouterError]) -> Iterator[None]:
    """Whatever is raised inside comes out as one typed error, in which the key stands nowhere.

    The cause is chained, unless the key stands there: an SDK's error holds all that a provider (or what answered in
    its place, such as a server that echoes) has said.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        found = error if isinstance(error, TaskRouterError) else of(error)
        if isinstance(found, CallFailed) and not isinstance(found, ProviderFailed):
            found = ProviderProtocol(str(found))  # the engines' reader of the same API
        # What stands in lines of its own is escaped where an error quotes it.
        secrets = [word for word in (key or "").split() if len(word) >= _SHORTEST_KEY]
        tells = any(secret in text for text in _chain(error) for secret in secrets)
        for secret in secrets:
            found.args = tuple(_keyless(arg, secret) if isinstance(arg, str) else arg for arg in found.args)
        cause = found.__cause__ if found is error else error
        raise found from (None if tells else cause)


def _chain(error: BaseException | None) -> Iterator[str]:
    """What an error and all behind it say."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def _keyless(text: str, key: str) -> str:
    """Without the key, also where it was cut off at the end of what is shown."""
    text = text.replace(key, "[key]")
    for length in range(len(key) - 1, 3, -1):
        text = text.replace(key[:length] + "...", "[key]...")
    return text


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
            named = (
                f"Is {call.model_id!r} its name, and api_endpoint right?" if call.model_id else "Is api_endpoint right?"
            )
            return ProviderFailed(f"{what}. {named}", status=status)
        case 413:
            return MediaTooLarge(what)
        case 408:
            return ProviderTimeout(what, status=status)
        case 402 | 429:
            return ProviderQuota(what, retry_after_s=retry_after(headers, said, now), status=status)
        case _ if status >= 500:
            return ProviderOverloaded(what, retry_after_s=retry_after(headers, said, now), status=status)
        case _ if status in (400, 422):
            return _of_bad_request(status, said, what)
        case _:
            return ProviderFailed(what, status=status)


def _of_bad_request(status: int, said: Any, what: str) -> TaskRouterError:
    """What a provider calls a bad request, though it may be bad for this model or this account only."""
    whole = said if isinstance(said, str) else json.dumps(said, default=str)
    if _TOO_LONG.search(whole):
        return ContextTooLong(what)
    if _NO_MONEY.search(whole):
        return ProviderQuota(what, status=status)  # Anthropic's word for it
    if '"FAILED_PRECONDITION"' in whole:
        return ProviderFailed(what, status=status)  # Google's, for a place or an account that isn't served
    return UnsupportedInput(what) if _UNABLE.search(whole) else refusal_of(what)


def of_sdk(sdk: Any, error: Exception, call: Call, *, key_env: str) -> TaskRouterError:
    """The error of what the ``openai`` and ``anthropic`` SDKs raise, which have the same classes."""
    if isinstance(error, sdk.APITimeoutError):
        return _of_timeout(error, call)
    if isinstance(error, sdk.APIStatusError):
        said = error.body if error.body is not None else error.message
        if error.status_code < 300:  # an error event inside of a stream that had begun well
            return of_event(call, said, key_env=key_env)
        return of_status(call, error.status_code, said, dict(error.response.headers), key_env=key_env)
    if isinstance(error, sdk.APIResponseValidationError):
        return nonsense(call, error)
    if isinstance(error, sdk.APIConnectionError):
        return _of_connection(error.__cause__ or error, call)
    if isinstance(error, sdk.APIError):
        return of_event(call, error.body if error.body is not None else error.message, key_env=key_env)
    return of_any(error, call)


def _of_timeout(error: BaseException, call: Call) -> TaskRouterError:
    """Whose patience was over: the connection's, our own pool's, or the call's."""
    names = {type(each).__name__ for each in _behind(error)}
    if "ConnectTimeout" in names:
        return ProviderUnreachable(f"{call.who} can't be reached: no connection within providers.*.connect_timeout_s")
    if "PoolTimeout" in names:
        return Overloaded(f"{call.who}: all of providers.*.max_connections were in use")
    return timed_out(call)


def _of_connection(error: BaseException, call: Call) -> ProviderUnreachable:
    """Whether there was a connection: what broke once the request had gone out may have been worked on."""
    text = words(str(error) or type(error).__name__)
    names = {type(each).__name__ for each in _behind(error)}
    # A connection that was kept and that the server had closed says so before a byte of an answer.
    if names & {"ReadError", "WriteError", "RemoteProtocolError"} and "without sending a response" not in text:
        return ProviderBrokeOff(f"{call.who}: the connection broke before the answer was whole: {text}")
    return ProviderUnreachable(f"{call.who} can't be reached: {text}")


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


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
    named = [inner.get(name) for name in ("code", "type")] if isinstance(inner, Mapping) else []
    status = next((STATUS_OF_TYPE[str(name)] for name in named if str(name) in STATUS_OF_TYPE), 500)
    for name in named:
        if re.fullmatch(r"[45]\d\d", str(name)):
            status = int(str(name))  # gateways put the status there
    return of_status(call, status, said, {}, key_env=key_env)


def of_any(error: Exception, call: Call) -> TaskRouterError:
    """The error of what is none of an SDK's: sockets, parsers, the SDK's own slips."""
    if isinstance(error, TaskRouterError):
        return error
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    text = words(str(error) or name)
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return _of_timeout(error, call)
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        return BadInput(f"{call.who}: the request holds what is no text: {text}")
    if isinstance(error, (TypeError, ValueError)) and _NO_JSON.search(text):
        return BadInput(f"{call.who}: the request holds what JSON has no word for: {text}")
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) or "Validation" in name or "Decod" in name:
        return nonsense(call, error)
    if "RemoteProtocol" in name or "ReadError" in name or "WriteError" in name:
        return _of_connection(error, call)
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
    for name, read in (("retry-after-ms", _milliseconds), ("retry-after", _seconds)):
        try:
            found = read(lower[name].strip(), time.time() if now is None else now)
            if math.isfinite(found):
                return max(found, 0.0)
        except (KeyError, ValueError, TypeError, OverflowError):
            continue
    delay = re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', json.dumps(said, default=str)) if said else None
    return float(delay[1]) if delay else None


def _milliseconds(value: str, now: float) -> float:
    return float(value) / 1000


def _seconds(value: str, now: float) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    when = email.utils.parsedate_to_datetime(value)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
