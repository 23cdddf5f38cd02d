"""Keys and what they allow: read from the environment and a file, kept as hashes, and never shown."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from taskrouter.errors import ConfigError
from taskrouter.http.failing import Refused
from taskrouter.http.keys import ANYBODY, Caller, Keys, read_keys
from taskrouter.http.keys_file import check_tasks
from taskrouter.http.limits import MOST_STEPS, Limits

ONE, TWO, ADMIN = "one-long-enough-key", "two-long-enough-key", "admin-long-enough-key"


def read(file: Path | None = None, **environ: str) -> Keys:
    return read_keys(environ, api_keys_env="KEYS", admin_key_env="ADMIN", file=file)


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def test_keys_of_the_environment_have_names_or_numbers() -> None:
    keys = read(KEYS=f"web={ONE}, \n{TWO}\n")
    assert keys.caller(bearer(ONE)).name == "web"
    assert keys.caller({b"x-api-key": TWO.encode()}).name == "key-2"
    for headers in (
        {},
        bearer("other"),
        {b"authorization": ONE.encode()},
        {b"authorization": b"Basic " + ONE.encode()},
    ):
        with pytest.raises(Refused) as caught:
            keys.caller(headers)
        assert caught.value.status == 401
        assert ONE not in str(caught.value)


def test_without_keys_anybody_may_ask_and_nobody_may_administer() -> None:
    keys = read()
    assert keys.caller({}) is ANYBODY
    with pytest.raises(Refused, match="the admin API is off: set ADMIN in the server's environment") as caught:
        keys.check_admin(bearer(ADMIN))
    assert caught.value.status == 403


def test_the_admin_key_is_another() -> None:
    keys = read(KEYS=ONE, ADMIN=ADMIN)
    keys.check_admin(bearer(ADMIN))
    for headers, code, says in (
        ({}, "no_admin_key", "no admin key was sent"), (bearer(""), "no_admin_key", "no admin key was sent"),
        (bearer(ONE), "invalid_admin_key", "that is not the admin key"),
    ):  # fmt: skip
        for each in (keys, keys.with_callers_of(Keys())):
            with pytest.raises(Refused, match=f"{says}.* ADMIN") as caught:
                each.check_admin(headers)
            assert (caught.value.status, caught.value.code) == (401, code)
    with pytest.raises(Refused):
        keys.caller(bearer(ADMIN))


def test_keys_of_a_file_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    sha256 = "c36421193d6aacaf0446e45b0b8d7d0a4d4d9ea2a2b5d7f33b4ed6e6d3ca0ab4"
    rows = [
        {"name": "web", "key": ONE, "tasks": ["say"], "requests_per_minute": 5, "max_concurrency": 2, "priority": 3},
        {"name": "jobs", "key_env": "JOBS"},
        {"name": "hashed", "sha256": sha256},
    ]
    file.write_text(yaml.safe_dump(rows))
    keys = read(file, JOBS=TWO)
    assert keys.caller(bearer(ONE)) == Caller("web", frozenset({"say"}), 5, 2, 3)
    assert keys.caller(bearer(TWO)).may_ask("anything")
    assert not keys.caller(bearer(ONE)).may_ask("anything")
    assert len(keys.callers) == 3
    assert ONE not in repr(keys)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("{", "keys.yaml:2:1: this is not YAML"),
        ("{name: a}", "keys.yaml:1:1: the file is no list (write a list of keys"),
        ("[]", "the file holds no key"),
        ("# none yet", "the file is empty but for comments (write a list of keys"),
        (f"[{ONE}]", "expected a mapping"),
        (f"- name: a\n  key: {ONE}\n  task: [x]", "keys.yaml:3:3: 0.task: unknown key (did you mean 'tasks'?)"),
        (f"- name: a\n  key: {ONE}\n  tasks: []", "keys.yaml:3:3: 0.tasks: expected at least one entry"),
        (f"- name: a\n  key: {ONE}\n  key: {TWO}", "keys.yaml:3:3: 0.key: the key stands twice: first in line 2"),
        ("[{name: a, key: short}]", "0.key: expected text of at least 16 letters"),
        ("[{name: a, key: 12345678901234567}]", "letters (put it in quotes)"),
        (f"[{{name: {ONE} and, key: {TWO}}}]", "0.name: expected 1 to 64 letters"),
        (f"[{{name: a, sha256: {ONE}}}]", "0.sha256: expected the 64 hex digits"),
        (f"- {{name: a, key: {ONE}}}\n- {{name: b, key: {ONE}}}", "keys.yaml:2:3: 1: the key of 'b' is there twice"),
        (f"- {{name: a, key: {ONE}}}\n- {{name: a, key: {TWO}}}", "there is another key of the name 'a', in line 1"),
        ("[{name: a}]", "exactly one of key, key_env"),
        ("[{name: a, key_env: UNSET}]", "0.key_env: the variable UNSET isn't set, or is empty"),
        (f"[{{name: a, key_env: {ONE}}}]", "0.key_env: the variable that it names isn't set"),
        (f"[{{name: a, key: {ONE}, requests_per_minute: 0}}]", "0.requests_per_minute: expected a number of 1 or more"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_never_shows_a_key(tmp_path: Path, rows: str, says: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(rows)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert says in str(caught.value)
    assert ONE not in str(caught.value)


@pytest.mark.parametrize(("key", "says"), [("", "WEB_KEY isn't set, or is empty"), ("x", "has less than 16 letters")])
def test_an_empty_or_short_variable_is_no_key(tmp_path: Path, key: str, says: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("[{name: web, key_env: WEB_KEY}]")
    with pytest.raises(ConfigError, match=says):
        read(file, WEB_KEY=key)


def test_an_empty_key_is_never_the_one_that_is_looked_up() -> None:
    keys = Keys({hashlib.sha256(b"").digest(): Caller("nobody")}, hashlib.sha256(b"").digest())
    for headers in (bearer(""), {b"authorization": b"Bearer"}, {b"x-api-key": b""}):
        for check in (keys.caller, keys.check_admin, keys.check_reader):
            with pytest.raises(Refused) as caught:
                check(headers)
            assert caught.value.status == 401


def test_tasks_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"- name: a\n  key: {ONE}\n  tasks: [say, sya]\n- {{name: b, key: {TWO}}}")
    with pytest.raises(ConfigError) as caught:
        check_tasks(file, ("say", "look"))
    assert str(caught.value) == f"{file}:3:16: 0.tasks.1: there is no task 'sya' (did you mean 'say'?)"
    check_tasks(file, ("say", "sya"))


def test_short_keys_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key 1 has less than 16 letters"):
        read(KEYS="short")
    with pytest.raises(ConfigError, match="the admin key has less than 16"):
        read(ADMIN="short")
    with pytest.raises(ConfigError, match="can't be read"):
        read(tmp_path / "none.yaml")


def test_so_many_requests_a_minute_may_come_at_any_time_in_it() -> None:
    limits, caller = Limits(), Caller("a", requests_per_minute=3)
    for _ in range(3):
        limits.enter(caller, 100.0)
    with pytest.raises(Refused) as caught:
        limits.enter(caller, 100.0)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit")
    assert caught.value.retry_after_s == pytest.approx(20)
    limits.enter(caller, 120.0)
    with pytest.raises(Refused):
        limits.enter(caller, 120.0)
    for _ in range(3):  # a minute later all are there again, and no more
        limits.enter(caller, 1000.0)
    with pytest.raises(Refused):
        limits.enter(caller, 1000.0)
    limits.enter(Caller("b", requests_per_minute=3), 1000.0)


def test_so_many_requests_at_once() -> None:
    limits, caller = Limits(), Caller("a", max_concurrency=2)
    limits.enter(caller, 0)
    limits.enter(caller, 0)
    with pytest.raises(Refused) as caught:
        limits.enter(caller, 0)
    assert (caught.value.status, caught.value.code) == (429, "concurrency")
    limits.leave(caller)
    limits.enter(caller, 0)


def test_a_request_of_a_key_queues_behind_what_that_key_has_under_way_for_the_task() -> None:
    limits, one, two = Limits(), Caller("one"), Caller("two")
    assert [limits.queue(one, "say") for _ in range(3)] == [0, 1, 2]
    assert limits.queue(one, "look") == 0
    assert limits.queue(two, "say") == 0
    limits.unqueue(one, "say")
    assert limits.queue(one, "say") == 2
    assert max(limits.queue(one, "say") for _ in range(200)) == MOST_STEPS
