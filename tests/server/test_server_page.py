"""docs/server.md does what it says: its sessions run against a server, and its service is an application that runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from taskrouter.http.app import create_app
from taskrouter.manager import ModelManager
from tests.docs_session import play
from tests.pages import ROOT, blocks, named_files, page, quoted, rows

from .serving import keys, serving, written

TASKS: dict[str, Any] = {
    "say": {"kind": "chat", "selected": "parrot", "options": {
        name: {"framework": "fake", "model_id": name, "vram_gb": 1} for name in ("parrot", "owl")
    }},
}  # fmt: skip


def test_its_sessions_print_what_it_says(tmp_path: Path) -> None:
    text = page("server.md")
    sessions = [block for block in blocks(text, "python") if not block.startswith("# service.py")]
    assert len(sessions) == 3
    with serving(written(tmp_path, TASKS)) as served:
        held = play(f"URL = {served.url!r}\n{block}" for block in sessions)
    assert held == 6


def test_its_paths_are_the_servers(tmp_path: Path) -> None:
    text = page("server.md")
    shown = set()
    for row in rows(text, "path"):
        method, path = quoted(row[0])[0].split(" ")
        shown.add((method, re.sub(r"\{\w+\}", "{}", path)))
    app = create_app(ModelManager(written(tmp_path, TASKS)), lifespan=False)
    there = {
        (method, re.sub(r"\{[^}]+\}", "{}", route.path))
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    told_beside = {("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/v1/models/{}")}
    assert shown | told_beside | {("POST", "/v1/messages/count_tokens")} == there
    assert all(f"`{method} {path}`" in text for method, path in told_beside if "{" not in path)


def test_its_keys_are_read(tmp_path: Path) -> None:
    (file,) = list(blocks(page("server.md"), "yml"))
    (tmp_path / "keys.yaml").write_text(file)
    environ = {"WEB_KEY": "a-long-random-key-1", "JOBS_KEY": "a-long-random-key-2"}
    found = keys(environ, tmp_path / "keys.yaml")
    assert sorted(caller.name for caller in found.callers.values()) == ["jobs", "web"]
    assert yaml.safe_load(file)[0].keys() >= {"tasks", "requests_per_minute", "max_concurrency", "priority"}


@pytest.mark.slow
def test_its_service_runs_under_fastapi(tmp_path: Path) -> None:
    written(tmp_path, TASKS)
    (tmp_path / "service.py").write_text(named_files(page("server.md"))["service.py"])
    program = (
        "import socket, sys, uvicorn, service\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "print(listening.getsockname()[1], flush=True)\n"
        "config = uvicorn.Config(service.app, log_config=None)\n"
        "uvicorn.Server(config).run(sockets=[listening])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        with urllib.request.urlopen(f"{url}/greet?name=hello", timeout=30) as answer:
            assert json.load(answer) == {"text": "parrot: hello"}
        body = json.dumps({"model": "say", "messages": [{"role": "user", "content": "hi"}]}).encode()
        request = urllib.request.Request(f"{url}/ai/v1/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "parrot: hi"
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "Traceback" not in said, said
