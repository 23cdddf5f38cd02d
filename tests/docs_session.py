"""A page's ``python`` blocks run as one session, and what each prints held to the comments beside its prints."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
from collections.abc import Iterable
from typing import Any

from tests.pages import fits

_PRINT = re.compile(r"\b(?:print|show)\(.*\)  # (.+)$", re.MULTILINE)


def play(blocks: Iterable[str], *, bound_s: float = 30.0) -> int:
    """Run the blocks one after the other in one namespace; answers how many prints were held to their comments.

    A block that awaits runs on the session's event loop, any other outside of it, as at the prompt of
    ``python -m asyncio`` and of ``python``.
    """
    names: dict[str, Any] = {"__name__": "session"}
    held = 0
    with asyncio.Runner() as runner:
        for block in blocks:
            out = io.StringIO()
            code = compile(block, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with contextlib.redirect_stdout(out):
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(_bounded(eval(code, names), bound_s))
                else:
                    exec(code, names)
            held += _compare(block, out.getvalue())
    return held


async def _bounded(work: Any, bound_s: float) -> None:
    async with asyncio.timeout(bound_s):
        await work


def _compare(block: str, printed: str) -> int:
    """Each comment beside a print is a line that was printed, in this order."""
    wanted = _PRINT.findall(block)
    lines = iter(printed.splitlines())
    for comment in wanted:
        assert any(fits(comment, line) for line in lines), f"{comment!r} was not printed (in time), but:\n{printed}"
    return len(wanted)
