"""A server whose models are leased by hand, by several keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskrouter.backends.fake import FakeBackend

from .administering import CLAUDE, shared
from .holding import leases, task
from .serving import Served, keys, serving, written
from .test_streams import seen

OTHER, ONE_ONLY = "another-long-enough-key", "a-key-for-one-at-a-time"
TASKS: dict[str, Any] = {
    "say": task("parrot", slots=1),
    "two": {
        "kind": "chat", "selected": "bad", "fallback": ["good"],
        "options": {**task("bad", fail="error")["options"], **task("good")["options"]},
    },
    "cold": {**task("ice", hang="load"), "max_wait_s": 30},
    "slow": task("slug", hang="call"),
    "broken": task("shard", fail="error"),
    "huge": task("giant", 100),
    "far": {"kind": "chat", "selected": "out", "options": {"out": {**CLAUDE, "requires_api_key": True}}},
}  # fmt: skip


@contextmanager
def lease_server(folder: Path) -> Iterator[Served]:
    """Serve them; in the end nobody may hold anything."""
    file = folder / "keys.yaml"
    rows = [
        {"name": "other", "key": OTHER, "tasks": ["say"]},
        {"name": "single", "key": ONE_ONLY, "max_concurrency": 1},
    ]
    file.write_text(json.dumps(rows))
    sections = {"memory": {"devices": {"cpu": {"budget": "8GiB"}}, "min_residency_s": 0}, "default_task": "say"}
    with serving(written(folder, TASKS, **sections), keys(file=file), fake=FakeBackend()) as server:
        yield server
        if not server.server.should_exit:
            seen(lambda: leases(server) == 0)
    assert list(shared(server).leases) == []
    assert server.manager.leases == {}
    assert not shared(server).limits._at_work
