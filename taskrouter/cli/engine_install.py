"""``taskrouter engines install``: make the environment, prove it by serving a sample, write it into the file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskrouter.backends.engines.install import install, known_good, python_in
from taskrouter.cli.exits import Exit, complain
from taskrouter.cli.printing import note, print_json, waiting
from taskrouter.errors import BadInput, TaskRouterError
from taskrouter.manager import ModelManager
from taskrouter.memory.devices import discover
from taskrouter.samples.manifest import demo_inputs, sample_dir
from taskrouter.types import CPU

PROOF_BOUND_S = 600.0

ENGINE_ARGS = {"vllm": {"enforce-eager": True}, "sglang": {}}
"""What serving so small a model needs beside what every option says."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. ``folder`` is where the environment goes; ``write`` a models.yaml to be told of it."""

    engine: str
    cpu: bool
    folder: Path | None
    torch: str | None
    extra: Sequence[str]
    write: Path | None
    proof: bool
    force: bool


def install_engine(wanted: Wanted, *, as_json: bool) -> int:
    pinned = known_good(wanted.engine, cpu=wanted.cpu)
    if wanted.write is not None and not wanted.write.is_file():
        raise BadInput(f"--write: there is no file {wanted.write}")
    if wanted.proof and not wanted.cpu and all(info.id == CPU for info in discover()):
        raise BadInput(
            f"there is no GPU here to prove {pinned.name} on: --cpu takes the set for the CPU; for a machine that has "
            "one, add --no-proof"
        )
    base = wanted.write.parent if wanted.write is not None else Path()
    folder = (wanted.folder or base / ".venvs" / wanted.engine).absolute()
    extra = [_absolute(each) for each in wanted.extra]
    start = time.monotonic()
    if pinned.note:
        note(pinned.note)
    with _stopped_by_signals(), waiting(f"{pinned.name} → {folder}"):
        made = install(pinned, folder, torch=wanted.torch, extra=extra, force=wanted.force, say=note)
    python = python_in(folder)
    answer: dict[str, Any] = {"ok": True, "engine": wanted.engine, "set": pinned.name, "python": str(python),
                              "made": made, "install_s": round(time.monotonic() - start, 1)}  # fmt: skip
    if wanted.proof:
        start = time.monotonic()
        try:
            with waiting(f"{wanted.engine} serves a sample"):
                right = asyncio.run(prove(wanted.engine, python))
        except TaskRouterError as error:
            complain(f"{pinned.name} is installed in {folder}, and can't serve: {error}")
            if as_json:
                print_json({**answer, "ok": False, "proof": str(error)})
            return Exit.NO
        answer |= {"ok": right, "proof": "right" if right else "wrong", "proof_s": round(time.monotonic() - start, 1)}
        if not right:
            complain(f"{pinned.name} is installed in {folder} and serves, but its answer to the sample is wrong")
    if wanted.write is not None and answer["ok"]:
        from taskrouter.config.writing import write_engine

        answer["written"] = str(wanted.write)
        answer["python_written"] = write_engine(wanted.write, wanted.engine, python)
    if as_json:
        print_json(answer)
    else:
        _print(answer)
    return Exit.OK if answer["ok"] else Exit.NO


async def prove(engine: str, python: Path) -> bool:
    """Serve the sample of claims; answers whether it says what it should. Raises what loading raises."""
    question = next(each for each in demo_inputs() if each.verb == "chat")
    option = {
        "model_id": str(sample_dir("claims")),
        "framework": engine,
        "max_context": 256,
        "dtype": "float32",  # as it was trained: in a smaller one its answer may differ
        "vram_gb": 4,
        "engine_args": ENGINE_ARGS[engine],
    }
    tasks = {"claims": {"kind": "chat", "selected": "sample", "options": {"sample": option}}}
    engines = {engine: {"python": str(python), "start_timeout_s": PROOF_BOUND_S}}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "models.yaml"
        file.write_text(json.dumps({"tasks": tasks, "engines": engines}), encoding="utf-8")
        async with ModelManager(file) as manager:
            model = await manager.get_model("claims", timeout=PROOF_BOUND_S)
            answer = await model.chat(question.messages or [])
    return question.is_right(answer.text)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within, being asked to end is an interrupt: pip is ended too, and the half-made environment removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _absolute(requirement: str) -> str:
    """A requirement that is a path here counts from here, wherever pip runs."""
    return str(Path(requirement).absolute()) if os.path.exists(requirement) else requirement


def _print(answer: dict[str, Any]) -> None:
    how = f"made in {answer['install_s']:g} s" if answer["made"] else "there already"
    print(f"{answer['set']}: {how}")
    print(f"python: {answer['python']}")
    if "proof" in answer:
        print(f"proof: it serves a sample, and its answer is {answer['proof']} ({answer['proof_s']:g} s)")
    if "written" in answer:
        print(f"written: engines.{answer['engine']}.python: {answer['python_written']} in {answer['written']}")
    elif answer["ok"]:
        print(f"write into models.yaml:  engines: {{{answer['engine']}: {{python: {answer['python']}}}}}")
