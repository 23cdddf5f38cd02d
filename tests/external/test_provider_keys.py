"""``validate --check-keys``: each provider is asked for its models, with the key, by its own SDK."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.registry import Registry
from taskrouter.config import load_catalog
from taskrouter.manager.keys import KeyState, check_keys

from .subjects import SUBJECTS, Subject
from .wire import Reply, Wire, answer, serving

each = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
MODELS: dict[str, Any] = {
    "anthropic": {"data": [], "has_more": False, "first_id": None, "last_id": None},
    "openai": {"object": "list", "data": []},
    "google": {"models": []},
}


async def state(subject: Subject, wire: Wire | None, folder: Path, *, needs: bool = True) -> list[tuple[str, str]]:
    option = {
        "model_id": subject.model,
        "framework": "external_api",
        "provider": subject.name,
        "api_endpoint": (wire.url if wire else "http://127.0.0.1:9") + subject.base,
        "requires_api_key": needs,
        "api_key_env": "OUR_KEY",
    }
    tasks = {name: {"selected": "far", "options": {"far": option}} for name in ("t", "u")}
    (folder / "models.yaml").write_text(json.dumps({"tasks": tasks}))
    registry = Registry()
    catalog = load_catalog(folder / "models.yaml", frameworks=registry.frameworks())
    found = await check_keys(catalog, registry)
    assert all(check.options == ("t/far", "u/far") for check in found)
    return [(check.state.value, check.text) for check in found]


@each
@pytest.mark.anyio
async def test_a_key_that_is_taken_is_asked_about_once(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "test-key-1")
    async with serving() as wire:
        wire.script(answer(MODELS[subject.name]))
        assert await state(subject, wire, tmp_path) == [(KeyState.TAKEN.value, "")]
        (seen,) = wire.requests
        assert (seen.method, "models" in seen.path) == ("GET", True)
        assert "test-key-1" in str(seen.headers)


@each
@pytest.mark.anyio
async def test_a_key_that_is_refused_or_missing_is_said_so_by_its_variable(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUR_KEY", raising=False)
    assert await state(subject, None, tmp_path) == [(KeyState.MISSING.value, "set OUR_KEY")]
    assert await state(subject, None, tmp_path, needs=False) == []
    monkeypatch.setenv("OUR_KEY", "test-key-1")
    async with serving() as wire:
        wire.script(answer(subject.error(401, "invalid key"), 401))
        ((what, text),) = await state(subject, wire, tmp_path)
    assert what == KeyState.REFUSED.value
    assert "invalid key" in text
    assert "Its key comes from OUR_KEY" in text
    assert "test-key-1" not in text


@each
@pytest.mark.anyio
async def test_a_provider_that_can_not_be_asked_leaves_its_key_unchecked(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "test-key-1")
    ((what, text),) = await state(subject, None, tmp_path)
    assert (what, bool(text)) == (KeyState.UNCHECKED.value, True)
    for reply in (Reply(b"<html>a login page</html>", content_type="text/html"), answer([1])):
        async with serving() as wire:
            wire.script(reply)
            ((what, text),) = await state(subject, wire, tmp_path)
        assert what == KeyState.UNCHECKED.value
        assert "answered with something else than its API has" in text
        assert "Is api_endpoint right?" in text
