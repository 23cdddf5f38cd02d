"""A server with a fake model for every kind of task, and how it is asked."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from .reading import ReadingBackend
from .serving import API_KEY, Served, keys, serving, written

CURL = "/usr/bin/curl"
MAX_BYTES = 300 << 10


def fake(answer: Any = None, **more: Any) -> dict[str, Any]:
    args = {**({} if answer is None else {"answer": answer}), **more}
    return {"framework": "fake", "model_id": f"m-{json.dumps(args)[:60]}", "vram_gb": 0.1, "engine_args": args}


def one(kind: str | None, option: dict[str, Any], name: str = "it") -> dict[str, Any]:
    return {**({} if kind is None else {"kind": kind}), "selected": name, "options": {name: option}}


CUP = {"label": "cup", "score": 0.75, "box": [1, 0, 3, 2]}
CUP_BOX = {"left": 1.0, "top": 0.0, "right": 3.0, "bottom": 2.0}
TASKS: dict[str, Any] = {
    "say": one("chat", fake()),
    "write": one("generation", fake(slots=8)),
    "vectors": one("embedding", fake()),
    "hear": one("transcription", fake("hello you")),
    "find": one("detection", fake([CUP])),
    "look": one("image_classification", fake({"cat": 0.75, "dog": 0.25})),
    "listen": one("audio_classification", fake({"bark": 1.0})),
    "watch": one("video_classification", fake({"dance": 1.0})),
    "cut": one("segmentation", fake([CUP], slots=4)),
    "follow": one("tracking", fake([CUP], slots=5)),
    "far": one("depth", fake([[0.5, 1.0], [2.0, 4.0]])),
    "free": one(None, fake(slots=6)),
    "only": one(None, fake(verbs=["depth"])),
    "stuck": one("detection", fake(hang="call"), "hangs"),
    "second": {
        "kind": "detection", "selected": "broken", "fallback": ["works"],
        "options": {"broken": fake(fail="error"), "works": fake([CUP], slots=7)},
    },
}  # fmt: skip
PICTURE = b"\x89PNG, or so it says"
URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


ASKED: dict[str, tuple[str, dict[str, Any], Any]] = {
    "say": ("chat", {"messages": "hello", "max_tokens": 2},
            {"text": "say/it: hello", "finish_reason": "stop", "tool_calls": [], "reasoning": None}),
    "write": ("generate", {"prompt": "once", "max_tokens": 1}, {"text": "write/it:", "finish_reason": "length"}),
    "hear": ("transcribe", {"audio": URL, "language": "en"},
             {"text": "hello you", "language": None, "duration_s": None, "segments": []}),
    "find": ("detect", {"image": URL, "threshold": 0.5}, [{"label": "cup", "score": 0.75, "box": CUP_BOX}]),
    "look": ("classify", {"input": URL, "top_k": 1}, [{"label": "cat", "score": 0.75}]),
    "listen": ("classify", {"input": URL}, [{"label": "bark", "score": 1.0}]),
    "watch": ("classify", {"input": URL}, [{"label": "dance", "score": 1.0}]),
    "cut": ("segment", {"image": URL, "points": [[1, 2], [[0, 0, False], [1, 1]]], "boxes": [[0, 0, 1, 1.5]]}, None),
    "follow": ("track", {"video": URL, "labels": ["cup"], "fps": 5}, [
        {"id": 1, "label": "cup",
         "sightings": [{"frame": 0, "time_s": 0.0, "box": CUP_BOX, "score": 0.75, "mask": None}]}]),
    "far": ("depth", {"image": URL}, {"unit": "relative", "values": {
        "shape": [2, 2], "dtype": "float32", "data": base64.b64encode(bytes.fromhex("0000003f0000803f0000004000008040"))
        .decode()}}),
}  # fmt: skip


@contextmanager
def task_server(folder: Path) -> Iterator[Served]:
    """Serve them, with a folder that media may be read from and a file that may not be."""
    (folder / "media").mkdir()
    (folder / "media" / "in.png").write_bytes(PICTURE)
    (folder / "secret.png").write_bytes(b"a secret")
    media = {"max_bytes": f"{MAX_BYTES >> 10}KiB", "roots": ["media"], "remote": True}
    file = written(folder, TASKS, media=media, default_task="say")
    with serving(file, keys(), fake=ReadingBackend()) as server:
        server.facts["folder"] = folder
        yield server


def task_client(served: Served) -> httpx2.Client:
    headers = {"authorization": f"Bearer {API_KEY}"}
    # Certificates aren't looked at on loopback, and to read them takes longer than most tests.
    return httpx2.Client(
        base_url=f"{served.url}/v1/tasks", headers=headers, timeout=30, trust_env=False, verify=False
    )  # fmt: skip


def curl(served: Served, task: str, *fields: str, more: tuple[str, ...] = ()) -> tuple[int, Any]:
    """Send a form; each of ``fields`` is one of ``-F``. Answers the status and the body."""
    command = [
        CURL,
        "-sS",
        "--noproxy",
        "*",
        "-m",
        "30",
        "-H",
        f"authorization: Bearer {API_KEY}",
        "-w",
        "\n%{http_code}",
    ]
    command += [part for field in fields for part in ("-F", field)]
    done = subprocess.run(
        [*command, *more, f"{served.url}/v1/tasks/{task}"], capture_output=True, check=True, timeout=60
    )
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(body)


def connected(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 20)


def refused(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return str(answer.json()["error"]["message"])


def head_of(task: str, kind: str, length: int) -> bytes:
    """The head of a request, for who sends the rest by hand."""
    lines = (
        f"POST /v1/tasks/{task} HTTP/1.1", "host: x", f"authorization: Bearer {API_KEY}", f"content-type: {kind}",
        f"content-length: {length}", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()
