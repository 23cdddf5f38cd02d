"""Calls to an external API: what routing, limits and the spend ledger add to the provider's own SDK.

The API is the echo engine, on loopback: it answers at once, so what is seen is what we add. Spend is written to a file.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai

from bench.engines import MESSAGES, our_calls
from bench.measure import Row, show
from taskrouter.backends.engines.backend import free_port
from taskrouter.manager.manager import ModelManager

CALLS, ROUNDS = 300, 7
STREAMS = 1000
ECHO = Path(__file__).with_name("echo_engine.py")
FILE = """
tasks:
  near:
    kind: chat
    selected: big
    fallback: [echo]
    options:
      big: {{model_id: big, framework: fake, vram_gb: 100000, engine_args: {{bytes: 100000GiB}}}}
      echo: &echo
        model_id: echo
        framework: external_api
        provider: openai
        api_endpoint: http://127.0.0.1:{port}/v1
        price: {{input_per_mtok: 1.0, output_per_mtok: 2.0}}
  far: {{kind: chat, selected: echo, options: {{echo: *echo}}}}
providers: {{openai: {{daily_budget_usd: 1000, max_connections: 1100, connect_timeout_s: 60}}}}
"""


async def bare(client: Any, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        await client.chat.completions.create(model="echo", messages=MESSAGES)
        taken.append(time.perf_counter() - start)
    return taken


async def posted(client: Any, count: int) -> list[float]:
    """The same by the SDK's ``post``, without its types, as our connections ask: what is ours alone."""
    taken = []
    response = importlib.import_module(type(openai.DEFAULT_CONNECTION_LIMITS).__module__).Response
    for _ in range(count):
        start = time.perf_counter()
        answer = await client.post("/chat/completions", cast_to=response, body={"model": "echo", "messages": MESSAGES})
        answer.json()
        taken.append(time.perf_counter() - start)
    return taken


async def calls(manager: ModelManager, client: Any) -> list[Row]:
    models = [await manager.get_model(task) for task in ("far", "near")]
    took: list[list[float]] = [[], [], [], []]
    for measured in (False, True):  # the first round warms everything up
        for _ in range(ROUNDS if measured else 1):
            rounds = [
                await bare(client, CALLS),
                await posted(client, CALLS),
                *[await our_calls(model, CALLS) for model in models],
            ]
            if measured:
                for all_, one in zip(took, rounds, strict=True):
                    all_ += one
    base, untyped, alone, second = (statistics.median(each) * 1e3 for each in took)
    sdk, post = "the SDK alone", "the SDK's post alone"
    return [
        Row("a call to an external option, p50", alone, "ms", sdk, base, f"{alone - base:+.3f} ms (≤ 0.3)"),
        Row("the same, as a fallback", second, "ms", sdk, base, f"{second - base:+.3f} ms"),
        Row("a call to an external option, p50", alone, "ms", post, untyped, f"{alone - untyped:+.3f} ms"),
    ]


async def follow(start: Callable[[], Any]) -> tuple[float, float]:
    """Many streams at once: the seconds for all, and the longest gap between two pieces of one."""
    longest, counts = 0.0, []

    async def one() -> None:
        nonlocal longest
        last, count = 0.0, 0
        async with start() as chunks:
            async for _ in chunks:
                now = time.perf_counter()
                longest = max(longest, now - last if count else 0.0)
                last, count = now, count + 1
        counts.append(count)

    begun = time.perf_counter()
    await asyncio.gather(*[one() for _ in range(STREAMS)])
    assert len(counts) == STREAMS
    assert set(counts) == {100}, "every stream had its 100 pieces"
    return time.perf_counter() - begun, longest


async def streams(manager: ModelManager, client: Any) -> list[Row]:
    model = await manager.get_model("far")

    @asynccontextmanager
    async def sdk() -> AsyncIterator[Any]:
        async with await client.chat.completions.create(model="echo", messages=MESSAGES, stream=True) as pieces:
            yield pieces

    base_s, base_gap = await follow(sdk)
    whole_s, gap = await follow(lambda: model.stream_chat(MESSAGES))
    return [
        Row(
            f"{STREAMS} streams of 100 pieces at once, on one loop", whole_s, "s", "the SDK alone", base_s, "all whole"
        ),
        Row("the longest gap between two pieces of one", gap, "s", "the SDK alone", base_gap, "no stream starved"),
    ]


async def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_STATE_HOME"] = name
        port = free_port()
        server = await asyncio.to_thread(subprocess.Popen, [sys.executable, str(ECHO), str(port)])
        try:
            await answering(port)
            file = Path(name) / "models.yaml"
            file.write_text(FILE.format(port=port), encoding="utf-8")
            limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=1100, max_keepalive_connections=1100)
            client = openai.AsyncOpenAI(
                api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0,
                timeout=openai.Timeout(600, connect=60),  # a thousand connections at once
                http_client=openai.DefaultAsyncHttpxClient(limits=limits),
            )  # fmt: skip
            async with ModelManager(file) as manager, client:
                show("routing: calls", await calls(manager, client))
                show("routing: streams", await streams(manager, client))
        finally:
            server.terminate()
            await asyncio.to_thread(server.wait)


async def answering(port: int) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(200):
            try:
                async with session.get(f"http://127.0.0.1:{port}/health"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise RuntimeError("the echo engine doesn't answer")


if __name__ == "__main__":
    asyncio.run(main())
