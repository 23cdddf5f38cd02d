"""The tree of errors: what its classes promise to those who catch them."""

from __future__ import annotations

import http
from collections.abc import Iterator

import pytest

from taskrouter import errors
from taskrouter.errors import (
    ConfigError,
    ConfigNotFound,
    NoOptionLeft,
    Problem,
    ProviderQuota,
    RemovalFailed,
    ServerRefused,
    TaskRouterError,
)


def tree(root: type[TaskRouterError] = TaskRouterError) -> Iterator[type[TaskRouterError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_every_error_is_in_the_tree_has_a_status_and_says_what_it_is() -> None:
    written = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BaseException)}
    assert written == set(tree())
    for error in tree():
        assert 400 <= http.HTTPStatus(error.status_hint) < 600, error
        assert error.__doc__, error


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("m.yaml", 3, 7, "tasks.a", "no such key", "try b"), "m.yaml:3:7: tasks.a: no such key (try b)"),
        (Problem("m.yaml", 3, 7, "", "no such key"), "m.yaml:3:7: no such key"),
        (Problem("m.yaml", 0, 0, "", "is empty"), "m.yaml: is empty"),
    ],
)
def test_a_problem_says_where_it_is_as_exactly_as_that_is_known(problem: Problem, text: str) -> None:
    assert str(problem) == text


@pytest.mark.parametrize(("kind", "older"), [(ConfigError, ValueError), (ConfigNotFound, FileNotFoundError)])
def test_a_bad_file_is_told_a_line_for_each_problem(kind: type[ConfigError], older: type[Exception]) -> None:
    error = kind([Problem("m.yaml", 1, 1, "a", "first"), Problem("m.yaml", 2, 1, "b", "second")])
    assert isinstance(error, older)
    assert str(error) == "m.yaml:1:1: a: first\nm.yaml:2:1: b: second"
    assert [problem.path for problem in error.problems] == ["a", "b"]


def test_what_an_error_knows_beside_its_words_is_kept() -> None:
    passed = NoOptionLeft("nobody is left", retry_after_s=3.0, passed=["near", "far"])
    assert (str(passed), passed.retry_after_s, passed.passed) == ("nobody is left", 3.0, ("near", "far"))
    quota = ProviderQuota("too many", retry_after_s=7.0, status=429)
    assert (quota.retry_after_s, quota.status, quota.status_hint) == (7.0, 429, 429)
    refused = ServerRefused("not this key", status=401, code="invalid_api_key")
    assert (refused.status, refused.code, refused.status_hint) == (401, "invalid_api_key", 502)
    assert RemovalFailed("no", freed_bytes=5).freed_bytes == 5
    assert TaskRouterError("broken").retry_after_s is None


def test_each_error_has_a_word_of_its_own_for_the_wire() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TaskRouterError)]
    assert len({each.code for each in kinds}) == len(kinds) > 40
    assert (errors.ModelDied.code, errors.BadInput.code) == ("model_died", "bad_input")
    assert errors.ContextTooLong.code == "context_length_exceeded"
