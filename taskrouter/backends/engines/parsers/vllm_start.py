"""Run by vLLM's interpreter in place of ``-m vllm.entrypoints.openai.api_server``: everything it serves wants the key.

vLLM 0.32 asks for its API key under ``/v1``, ``/v2``, ``/inference`` and ``/cohere`` only (``GUARDED_PREFIX`` of
``entrypoints/serve/middleware/authenticate.py``). Its metrics, and what ``VLLM_SERVER_DEV_MODE`` opens so that it can
be put to sleep (any method of any worker can be called there), it would give to everybody on this machine.

Stands alone: nothing of taskrouter is there.
"""

import hmac
import json
import os
import runpy
import sys
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
NAME = "taskrouter_start"
MODULE = "vllm.entrypoints.openai.api_server"


class Guard:
    """ASGI middleware: whoever doesn't show the key is refused."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.shown = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or self.knows(scope["headers"]):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = json.dumps({"error": {"message": "that is not the API key", "type": "Unauthorized"}}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def knows(self, headers: Any) -> bool:
        given = [value for name, value in headers if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.shown)


if __name__ == "__main__":
    # In this folder a module is called vllm, too.
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != FOLDER]
    sys.modules[NAME] = sys.modules["__main__"]
    # The last one named is the outermost.
    sys.argv += ["--middleware", f"{NAME}.Guard"]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
