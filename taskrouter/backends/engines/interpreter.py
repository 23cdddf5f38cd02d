"""An engine's own interpreter: is it one, is the engine installed there, does the engine take these arguments.

Whatever is asked runs in that interpreter, under the guardian. That an engine's parser takes a command line is
remembered on disk, since asking it imports half the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskrouter.backends.engines.launch import Launch
from taskrouter.backends.engines.supervisor import Supervisor, ended
from taskrouter.errors import MissingDependency, PreflightFailed
from taskrouter.folders import cache_folder
from taskrouter.types import ModelRequest

PARSERS = Path(__file__).parent / "parsers"
PROBE_BOUND_S = 30.0
PARSER_BOUND_S = 180.0

_PROBE = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print("taskrouter:" + json.dumps({"python": list(sys.version_info[:3]), "found": found}))
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """An engine as an interpreter has it: the distribution's name and version."""

    python: str
    distribution: str
    version: str


def python_of(request: ModelRequest) -> str:
    """The interpreter of an option's engine: the one the file names, else this one. Raises ``PreflightFailed``."""
    python = request.python or sys.executable
    found = shutil.which(python)
    if found is None:
        raise PreflightFailed(
            f"{request.label}: engines.{request.framework}.python is {python}, which is no program that can be run. "
            f"Correct it, or make one with `taskrouter engines install {request.framework}`."
        )
    return found


async def installed(request: ModelRequest, distributions: Sequence[str], supervisor: Supervisor) -> Installed:
    """Which of these distributions the engine's interpreter has. Raises ``PreflightFailed``, ``MissingDependency``."""
    python = python_of(request)
    name = request.framework
    status, said = await supervisor.run(
        request.label, [python, "-c", _PROBE, *distributions], clean_environment(), cwd="/", bound_s=PROBE_BOUND_S
    )
    answer = next((line for line in said.splitlines() if line.startswith("taskrouter:")), None)
    if status != 0 or answer is None:
        how = "did not answer" if status is None else ended(status)
        tail = said.strip().splitlines()[-1:] or ["it printed nothing"]
        if status is not None and status < 0:
            raise PreflightFailed(
                f"{request.label}: {python} {how} while it was asked for {name}'s version. Try again."
            )
        raise PreflightFailed(
            f"{request.label}: engines.{name}.python is {python}, which is no Python interpreter that works: it {how} "
            f"({tail[0]}). Correct it, or make one with `taskrouter engines install {name}`."
        )
    found: dict[str, str] = json.loads(answer.removeprefix("taskrouter:"))["found"]
    if not found:
        where = python if request.python else f"{python}, which runs taskrouter itself"
        raise MissingDependency(
            f"{request.label}: {name} isn't installed for {where}. `taskrouter engines install {name}` makes it an "
            f"environment of its own; then write engines.{name}.python."
        )
    distribution = next(each for each in distributions if each in found)
    return Installed(python, distribution, found[distribution])


async def check_arguments(
    request: ModelRequest, engine: Installed, launch: Launch, flags: Sequence[str], supervisor: Supervisor
) -> None:
    """Let the engine's own parser read a command line's flags. Raises ``PreflightFailed`` with what it says."""
    script = PARSERS / f"{request.framework}.py"
    asked = [engine.python, engine.distribution, engine.version, list(flags), sorted(launch.env.items())]
    accepted = accepted_folder() / hashlib.sha256(json.dumps([asked, script.stat().st_mtime]).encode()).hexdigest()
    if await asyncio.to_thread(accepted.exists):
        return
    environment = {**clean_environment(), **launch.env, **request.env}
    async with supervisor.checks:
        status, said = await supervisor.run(
            request.label,
            [engine.python, str(script), json.dumps(list(flags))],
            environment,
            cwd=request.base_dir,
            bound_s=PARSER_BOUND_S,
        )
    answer = _last_json(said)
    if answer is None:
        how = "did not answer in time" if status is None else ended(status)
        tail = "\n".join(said.strip().splitlines()[-8:])
        raise PreflightFailed(
            f"{request.label}: {engine.distribution} {engine.version} can't be used: reading its arguments {how}. Its "
            f"last lines:\n{tail}\nSee `taskrouter engines doctor`."
        )
    if not answer.get("ok"):
        raise PreflightFailed(
            f"{request.label}: {engine.distribution} {engine.version} refuses its arguments: {answer.get('error')}. "
            "Correct engine_args, or the key it stands for."
        )
    await asyncio.to_thread(_remember, accepted)


def accepted_folder() -> Path:
    """``$XDG_CACHE_HOME/taskrouter/accepted``, by default under ``~/.cache``: a file for each command line."""
    return cache_folder() / "accepted"


def clean_environment() -> dict[str, str]:
    """Ours, less what belongs to our own interpreter and would break another one.

    Engines run in the folder of models.yaml, which must not be where their modules are looked for first: a types.py
    there would be theirs.
    """
    own = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {**{name: value for name, value in os.environ.items() if name not in own}, "PYTHONSAFEPATH": "1"}


def _last_json(said: str) -> Mapping[str, object] | None:
    for line in reversed(said.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                return found if isinstance(found, dict) else None
    return None


def _remember(accepted: Path) -> None:
    # Only a cache: a full disk costs the next start a few seconds.
    with contextlib.suppress(OSError):
        accepted.parent.mkdir(parents=True, exist_ok=True)
        accepted.touch()
