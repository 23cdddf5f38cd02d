"""What can go wrong with the stub beside being killed: faults of ``chaos``, told over HTTP or before it starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import watch
from .chaos import KILLS, Act, Chaos, Fault, Kinds, send
from .subjects import STUB

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ANNOUNCED_S = 8.0


def write_config(folder: Path, *, models: int, gib: float, **option: Any) -> Path:
    """Tasks ``a``, ``b``, … of one stub each, on the ``cpu`` device."""
    tasks = {}
    for name in "abcdefgh"[:models]:
        words = ["--port", "{port}", "--model", "{model_id}", "--api-key", "{api_key}", "--ready-after", "0.3"]
        words += ["--token-s", "0.004", "--next", str(folder / f"{name}.next")]
        command = [sys.executable, str(STUB), *words]
        each = {"model_id": f"stub-{name}", "framework": "command", "command": command, "vram_gb": gib, **option}
        tasks[name] = {"selected": name, "options": {name: each}, "max_wait_s": 12}
    sections = {
        "engines": {"command": {"hang_timeout_s": 1.5, "start_timeout_s": 20}},
        "memory": {"min_residency_s": 0, "claim_s": 1},
        "inference": {"offload_threshold": 1.0, "warmup_on_startup": False},
    }
    file = folder / "models.yaml"
    file.write_text(json.dumps({"tasks": tasks, **sections}), encoding="utf-8")
    return file


def ask(dice: random.Random, task: str) -> tuple[str, str | None]:
    """A few words, and what the stub of this task must say to them: its own name shows that no other answered."""
    text = " ".join(dice.choices(WORDS, k=dice.randint(1, 20)))
    return text, f"stub-{task} heard: {text}"


def more_acts(chaos: Chaos) -> list[Act]:
    """The verbs that only some engines have."""

    async def generate(dice: random.Random, task: str) -> None:
        text, expected = ask(dice, task)
        async with chaos.manager.lease(task) as model:
            chaos.check((await model.generate(text)).text, expected)

    async def embed(dice: random.Random, task: str) -> None:
        text, _ = ask(dice, task)
        found = await (await chaos.manager.get_model(task)).embed([text, "x"])
        assert [vector[0] for vector in found.vectors] == [float(len(text)), 1.0], found

    async def request(dice: random.Random, task: str) -> None:
        models = await (await chaos.manager.get_model(task)).request("/v1/models")
        chaos.check(models["data"][0]["id"], f"stub-{task}")

    return [generate, embed, request]


# --- while it serves -----


def tell(name: str, **how: Any) -> Fault:
    """Tell one that serves what will go wrong; a list stands for one of its members."""

    async def fault(chaos: Chaos) -> None:
        chosen = {key: chaos.dice.choice(value) if isinstance(value, list) else value for key, value in how.items()}
        root = await chaos.somebody()
        words = watch.command(root).split() if root is not None else []
        if "--port" in words:
            with contextlib.suppress(OSError, TimeoutError):
                await post(int(words[words.index("--port") + 1]), {"name": name, **chosen})

    return fault


async def post(port: int, body: dict[str, Any]) -> None:
    async with asyncio.timeout(1):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            raw = json.dumps(body).encode()
            writer.write(b"POST /stub/fault HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
            await reader.read(1)
        finally:
            writer.close()


# --- at its next start -----


def at_start(**settings: Any) -> Fault:
    """The next start of somebody goes wrong; it is made to start again."""

    async def fault(chaos: Chaos) -> None:
        await start_again(chaos, settings)

    return fault


async def start_again(chaos: Chaos, settings: dict[str, Any]) -> Path:
    """What the next start of some task is told; whoever serves that task now is killed."""
    task = chaos.dice.choice(list(chaos.manager.tasks))
    folder = chaos.folder
    fresh = folder / f"{task}.fresh"
    told = folder / f"{task}.{time.monotonic_ns()}.announced"
    if settings.get("announce"):
        settings = {**settings, "announce": str(told)}
    fresh.write_text(json.dumps(settings), encoding="utf-8")
    fresh.replace(folder / f"{task}.next")
    for root in chaos.run.engines():
        if f"--model stub-{task} " in watch.command(root):
            chaos.hit(root)
            send([root], signal.SIGKILL)
    return told


async def take_port(chaos: Chaos) -> None:
    """A stranger listens on the port that was picked: it says it is well, or nothing, or it leaves."""
    told = await start_again(chaos, {"bind_after": 0.4, "announce": True})
    chaos.spawn(stranger(told, chaos.dice.choice(["lies", "lies", "mute", "leaves"]), chaos.dice.choice([0.6, 2.0])))


async def stranger(told: Path, manner: str, stays_s: float) -> None:
    end = time.monotonic() + ANNOUNCED_S
    while not told.exists():
        if time.monotonic() > end:
            return
        await asyncio.sleep(0.005)
    port = json.loads(told.read_text(encoding="utf-8"))["port"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while manner != "leaves" and await reader.read(4096):
                if manner == "lies":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            ours.bind(("127.0.0.1", port))
        except OSError:
            return  # it was quicker
        server = await asyncio.start_server(answer, sock=ours)
        await asyncio.sleep(stays_s)
        server.close()


# --- the disk of the logs -----


def fill(disk: Path | None) -> Fault:
    """No room where logs and the state file are, for a while; somebody prints much just then."""

    async def fault(chaos: Chaos) -> None:
        if disk is not None and not (ballast := disk / "ballast").exists():
            await asyncio.to_thread(write_until_full, ballast)
            chaos.after(chaos.dice.choice([1, 3]), lambda: ballast.unlink(missing_ok=True))
        await tell("stderr", bytes=1 << 20)(chaos)

    return fault


def write_until_full(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)


@contextlib.contextmanager
def log_disk(state: Path, labels: list[str], pid: int) -> Iterator[Path | None]:
    """A small disk for logs and the state file; where none can be had, logs that are full from the first byte."""
    with watch.small_disk(state, 4 << 20) as mounted:
        if not mounted:
            (state / "taskrouter" / "logs").mkdir(parents=True)
            for label in labels:
                (state / "taskrouter" / "logs" / f"{label}.{pid}.log").symlink_to("/dev/full")
        yield state if mounted else None


def kinds(disk: Path | None) -> Kinds:
    """All of it. Never being ready is left out: it costs ``start_timeout_s`` each time, and has a test of its own."""
    return {**KILLS, **SICK, "disk full": (2, fill(disk))}


SICK: Kinds = {
    "slow": (2, tell("slow", seconds=[0.2, 1.0], times=[1, 4])),
    "garbage": (2, tell("garbage", times=[1, 3])),
    "cut": (2, tell("cut", times=[1, 3])),
    "cut stream": (2, tell("cut_stream", after=[0, 1, 3], times=[1, 3])),
    "no done": (1, tell("no_done", times=[1, 3])),
    "error": (2, tell("status", status=[400, 404, 429, 500, 503], times=[1, 3])),
    "sick": (1, tell("health_status", status=[500, 503], times=[1, 3])),
    "silent health": (1, tell("health_hang", times=[1, 99])),
    "deaf": (1, tell("ignore_sigterm")),
    "exit": (1, tell("exit", status=[0, 1, 77], text="I can't go on")),
    "much output": (1, tell("stderr", bytes=4 << 20)),
    "port taken": (3, take_port),
    "dies at start": (2, at_start(exit_at_start="no such layer")),
    "out of memory at start": (1, at_start(exit_at_start="torch.OutOfMemoryError: CUDA out of memory")),
    "slow start": (1, at_start(ready_after=2.0)),
    "deaf from its start": (1, at_start(ignore_sigterm=True)),
    "talks at its start": (1, at_start(stderr_bytes=2 << 20)),
    "bad first answer": (1, at_start(faults=[{"name": "garbage", "times": 1}])),
}
