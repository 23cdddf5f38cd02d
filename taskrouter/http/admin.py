"""The admin API: what is there, what fits, what is loaded, pinned, selected, spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from taskrouter.errors import BadInput, ConfigError, TaskRouterError
from taskrouter.http import bodies
from taskrouter.http.bodies import body_of
from taskrouter.http.exchange import Exchange, query_of
from taskrouter.http.failing import Refused
from taskrouter.http.state import State
from taskrouter.http.status import budget_of, models_of, status_of
from taskrouter.spend import SpendUnreadable, default_path, read_spent
from taskrouter.spend.grouping import COLUMNS, first_day, grouped, rows_of, summed

MOST_DAYS = 36_500
_NOT_THERE = ("disk", "cooldown")
"""States of a model of which nothing is loaded."""


# --- what is there ----------------------------------------------------------------------------------------------------


async def status(state: State, exchange: Exchange) -> None:
    """``GET /admin/status``."""
    await exchange.answer(status_of(state))


async def models(state: State, exchange: Exchange) -> None:
    """``GET /admin/models``: every option, with its state, its need and its fit; and the memory plan."""
    await exchange.answer({"models": models_of(state), "budget": budget_of(state)})


async def explain(state: State, exchange: Exchange, task: str) -> None:
    """``GET /admin/tasks/{task}/explain``."""
    await exchange.answer({"text": state.manager.explain(task)})


async def spend(state: State, exchange: Exchange) -> None:
    """``GET /admin/spend?days=7&by=day``: what calls to external providers cost."""
    query = query_of(exchange.scope)
    by, days = query.pop("by", "day"), query.pop("days", "7")
    if query:
        raise BadInput(f"{next(iter(query))[:40]!r} is no field of this query; days and by are")
    if by not in COLUMNS:
        raise BadInput(f"by is {by[:40]!r}; it must be one of {', '.join(COLUMNS)}")
    if not (days.isascii() and days.isdigit() and len(days) <= 6 and 1 <= int(days) <= MOST_DAYS):
        raise BadInput(f"days is {days[:40]!r}; it must be a whole number from 1 to {MOST_DAYS:,}")
    since = first_day(int(days), now=time.time())
    path = state.manager.spend_path or default_path()
    try:
        spent = await asyncio.to_thread(read_spent, path, since_day=since)
    except SpendUnreadable as error:
        raise Refused(503, str(error), code="spend_unreadable") from error
    rows = rows_of(grouped(spent, COLUMNS[by]), by)
    await exchange.answer({"since": since, "by": by, "spend": rows, "total": summed((), spent).data()})


# --- models come and go -----------------------------------------------------------------------------------------------


async def load(state: State, exchange: Exchange, task: str) -> None:
    """``POST /admin/tasks/{task}/load``: answers at once, or with ``wait`` when it is ready."""
    body = await body_of(exchange, bodies.Load)
    manager, operations = state.manager, state.operations
    performer, target = manager.enter(), manager.local_target(task, body.option)
    operation = operations.begin(exchange.id, target.task, target.option, performer.time())
    work = operations.load(manager, operation, body.timeout_s)
    if body.wait:
        # Whoever waits and goes away doesn't want it any more.
        await work
        await exchange.answer(operation.data(performer.time()))
        return
    performer.spawn_operation(work)
    where = (b"location", f"/admin/operations/{operation.id}".encode())
    await exchange.answer({"operation": operation.id, "state": "loading"}, 202, (where,))


async def operation(state: State, exchange: Exchange, name: str) -> None:
    """``GET /admin/operations/{id}``."""
    await exchange.answer(state.operations.get(name).data(state.manager.enter().time()))


async def unload(state: State, exchange: Exchange, task: str) -> None:
    """``POST /admin/tasks/{task}/unload``: answers once its bytes are free. ``unloaded``: it was there before."""
    body = await body_of(exchange, bodies.Unload)
    found = state.manager.local_target(task, body.option)
    was = _state(state, found.key)
    await _whole(state, state.manager.unload_model(task, force=body.force, option=found.option))
    await exchange.answer(
        {"task": found.task, "option": found.option, "state": _state(state, found.key),
         "unloaded": was not in _NOT_THERE}
    )  # fmt: skip


async def remove(state: State, exchange: Exchange, task: str) -> None:
    """``POST /admin/tasks/{task}/remove``: delete the model's files; answers what went, or would go."""
    body = await body_of(exchange, bodies.Remove)
    work = state.manager.remove_files(task, body.option, force=body.force, dry_run=body.dry_run)
    await exchange.answer((await _whole(state, work)).data())


async def select(state: State, exchange: Exchange, task: str) -> None:
    """``POST /admin/tasks/{task}/select``."""
    body = await body_of(exchange, bodies.Select)
    name = state.manager.target(task, body.option).task
    try:
        await _whole(state, state.manager.set_selected_model(name, body.option, persist=body.persist))
    except ConfigError as error:
        await _tell_problems(exchange, error)
        return
    except BadInput as error:
        # Where the file is stays this machine's.
        file = state.manager.config_path
        raise BadInput(str(error).replace(str(file), file.name)) from error
    except OSError as error:
        if isinstance(error, TaskRouterError):
            raise
        text = f"{state.manager.config_path.name} can't be written ({error.strerror or type(error).__name__})"
        raise Refused(500, f"{text}; the selection is what it was", code="not_written") from error
    await exchange.answer({"task": name, "selected": body.option, "persisted": body.persist})


async def pin(state: State, exchange: Exchange, task: str) -> None:
    """``POST /admin/tasks/{task}/pin``."""
    body = await body_of(exchange, bodies.Pin)
    found = state.manager.local_target(task, body.option)
    await state.manager.pin_model(task, body.pinned, body.option)
    await exchange.answer({"task": found.task, "option": found.option, "pinned": body.pinned})


async def clear_cooldown(state: State, exchange: Exchange, task: str) -> None:
    """``POST /admin/tasks/{task}/cooldown/clear``."""
    await body_of(exchange, bodies.Nothing)
    name = state.manager.target(task).task
    await state.manager.clear_cooldown(name)
    await exchange.answer({"task": name, "cleared": True})


async def evict(state: State, exchange: Exchange) -> None:
    """``POST /admin/evict``: unload the idle model used longest ago; answers its task, or null."""
    await body_of(exchange, bodies.Nothing)
    await exchange.answer({"task": await _whole(state, state.manager.evict_lru_model())})


# --- the server -------------------------------------------------------------------------------------------------------


async def reload(state: State, exchange: Exchange) -> None:
    """``POST /admin/reload``: read models.yaml again; answers what changed, or everything that is wrong with it."""
    await body_of(exchange, bodies.Nothing)
    try:
        found = await _whole(state, state.manager.reload())
    except ConfigError as error:
        await _tell_problems(exchange, error)
        return
    warnings = [_problem(each) for each in found.warnings]
    await exchange.answer({**found.data(), "warnings": warnings, "text": str(found)})


async def drain(state: State, exchange: Exchange) -> None:
    """``POST /admin/drain``: refuse new work while what is under way ends; or take it again."""
    body = await body_of(exchange, bodies.Drain)
    if state.ending and not body.draining:
        raise Refused(409, "the server is shutting down: it takes no new work any more", code="shutting_down")
    if state.draining is not body.draining:
        state.draining = body.draining
        state.events.tell("draining", at=time.time(), draining=body.draining)
    await exchange.answer({"draining": state.draining})


# --- beneath ----------------------------------------------------------------------------------------------------------


async def _whole(state: State, work: Coroutine[Any, Any, Any]) -> Any:
    """Do it to its end, also where whoever asked goes away: half a change is none that anybody asked for."""
    try:
        performer = state.manager.enter()
    except BaseException:
        work.close()
        raise
    return await asyncio.shield(performer.spawn_operation(work))


def _state(state: State, key: Any) -> str:
    model = state.manager.statistics().models.get(key)
    return "external" if model is None else model.state.value


async def _tell_problems(exchange: Exchange, error: ConfigError) -> None:
    """All that is wrong with the file."""
    problems = [_problem(each) for each in error.problems]
    # What is wrong with the file as a whole, such as that there is none, is at no path in it.
    where = (problems[0]["path"] or problems[0]["file"]) if problems else ""
    first = f"{where}: {problems[0]['message']}" if problems else "it can't be used"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    said = {"message": f"the file can't be used, all goes on as it was: {first}{more}", "type": "invalid_request_error",
            "param": None, "code": "config_error", "problems": problems}  # fmt: skip
    await exchange.answer({"error": said}, 400)


def _problem(problem: Any) -> dict[str, Any]:
    return {"file": Path(problem.file).name, "line": problem.line, "column": problem.column, "path": problem.path,
            "message": problem.message, "hint": problem.hint}  # fmt: skip
