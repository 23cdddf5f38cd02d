"""What the tests of the server and of its client share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from .administering import TASKS
from .reading import ReadingBackend
from .serving import Served, keys, serving, written
from .task_server import task_client
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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The tasks that are administered."""
    return written(tmp_path, TASKS, memory={"devices": {"cpu": {"budget": "8GiB"}}, "min_residency_s": 0})


@pytest.fixture
def served(file: Path) -> Iterator[Served]:
    """A server of them, with keys; modules that want another one have their own."""
    with serving(file, keys()) as server:
        yield server


@pytest.fixture
def backend(served: Served) -> ReadingBackend:
    """Of a server of ``task_server``: what it has read is forgotten."""
    assert isinstance(served.backend, ReadingBackend)
    served.backend.read.clear()
    return served.backend


@pytest.fixture
def client(served: Served) -> Iterator[httpx2.Client]:
    """A client of such a server's tasks."""
    with task_client(served) as found:
        yield found
