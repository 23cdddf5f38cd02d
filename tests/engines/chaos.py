"""Random faults under mixed traffic, on any engine: everybody is answered or refused in time, and nothing is left.

``run`` needs a models.yaml and a ``watch.Run``; which faults there are (``KILLS`` works on every engine: it finds pids
by looking) and what is asked are arguments. What it finds wrong are sentences in ``Report.wrong``. The same seed makes
the same choices; what they hit is up to the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from taskrouter import ModelManager, errors
from taskrouter.backends.engines import guardian
from taskrouter.manager import Machine
from taskrouter.residency import State

from . import watch
from .chaos_report import Bounds, Complaints, Report, watch_gaps

__all__ = ["KILLS", "Act", "Ask", "Bounds", "Chaos", "Fault", "Kinds", "Report", "run", "send"]

Ask = Callable[[random.Random, str], tuple[str, str | None]]
"""A question for this task, and the answer it must get (``None``: any that isn't empty)."""


class Chaos:
    """One run: a manager, its users, and somebody who breaks things."""

    def __init__(self, manager: ModelManager, run: watch.Run, seed: int, ask: Ask, bounds: Bounds) -> None:
        self.manager = manager
        self.folder = manager.config_path.parent
        self.run = run
        self.dice = random.Random(seed)
        self.ask = ask
        self.bounds = bounds
        self.report = Report()
        self.history: dict[int, list[str]] = {}
        self.fault = ""
        self.ended = False
        self.later: set[asyncio.Task[None]] = set()
        self.acts: list[Act] = [
            *[self.chat] * 3, *[self.stream] * 2, *[self.lease] * 2, self.abandon, self.cancel,
        ]  # fmt: skip

    # --- what faults are made of -----

    def roots(self) -> list[int]:
        """The first processes of engines that serve, as the manager has it."""
        return watch.alive(int(info["pid"]) for info in self.manager.statistics().info.values() if "pid" in info)

    def starting(self) -> list[int]:
        """The first processes of engines that don't serve yet, each of them once.

        What an engine makes while it starts is looked at from time to time; one that is hit again and again in its
        first second may die with nobody left who knows what it held.
        """
        return watch.alive(set(self.run.engines()) - set(self.roots()) - self.history.keys())

    async def somebody(self, *, serving: bool = False) -> int | None:
        """An engine's first process: mostly, or only, of one that serves."""
        for _ in range(20):
            roots, starting = self.roots(), [] if serving else await asyncio.to_thread(self.starting)
            if found := starting if starting and (not roots or self.dice.random() < 0.2) else roots:
                root = self.dice.choice(found)
                self.hit(root)
                return root
            await asyncio.sleep(0.05)
        return None

    def hit(self, root: int) -> None:
        """Remember what was done to an engine, and when in its life, to tell what came of it."""
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - guardian.start_time(root) / os.sysconf("SC_CLK_TCK")
        state = "serving" if root in self.roots() else "starting"
        self.history.setdefault(root, []).append(f"{self.fault} ({state}, {age:.2f} s old, at {time.monotonic():.2f})")

    def guardian(self) -> int | None:
        """The guardian's pid, from outside: it runs that program."""
        pids = [pid for pid, line in self.run.processes().items() if "engines/guardian.py" in line]
        return self.dice.choice(pids) if pids else None

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        """Do something a little later, the end of the faults or not."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            what()

        self.spawn(wait())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.later.add(task)
        task.add_done_callback(self.later.discard)

    # --- traffic -----

    async def user(self, dice: random.Random) -> None:
        """Asks one thing after another."""
        while not self.ended:
            act = dice.choice(self.acts)
            await self.bounded(act, dice, dice.choice(list(self.manager.tasks)))
            await asyncio.sleep(dice.choice([0, 0, 0.05, 0.2]))

    async def bounded(self, act: Act, dice: random.Random, task: str) -> None:
        name = act.__name__
        start = time.monotonic()
        work = asyncio.get_running_loop().create_task(act(dice, task))
        # At most two waits for a model (the handle's and its call's) and two calls.
        wait_s = self.manager.target(task).max_wait_s
        bound = 2 * wait_s + 2 * self.bounds.call_s + self.bounds.margin_s
        await asyncio.wait({work}, timeout=bound)
        took = time.monotonic() - start
        self.report.slowest = max(self.report.slowest, took)
        if not work.done():
            self.report.wrong.append(f"{name} on {task} got no answer in {bound:.0f} s: {self.describe()}")
            work.cancel()
            return
        error = None if work.cancelled() else work.exception()
        if work.cancelled():
            self.report.wrong.append(f"{name} on {task} was cancelled by nobody")
        elif error is None:
            self.report.outcomes[f"{name} right"] += 1
        elif isinstance(error, errors.TaskRouterError):
            self.report.outcomes[type(error).__name__] += 1
            if isinstance(error, errors.CoolingDown) and dice.random() < 0.5:
                await self.manager.clear_cooldown(task)
            elif isinstance(error, errors.WrongLoop | errors.ManagerClosed | errors.ConfigError):
                self.report.wrong.append(f"{name} on {task}: {error!r}")
        else:
            self.report.wrong.append(f"{name} on {task} raised what is not typed: {error!r}")

    async def chat(self, dice: random.Random, task: str) -> None:
        text, expected = self.ask(dice, task)
        model = await self.manager.get_model(task)
        self.check((await model.chat(text)).text, expected)

    async def stream(self, dice: random.Random, task: str) -> None:
        text, expected = self.ask(dice, task)
        model = await self.manager.get_model(task)
        pieces = [chunk async for chunk in model.stream_chat(text)]
        self.check("".join(piece.text for piece in pieces), expected)
        assert pieces[-1].finish_reason is not None, "a stream ended without saying why"

    async def lease(self, dice: random.Random, task: str) -> None:
        async with self.manager.lease(task, priority=dice.randint(0, 2)) as model:
            for _ in range(dice.randint(1, 2)):
                text, expected = self.ask(dice, task)
                self.check((await model.chat(text)).text, expected)
                await asyncio.sleep(dice.choice([0, 0.1]))

    async def abandon(self, dice: random.Random, task: str) -> None:
        text, _ = self.ask(dice, task)
        async with self.manager.lease(task) as model, model.stream_chat(text) as chunks:
            for _ in range(dice.randint(0, 2)):
                await anext(chunks, None)

    async def cancel(self, dice: random.Random, task: str) -> None:
        """A caller that goes away, anywhere: it must be let go at once."""
        work = asyncio.get_running_loop().create_task(dice.choice([self.chat, self.stream, self.lease])(dice, task))
        await asyncio.wait({work}, timeout=dice.choice([0, 0.01, 0.1, 0.5, 1]))
        work.cancel()
        await asyncio.wait({work}, timeout=self.bounds.margin_s)
        assert work.done(), f"a cancelled caller was kept for {self.bounds.margin_s:g} s"
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error

    def check(self, text: str, expected: str | None) -> None:
        assert text if expected is None else text == expected, f"answered {text!r} instead of {expected!r}"

    # --- the end -----

    async def come_to_rest(self) -> None:
        """Left alone, nothing moves any more; every model can be had again; the books say what there is."""
        end = time.monotonic() + self.bounds.rest_s
        for task in self.manager.tasks:
            while True:
                await self.manager.clear_cooldown(task)
                try:
                    text, expected = self.ask(self.dice, task)
                    self.check((await (await self.manager.get_model(task)).chat(text)).text, expected)
                    break
                except (errors.TaskRouterError, AssertionError) as error:
                    # What was to go wrong at the next start, or the next call, may still come.
                    if time.monotonic() > end:
                        self.report.wrong.append(f"in the end {task} can't be had: {error!r}; {self.describe()}")
                        break
        end = time.monotonic() + self.bounds.rest_s
        for pause in itertools.repeat(0.05):
            open_ends = self.open_ends()
            if not open_ends or time.monotonic() > end:
                break
            await asyncio.sleep(pause)
        self.report.wrong += open_ends

    def open_ends(self) -> list[str]:
        seen = self.manager.statistics()
        quiet = (State.DISK, State.READY, State.COOLDOWN)
        found = [f"{m.label} is {m.state}" for m in seen.models.values() if m.state not in quiet]
        found += [f"{m.label} has {m.leases} leases" for m in seen.models.values() if m.leases]
        found += [f"{m.label} left {dict(m.residue)} behind" for m in seen.models.values() if m.residue]
        found += [f"{seen.waiting} wait"] * bool(seen.waiting) + ["it isn't healthy"] * (not seen.healthy)
        found += [f"a lease is held: {lease}" for lease in self.manager.leases.values()]
        for device, books in seen.devices.items():
            held = sum(model.charges.get(device, 0) for model in seen.models.values() if model.state is State.READY)
            if (books.charged, books.promised) != (held, 0):
                found.append(f"{device} is charged {books.charged}, promised {books.promised}; models hold {held}")
        ready = {int(info["pid"]) for info in seen.info.values() if "pid" in info}
        there = set(self.run.engines())
        if ready != there:
            found.append(f"engines {sorted(there)} run, the books have {sorted(ready)}")
        return found

    def describe(self) -> str:
        seen = self.manager.statistics()
        models = ", ".join(f"{m.label} {m.state.value} leases {m.leases}" for m in seen.models.values())
        return f"{models}; {seen.waiting} wait; processes {self.run.processes()}"


Act = Callable[[random.Random, str], Coroutine[Any, Any, None]]
Fault = Callable[[Chaos], Awaitable[None]]


# --- faults that every engine can have -----


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def to_engine(number: signal.Signals, *generations: int) -> Fault:
    """A signal for an engine's first process (0), its children (1) or everyone further down (2)."""

    async def fault(chaos: Chaos) -> None:
        root = await chaos.somebody()
        if root is not None:
            family = watch.family(root)
            pids = [pid for generation in generations for pid in family[generation]]
            # An engine without grandchildren has its children hit.
            send(pids or family[1] or family[0], number)

    return fault


async def kill_all(chaos: Chaos) -> None:
    """All of an engine at one stroke, as the kernel does where memory ends; of one that has served for a moment.

    What it holds in shared memory is then known only from looking at it before: an instant after it was made that can't
    be, nor while the guardian is stopped.
    """
    root = await chaos.somebody(serving=True)
    await asyncio.sleep(0.3)
    if root in chaos.roots() and (warden := chaos.guardian()) is not None and not watch.stopped(warden):
        chaos.hit(root)
        for pids in watch.family(root):
            send(pids, signal.SIGKILL)


async def kill_guardian(chaos: Chaos) -> None:
    await chaos.somebody()
    if (pid := chaos.guardian()) is not None:
        for root in chaos.run.engines():
            chaos.hit(root)
        send([pid], signal.SIGKILL)


async def stop_guardian(chaos: Chaos) -> None:
    """For a while: a machine under pressure."""
    if (pid := chaos.guardian()) is not None:
        for root in chaos.run.engines():
            chaos.hit(root)
        send([pid], signal.SIGSTOP)
        chaos.after(chaos.dice.choice([0.3, 1, 2]), lambda: send([pid], signal.SIGCONT))


async def unload(chaos: Chaos) -> None:
    """Somebody unloads a model, by force or not; no fault, but it comes at the worst of times."""
    task, force = chaos.dice.choice(list(chaos.manager.tasks)), chaos.dice.random() < 0.5

    async def quietly() -> None:
        with contextlib.suppress(errors.TaskRouterError):
            await chaos.manager.unload_model(task, force=force)

    chaos.spawn(quietly())


Kinds = Mapping[str, tuple[int, Fault]]
"""Faults by name, each with its weight."""

KILLS: Kinds = {
    "kill engine": (4, to_engine(signal.SIGKILL, 0)),
    "kill child": (3, to_engine(signal.SIGKILL, 1)),
    "kill grandchild": (3, to_engine(signal.SIGKILL, 2)),
    "kill all of it": (2, kill_all),
    "kill guardian": (2, kill_guardian),
    "terminate": (1, to_engine(signal.SIGTERM, 0)),
    "stop engine": (2, to_engine(signal.SIGSTOP, 0)),
    "stop child": (1, to_engine(signal.SIGSTOP, 1)),
    "stop grandchild": (1, to_engine(signal.SIGSTOP, 2)),
    "stop all of it": (1, to_engine(signal.SIGSTOP, 0, 1, 2)),
    "stop guardian": (1, stop_guardian),
    "unload": (2, unload),
}


# --- the run -----


async def run(
    config: Path,
    faults: int,
    seed: int,
    run: watch.Run,
    *,
    ask: Ask,
    kinds: Kinds = KILLS,
    machine: Machine | None = None,
    users: int = 8,
    pause_s: tuple[float, float] = (0.1, 0.8),
    more: Callable[[Chaos], list[Act]] = lambda _: [],
    bounds: Bounds | None = None,
) -> Report:
    """So many faults, drawn from ``kinds`` by weight, a pause between them; then an end at which all is put right."""
    start = time.monotonic()
    manager = ModelManager(config, machine=machine)
    chaos = Chaos(manager, run, seed, ask, bounds or Bounds())
    chaos.acts += more(chaos)
    report = chaos.report
    with Complaints(report):
        asyncio.get_running_loop().set_exception_handler(
            lambda _, said: report.wrong.append(f"the event loop complained: {said.get('message')} {said}")
        )
        clock = asyncio.create_task(watch_gaps(report))
        manager.enter()
        asking = [asyncio.create_task(chaos.user(random.Random(f"{seed} {number}"))) for number in range(users)]
        for name in random.Random(seed).choices(list(kinds), [weight for weight, _ in kinds.values()], k=faults):
            report.faults[name] += 1
            chaos.fault = name
            await kinds[name][1](chaos)
            await asyncio.to_thread(run.note_ports)
            manager._core.check()
            await asyncio.sleep(chaos.dice.uniform(*pause_s))
        chaos.ended = True
        await asyncio.wait(asking)
        while chaos.later:
            await asyncio.wait(set(chaos.later))
        await chaos.come_to_rest()
        report.loads = sum(model.generation for model in manager.statistics().models.values())
        report.wrong += await end(chaos)
        clock.cancel()
    report.wrong += [repr(task.exception()) for task in asking if task.exception() is not None]
    report.seconds = time.monotonic() - start
    return report


async def end(chaos: Chaos) -> list[str]:
    """Shut down; then nothing may be left, in the books or on the machine."""
    manager, wrong = chaos.manager, list[str]()
    start = time.monotonic()
    await manager.shutdown(drain_s=5)
    took = time.monotonic() - start
    if took > chaos.bounds.shutdown_s:
        wrong.append(f"the shutdown took {took:.0f} s")
    manager._core.check()
    seen = manager.statistics()
    wrong += [f"after the end {device} is charged {b}" for device, b in seen.devices.items() if b.charged or b.promised]
    gc.collect()
    left = await asyncio.to_thread(chaos.run.clean_within, chaos.bounds.clean_s)
    told = {str(pid): said for pid, said in chaos.history.items()}
    return wrong + [
        f"left: {each}, hit by {[told[w] for w in re.split(r'[^0-9]+', each) if w in told]}" for each in left
    ]
