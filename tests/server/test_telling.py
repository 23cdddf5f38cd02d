"""What callers are told of errors whose own message is the operator's."""

from __future__ import annotations

import pytest

from taskrouter import errors
from taskrouter.http.failing import TOLD, Refused, failure_of
from taskrouter.verbs import Passed, Why

SECRET = "/srv/models/secret: SOME_KEY isn't set"
OTHERS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type)
    and issubclass(each, errors.TaskRouterError)
    and not issubclass(each, (*TOLD, errors.ConfigError, errors.ServerRefused, errors.NoOptionLeft))
]


def said(error: Exception, *, to_admin: bool = False) -> str:
    found = failure_of(error, "openai", "r-1", model="say/one", to_admin=to_admin)
    return str(found.body["error"]["message"])


@pytest.mark.parametrize("kind", OTHERS)
def test_a_caller_is_told_which_model_and_what_to_do_and_none_of_the_operators_secrets(
    kind: type[errors.TaskRouterError],
) -> None:
    told = said(kind(SECRET))
    assert "say/one" in told
    assert any(each in told for each in ("ask again", "ask for another option", "tell the server's operator"))
    assert "under r-1." in told
    assert SECRET not in told
    assert (kind.__doc__ or "").partition("\n")[0] not in told
    assert said(kind(SECRET), to_admin=True) == SECRET


def test_where_no_model_is_known_none_is_named() -> None:
    told = failure_of(errors.LoadFailed(SECRET), "openai", "r-1").body["error"]["message"]
    assert told.startswith("the model failed to load: ")


def test_a_task_of_which_nothing_is_left_is_named() -> None:
    error = errors.NoOptionLeft(SECRET, passed=(Passed("one", Why.UNABLE, SECRET),))
    assert said(error) == f"every option of task say was passed over or failed (one: {Why.UNABLE.value})"


def test_what_the_server_refuses_is_told_all_alike() -> None:
    assert said(Refused(403, "not for this key")) == said(Refused(403, "not for this key"), to_admin=True)
