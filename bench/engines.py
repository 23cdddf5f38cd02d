"""Engines: what it costs to be started, called and streamed through the manager, against talking to them directly.

The echo engine answers at once, so it shows what we add; vLLM on this machine's CPU shows the start, where its
environment is installed (``make test`` puts it into ``.venv/engines``).
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from bench.measure import Row, show
from taskrouter.backends.engines.backend import environment, free_port
from taskrouter.backends.engines.launch import Place, Start
from taskrouter.backends.engines.vllm import VllmBackend
from taskrouter.manager import ModelManager
from taskrouter.memory.devices import discover
from taskrouter.types import CPU, GIB, ModelRequest

CALLS = 1500
ROUNDS = 5
STARTS = 3
ECHO = Path(__file__).with_name("echo_engine.py")
ENGINES = Path(sys.prefix) / "engines"
MESSAGES = [{"role": "user", "content": "hi"}]
SAMPLE = Path(__file__).parents[1] / "taskrouter" / "samples" / "claims"

FILE = """
tasks:
  echo:
    kind: chat
    selected: echo
    options:
      echo: {{model_id: echo, framework: command, command: ["{python}", "{echo}", "{{port}}"], vram_gb: 0.1}}
  claims:
    kind: chat
    selected: claims
    max_wait_s: 600
    options:
      claims:
        model_id: {sample}
        framework: vllm
        vram_gb: 3
        max_context: 256
        dtype: float32
        engine_args: {{enforce-eager: true}}
        env: {{VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: "1"}}
engines: {{vllm: {{python: "{vllm}"}}}}
inference: {{warmup_on_startup: false}}
"""


async def direct_calls(session: aiohttp.ClientSession, count: int) -> list[float]:
    body = {"model": "echo", "messages": MESSAGES, "temperature": 0.0}
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        async with session.post("/v1/chat/completions", json=body) as response:
            await response.json()
        taken.append(time.perf_counter() - start)
    return taken


async def our_calls(model: Any, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        await model.chat(MESSAGES)
        taken.append(time.perf_counter() - start)
    return taken


async def direct_delays(session: aiohttp.ClientSession) -> list[float]:
    """Seconds from the server's writing a chunk to its arrival, parsed."""
    found = []
    async with session.post("/v1/chat/completions", json={"stream": True, "messages": MESSAGES}) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                text = json.loads(line[6:])["choices"][0]["delta"]["content"]
                found.append(time.monotonic() - float(text))
    return found


async def our_delays(model: Any) -> list[float]:
    async with model.stream_chat(MESSAGES) as chunks:
        return [time.monotonic() - float(chunk.text) async for chunk in chunks if chunk.finish_reason is None]


async def echo_rows(file: Path) -> list[Row]:
    async with ModelManager(file) as manager:
        model = await manager.get_model("echo")
        await model.chat(MESSAGES)
        async with manager.lease("echo") as lease:
            base = lease.raw.base_url
        direct, ours, direct_late, ours_late = [], [], [], []
        async with aiohttp.ClientSession(base) as session:
            async with session.get("/times") as response:
                times = await response.json()
            for _ in range(ROUNDS):
                direct += await direct_calls(session, CALLS)
                ours += await our_calls(model, CALLS)
                direct_late += await direct_delays(session)
                ours_late += await our_delays(model)
    dispatched = times["asked"][1] - times["ready"][0]
    late, base_late = statistics.quantiles(ours_late, n=100), statistics.quantiles(direct_late, n=100)
    call, base_call = statistics.median(ours) * 1e3, statistics.median(direct) * 1e3
    return [
        Row("engine ready to first request dispatched, warm-up included", dispatched * 1e3, "ms", "", None, "≤ 50 ms"),
        Row("a warm call, p50", call, "ms", "aiohttp directly", base_call, f"+ {call - base_call:.3f} ms (≤ 0.3)"),
        Row("a chunk written to handed out, p50", late[49] * 1e3, "ms", "aiohttp directly", base_late[49] * 1e3, ""),
        Row("a chunk written to handed out, p99", late[98] * 1e3, "ms", "aiohttp directly", base_late[98] * 1e3, ""),
    ]  # fmt: skip


async def first_token_ours(file: Path) -> float:
    async with ModelManager(file) as manager:
        start = time.perf_counter()
        model = await manager.get_model("claims")
        async with model.stream_chat(MESSAGES, max_tokens=4) as chunks:
            await anext(chunks)
            return time.perf_counter() - start


async def first_token_by_hand(file: Path) -> float:
    """The same flags, started with nothing in between; asked as soon as its health path answers."""
    manager = ModelManager(file)
    request: ModelRequest = manager._requests[manager.target("claims").key]
    backend = VllmBackend()
    checkpoint = await backend.adapter.examine(request)
    total = discover()[-1].total
    start = Start((Place(CPU, "", total, total, 3 * GIB),), free_port(), "claims", "key")
    launch = backend.adapter.launch(request, checkpoint, start)
    env = environment(request, launch)
    begun = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = await asyncio.to_thread(subprocess.Popen, launch.argv, env=env, **quiet)
    try:
        headers = {"Authorization": "Bearer key"}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{start.port}", headers=headers) as session:
            while True:
                try:
                    async with session.get("/health") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.005)
            body = {"model": "claims", "messages": MESSAGES, "stream": True, "temperature": 0, "max_tokens": 4}
            async with session.post("/v1/chat/completions", json=body) as response:
                async for line in response.content:
                    if b'"content"' in line:
                        return time.perf_counter() - begun
        raise RuntimeError("no token came")
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def start_rows(file: Path) -> list[Row]:
    # The first start lets vLLM's parser read the command line; what it took is remembered, as on a second start.
    await first_token_ours(file)
    ours, by_hand = [], []
    for _ in range(STARTS):
        by_hand.append(await first_token_by_hand(file))
        ours.append(await first_token_ours(file))
    allowed = 1.03 * statistics.median(by_hand) + 0.1
    return [Row("get_model to first token, vLLM on CPU", statistics.median(ours), "s", "started by hand",
                statistics.median(by_hand), f"≤ 1.03 × + 100 ms ({allowed:.2f} s)")]  # fmt: skip


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_STATE_HOME"] = name
        file = Path(name) / "models.yaml"
        vllm = ENGINES / "vllm" / "bin" / "python"
        file.write_text(FILE.format(python=sys.executable, echo=ECHO, sample=SAMPLE, vllm=vllm), encoding="utf-8")
        show("engines: calls", await echo_rows(file))
        if vllm.exists():
            show("engines: starts", await start_rows(file))
        else:
            print("no vLLM in .venv/engines: its start was not measured; `make test` installs it")


if __name__ == "__main__":
    asyncio.run(main())
