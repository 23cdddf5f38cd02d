"""One question of the demo and what came of it, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from taskrouter.cli.budget import budget_tables
from taskrouter.cli.exits import error_data
from taskrouter.cli.journal import Moves
from taskrouter.cli.printing import console
from taskrouter.errors import TaskRouterError
from taskrouter.manager import Budget


class Question(Protocol):
    """An input, and how to know whether its answer is right: ``samples.manifest.DemoInput``."""

    @property
    def task(self) -> str: ...
    @property
    def verb(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def expected(self) -> str: ...
    @property
    def is_file(self) -> bool: ...
    @property
    def messages(self) -> list[dict[str, Any]] | None: ...
    def is_right(self, answer: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question, its answer (or error) as a text and as it was ``given``, and what was moved for it."""

    question: Question
    option: str
    answer: str
    right: bool
    seconds: float
    moves: Moves
    resident: tuple[str, ...]
    error: TaskRouterError | None = None
    given: Any = None

    def data(self) -> dict[str, Any]:
        """For programs."""
        question = self.question
        asked = {"task": question.task, "input": question.input, "option": self.option, "expected": question.expected}
        error = {"error": error_data(self.error)} if self.error else {}
        answered = {"answer": self.answer, "right": self.right, "seconds": round(self.seconds, 4)}
        return {**asked, **answered, **self.moves.data(), "resident": list(self.resident), **error}


def summary_of(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """How it all went, in numbers."""
    return {
        "right": sum(outcome.right for outcome in outcomes),
        "asked": len(outcomes),
        "loads": sum(item.error is None for outcome in outcomes for item in outcome.moves.loaded),
        "evictions": sum(len(outcome.moves.evicted) for outcome in outcomes),
        "seconds": round(seconds, 3),
    }


def print_outcome(outcome: Outcome, number: int, count: int) -> None:
    """One question, for people."""
    question = outcome.question
    shown = Path(question.input).name if question.is_file else f"“{question.input}”"
    moves = [*map(str, outcome.moves.evicted), *map(str, outcome.moves.loaded)]
    if not moves:
        moves = ["nothing was moved" if outcome.error else f"{outcome.option} was loaded already"]
    if outcome.error is not None:
        answer, mark = f"{type(outcome.error).__name__}: {outcome.error}", "FAILED"
    else:
        answer = " / ".join(line.strip() for line in outcome.answer.splitlines() if line.strip())
        expected = " / ".join(question.expected.splitlines())
        mark = "right" if outcome.right else f"WRONG, expected: {expected}"
    print(f"\n[{number}/{count}] {question.task}: {shown}")
    print(f"    option    {outcome.option}")
    for label, move in zip(["memory", *[""] * len(moves)], moves, strict=False):
        print(f"    {label:<9} {move}")
    print(f"    resident  {', '.join(outcome.resident) or 'nothing'}")
    print(f"    answer    {answer}")
    print(f"    verdict   {mark}, in {outcome.seconds:.2f} s", flush=True)


def print_end(budget: Budget, summary: dict[str, Any]) -> None:
    """The budget, and how it all went."""
    out = console()
    print("\nThe memory budget (the table of `taskrouter validate`):")
    for table in budget_tables(budget):
        print()
        out.print(table)
    right, asked, loads, evictions = (summary[name] for name in ("right", "asked", "loads", "evictions"))
    print(f"\n{right} of {asked} right; {loads} loads, {evictions} evictions; {summary['seconds']:.1f} s")
