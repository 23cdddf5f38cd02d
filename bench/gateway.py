"""The gateway against a bare proxy over the same upstream, by wrk: requests a second, latency, memory, time to ready.

Each contender is a process of its own; they are measured in turns within one run. LiteLLM's proxy takes part where
``LITELLM`` names its program (it wants an environment of its own).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

CONNECTIONS = (1, 8, 32, 256)
# Many short rounds: what else a machine does comes and goes within seconds.
SECONDS = int(os.environ.get("GATEWAY_SECONDS", "1"))
ROUNDS = int(os.environ.get("GATEWAY_ROUNDS", "9"))
ROOT = Path(__file__).parents[1]
BODY = {"model": "say", "messages": [{"role": "user", "content": "say some words " * 8}]}


@dataclass
class Contender:
    """One of them: its address, and what was measured."""

    name: str
    url: str
    pid: int
    ready_s: float
    rates: dict[int, list[float]] = field(default_factory=dict)
    cpu_us: dict[int, list[float]] = field(default_factory=dict)
    """Of its process, for a request."""
    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)

    def memory_mb(self) -> float:
        process = psutil.Process(self.pid)
        return process.memory_info().rss / 1e6

    def cpu_s(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def measure(self, connections: int, script: Path) -> None:
        """One round."""
        before = self.cpu_s()
        rate, p50, p99 = wrk(self.url, connections, script)
        self.cpu_us.setdefault(connections, []).append((self.cpu_s() - before) / (rate * SECONDS) * 1e6)
        self.rates.setdefault(connections, []).append(rate)
        self.p50_ms.setdefault(connections, []).append(p50)
        self.p99_ms.setdefault(connections, []).append(p99)


@contextmanager
def started(name: str, argv: list[str], url: str, env: dict[str, str] | None = None) -> Iterator[Contender]:
    """Run it until it answers a chat."""
    begun = time.monotonic()
    process = subprocess.Popen(
        argv, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while time.monotonic() - begun < 120:
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}")
            try:
                ask(url)
                break
            except OSError:
                time.sleep(0.02)
        yield Contender(name, url, process.pid, time.monotonic() - begun)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def ask(url: str) -> Any:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(BODY).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wrk(url: str, connections: int, script: Path) -> tuple[float, float, float]:
    """Requests a second, and milliseconds of the median and of the slowest percent."""
    threads = "1"
    done = subprocess.run(
        ["wrk", "-t", threads, "-c", str(connections), "-d", f"{SECONDS}s", "--latency", "-s", str(script), url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if "Non-2xx" in done.stdout:
        raise RuntimeError(done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    shares = dict(re.findall(r"(50|99)%\s+([\d.]+\w+)", done.stdout))
    assert rate is not None, done.stdout
    return float(rate[1]), _ms(shares["50"]), _ms(shares["99"])


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def wrk_installed() -> bool:
    """Whether the load generator is there; says so where it isn't."""
    there = shutil.which("wrk") is not None
    if not there:
        print("wrk isn't installed (apt-get install wrk): left out")
    return there


async def main() -> None:
    if not wrk_installed():
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script = folder / "chat.lua"
        script.write_text(
            'wrk.method = "POST"\nwrk.path = "/v1/chat/completions"\n'
            f'wrk.headers["Content-Type"] = "application/json"\nwrk.body = {json.dumps(json.dumps(BODY))}\n'
        )
        _run(folder, script)


def _run(folder: Path, script: Path) -> None:
    python = sys.executable
    upstream = "http://127.0.0.1:8901"
    ours = {
        "tasks": {"say": {"selected": "it", "options": {"it": {
            "framework": "command", "model_id": "m", "vram_gb": 1,
            "command": [python, str(ROOT / "bench" / "gateway_upstream.py"), "--port", "{port}"],
        }}}},
        "memory": {"devices": {"cpu": {"budget": "8GiB"}}},
    }  # fmt: skip
    file, traced = folder / "models.yaml", folder / "traced.yaml"
    file.write_text(json.dumps(ours))
    # Spans are written, batched and sent as they would be; who receives them is no part of the measurement.
    traced.write_text(json.dumps({**ours, "telemetry": {"otlp_endpoint": upstream}}))
    state = {"XDG_STATE_HOME": str(folder / "state")}
    with ExitStack() as stack:
        bare = [python, "-m", "bench.gateway_bare", "--upstream", upstream, "--port"]
        serve = [str(Path(python).parent / "taskrouter"), "serve"]
        everybody = [
            stack.enter_context(started("upstream", [python, "bench/gateway_upstream.py", "--port", "8901"], upstream)),
            stack.enter_context(started("bare proxy", [*bare, "8902"], "http://127.0.0.1:8902")),
        ]
        for name, which, port in (("taskrouter", file, "8903"), ("taskrouter, traced", traced, "8905")):
            argv = [*serve, str(which), "--port", port]
            everybody.append(stack.enter_context(started(name, argv, f"http://127.0.0.1:{port}", state)))

        if (program := os.environ.get("LITELLM")) is not None:
            config = folder / "litellm.yaml"
            row = {"model": "openai/m", "api_base": f"{upstream}/v1", "api_key": "none"}
            config.write_text(json.dumps({"model_list": [{"model_name": "say", "litellm_params": row}]}))
            argv = [program, "--config", str(config), "--port", "8904", "--host", "127.0.0.1"]
            open_to_all = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # as ours is, on loopback
            everybody.append(stack.enter_context(started("LiteLLM", argv, "http://127.0.0.1:8904", open_to_all)))
        for _ in range(ROUNDS):
            for connections in CONNECTIONS:
                for each in everybody:
                    each.measure(connections, script)
        show(everybody)


def show(everybody: list[Contender]) -> None:
    table = Table(title=f"a chat through each, {ROUNDS} rounds of {SECONDS} s; medians")
    for name in (
        "",
        "connections",
        "requests/s",
        "× bare proxy",
        "CPU µs",
        "× bare",
        "p50 ms",
        "p99 ms",
        "MB",
        "ready s",
    ):
        table.add_column(name, justify="left" if not name else "right")
    bare = next(each for each in everybody if each.name == "bare proxy")
    for each in everybody:
        for connections in CONNECTIONS:
            rate = statistics.median(each.rates[connections])
            ratios = [one / other for one, other in zip(each.rates[connections], bare.rates[connections], strict=True)]
            pairs = zip(each.cpu_us[connections], bare.cpu_us[connections], strict=True)
            costs = [other / one for one, other in pairs]
            first = connections == CONNECTIONS[0]
            table.add_row(
                each.name if first else "", str(connections), f"{rate:,.0f}", f"{statistics.median(ratios):.2f}",
                f"{statistics.median(each.cpu_us[connections]):.0f}", f"{statistics.median(costs):.2f}",
                f"{statistics.median(each.p50_ms[connections]):.2f}",
                f"{statistics.median(each.p99_ms[connections]):.2f}",
                f"{each.memory_mb():.0f}" if first else "", f"{each.ready_s:.2f}" if first else "",
            )  # fmt: skip
    Console(width=120).print(table)
