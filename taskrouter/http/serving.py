"""``taskrouter serve``: uvicorn over the application, on one loop, until it is told to end."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskrouter.errors import ConfigError, Problem
from taskrouter.http.app import create_app
from taskrouter.http.keys import Keys, read_keys
from taskrouter.http.logbook import logged
from taskrouter.http.tracing import PER_SECOND
from taskrouter.manager import ModelManager

logger = logging.getLogger("taskrouter.http")

SAMPLER = "OTEL_TRACES_SAMPLER"
"""OpenTelemetry's own variable, which its SDK obeys."""
DRAIN_S = 30
"""What is under way when it is told to end is given so many seconds."""


def keys_of(manager: ModelManager, environ: Mapping[str, str] | None = None) -> Keys:
    """The keys that the file's ``server`` section names. Raises ``ConfigError``."""
    server = manager.catalog.server
    file = server.api_keys_file
    path = None if file is None else Path(manager.config_path).parent / file
    return read_keys(
        os.environ if environ is None else environ, api_keys_env=server.api_keys_env,
        admin_key_env=server.admin_key_env, file=path,
    )  # fmt: skip


def check_address(host: str, keys: Keys, config_path: Path) -> None:
    """Raise ``ConfigError`` where others could reach a server that asks nobody for a key."""
    if keys.callers or is_loopback(host):
        return
    raise ConfigError(
        [
            Problem(
                str(config_path), 0, 0, "server.host",
                f"{host} can be reached from outside, and no API keys are set",
                "put keys into the variable that server.api_keys_env names, or listen on 127.0.0.1",
            )
        ]
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Take the address now, so that who is told of it can connect. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(2048)
    except BaseException:
        listening.close()
        raise
    return listening


def run(manager: ModelManager, keys: Keys, listening: socket.socket) -> None:
    """Serve, on a loop of its own: uvloop where it is installed."""
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with logged(manager), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(manager, keys, listening))


async def serve(manager: ModelManager, keys: Keys, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what is under way is answered first. SIGHUP reads models.yaml again."""
    import uvicorn

    from taskrouter.http.ending import Server
    from taskrouter.http.keys_again import KeysAgain

    # Whoever names a sampler has decided how much of its traces to pay for.
    app = create_app(manager, keys, traced_per_second=None if SAMPLER in os.environ else PER_SECOND)
    settings: dict[str, Any] = {
        "log_config": None, "access_log": False, "server_header": False, "date_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": DRAIN_S, "timeout_keep_alive": 75, "h11_max_incomplete_event_size": 1 << 16,
    }  # fmt: skip
    host = listening.getsockname()[0]

    def read_again() -> Keys:
        found = keys_of(manager)
        check_address(host, found, Path(manager.config_path))
        return found

    KeysAgain(app.state.taskrouter, read_again)
    server = Server(uvicorn.Config(app, **settings))
    manager.enter()
    manager.reload_on(signal.SIGHUP)
    await server.serve(sockets=[listening])
