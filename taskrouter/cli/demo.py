"""``taskrouter demo``: three models, room for two, real inputs; shows what comes and goes, and why.

The configuration is made on the spot from the samples that ship with the package, so that the demo runs from a wheel
with no checkout beside it.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from taskrouter import telemetry
from taskrouter.backends.registry import Registry
from taskrouter.cli.budget import budget_data, judged
from taskrouter.cli.exits import Exit
from taskrouter.cli.journal import Journal
from taskrouter.cli.needs import Needs, find_needs, offline
from taskrouter.cli.outcome import Outcome, Question, print_end, print_outcome, summary_of
from taskrouter.cli.printing import amount, note, print_json, waiting
from taskrouter.cli.video_report import NAME, in_the_middle, write_report
from taskrouter.config import load_catalog, parse_size
from taskrouter.errors import BadInput, TaskRouterError
from taskrouter.manager import Machine, ModelManager, ThisMachine
from taskrouter.manager.specs import uses
from taskrouter.types import CPU, DeviceId, ModelKey

ORDER = (0, 1, 0, 2, 2, 1, 1, 0, 0, 2, 2, 1)
"""Which task each input is for: every third one finds its model loaded, the others have to make room."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is shown: a configuration (without a budget), and the questions; ``video``: what a report is written of."""

    config: dict[str, Any]
    questions: Sequence[Question]
    video: Path | None = None


def demo(*, budget: str | None, otlp: str | None, as_json: bool, report: Path) -> int:
    """Run the samples. Raises ``BadInput`` for a ``budget`` that is no size, or an ``otlp`` that is no address."""
    with offline():
        return asyncio.run(show(sample_plans(), budget=budget, otlp=otlp, as_json=as_json, report=report))


def sample_plans() -> list[Plan]:
    """The samples in turns; then a video, and all that is made of it."""
    from taskrouter.samples.manifest import VIDEO, demo_config, demo_inputs, report_config, report_inputs

    return [Plan(demo_config(), in_turns(demo_inputs())), Plan(report_config(), report_inputs(), VIDEO)]


def in_turns(questions: Iterable[Question]) -> list[Question]:
    """The questions in ``ORDER``, what is left over behind them."""
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    queues = list(by_task.values())
    ordered = [queues[place].pop(0) for place in ORDER if place < len(queues) and queues[place]]
    return ordered + [question for queue in queues for question in queue]


async def show(
    plans: Sequence[Plan],
    *,
    budget: str | None,
    otlp: str | None,
    as_json: bool,
    report: Path,
    registry: Registry | None = None,
    machine: Machine | None = None,
) -> int:
    """Run plans and print them; the exit code says whether every answer was right. Reports go to the folder named."""
    given = _size(budget) if budget is not None else None
    provider = _provider(otlp)
    played = []
    try:
        for plan in plans:
            with tempfile.TemporaryDirectory(prefix="taskrouter-demo-") as folder:
                stage = await set_up(plan, Path(folder), given, registry or Registry(), machine or ThisMachine())
                played.append(await _play(plan, stage, provider, report, as_json=as_json))
    finally:
        await asyncio.to_thread(provider.shutdown)
    ok = all(data["ok"] for data in played)
    if as_json:
        first, *others = played
        print_json({**first, "ok": ok, **({NAME: others[0]} if others else {})})
    return Exit.OK if ok else Exit.NO


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a plan is run: its file, device and budget, and what its models need."""

    file: Path
    device: DeviceId
    budget: int
    needs: Needs
    sizes: dict[ModelKey, int]
    registry: Registry
    machine: Machine


async def set_up(plan: Plan, folder: Path, budget: int | None, registry: Registry, machine: Machine) -> Stage:
    """Write the file, with a budget for two of the models unless one is given."""
    device = await asyncio.to_thread(choose_device, machine)
    file = folder / "models.yaml"
    config = {**plan.config, "media": {"roots": _folders(plan)}}
    for task in config["tasks"].values():
        for option in task["options"].values():
            option["devices"] = [device]
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    catalog = load_catalog(file, frameworks=registry.frameworks())
    with waiting("checking the models' files"):
        needs = await find_needs(catalog, registry, machine)
    sizes = {use.request.key: needs.known.get(use.request.key, (0, ""))[0] for use in uses(catalog)}
    budget = budget if budget is not None else room_for_two(list(sizes.values()))
    # One question at a time needs no protection of what was just loaded, and without it plain LRU is seen at work.
    config["memory"] = {"devices": {device: {"budget": f"{budget}B"}}, "min_residency_s": 0}
    file.write_text(json.dumps(config), encoding="utf-8")
    return Stage(file, device, budget, needs, sizes, registry, machine)


def room_for_two(sizes: Sequence[int]) -> int:
    """A budget that holds any two of the models and not all three: the two largest, and half the smallest."""
    *_, smallest = largest = sorted(sizes, reverse=True)
    return sum(largest[:2]) + smallest // 2


def choose_device(machine: Machine) -> DeviceId:
    """The first GPU where torch can use it, else ``cpu``. Blocks: it imports torch where there is a GPU."""
    first = machine.devices[0].id
    if first == CPU:
        return CPU
    try:
        import torch

        usable = torch.cuda.is_available()
    except ImportError:
        usable = False
    if not usable:
        note(f"{machine.devices[0].name} is here, but this installation of torch can't use it: the CPU is used instead")
    return first if usable else CPU


def _folders(plan: Plan) -> list[str]:
    """The folders of the questions' files, which the demo's own file must allow."""
    files = [Path(question.input) for question in plan.questions if question.is_file]
    return sorted({str(file.parent) for file in files}) or ["."]


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise BadInput(f"--budget {text}: expected {error}") from None
    if size == 0:
        raise BadInput(f"--budget {text}: this leaves nothing for models; leave it out for one that holds two of three")
    return size


def _provider(otlp: str | None) -> TracerProvider:
    if otlp is not None:
        return telemetry.setup_otlp(otlp)
    # The demo reads its own spans, so an environment that samples none must not reach it.
    return TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)


async def _play(plan: Plan, stage: Stage, provider: TracerProvider, report: Path, *, as_json: bool) -> dict[str, Any]:
    started = time.monotonic()
    manager = ModelManager(stage.file, registry=stage.registry, machine=stage.machine, tracer_provider=provider)
    catalog = manager.catalog
    options = {use.request.key: use.option for use in uses(catalog)}
    journal = Journal(provider, {str(key): option for key, option in options.items()})
    async with manager:
        if not as_json:
            if plan.video is not None:
                print(f"\nA report on {plan.video.name}: what is said, what is seen, what happens.")
            print_opening(stage, options)
        outcomes = []
        for number, question in enumerate(plan.questions, 1):
            outcome = await _ask(manager, question, journal)
            outcomes.append(outcome)
            if not as_json:
                print_outcome(outcome, number, len(plan.questions))
        written = [] if plan.video is None else await asyncio.to_thread(write_report, plan.video, outcomes, report)
        if not as_json:
            for path in written:
                print(f"\nwritten   {path}" if path is written[0] else f"          {path}")
        budget = judged(manager.budget(stage.needs.known), catalog, stage.needs)
    seconds = time.monotonic() - started
    summary = summary_of(outcomes, seconds)
    ok = summary["right"] == summary["asked"]
    if not as_json:
        print_end(budget, summary)
    machine = {"device": stage.device, "budget_bytes": stage.budget}
    files = {"written": [str(path) for path in written]} if written else {}
    inputs = [outcome.data() for outcome in outcomes]
    return {"ok": ok, **machine, "inputs": inputs, "budget": budget_data(budget), **summary, **files}


async def _ask(manager: ModelManager, question: Question, journal: Journal) -> Outcome:
    option = manager.tasks[question.task].selected
    started = time.monotonic()
    answer, given, error = "", None, None
    try:
        answer, given = await _ASK[question.verb](await manager.get_model(question.task), question)
    except TaskRouterError as failure:
        error = failure
    seconds = time.monotonic() - started
    resident = tuple(item["option"] for item in manager.get_loaded_models().values())
    right = error is None and question.is_right(answer)
    return Outcome(question, option, answer, right, seconds, journal.take(), resident, error, given)


async def _chat(model: Any, question: Question) -> tuple[str, Any]:
    answer = await model.chat(question.messages or question.input)
    return answer.text, answer


async def _classify(model: Any, question: Question) -> tuple[str, Any]:
    labels = await model.classify(question.input, top_k=1)
    return labels[0].label, labels


async def _detect(model: Any, question: Question) -> tuple[str, Any]:
    """Of a video the picture in its middle."""
    picture, _ = await asyncio.to_thread(in_the_middle, question.input)
    found = await model.detect(picture)
    return "\n".join(each.label for each in found), found


async def _transcribe(model: Any, question: Question) -> tuple[str, Any]:
    heard = await model.transcribe(question.input)
    return heard.text, heard


_ASK = {"chat": _chat, "classify": _classify, "detect": _detect, "transcribe": _transcribe}


def print_opening(stage: Stage, options: dict[ModelKey, str]) -> None:
    """What is about to be shown."""
    sizes = ", ".join(f"{options[key]} {amount(size)}" for key, size in stage.sizes.items())
    print(f"{len(options)} models on {stage.device}: {sizes}; together {amount(sum(stage.sizes.values()))}")
    print(f"memory budget on {stage.device}: {amount(stage.budget)}")
