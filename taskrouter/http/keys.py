"""Who may ask: API keys, what each may ask, and how much at once. Kept as hashes; compared in constant time.

Keys come from an environment variable (``server.api_keys_env``: keys parted by commas or line ends, each
``key`` or ``name=key``) and from a file (``server.api_keys_file``), where each may be bounded.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskrouter.errors import ConfigError, Problem
from taskrouter.http.failing import Refused

SHORTEST = 16
"""Letters of a key: shorter ones can be guessed."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class KeyFields(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")]
    key: Annotated[str, Field(min_length=SHORTEST)] | None = None
    key_env: str | None = None
    sha256: Annotated[str, Field(pattern=_SHA256.pattern)] | None = None
    tasks: tuple[str, ...] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    max_concurrency: Annotated[int, Field(ge=1)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None


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
    """All keys, by the SHA-256 of each: looking one up tells by its time nothing of the key. ``admin`` is a hash."""

    callers: Mapping[bytes, Caller] = field(default_factory=dict)
    admin: bytes | None = None

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
        return Keys(callers, self.admin)

    def check_admin(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises ``Refused``: 403 where no admin key is set, 401 for another one."""
        if self.admin is None:
            raise Refused(
                403, "the admin API is off: no admin key is in the server's environment", code="admin_api_off"
            )
        shown = _shown(headers)
        if shown is None or not hmac.compare_digest(_digest(shown), self.admin):
            raise Refused(401, "that is not the admin key", code="invalid_admin_key")

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
    return Keys(callers, None if admin is None else _digest(admin.encode()))


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
) -> Iterable[tuple[str, bytes, Caller]]:
    if file is None:
        return
    where = str(file)
    try:
        data: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # Not the error's own words: those of YAML quote the line.
        problems.append(Problem(where, 0, 0, "", f"can't be read ({type(error).__name__})"))
        return
    if not isinstance(data, list):
        problems.append(Problem(where, 0, 0, "", "wants a list of keys, each with a name and a key, key_env or sha256"))
        return
    for number, entry in enumerate(data):
        try:
            read = KeyFields.model_validate(entry)
        except ValidationError as error:
            for each in error.errors(include_input=False, include_url=False):
                path = ".".join(map(str, (number, *each["loc"])))
                problems.append(Problem(where, 0, 0, path, each["msg"]))
            continue
        if (read.key, read.key_env, read.sha256).count(None) != 2:
            problems.append(Problem(where, 0, 0, str(number), "wants exactly one of key, key_env or sha256"))
            continue
        key = read.key if read.key_env is None else environ.get(read.key_env, "")
        if key is not None and len(key) < SHORTEST:
            # An empty or short one would let anybody in.
            has = f"has less than {SHORTEST} letters" if key else "isn't set, or is empty"
            problems.append(Problem(where, 0, 0, f"{number}.key_env", f"the variable {read.key_env!r} {has}"))
            continue
        secret = _digest(key.encode()) if key is not None else bytes.fromhex(read.sha256 or "")
        tasks = None if read.tasks is None else frozenset(read.tasks)
        yield where, secret, Caller(read.name, tasks, read.requests_per_minute, read.max_concurrency, read.priority)


def _shown(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key of a request: a bearer token, or Anthropic's ``x-api-key``. An empty one is none."""
    value = headers.get(b"authorization")
    if value is not None:
        scheme, _, token = value.partition(b" ")
        return (token.strip() or None) if scheme.lower() == b"bearer" else None
    return headers.get(b"x-api-key") or None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
