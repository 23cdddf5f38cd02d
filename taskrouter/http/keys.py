"""Who may ask: API keys, what each may ask, and how much at once. Kept as hashes; compared in constant time.

Keys come from an environment variable (``server.api_keys_env``: keys parted by commas or line ends, each
``key`` or ``name=key``) and from a file (``server.api_keys_file``), where each may be bounded.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskrouter.errors import ConfigError, Problem
from taskrouter.http.failing import Refused
from taskrouter.http.keys_file import SHORTEST, read_keys_file


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may ask. ``tasks``: these only; ``None``: all."""

    name: str
    tasks: frozenset[str] | None = None
    requests_per_minute: int | None = None
    max_concurrency: int | None = None
    priority: int | None = None

    def may_ask(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks


ANYBODY = Caller("anybody")
"""Whoever asks a server without keys, which listens on loopback only."""


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys, by the SHA-256 of each: looking one up tells by its time nothing of the key.

    ``admin`` is a hash; ``admin_key_env`` names the variable that holds it, for messages.
    """

    callers: Mapping[bytes, Caller] = field(default_factory=dict)
    admin: bytes | None = None
    admin_key_env: str = "TASKROUTER_ADMIN_KEY"

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Whose key a request shows. Raises ``Refused`` (401)."""
        if not self.callers:
            return ANYBODY
        shown = _shown(headers)
        if shown is None:
            raise Refused(401, "no API key was sent: send Authorization: Bearer <key>", code="no_api_key")
        found = self.callers.get(_digest(shown))
        if found is None:
            raise Refused(401, "that is not an API key of this server", code="invalid_api_key")
        return found

    def with_callers_of(self, before: Keys) -> Keys:
        """The same, where whoever is the same as before is the very caller that holds leases and counts."""
        callers = {
            digest: known if (known := before.callers.get(digest)) == caller else caller
            for digest, caller in self.callers.items()
        }
        return Keys(callers, self.admin, self.admin_key_env)

    def check_admin(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises ``Refused``: 403 where no admin key is set, 401 where none was sent, or another one."""
        if self.admin is None:
            text = f"the admin API is off: set {self.admin_key_env} in the server's environment, and start it again"
            raise Refused(403, text, code="admin_api_off")
        shown = _shown(headers)
        if shown is None:
            text = "no admin key was sent: send Authorization: Bearer <key>, the one of the server's "
            raise Refused(401, text + self.admin_key_env, code="no_admin_key")
        if not hmac.compare_digest(_digest(shown), self.admin):
            text = f"that is not the admin key: it is the one of {self.admin_key_env} in the server's environment"
            raise Refused(401, text, code="invalid_admin_key")

    def check_reader(self, headers: Mapping[bytes, bytes]) -> None:
        """Whether a request may read what is counted of all tasks: the admin, and callers that may ask all.

        Anybody where there are no keys. Raises ``Refused``.
        """
        if not self.callers and self.admin is None:
            return
        shown = _shown(headers)
        digest = b"" if shown is None else _digest(shown)
        if self.admin is not None and hmac.compare_digest(digest, self.admin):
            return
        caller = self.callers.get(digest)
        if caller is None:
            raise Refused(401, "that is not a key of this server; metrics want one", code="invalid_api_key")
        if caller.tasks is not None:
            raise Refused(403, "this key may ask some tasks only, and metrics are of all", code="task_not_allowed")


def read_keys(environ: Mapping[str, str], *, api_keys_env: str, admin_key_env: str, file: Path | None = None) -> Keys:
    """Read the keys. Raises ``ConfigError`` for one that is too short, twice there, or written wrongly."""
    problems: list[Problem] = []
    callers: dict[bytes, Caller] = {}
    found = (*_of_environment(environ, api_keys_env, problems), *_of_file(file, environ, problems))
    for where, secret, caller in found:
        if secret in callers:
            problems.append(Problem(where, 0, 0, "", f"the key of {caller.name!r} is there twice"))
        callers[secret] = caller
    admin = environ.get(admin_key_env) or None
    if admin is not None and len(admin) < SHORTEST:
        problems.append(Problem(f"${admin_key_env}", 0, 0, "", f"the admin key has less than {SHORTEST} letters"))
    if admin is not None and _digest(admin.encode()) in callers:
        problems.append(Problem(f"${admin_key_env}", 0, 0, "", "the admin key is a caller's key, too"))
    if problems:
        raise ConfigError(problems)
    return Keys(callers, None if admin is None else _digest(admin.encode()), admin_key_env)


def _of_environment(
    environ: Mapping[str, str], name: str, problems: list[Problem]
) -> Iterator[tuple[str, bytes, Caller]]:
    entries = [entry.strip() for entry in re.split(r"[,\n]", environ.get(name, ""))]
    for number, entry in enumerate(filter(None, entries), 1):
        who, equals, key = entry.partition("=")
        if not equals:
            who, key = f"key-{number}", who
        if len(key) < SHORTEST:
            problems.append(Problem(f"${name}", 0, 0, "", f"key {number} has less than {SHORTEST} letters"))
        yield f"${name}", _digest(key.encode()), Caller(who)


def _of_file(
    file: Path | None, environ: Mapping[str, str], problems: list[Problem]
) -> Iterator[tuple[str, bytes, Caller]]:
    if file is None:
        return
    try:
        found = read_keys_file(file, environ)
    except ConfigError as error:
        problems += error.problems
        return
    for secret, read in found:
        tasks = None if read.tasks is None else frozenset(read.tasks)
        yield (
            str(file), secret,
            Caller(read.name, tasks, read.requests_per_minute, read.max_concurrency, read.priority),
        )  # fmt: skip


def _shown(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key of a request: a bearer token, or Anthropic's ``x-api-key``. An empty one is none."""
    value = headers.get(b"authorization")
    if value is not None:
        scheme, _, token = value.partition(b" ")
        return (token.strip() or None) if scheme.lower() == b"bearer" else None
    return headers.get(b"x-api-key") or None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
