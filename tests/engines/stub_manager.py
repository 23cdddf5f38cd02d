"""A manager with stubs under traffic, as a program: something that can be killed.

``python -m tests.engines.stub_manager MODELS_YAML SEED MANNER [N]``, where MANNER is

- ``loop``: callers are tasks of its event loop,
- ``threads``: callers are threads of ``manager.blocking()``, which a thread that has ended has made,
- ``forks``: as ``loop``, and a forked child keeps all its file descriptors open,
- ``step``: as ``loop``, and it kills itself at the N-th call into the engines' code,
- ``once``: one question, one answer, the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
from typing import Any

from taskrouter import ModelManager, errors
from taskrouter.manager import StillMachine
from taskrouter.types import GIB

from .stub_faults import ask

USERS = 6
ENGINES = os.path.join("taskrouter", "backends", "engines", "")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def make(config: str) -> ModelManager:
    return ModelManager(config, machine=StillMachine({"cpu": GIB}))


async def user(manager: ModelManager, dice: random.Random) -> None:
    while True:
        task = dice.choice(list(manager.tasks))
        text, _ = ask(dice, task)
        with contextlib.suppress(errors.TaskRouterError):
            model = await manager.get_model(task)
            if dice.random() < 0.5:
                await model.chat(text)
            else:
                async with model.stream_chat(text) as chunks:
                    await anext(chunks)
        await asyncio.sleep(dice.choice([0, 0.1]))


async def loop(config: str, seed: int, *, forks: bool) -> None:
    manager = make(config)
    say("ready")
    users = [asyncio.create_task(user(manager, random.Random(f"{seed} {n}"))) for n in range(USERS)]
    if forks:
        await manager.get_model("a")
        if not (child := os.fork()):
            while True:
                signal.pause()
        say(f"forked {child}")
    await asyncio.wait(users)


def threads(config: str, seed: int) -> None:
    made: list[Any] = []
    maker = threading.Thread(target=lambda: made.append(make(config).blocking()))
    maker.start()
    maker.join()
    say("ready")

    def ask_on(dice: random.Random) -> None:
        while True:
            task = dice.choice("abcd")
            with contextlib.suppress(errors.TaskRouterError):
                made[0].get_model(task).chat(ask(dice, task)[0])

    users = [threading.Thread(target=ask_on, args=(random.Random(f"{seed} {n}"),)) for n in range(USERS)]
    for each in users:
        each.start()
    users[0].join()


async def once(config: str) -> None:
    async with make(config) as manager:
        say((await (await manager.get_model("a")).chat("hello")).text)


def kill_at(number: int) -> None:
    """The N-th call of a function of the engines' code, in whatever thread, is the last thing this process does."""
    count = 0

    def look(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        if event == "call" and ENGINES in frame.f_code.co_filename and not frame.f_code.co_name.startswith("<"):
            count += 1
            if count == number:
                say(f"killed in {frame.f_code.co_qualname} called by {frame.f_back and frame.f_back.f_code.co_name}")
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(look)
    sys.setprofile(look)


def main() -> None:
    config, seed, manner, *more = sys.argv[1:]
    if manner == "step":
        import taskrouter.backends.engines.command  # noqa: F401  (importing it calls nothing of interest)

        kill_at(int(more[0]))
    if manner == "threads":
        threads(config, int(seed))
    elif manner == "once":
        asyncio.run(once(config))
    else:
        asyncio.run(loop(config, int(seed), forks=manner == "forks"))


if __name__ == "__main__":
    main()
