"""A server that answers at once, for measuring what everything around an engine costs: ``echo_engine.py PORT``.

It notes when it turned ready and when its first two requests came (``GET /times``, monotonic seconds).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from aiohttp import web

GAP_S = 0.005
CHUNKS = 100

times: dict[str, list[float]] = {"ready": [], "asked": []}
WHOLE = {
    "choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


async def health(request: web.Request) -> web.Response:
    times["ready"] = times["ready"] or [time.monotonic()]
    return web.Response()


async def seen(request: web.Request) -> web.Response:
    return web.json_response(times)


async def chat(request: web.Request) -> web.StreamResponse:
    times["asked"].append(time.monotonic())
    body = await request.json()
    if not body.get("stream"):
        return web.json_response(WHOLE)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for place in range(CHUNKS):
        await asyncio.sleep(GAP_S)
        text = f"{time.monotonic()} "
        reason = "stop" if place == CHUNKS - 1 else None
        data = {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}
        await response.write(b"data: " + json.dumps(data).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


app = web.Application()
app.add_routes([web.get("/health", health), web.get("/times", seen), web.post("/v1/chat/completions", chat)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
