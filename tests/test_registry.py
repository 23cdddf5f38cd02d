"""Backends are found by name, made once, and a broken one harms no other."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.registry import ALIASES, Registry
from taskrouter.config.frameworks import BACKENDS_GROUP, PROVIDERS_GROUP
from taskrouter.errors import BrokenBackend, MissingDependency, PreflightFailed, UnknownFramework

FAKE = "taskrouter.backends.fake:FakeBackend"


class Dist(Distribution):
    """An installed distribution that is nowhere on disk."""

    def __init__(self, name: str, *extras: str) -> None:
        self._metadata = "\n".join([f"Name: {name}", *(f"Provides-Extra: {extra}" for extra in extras), "", ""])

    def read_text(self, filename: str) -> str | None:
        return self._metadata if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        return Path(path)


def entry(name: str, value: str, dist: Distribution | None = None) -> EntryPoint:
    found = EntryPoint(name, value, BACKENDS_GROUP)
    vars(found).update(dist=dist or Dist("acme"))
    return found


def registry(*entries: EntryPoint) -> Registry:
    return Registry(lambda group: entries if group == BACKENDS_GROUP else ())


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Put an object into an importable module; gives the entry point's value."""

    def install(made: Any) -> str:
        module = ModuleType("acme_backend")
        vars(module)["Plugin"] = made
        monkeypatch.setitem(sys.modules, "acme_backend", module)
        return "acme_backend:Plugin"

    return install


def test_a_backend_is_made_once_and_only_when_it_is_wanted(plugin: Callable[[Any], str]) -> None:
    made: list[FakeBackend] = []

    def make() -> FakeBackend:
        made.append(FakeBackend())
        return made[-1]

    backends = registry(entry("fake", plugin(make)))
    assert backends.known() == {"fake"}
    assert made == []
    assert backends.get("fake") is backends.get("fake") is made[0]
    assert len(made) == 1
    assert registry(entry("fake", FAKE)).get("fake") is not made[0]


def test_the_installed_distributions_are_asked_once() -> None:
    asked = []

    def discover(group: str) -> Iterable[EntryPoint]:
        asked.append(group)
        return [entry("fake", FAKE)]

    backends = Registry(discover)
    for _ in range(3):
        backends.known()
        backends.found()
        backends.get("fake")
    assert asked == [BACKENDS_GROUP]


def test_an_alias_gives_the_same_backend(plugin: Callable[[Any], str]) -> None:
    backends = registry(entry("transformers", plugin(FakeBackend)))
    assert backends.get("pytorch") is backends.get("transformers")
    assert backends.found()["transformers"].aliases == ("pytorch",)
    assert "pytorch" not in backends.known()


def test_an_unknown_framework_names_the_nearest_and_the_plug_in_point() -> None:
    with pytest.raises(UnknownFramework, match="did you mean fake") as caught:
        registry(entry("fake", FAKE)).get("fakee")
    assert BACKENDS_GROUP in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PreflightFailed)
    with pytest.raises(UnknownFramework) as caught:
        registry(entry("fake", FAKE)).get("whisper")
    assert "did you mean" not in str(caught.value)
    assert "Installed: fake." in str(caught.value)


def test_a_checkout_that_was_never_installed_says_what_to_do() -> None:
    with pytest.raises(UnknownFramework, match=r"pip install -e \."):
        registry().get("fake")


def test_a_missing_library_names_the_extra_that_brings_it() -> None:
    needs = entry("tensors", "acme_missing.backend:Backend", Dist("acme", "tensors"))
    with pytest.raises(BrokenBackend, match="reinstall or remove it"):
        registry(needs).get("tensors")

    with_extra = entry("rocket", "needs_rocket_fuel:Backend", Dist("acme", "rocket"))
    by_value = entry("rocket", "needs_rocket_fuel:Backend [fuel]", Dist("acme"))
    neither = entry("rocket", "needs_rocket_fuel:Backend", Dist("acme"))
    for found, said in (
        (with_extra, r"pip install 'acme\[rocket\]'"),
        (by_value, r"pip install 'acme\[fuel\]'"),
        (neither, "pip install rocket_fuel"),
    ):
        with pytest.raises(MissingDependency, match=said) as caught:
            registry(found).get("rocket")
        assert "needs rocket_fuel, which isn't installed" in str(caught.value)


@pytest.fixture(autouse=True)
def rocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plug-ins on disk: one needs a library that isn't there, one is not even Python."""
    (tmp_path / "needs_rocket_fuel.py").write_text("import rocket_fuel\n")
    (tmp_path / "not_python.py").write_text("this is no Python\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("needs_rocket_fuel", "not_python"):
        monkeypatch.delitem(sys.modules, name, raising=False)


class NoUnload:
    async def load(self) -> None: ...


def explode() -> FakeBackend:
    raise RuntimeError("no licence found")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (explode, "acme_backend:Plugin failed with RuntimeError: no licence found"),
        (NoUnload, "it has no traits, preflight, unload, residue, close"),
        (lambda: FakeBackend, "it is a class, not an instance"),
        (7, "failed with TypeError"),
    ],
)
def test_a_plug_in_that_is_no_backend_names_its_distribution(
    plugin: Callable[[Any], str], made: Any, said: str
) -> None:
    backends = registry(entry("acme", plugin(made)), entry("fake", FAKE))
    with pytest.raises(BrokenBackend) as caught:
        backends.get("acme")
    assert said in str(caught.value)
    assert "acme" in str(caught.value)
    assert isinstance(backends.get("fake"), FakeBackend)


@pytest.mark.parametrize("value", ["not_python:Backend", "acme_backend:Nothing"])
def test_a_plug_in_that_does_not_import_is_broken_and_the_cause_is_chained(
    plugin: Callable[[Any], str], value: str
) -> None:
    plugin(FakeBackend)
    with pytest.raises(BrokenBackend, match="the backend 'acme' of acme can't be used") as caught:
        registry(entry("acme", value)).get("acme")
    assert caught.value.__cause__ is not None


def test_a_framework_that_two_distributions_bring_is_refused_and_names_both() -> None:
    backends = registry(entry("fake", FAKE, Dist("one")), entry("fake", FAKE, Dist("two")))
    with pytest.raises(BrokenBackend, match="one and two"):
        backends.get("fake")
    twice_listed = registry(entry("fake", FAKE, Dist("one")), entry("fake", FAKE, Dist("one")))
    assert isinstance(twice_listed.get("fake"), FakeBackend)


def test_a_registered_backend_replaces_an_installed_one_until_that_is_in_use() -> None:
    backends, mine = registry(entry("fake", FAKE)), FakeBackend()
    backends.register("fake", mine)
    backends.register("fake", mine)
    assert backends.get("fake") is mine
    with pytest.raises(BrokenBackend, match="already has a backend in use"):
        backends.register("fake", FakeBackend())
    backends.register("pytorch", mine)
    assert backends.get("transformers") is mine
    assert backends.known() == {"fake", "transformers"}
    with pytest.raises(BrokenBackend, match="NoUnload is no backend for 'odd'"):
        backends.register("odd", NoUnload())  # type: ignore[arg-type]


def test_the_configuration_is_told_what_is_installed() -> None:
    def discover(group: str) -> Iterable[EntryPoint]:
        names = {BACKENDS_GROUP: ["fake", "rocket"], PROVIDERS_GROUP: ["openai"]}
        return [EntryPoint(name, FAKE, group) for name in names[group]]

    frameworks = Registry(discover).frameworks()
    assert frameworks.known == {"fake", "rocket"}
    assert frameworks.providers == {"openai"}
    assert frameworks.resolve("pytorch") == "transformers"


class Closing(FakeBackend):
    def __init__(self, name: str, journal: list[str], *, fails: bool = False) -> None:
        super().__init__()
        self._name, self._journal, self._fails_to_close = name, journal, fails

    async def close(self) -> None:
        self._journal.append(self._name)
        if self._fails_to_close:
            raise RuntimeError("jammed")


@pytest.mark.anyio
async def test_closing_closes_all_the_last_first_and_one_that_fails_keeps_no_other_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal: list[str] = []
    backends = registry(entry("fake", FAKE))
    for name in ("a", "b", "c"):
        backends.register(name, Closing(name, journal, fails=name == "b"))
    with caplog.at_level(logging.ERROR):
        await backends.close()
        await backends.close()
    assert journal == ["c", "b", "a"]
    assert "the backend b could not be closed" in caplog.text
    assert "jammed" in caplog.text


def test_repr_shows_what_is_installed_and_what_is_in_use() -> None:
    backends = registry(entry("fake", FAKE), entry("rocket", FAKE))
    backends.get("fake")
    assert repr(backends) == "<Registry fake, rocket; in use: fake>"


def test_our_own_entry_points_lead_to_backends() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    ours = project["project"]["entry-points"][BACKENDS_GROUP]
    backends = registry(*(entry(name, value, Dist("taskrouter")) for name, value in ours.items()))
    assert {"fake", "transformers"} <= backends.known()
    assert set(ALIASES.values()) <= backends.known()
    for name in ours:
        assert backends.get(name)
