"""``taskrouter serve`` as a program: where it listens, who may ask, how it ends, and how it reads its file again."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from .clients import CHAT, Raw, chat, status_of
from .holding import opened
from .serving import written
from .test_streams import seen

KEY, OTHER, ADMIN = "a-key-of-the-environment", "a-key-of-the-keys-file", "the-key-of-the-admin"
TASKS = {
    "say": {"kind": "chat", "selected": "parrot", "options": {
        "parrot": {"framework": "fake", "model_id": "p", "vram_gb": 1, "engine_args": {"call_s": 0.0}},
        "owl": {"framework": "fake", "model_id": "o", "vram_gb": 1},
    }},
    "slow": {"selected": "slug", "options": {
        "slug": {"framework": "fake", "model_id": "s", "vram_gb": 1, "engine_args": {"call_s": 1.0}},
    }},
}  # fmt: skip


class Program:
    """A server that runs, and what it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.first = process.stdout.readline()
        found = re.search(r"http://\S+", self.first)
        assert found is not None, self.first + process.stdout.read()
        self.url = found[0]
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(process.stdout or ()))
        self.reader.start()

    def get(self, path: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(20)
        self.reader.join(20)
        return status


@contextmanager
def program(file: Path, *arguments: str, **environ: str) -> Iterator[Program]:
    env = {**os.environ, "XDG_STATE_HOME": str(file.parent / "state"), **environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "taskrouter", "serve", str(file), *arguments], env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield Program(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def refused(file: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    env = {**os.environ, "XDG_STATE_HOME": str(file.parent / "state"), **environ}
    done = subprocess.run(
        [sys.executable, "-m", "taskrouter", "serve", str(file), *arguments], env=env, text=True, timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.slow
def test_it_listens_where_the_file_says(tmp_path: Path) -> None:
    with program(written(tmp_path, TASKS, server={"host": "127.0.0.2", "port": 0})) as server:
        assert server.url.startswith("http://127.0.0.2:")
        assert server.get("/health") == (200, {"status": "ok"})
        assert server.get("/v1/models")[0] == 200
        taken = server.url.rpartition(":")[2]
        status, text = refused(written(tmp_path, TASKS, server={"host": "127.0.0.2", "port": int(taken)}))
        assert status == 2
        assert f"can't listen on 127.0.0.2:{taken}" in text
        assert psutil.Process(server.process.pid).memory_info().rss < 100e6
        server.end()


@pytest.mark.slow
def test_keys_come_from_the_variables_and_the_file_that_the_server_section_names(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(json.dumps([{"name": "other", "key": OTHER}]))
    section = {"port": 0, "api_keys_env": "MY_KEYS", "admin_key_env": "MY_ADMIN", "api_keys_file": "keys.yaml"}
    file = written(tmp_path, TASKS, server=section)
    with program(file, MY_KEYS=KEY, MY_ADMIN=ADMIN) as server:
        assert [server.get("/v1/models", key)[0] for key in (KEY, OTHER, ADMIN, "nobody's", None)] == [
            200,
            200,
            401,
            401,
            401,
        ]
        server.end()
        assert not [line for line in server.lines if KEY in line or OTHER in line or ADMIN in line]


@pytest.mark.slow
def test_a_key_that_was_taken_out_of_its_file_opens_nothing_after_a_reload(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(json.dumps([{"name": "other", "key": OTHER}, {"name": "one", "key": KEY}]))
    section = {"port": 0, "admin_key_env": "MY_ADMIN", "api_keys_file": "keys.yaml"}
    with program(written(tmp_path, TASKS, server=section), MY_ADMIN=ADMIN) as server:
        assert [server.get("/v1/models", key)[0] for key in (KEY, OTHER)] == [200, 200]
        keys.write_text(json.dumps([{"name": "other", "key": OTHER}]))
        server.process.send_signal(signal.SIGHUP)
        seen(lambda: server.get("/v1/models", KEY)[0] == 401)
        assert server.get("/v1/models", OTHER)[0] == 200
        keys.write_text("no keys")
        server.process.send_signal(signal.SIGHUP)
        seen(lambda: any("the API keys were not read again" in line for line in server.lines))
        assert server.get("/v1/models", OTHER)[0] == 200, "those that were go on"


def test_a_key_for_a_task_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(json.dumps([{"name": "other", "key": OTHER, "tasks": ["sai"]}]))
    status, text = refused(written(tmp_path, TASKS, server={"port": 0, "api_keys_file": "keys.yaml"}))
    assert status == 2
    assert "there is no task 'sai' (did you mean 'say'?)" in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_others_may_not_reach_a_server_that_asks_nobody_for_a_key(tmp_path: Path, host: str) -> None:
    status, text = refused(written(tmp_path, TASKS), "--host", host, "--port", "0")
    assert status == 2
    assert "no API keys are set" in text


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_shown_as_urls_have_it(tmp_path: Path, host: str) -> None:
    with program(written(tmp_path, TASKS), "--host", host, "--port", "0") as server:
        assert server.url.startswith("http://[::1]:")
        assert server.get("/health")[0] == 200


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_said_to_be_wrong_and_not_the_port(tmp_path: Path, host: str) -> None:
    status, text = refused(written(tmp_path, TASKS), "--host", host, "--port", "0", TASKROUTER_API_KEYS=f"one={KEY}")
    assert status == 2
    assert f"can't listen on {host}:0: " in text
    assert text.endswith("; choose another --host\n")


@pytest.mark.slow
def test_it_starts_with_what_can_not_be_asked_and_says_so(tmp_path: Path) -> None:
    lost: Any = {"selected": "l", "options": {"l": {"framework": "nowhere", "model_id": "l", "vram_gb": 1}}}
    with program(written(tmp_path, {**TASKS, "lost": lost}), "--port", "0") as server:
        assert server.get("/health")[0] == 200
        seen(lambda: [line for line in server.lines if line.startswith("warning: ") and "tasks.lost.options.l" in line])
        server.end()


@pytest.mark.slow
def test_what_is_under_way_is_answered_before_it_ends(tmp_path: Path) -> None:
    with program(written(tmp_path, TASKS), "--port", "0") as server, Raw(server.url) as client:
        client.ask(CHAT, chat("slow"))
        assert server.get("/ready")[0] == 200  # asked later: what was asked before is under way
        server.process.send_signal(signal.SIGTERM)
        assert status_of(client.until(b"}}")) == 200
        assert server.process.wait(20) == 0
        server.reader.join(20)


@pytest.mark.slow
def test_a_lease_that_is_held_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with (
        program(written(tmp_path, TASKS), "--port", "0") as server,
        opened(server, "/v1/leases", {"task": "say"}) as holder,
        opened(server, "/v1/pipelines", {"tasks": ["say"]}) as other,
    ):
        names = [holder.event()["lease"], other.event()["pipeline"]]
        server.process.send_signal(signal.SIGTERM)
        assert holder.error() == "manager_closed"
        assert other.error() == "manager_closed"
        assert server.process.wait(20) == 0  # it waits for 30 s for what is under way
        server.reader.join(20)
        assert not [line for line in server.lines for name in names if name in line]


@pytest.mark.slow
def test_its_file_is_read_again_when_it_is_told(tmp_path: Path) -> None:
    file = written(tmp_path, TASKS)
    with program(file, "--port", "0") as server:
        assert server.get(CHAT, body=chat())[1]["choices"][0]["message"]["content"] == "parrot: hello"
        changed: Mapping[str, Any] = {**TASKS, "say": {**TASKS["say"], "selected": "owl"}}
        written(tmp_path, changed)
        server.process.send_signal(signal.SIGHUP)
        seen(lambda: server.get(CHAT, body=chat())[1]["choices"][0]["message"]["content"] == "owl: hello")
        assert any("INFO loaded: model=owl, tasks=['say']" in line for line in server.lines), server.lines
        file.write_text("tasks: {")
        server.process.send_signal(signal.SIGHUP)
        seen(lambda: any("was not reloaded, all goes on as it was" in line for line in server.lines))
        assert server.get(CHAT, body=chat())[0] == 200
        server.end()
