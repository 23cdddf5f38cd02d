"""The baseline: a proxy of Starlette and aiohttp that looks at nothing. ``--port N --upstream URL``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def app(upstream: str) -> Starlette:
    sessions: list[aiohttp.ClientSession] = []

    async def chat(request: Request) -> Response:
        body = await request.json()
        response = await sessions[0].post("/v1/chat/completions", json=body)
        if body.get("stream"):
            return StreamingResponse(response.content.iter_any(), media_type="text/event-stream")
        return Response(await response.read(), media_type="application/json")

    @asynccontextmanager
    async def living(_: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(upstream, connector=aiohttp.TCPConnector(limit=0)) as session:
            sessions.append(session)
            yield

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])], lifespan=living)


if __name__ == "__main__":
    port, upstream = (sys.argv[sys.argv.index(name) + 1] for name in ("--port", "--upstream"))
    uvicorn.run(app(upstream), host="127.0.0.1", port=int(port), log_level="error", access_log=False)
