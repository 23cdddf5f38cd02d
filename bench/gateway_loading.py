"""Hot traffic through the gateway while a model of 1 GB loads: what its callers notice of it.

Eight connections ask an engine (``bench/gateway_upstream.py``) through ``taskrouter serve``; meanwhile the admin API
loads and unloads a Transformers model, in the server's own process or in one of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from bench.gateway import BODY, ROOT, started
from bench.loading import make_checkpoint
from bench.measure import Row, show

ADMIN = "the-admin-key-of-a-bench"
URL = "http://127.0.0.1:8907"
CONNECTIONS, LOADS, QUIET_S = 8, 4, 8.0


async def hot(stop: asyncio.Event) -> list[float]:
    """Milliseconds of each call, by so many callers that ask again at once."""
    import aiohttp

    taken: list[float] = []
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(URL) as session:

        async def caller() -> None:
            while not stop.is_set():
                begun = loop.time()
                async with session.post("/v1/chat/completions", json=BODY) as answer:
                    await answer.read()
                    assert answer.status == 200
                taken.append((loop.time() - begun) * 1000)

        await asyncio.gather(*[caller() for _ in range(CONNECTIONS)])
    return taken


def tell(path: str, body: Any) -> None:
    headers = {"authorization": f"Bearer {ADMIN}", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(URL + path, json.dumps(body).encode(), headers), timeout=120):
        pass


async def measured(task: str | None) -> list[float]:
    """The calls while ``task`` is loaded and unloaded again and again; ``None``: while nothing is."""
    stop = asyncio.Event()
    asking = asyncio.ensure_future(hot(stop))
    if task is None:
        await asyncio.sleep(QUIET_S)
    for _ in range(LOADS if task else 0):
        await asyncio.to_thread(tell, f"/admin/tasks/{task}/load", {"wait": True})
        await asyncio.to_thread(tell, f"/admin/tasks/{task}/unload", {})
    stop.set()
    return sorted(await asking)


def share(taken: list[float], part: float) -> float:
    return taken[min(int(len(taken) * part), len(taken) - 1)]


async def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_checkpoint(folder / "big")
        command = [sys.executable, str(ROOT / "bench" / "gateway_upstream.py"), "--port", "{port}"]
        big = {"model_id": str(folder / "big"), "framework": "transformers", "dtype": "float32"}
        tasks = {
            "say": {"framework": "command", "model_id": "m", "vram_gb": 0.1, "command": command},
            "inside": big,
            "apart": {**big, "isolation": "process"},
        }
        whole = {
            "tasks": {name: {"selected": "it", "options": {"it": option}} for name, option in tasks.items()},
            "memory": {"devices": {"cpu": {"budget": "8GiB"}}},
            "inference": {"warmup_on_startup": False},
        }
        file = folder / "models.yaml"
        file.write_text(json.dumps(whole))
        serve = [str(Path(sys.executable).parent / "taskrouter"), "serve", str(file), "--port", URL.rpartition(":")[2]]
        env = {"XDG_STATE_HOME": str(folder / "state"), "TASKROUTER_ADMIN_KEY": ADMIN, "OMP_NUM_THREADS": "1"}
        with started("taskrouter", serve, URL, {**os.environ, **env}):
            await measured("inside")  # torch is imported
            quiet = await measured(None)
            rows = []
            for task, where in (("inside", "in the server's process"), ("apart", "in a process of its own")):
                taken = await measured(task)
                for part in (0.5, 0.99, 1.0):
                    name = {0.5: "median", 0.99: "p99", 1.0: "longest"}[part]
                    rows.append(Row(f"{name} of {len(taken):,} calls, loading {where}", share(taken, part), "ms",
                                    "while nothing loads", share(quiet, part), ""))  # fmt: skip
        show("hot calls through the gateway while 1 GB loads", rows)
