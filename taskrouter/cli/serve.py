"""``taskrouter serve``: models.yaml behind an HTTP address."""

from __future__ import annotations

import errno
import importlib.util
import socket
import sys
from pathlib import Path

from taskrouter import telemetry
from taskrouter.cli.exits import Exit, problem_data
from taskrouter.cli.printing import print_json
from taskrouter.cli.which_file import which_file
from taskrouter.errors import BadInput, MissingDependency
from taskrouter.manager import ModelManager

_NEEDS = ("aiohttp", "httptools", "multipart", "orjson", "prometheus_client", "starlette", "uvicorn")


def serve(file: Path | None, *, host: str | None, port: int | None, as_json: bool) -> int:
    """Serve until told to end. Raises ``ConfigError``, ``MissingDependency``, ``BadInput`` for a taken address."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"the server needs {', '.join(missing)}, which isn't installed: pip install 'taskrouter[server]'"
        )
    from taskrouter.http import serving
    from taskrouter.http.keys_file import check_tasks

    path = which_file(file)
    manager = ModelManager(path)
    settings, traces = manager.catalog.server, manager.catalog.telemetry
    keys = serving.keys_of(manager)
    if settings.api_keys_file is not None:
        # Only now: a reload that takes a task away must not keep a key that was taken away, too.
        check_tasks(Path(manager.config_path).parent / settings.api_keys_file, manager.tasks)
    host, port = settings.host if host is None else host, settings.port if port is None else port
    serving.check_address(host, keys, Path(manager.config_path))
    try:
        listening = serving.listen(host, port)
    except OSError as error:
        # Where the name is looked up, or isn't this machine's, no port would do.
        other = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        text = f"can't listen on {_at(host, port)}: {error.strerror or error}"
        raise BadInput(f"{text}; choose another {'--host' if other else '--port'}") from error
    with listening:
        found = listening.getsockname()[1]
        shown = f"http://{_at(host, found)}"
        if as_json:
            warnings = [problem_data(warning) for warning in manager.catalog.warnings]
            print_json({"ok": True, "url": shown, "file": str(manager.config_path), "warnings": warnings})
        else:
            print(f"listening on {shown}")
            print(f"  an OpenAI client's base URL is {shown}/v1; tasks: {', '.join(manager.tasks)}")
            for warning in manager.catalog.warnings:
                print(f"warning: {warning}")
        sys.stdout.flush()
        if traces.otlp_endpoint is None:
            serving.run(manager, keys, listening)
            return Exit.OK
        provider = telemetry.setup_otlp(traces.otlp_endpoint, traces.service_name, gives_up=False)
        try:
            serving.run(ModelManager(path, tracer_provider=provider), keys, listening)
        finally:
            provider.shutdown()
    return Exit.OK


def _at(host: str, port: int) -> str:
    """An address as URLs have it: IPv6 in brackets, with which it may have been given."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"
