"""An engine made of nothing: speaks the OpenAI API, and goes wrong in every way it is told to.

Run as a program, ``stub.py --port N``, with nothing but the standard library. ``SETTINGS`` are its flags
(``--ready-after 0.2``), also read from the environment (``STUB_READY_AFTER``); ``--next FILE`` names a JSON file of
settings that the next start takes, once. What goes wrong later is told by ``POST /stub/fault`` (see ``Faults``), and
``GET /stub/state`` says what it was asked.

Like an engine it is a tree: a child and a grandchild, through which every health check and every call has to go; it
holds a segment in ``/dev/shm`` and a file in its TMPDIR. As with engines, the children don't end when the first process
is killed, and the first ends when one of them does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from tests.engines.stub_answers import Answer, embeddings
from tests.engines.stub_family import Family, say
from tests.engines.stub_http import Connection
from tests.engines.stub_sleep import Sleep

STARTED = time.monotonic()
SETTINGS: dict[str, Any] = {
    "port": 0,
    "model": "stub",
    "api_key": "",  # when given, /v1/… wants it
    "ready_after": 1.0,  # seconds from its start to the first healthy answer
    "bind_after": 0.0,  # seconds from its start until it takes its port
    "token_s": 0.0,  # seconds between two words of an answer
    "exit_at_start": "",  # these words on stderr instead of serving
    "exit_status": 3,
    "never_ready": False,
    "ignore_sigterm": False,
    "stderr_bytes": 0,  # so much is printed before it is ready
    "sleeps": "",  # as vllm or as sglang (stub_sleep.py)
    "weights": 0,  # bytes it holds in RAM while it sleeps
    "linger": 0.0,  # as sglang: seconds until it notices that a caller has gone away
    "faults": [],
    "announce": "",  # a file that is told its pid and port before it binds
    "next": "",
}


class Faults:
    """What goes wrong, as ``{"name": …, "times": …}``; without ``times`` until ``{"name": "none"}`` clears everything.

    On calls: ``slow`` (``seconds`` before the answer), ``hang`` (no answer), ``garbage`` (no JSON), ``cut`` (the
    connection breaks in mid-answer), ``cut_stream`` (``after`` pieces; 0: before the first byte), ``no_done`` (a stream
    ends without ``[DONE]``), ``status`` (an OpenAI error of that ``status``). On health checks: ``health_hang``,
    ``health_status``. Where it is told to sleep (or to ``wake``): ``sleep_status``, ``sleep_hang``, ``sleep_exit``,
    ``sleep_lies`` (it says that it does, and doesn't). At once: ``stderr`` (prints so many ``bytes``), ``exit`` (with
    ``status``, saying ``text``), ``ignore_sigterm``.
    """

    def __init__(self) -> None:
        self.active: list[dict[str, Any]] = []

    def add(self, fault: dict[str, Any]) -> None:
        name = fault["name"]
        if name == "none":
            self.active.clear()
        elif name == "stderr":
            flood(fault["bytes"])
        elif name == "exit":
            say(fault.get("text", "told to"))
            os._exit(fault.get("status", 1))
        elif name == "ignore_sigterm":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        else:
            self.active.append(dict(fault))

    def take(self, *names: str) -> dict[str, Any] | None:
        """The first active fault of these names; one that was to happen so often is used up."""
        for fault in self.active:
            if fault["name"] in names:
                if fault.get("times") is not None:
                    fault["times"] -= 1
                    if fault["times"] <= 0:
                        self.active.remove(fault)
                return fault
        return None


class Stub:
    def __init__(self, settings: dict[str, Any], family: Family) -> None:
        self.settings = settings
        self.family = family
        self.faults = Faults()
        self.running = self.aborted = self.started = 0
        self.requests: deque[dict[str, Any]] = deque(maxlen=2000)
        self.calls: set[asyncio.Task[Any]] = set()
        self.sleep = Sleep(self, settings["sleeps"], settings["weights"], settings["linger"])

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        self.family.attach()
        loop.add_signal_handler(signal.SIGTERM, (lambda: None) if self.settings["ignore_sigterm"] else self.end)
        for fault in self.settings["faults"]:
            self.faults.add(fault)
        await asyncio.sleep(max(STARTED + self.settings["bind_after"] - time.monotonic(), 0))
        server = await loop.create_server(
            lambda: Connection(self.handle), "127.0.0.1", self.settings["port"], backlog=512
        )
        await server.serve_forever()

    def end(self) -> None:
        self.family.clean()
        os._exit(0)

    @property
    def ready(self) -> bool:
        return not self.settings["never_ready"] and time.monotonic() >= STARTED + self.settings["ready_after"]

    def state(self) -> dict[str, Any]:
        return {
            "running": self.running,
            "aborted": self.aborted,
            "started": self.started,
            "requests": list(self.requests),
            "pids": [os.getpid(), self.family.child, self.family.grandchild],
            "segment": self.family.segment,
            "scratch": self.family.scratch,
            "argv": sys.argv[1:],
            "environ": dict(os.environ),
            "faults": self.faults.active,
            "asleep": self.sleep.asleep,
            "told": self.sleep.told,
        }

    def abort(self) -> None:
        for call in self.calls:
            call.cancel()

    async def handle(self, http: Connection, method: str, path: str, key: str, raw: bytes) -> None:
        if path == "/stub/state":
            http.answer(200, self.state())
        elif path == "/stub/fault":
            self.faults.add(json.loads(raw))
            http.answer(200, {})
        elif path == "/health":
            if self.faults.take("health_hang"):
                await asyncio.Future()
            if self.settings["sleeps"] == "sglang":
                await self.sleep.before_computing()
            await self.family.ping()
            fault = self.faults.take("health_status")
            http.answer(fault["status"] if fault else 200 if self.ready else 503, {})
        elif self.settings["api_key"] and key != f"Bearer {self.settings['api_key']}":
            http.refuse(401, "that is not the API key")
        elif await self.sleep.answer(http, method, path, raw):
            return
        elif (method, path) == ("GET", "/v1/models"):
            http.answer(200, {"object": "list", "data": [{"id": self.settings["model"], "object": "model"}]})
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            await self.count(http, path, json.loads(raw))
        else:
            http.refuse(404, f"there is no {method} {path}")

    async def count(self, http: Connection, path: str, body: dict[str, Any]) -> None:
        self.running += 1
        self.started += 1
        seen = {"at": time.time(), "path": path, "body": body, "ended": None}
        self.requests.append(seen)
        here = asyncio.current_task()
        assert here is not None
        self.calls.add(here)
        try:
            await self.call(http, path, body)
            seen["ended"] = "answered"
        except asyncio.CancelledError:
            self.aborted += 1
            seen["ended"] = "aborted"
            self.sleep.abandoned()
            raise
        finally:
            self.calls.discard(here)
            self.running -= 1

    async def call(self, http: Connection, path: str, body: dict[str, Any]) -> None:
        await self.sleep.before_computing()
        if (fault := self.faults.take("slow")) is not None:
            await asyncio.sleep(fault["seconds"])
        await asyncio.sleep(body.get("stub_slow_s", 0))
        if self.faults.take("hang"):
            await asyncio.Future()
        await self.family.ping()
        if body.get("model") != self.settings["model"]:
            http.refuse(404, f"there is no model {body.get('model')!r}")
        elif (fault := self.faults.take("status")) is not None:
            http.refuse(fault["status"], fault.get("message", "told to"))
        elif path == "/v1/embeddings":
            self.give(http, embeddings(body))
        elif body.get("stream"):
            await self.stream(http, path, body)
        else:
            answer = Answer(path, body)
            if self.sleep.lost:
                answer.pieces = ["!" for _ in answer.pieces]
            for _ in answer.pieces:
                await asyncio.sleep(self.pause(body))
            self.give(http, answer.whole())

    def pause(self, body: dict[str, Any]) -> float:
        return float(body.get("stub_token_s", self.settings["token_s"]))

    def give(self, http: Connection, data: dict[str, Any]) -> None:
        fault = self.faults.take("garbage", "cut")
        if fault is None:
            http.answer(200, data)
        elif fault["name"] == "garbage":
            http.send(200, b'{"choices": [{"message": {"content": "\xff', b"application/json")
        else:
            http.cut(200, json.dumps(data).encode())

    async def stream(self, http: Connection, path: str, body: dict[str, Any]) -> None:
        cut = self.faults.take("cut_stream")
        after = None if cut is None else cut.get("after", 1)
        if after == 0:
            http.break_off()
        http.begin_stream()
        garbage = self.faults.take("garbage") is not None
        for number, event in enumerate(Answer(path, body).events()):
            if number == after:
                http.break_off()
            if garbage and number == 2:
                http.piece(b'data: {"choices": [\n\n')
                continue
            http.piece(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(self.pause(body))
            await http.drained()
        if self.faults.take("no_done") is None:
            http.piece(b"data: [DONE]\n\n")
        http.end_stream()


def flood(size: int) -> None:
    line = "x" * 99 + "\n"
    sys.stderr.write(line * (size // len(line)))
    sys.stderr.flush()


def read_settings(words: list[str], environ: dict[str, str]) -> dict[str, Any]:
    """Flags over environment over defaults; what the next start was to be told goes over all."""
    settings = dict(SETTINGS)
    for name in SETTINGS:
        if f"STUB_{name.upper()}" in environ:
            settings[name] = _parsed(name, environ[f"STUB_{name.upper()}"])
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        settings[name] = True if SETTINGS[name] is False else _parsed(name, words.pop(0))
    if settings["next"]:
        mine = f"{settings['next']}.{os.getpid()}"
        try:
            os.rename(settings["next"], mine)
        except FileNotFoundError:
            return settings
        with open(mine, encoding="utf-8") as file:
            settings |= json.load(file)
        os.unlink(mine)
    return settings


def _parsed(name: str, text: str) -> Any:
    default = SETTINGS[name]
    parse: Callable[[str], Any] = str if isinstance(default, str) else type(default)
    return json.loads(text) if isinstance(default, bool | list) else parse(text)


def main() -> None:
    settings = read_settings(sys.argv[1:], dict(os.environ))
    flood(settings["stderr_bytes"])
    if settings["exit_at_start"]:
        say(settings["exit_at_start"])
        sys.exit(settings["exit_status"])
    stub = Stub(settings, Family(deaf=settings["ignore_sigterm"]))
    if settings["announce"]:
        fresh = f"{settings['announce']}.{os.getpid()}"
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "port": settings["port"]}, file)
        os.rename(fresh, settings["announce"])
    try:
        asyncio.run(stub.serve())
    except OSError as error:
        say(str(error))
        stub.family.clean()
        os._exit(1)


if __name__ == "__main__":
    main()
