"""``taskrouter run``: one task, some inputs, the answers."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskrouter.backends.registry import Registry
from taskrouter.cli.exits import Exit, complain, error_data, exit_code
from taskrouter.cli.inputs import Input, find_inputs
from taskrouter.cli.printing import print_json, waiting
from taskrouter.cli.which_file import which_file
from taskrouter.config import TaskConfig
from taskrouter.errors import BadInput, CallFailed, TaskRouterError, UnsupportedVerb
from taskrouter.manager import Lease, ModelManager
from taskrouter.manager.specs import uses
from taskrouter.verbs import VERBS_OF_KIND, ChatAnswer

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of each input."""

    task: str
    inputs: Sequence[str]
    option: str | None = None
    top_k: int = 5
    max_tokens: int | None = None
    timeout_s: float | None = None


def run(question: Question, file: Path | None, *, as_json: bool) -> int:
    """Load the task's model and ask it; an input it can't use doesn't keep the others from being asked."""
    path = which_file(file)
    return asyncio.run(_run(question, path, as_json=as_json))


async def _run(question: Question, path: str, *, as_json: bool) -> int:
    registry = Registry()
    async with ModelManager(path, registry=registry) as manager:
        target = manager.target(question.task, question.option)
        task = manager.tasks[target.task]
        verb = _verb(task, await _verbs(manager, registry, task, target.option))
        limits = replace(manager.media_limits, roots=None)
        inputs = find_inputs(question.inputs, limits, text=verb == "chat")
        started = time.monotonic()
        answers: list[Answer] = []
        code: int = Exit.OK
        async with _leased(manager, question, target.option) as model:
            ready_s = time.monotonic() - started
            for number, item in enumerate(inputs):
                if len(inputs) > 1 and not as_json:
                    print(f"{chr(10) if number else ''}{item.name}:")
                try:
                    ask = _ASK[verb]
                    asked = time.monotonic()
                    answer = await ask(model, item, question, limits, as_json)
                    seconds = round(time.monotonic() - asked, 3)
                    answers.append({"input": item.name, **answer, "seconds": seconds})
                except TaskRouterError as error:
                    answers.append({"input": item.name, "error": error_data(error)})
                    complain(f"{item.name}: {error}")
                    code = code or exit_code(error)
                    if not isinstance(error, BadInput | CallFailed):
                        break
    if as_json:
        facts = {"task": target.task, "option": model.option, "model": model.key, "ready_s": round(ready_s, 3)}
        print_json({"ok": code == Exit.OK, "file": path, **facts, "answers": answers})
    return code


@asynccontextmanager
async def _leased(manager: ModelManager, question: Question, option: str) -> AsyncIterator[Lease]:
    lease = manager.lease(question.task, timeout=question.timeout_s, option=question.option)
    with waiting(f"loading {option}"):
        await lease.__aenter__()
    try:
        yield lease
    finally:
        await lease.__aexit__(None, None, None)


async def _verbs(manager: ModelManager, registry: Registry, task: TaskConfig, option: str) -> frozenset[str]:
    """What the task can be asked, by its kind; where the file names none, what its model can do."""
    if task.kind is not None:
        return VERBS_OF_KIND[task.kind]
    if task.options[option].is_external:
        return VERBS_OF_KIND["chat"]
    request = next(use.request for use in uses(manager.catalog) if (use.task, use.option) == (task.task_name, option))
    found = await registry.get(request.framework).preflight(request)
    return found.verbs


def _verb(task: TaskConfig, verbs: frozenset[str]) -> str:
    for verb in _ASK:
        if verb in verbs:
            return verb
    what = f"is of kind {task.kind}" if task.kind else "names no kind, and its model says nothing of what it can do"
    raise UnsupportedVerb(
        f"the task {task.task_name!r} {what}; `taskrouter run` asks tasks that {', '.join(_ASK)}. Use the Python API."
    )


async def _classify(model: Lease, item: Input, question: Question, limits: Any, as_json: bool) -> Answer:
    labels = await model.classify(item.read(limits), top_k=question.top_k)
    if not as_json:
        width = max((len(label.label) for label in labels), default=0)
        for label in labels:
            print(f"{label.label:<{width}}  {label.score:.3f}")
    return {
        "labels": [{"label": label.label, "score": label.score} for label in labels],
    }


async def _detect(model: Lease, item: Input, question: Question, limits: Any, as_json: bool) -> Answer:
    found = await model.detect(item.read(limits))
    if not as_json:
        width = max((len(each.label) for each in found), default=0)
        for each in found:
            print(f"{each.label:<{width}}  {each.score:.3f}  {' '.join(f'{edge:.0f}' for edge in each.box)}")
        if not found:
            print("nothing found")
    return {
        "objects": [{"label": each.label, "score": each.score, "box": list(each.box)} for each in found],
    }


async def _track(model: Lease, item: Input, question: Question, limits: Any, as_json: bool) -> Answer:
    tracks = await model.track(item.read(limits))
    if not as_json:
        width = max((len(each.label) for each in tracks), default=0)
        for each in tracks:
            first, last = each.sightings[0], each.sightings[-1]
            edges = " → ".join(" ".join(f"{edge:.0f}" for edge in seen.box) for seen in (first, last))
            print(f"{each.id}  {each.label:<{width}}  {first.time_s:.1f}–{last.time_s:.1f} s  {edges}")
        if not tracks:
            print("nothing found")
    return {
        "tracks": [
            {
                "id": each.id,
                "label": each.label,
                "sightings": [{**seen._asdict(), "box": list(seen.box)} for seen in each.sightings],
            }
            for each in tracks
        ]
    }


async def _segment(model: Lease, item: Input, question: Question, limits: Any, as_json: bool) -> Answer:
    found = await model.segment(item.read(limits))
    rows = [(each.label or "", each.score, int(each.mask.sum()), each.box) for each in found]
    if not as_json:
        width = max((len(label) for label, *_ in rows), default=0)
        for label, score, pixels, box in rows:
            sure = "" if score is None else f"{score:.3f}  "
            print(f"{label:<{width}}  {sure}{pixels} px  {' '.join(f'{edge:.0f}' for edge in box)}")
        if not rows:
            print("nothing found")
    names = ("label", "score", "pixels", "box")
    return {"regions": [dict(zip(names, (*row[:3], list(row[3])), strict=True)) for row in rows]}


async def _transcribe(model: Lease, item: Input, question: Question, limits: Any, as_json: bool) -> Answer:
    heard = await model.transcribe(item.read(limits))
    if not as_json:
        print(heard.text)
    return {
        "text": heard.text,
        "segments": [{"start_s": each.start_s, "end_s": each.end_s, "text": each.text} for each in heard.segments],
    }


async def _chat(model: Lease, item: Input, question: Question, limits: Any, as_json: bool) -> Answer:
    text = item.read_text(limits)
    if as_json:
        answer = await model.chat(text, max_tokens=question.max_tokens)
    else:
        answer = await _stream(model, text, question)
    usage = answer.usage
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens} if usage else None
    return {"text": answer.text, "finish_reason": answer.finish_reason, "usage": counts}


async def _stream(model: Lease, text: str, question: Question) -> ChatAnswer:
    pieces: list[str] = []
    answer = ChatAnswer("")
    async with model.stream_chat(text, max_tokens=question.max_tokens) as chunks:
        async for chunk in chunks:
            pieces.append(chunk.text)
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
            if chunk.finish_reason is not None:
                answer = ChatAnswer("", chunk.finish_reason, chunk.usage)
    print()
    return replace(answer, text="".join(pieces))


_ASK: Mapping[str, Callable[[Lease, Input, Question, Any, bool], Awaitable[Answer]]] = {
    "chat": _chat,
    "classify": _classify,
    "detect": _detect,
    "segment": _segment,
    "track": _track,
    "transcribe": _transcribe,
}
"""The verbs it speaks: each asks about one input, prints the answer unless it is to be JSON, and returns it."""
