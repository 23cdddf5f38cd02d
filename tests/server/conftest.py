"""What the tests of the client share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .wire_stub import Stub, stub


@pytest.fixture
def server() -> Iterator[Stub]:
    with stub() as it:
        yield it


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No keys from the environment of whoever runs the tests."""
    monkeypatch.delenv("TASKROUTER_API_KEY", raising=False)
    monkeypatch.delenv("TASKROUTER_ADMIN_KEY", raising=False)
