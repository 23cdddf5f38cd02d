"""From what a provider says to words, seconds and classes, without a server."""

from __future__ import annotations

import json
from typing import Any

import anthropic as anthropic_sdk
import httpx2
import openai as openai_sdk
import pytest

from taskrouter import errors
from taskrouter.backends.external.base import Call, Endpoint
from taskrouter.backends.external.failures import (
    MOST_TEXT,
    of_any,
    of_event,
    of_sdk,
    of_status,
    retry_after,
    typed,
    words,
)

from .subjects import KEY

CALL = Call("the option 'far'", "m", 10.0)
NOON = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("headers", "said", "seconds"),
    [
        ({}, None, None),
        ({"Retry-After": "7"}, None, 7.0),
        ({"retry-after": " 1.5 "}, None, 1.5),
        ({"retry-after": "0"}, None, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, None, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, None, 9.0),
        ({"retry-after-ms": "inf"}, None, None),
        ({"retry-after-ms": "nan", "retry-after": "2"}, None, 2.0),
        ({"retry-after-ms": "-5"}, None, 0.0),
        ({"retry-after": "-5"}, None, None),
        ({"retry-after": ""}, None, None),
        ({"retry-after": "9" * 400}, None, None),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, None, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 23:13:50 +0100"}, None, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50"}, None, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 -0000"}, None, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:12:50 GMT"}, None, 0.0),
        ({"retry-after": "Tue, 99 Nov 2023 22:12:50 GMT"}, None, None),
        ({}, {"error": {"details": [{"retryDelay": "37s"}]}}, 37.0),
        ({"retry-after": "soon"}, {"error": {"details": [{"retryDelay": "0.25s"}]}}, 0.25),
        ({}, {"error": {"details": [{"retryDelay": "soon"}]}}, None),
        ({}, "retryDelay", None),
    ],
)
def test_when_to_ask_again_is_read_from_wherever_it_stands(
    headers: dict[str, str], said: Any, seconds: float | None
) -> None:
    assert retry_after(headers, said, NOON) == seconds


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"error": {"message": "no"}}, "no"),
        ({"error": "no"}, "no"),
        ({"message": "no"}, "no"),
        ({"type": "error", "error": {"type": "x", "message": " n\n o "}}, "n o"),
        ({"error": {"code": 7}}, '{"code": 7}'),
        ({}, "{}"),
        ([{"error": 1}], '[{"error": 1}]'),
        (None, "null"),
        ("plain", "plain"),
        ({"error": {"message": {1}}}, '"{1}"'),
        ("Incorrect key sk-proj-abcdef123456 given", "Incorrect key [key] given"),
        ("AIzaSyA1234567890_abc-def is wrong", "[key] is wrong"),
        ("the task-force and a keyboard stay", "the task-force and a keyboard stay"),
    ],
)
def test_what_a_body_says_is_found_and_keys_are_left_out(said: Any, text: str) -> None:
    assert words(said) == text


def test_what_a_body_says_is_bounded() -> None:
    assert len(words("x" * 10_000)) == MOST_TEXT
    assert words("x" * MOST_TEXT) == "x" * MOST_TEXT


@pytest.mark.parametrize(
    ("status", "kind"),
    [(402, errors.ProviderQuota), (409, errors.ProviderFailed), (422, errors.BadInput), (302, errors.ProviderFailed),
     (504, errors.ProviderOverloaded), (418, errors.ProviderFailed)],
)  # fmt: skip
def test_rarer_statuses_have_their_classes(status: int, kind: type[Exception]) -> None:
    assert type(of_status(CALL, status, "x", {}, key_env="K")) is kind


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"message": "Your credit balance is too low to access the Anthropic API."}, errors.ProviderQuota),
        ({"status": "FAILED_PRECONDITION", "message": "User location is not supported"}, errors.ProviderFailed),
        ({"code": "unsupported_value", "message": "'temperature' does not support 0 here"}, errors.UnsupportedInput),
        ({"message": "image_url is only supported by certain models."}, errors.UnsupportedInput),
        ({"message": "m is not a multimodal model"}, errors.UnsupportedInput),
        ({"message": "Unsupported MIME type: application/msword"}, errors.UnsupportedInput),
        ("At most 0 image(s) may be provided in one prompt.", errors.UnsupportedInput),
        ({"message": "this model's maximum context length is 7"}, errors.ContextTooLong),
        ({"code": "unsupported_country", "message": "a balance of models"}, errors.BadInput),
    ],
)
def test_a_bad_request_that_is_bad_here_only_is_told_from_one_that_is_bad_everywhere(
    said: Any, kind: type[Exception]
) -> None:
    assert type(of_status(CALL, 400, said, {}, key_env="K")) is kind


def test_who_asked_for_no_model_is_not_asked_for_its_name() -> None:
    text = str(of_status(Call("t/far", "", 1.0), 404, "gone", {}, key_env="K"))
    assert text == "t/far: the provider answered 404: gone. Is api_endpoint right?"


def test_an_overloaded_server_says_when_to_ask_again() -> None:
    assert of_status(CALL, 503, "x", {"retry-after": "3"}, key_env="K").retry_after_s == 3.0


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"type": "authentication_error"}, errors.ProviderAuth),
        ({"error": {"type": "invalid_request_error", "message": "x"}}, errors.BadInput),
        ({"code": "insufficient_quota"}, errors.ProviderQuota),
        ({"type": "new", "code": 404}, errors.ProviderFailed),
        ({"type": "new"}, errors.ProviderOverloaded),
        ({"error": ["x"]}, errors.ProviderOverloaded),
        ("x", errors.ProviderOverloaded),
        (None, errors.ProviderOverloaded),
    ],
)
def test_an_event_has_the_class_of_its_type_or_code(said: Any, kind: type[Exception]) -> None:
    assert type(of_event(CALL, said, key_env="K")) is kind


def unreadable() -> Exception:
    try:
        json.loads("{")
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), errors.ProviderTimeout),
        (ConnectionResetError("reset"), errors.ProviderUnreachable),
        (OSError("no route"), errors.ProviderUnreachable),
        (unreadable(), errors.ProviderProtocol),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), errors.ProviderProtocol),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), errors.BadInput),
        (RuntimeError("a slip"), errors.ProviderFailed),
        (errors.BadInput("x"), errors.BadInput),
    ],
)
def test_any_other_error_has_its_class(error: Exception, kind: type[Exception]) -> None:
    assert type(of_any(error, CALL)) is kind


def told(key: str | None, error: Exception) -> errors.TaskRouterError:
    with pytest.raises(errors.TaskRouterError) as caught, typed(CALL, key, lambda slip: of_any(slip, CALL)):
        raise error
    return caught.value


def test_an_error_keeps_its_cause_unless_the_key_stands_there() -> None:
    slip = RuntimeError("a slip")
    assert told(KEY, slip).__cause__ is slip
    telling = told(KEY, RuntimeError(f"sent {KEY}"))
    assert telling.__cause__ is None
    assert telling.__suppress_context__
    assert str(telling).endswith("sent [key]")


def test_an_error_behind_an_error_may_tell_the_key_too() -> None:
    slip = RuntimeError("a slip")
    slip.__cause__ = ValueError(f"sent {KEY}")
    assert told(KEY, slip).__cause__ is None


def test_errors_that_stand_behind_each_other_end() -> None:
    slip = RuntimeError("a slip")
    slip.__cause__ = slip
    assert isinstance(told(KEY, slip), errors.ProviderFailed)


@pytest.mark.parametrize("key", [None, "", "none", "a slip"])
def test_what_is_no_secret_is_left_in_the_words(key: str | None) -> None:
    assert str(told(key, RuntimeError("none: a slip"))).endswith("none: a slip")


def test_an_error_that_has_its_class_keeps_it_and_its_cause() -> None:
    slip = ValueError("x")
    error = errors.BadInput("no")
    error.__cause__ = slip
    assert told(KEY, error) is error
    assert error.__cause__ is slip


def test_an_engine_s_word_for_a_garbled_answer_is_a_provider_s() -> None:
    assert type(told(KEY, errors.CallFailed("garbled"))) is errors.ProviderProtocol


def test_an_endpoint_does_not_show_its_key() -> None:
    assert KEY not in repr(Endpoint("http://x", KEY))


@pytest.mark.parametrize("sdk", [anthropic_sdk, openai_sdk], ids=["anthropic", "openai"])
@pytest.mark.parametrize(
    ("cause", "kind", "said"),
    [
        (httpx2.ConnectTimeout("late"), errors.ProviderUnreachable, "connect_timeout_s"),
        (httpx2.PoolTimeout("full"), errors.Overloaded, "max_connections"),
        (httpx2.ReadTimeout("late"), errors.ProviderTimeout, "timeout_s"),
        (httpx2.ConnectError("refused"), errors.ProviderUnreachable, "can't be reached"),
        (httpx2.ReadError("reset"), errors.ProviderBrokeOff, "broke before the answer was whole"),
        (httpx2.RemoteProtocolError("peer closed connection without sending complete message body"),
         errors.ProviderBrokeOff, "broke before the answer was whole"),
        (httpx2.RemoteProtocolError("Server disconnected without sending a response."),
         errors.ProviderUnreachable, "can't be reached"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)  # fmt: skip
def test_whose_patience_was_over_and_where_a_connection_broke_is_told(
    sdk: Any, cause: Exception, kind: type[Exception], said: str
) -> None:
    request = httpx2.Request("POST", "http://127.0.0.1/")
    late = isinstance(cause, httpx2.TimeoutException)
    error = sdk.APITimeoutError(request) if late else sdk.APIConnectionError(request=request)
    error.__cause__ = cause
    found = of_sdk(sdk, error, CALL, key_env="X")
    assert type(found) is kind
    assert said in str(found)
