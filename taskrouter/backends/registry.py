"""Finds backends by their framework's name, through the entry points that installed distributions declare.

A plug-in declares, in its own pyproject.toml::

    [project.entry-points."taskrouter.backends"]
    myframework = "my_package.backend:MyBackend"

Nothing is imported before it is wanted, and one broken plug-in leaves the others alone.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from importlib import metadata
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any

from taskrouter.backends.base import Backend, Call, Found
from taskrouter.backends.external.base import Provider
from taskrouter.config.frameworks import BACKENDS_GROUP, PROVIDERS_GROUP, Frameworks, bring, nearest
from taskrouter.errors import BrokenBackend, MissingDependency, UnknownFramework
from taskrouter.verbs import PASS_THROUGH, VERBS_OF_KIND

ALIASES: Mapping[str, str] = MappingProxyType({"pytorch": "transformers"})
"""Other names of frameworks, which existing files use."""

METHODS = ("traits", "preflight", "load", "unload", "residue", "close")
"""What an object must be able to do to be a backend."""

_log = logging.getLogger(__name__)


@lru_cache(maxsize=8)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """A file of every distribution is read for it, so once for each ``sys.path``."""
    return tuple(metadata.entry_points(group=group))


def _installed(group: str) -> Iterable[EntryPoint]:
    return _entry_points(group, tuple(sys.path))


class Registry:
    """The backends of this process: each is made once, when it is first wanted.

    ``discover`` gives the entry points of a group; by default those of the installed distributions, read once.
    """

    def __init__(self, discover: Callable[[str], Iterable[EntryPoint]] = _installed) -> None:
        self._discover = discover
        self._instances: dict[str, Backend] = {}
        self._providers: dict[str, Provider] = {}

    def __repr__(self) -> str:
        return (
            f"<Registry {', '.join(sorted(self.known())) or 'empty'}; in use: {', '.join(self._instances) or 'none'}>"
        )

    @cached_property
    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        by_name: dict[str, list[EntryPoint]] = {}
        for entry in self._discover(BACKENDS_GROUP):
            rivals = by_name.setdefault(entry.name, [])
            # One distribution may be listed twice (installed, and as an editable checkout).
            if all((_distribution(rival), rival.value) != (_distribution(entry), entry.value) for rival in rivals):
                rivals.append(entry)
        return by_name

    def known(self) -> frozenset[str]:
        """The frameworks that can be used here, without their aliases. Imports none of them."""
        return frozenset(self._entry_points) | frozenset(self._instances)

    def found(self) -> Mapping[str, Found]:
        """The entry points by framework: which distribution brought each, and the extra that completes it."""
        return {
            name: Found(name, _distribution(entries[0]), _extra(entries[0]), _aliases(name))
            for name, entries in self._entry_points.items()
        }

    def frameworks(self) -> Frameworks:
        """What the configuration must know of frameworks and providers to check a file."""
        providers = frozenset(entry.name for entry in self._discover(PROVIDERS_GROUP)) | frozenset(self._providers)
        return Frameworks(known=self.known(), aliases=ALIASES, providers=providers)

    def register(self, name: str, backend: Backend) -> None:
        """Use this backend for a framework, in place of an installed one; ``close`` closes it too.

        Raises ``BrokenBackend`` for an object that is none, and for a name whose backend is already in use.
        """
        name = ALIASES.get(name, name)
        _check(backend, name, type(backend).__qualname__)
        if name in self._instances and self._instances[name] is not backend:
            raise BrokenBackend(
                f"the framework {name!r} already has a backend in use; register another one before it is first wanted"
            )
        self._instances[name] = backend

    def get(self, name: str) -> Backend:
        """The backend of a framework, by its name or an alias.

        Raises ``UnknownFramework``; ``MissingDependency`` where a library it needs isn't installed; ``BrokenBackend``
        where its plug-in can't be imported or isn't a backend.
        """
        name = ALIASES.get(name, name)
        backend = self._instances.get(name)
        if backend is None:
            backend = self._instances[name] = _make(name, self._entry_points.get(name, []), self.known())
        return backend

    def register_provider(self, name: str, provider: Provider) -> None:
        """Use this provider of external APIs, in place of an installed one."""
        self._providers[name] = provider

    def provider(self, name: str) -> Provider:
        """A provider of external APIs.

        Raises ``UnknownFramework``; ``BrokenBackend`` where its plug-in can't be imported or isn't a provider.
        """
        if name not in self._providers:
            entries = [entry for entry in self._discover(PROVIDERS_GROUP) if entry.name == name]
            self._providers[name] = _make_provider(name, entries)
        return self._providers[name]

    async def close(self) -> None:
        """Close every backend that was made or registered, the last first; one that fails keeps no other open."""
        while self._instances:
            name, backend = self._instances.popitem()
            try:
                await backend.close()
            except Exception:  # noqa: BLE001 - the others must be closed too
                _log.exception("the backend %s could not be closed; what it held may be left behind", name)


def _make(name: str, entries: list[EntryPoint], known: frozenset[str]) -> Backend:
    if not entries:
        raise UnknownFramework(_unknown(name, known))
    if len(entries) > 1:
        brought = " and ".join(sorted(_distribution(entry) for entry in entries))
        raise BrokenBackend(f"the framework {name!r} is brought by {brought}; uninstall all but one")
    entry = entries[0]
    who = f"the backend {name!r} of {_distribution(entry)}"
    try:
        made = entry.load()()
    except ModuleNotFoundError as error:
        if not _is_library(error.name, entry.module):
            raise BrokenBackend(f"{who} can't be imported: {error}; reinstall or remove it") from error
        extra = _extra(entry)
        what = f"'{_distribution(entry)}[{extra}]'" if extra else error.name
        raise MissingDependency(f"{who} needs {error.name}, which isn't installed: pip install {what}") from error
    except MissingDependency:
        raise
    except Exception as error:
        raise BrokenBackend(
            f"{who} can't be used: {entry.value} failed with {type(error).__name__}: {error}; update or remove it"
        ) from error
    _check(made, name, f"{entry.value} of {_distribution(entry)}")
    backend: Backend = made
    return backend


def _make_provider(name: str, entries: list[EntryPoint]) -> Provider:
    if not entries:
        raise UnknownFramework(f"no plug-in for the provider {name!r} is installed; {bring(name, PROVIDERS_GROUP)}")
    entry = entries[0]
    try:
        made: Provider = entry.load()()
    except Exception as error:
        raise BrokenBackend(
            f"the provider {name!r} of {_distribution(entry)} can't be used: {type(error).__name__}: {error}"
        ) from error
    missing = [method for method in ("takes", "base_url", "connect") if not callable(getattr(made, method, None))]
    if missing:
        raise BrokenBackend(f"{entry.value} is no provider: it has no {', '.join(missing)}")
    return made


def _check(made: Any, name: str, what: str) -> None:
    missing = [method for method in METHODS if not callable(getattr(made, method, None))]
    if isinstance(made, type) or missing:
        lacks = "it is a class, not an instance" if isinstance(made, type) else f"it has no {', '.join(missing)}"
        raise BrokenBackend(f"{what} is no backend for {name!r}: {lacks}; see taskrouter.backends.base.Backend")
    calls = getattr(made, "calls", {})
    if not isinstance(calls, Mapping) or not all(isinstance(call, Call) for call in calls.values()):
        raise BrokenBackend(f"{what} is no backend for {name!r}: its calls must be a Call for each verb of its own")
    taken = sorted(calls.keys() & PASS_THROUGH.union(*VERBS_OF_KIND.values()))
    if taken:
        raise BrokenBackend(f"{what} is no backend for {name!r}: {taken[0]} is a verb of taskrouter's, not its own")


def _unknown(name: str, known: frozenset[str]) -> str:
    if not known:
        return (
            f"no backend for the framework {name!r}, nor any other: taskrouter's own are found once it is installed "
            "(pip install -e . in a checkout)"
        )
    near = nearest(name, known | frozenset(ALIASES))
    meant = f"; did you mean {near}?" if near else "."
    return (
        f"no backend for the framework {name!r}{meant} Installed: {', '.join(sorted(known))}. "
        f"To add it, {bring(name, BACKENDS_GROUP)}."
    )


def _is_library(missing: str | None, plugin_module: str) -> bool:
    """Whether the missing module is something the plug-in needs, rather than the plug-in itself."""
    return missing is not None and missing.split(".")[0] != plugin_module.split(".")[0]


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module.split(".")[0]


def _extra(entry: EntryPoint) -> str:
    if entry.extras:
        return entry.extras[0]
    offered = entry.dist.metadata.get_all("Provides-Extra") if entry.dist is not None else None
    return entry.name if entry.name in (offered or ()) else ""


def _aliases(name: str) -> tuple[str, ...]:
    return tuple(alias for alias, target in ALIASES.items() if target == name)
