"""What a client talks to, written from the wire format alone: it answers what a test says, and also misbehaves."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
from aiohttp import web

from taskrouter import connect

BOX = {"left": 1.0, "top": 2.5, "right": 30.0, "bottom": 40.0}
MASK = np.random.default_rng(1).random((11, 13)) > 0.5
DEPTHS = np.linspace(0.25, 9.0, 6, dtype=np.float32).reshape(2, 3)
HEADERS = {"x-taskrouter-option": "best", "x-taskrouter-reason": "selected", "x-taskrouter-waited": "0.000"}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def png(mask: Any) -> str:
    """A mask as the wire has it."""
    written = io.BytesIO()
    PIL.Image.fromarray(mask).convert("1").save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def mask_sent(mask: Any = MASK) -> dict[str, Any]:
    return {"height": mask.shape[0], "width": mask.shape[1], "png": png(mask)}


RESULTS: dict[str, Any] = {
    "request": {"scores": [0.5, None]},
    "weigh": {"grams": 3},
    "chat": {"text": "hi", "finish_reason": "tool_calls", "tool_calls": [{"id": "1"}], "reasoning": "so"},
    "generate": {"text": "on", "finish_reason": "length"},
    "embed": {"vectors": [[0.5, -1.0], [1, 0.25]]},
    "transcribe": {
        "text": "a b", "language": "en", "duration_s": 2.5, "segments": [{"start_s": 0.0, "end_s": 1.5, "text": "a"}]
    },
    "classify": [{"label": "cat", "score": 0.75}, {"label": "dog", "score": 0.25}],
    "detect": [{"label": "cat", "score": 0.75, "box": BOX}],
    "segment": [
        {"label": "cat", "score": 0.5, "box": BOX, "mask": mask_sent()},
        {"label": None, "score": None, "box": BOX, "mask": {"height": 0, "width": 7, "png": ""}},
    ],
    "track": [
        {
            "id": 3, "label": "cat", "sightings": [
                {"frame": 0, "time_s": 0.0, "box": BOX, "score": 0.5, "mask": None},
                {"frame": 1, "time_s": 0.1, "box": BOX, "score": 0.6, "mask": mask_sent()},
            ]
        }
    ],
    "depth": {
        "unit": "m",
        "values": {"shape": [2, 3], "dtype": "float32", "data": base64.b64encode(DEPTHS.tobytes()).decode()},
    },
}  # fmt: skip


@dataclass
class Stub:
    """Where it listens, and what it was asked: method, path, headers, JSON, and files by field."""

    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    answer: Answer | None = None
    """Answers in place of the canned ones."""
    closed: threading.Event = field(default_factory=threading.Event)
    """Set by an answer whose client went away."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        entry: dict[str, Any] = {"method": request.method, "path": request.raw_path, "headers": dict(request.headers)}
        self.seen.append(entry)
        if self.answer is not None:
            return await self.answer(request)
        entry["json"], entry["files"] = await _read(request)
        if request.path.startswith("/v1/tasks/"):
            verb = entry["json"]["verb"]
            body = {"task": "t", "option": "best", "verb": verb, "result": RESULTS[verb]}
            return web.json_response({**body, "usage": {"prompt_tokens": 3, "completion_tokens": 1}}, headers=HEADERS)
        return web.json_response({"ok": True, "text": "because", "data": [{"id": "a"}, {"id": "a/x"}, {"id": "b"}]})


async def _read(request: web.Request) -> tuple[Any, dict[str, Any]]:
    if request.content_type != "multipart/form-data":
        return (await request.json() if request.can_read_body else None), {}
    form = await request.post()
    files: dict[str, Any] = {}
    for name in dict.fromkeys(form):
        read = [each.file.read() for each in form.getall(name) if isinstance(each, web.FileField)]
        files |= {name: read[0] if len(read) == 1 else read} if read else {}
    told = form["request"]
    assert not isinstance(told, web.FileField)
    return json.loads(told), files


@contextmanager
def stub() -> Iterator[Stub]:
    """A stub that listens on loopback until the block is left."""
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]
    it, begun, loops = Stub(), threading.Event(), []

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", it.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        loops.append((asyncio.get_running_loop(), end := asyncio.Event()))
        begun.set()
        await end.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert begun.wait(30)
    try:
        yield it
    finally:
        loop, end = loops[0]
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
    assert not thread.is_alive()


def run(server: Stub, work: Any, **how: Any) -> Any:
    """What a coroutine function of a client comes to."""

    async def main() -> Any:
        async with connect(server.url, **how) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(main(), 60))
