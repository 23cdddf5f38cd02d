"""From lines to a trace: our own JSONL, and the columns of two public CSVs, mapped to tasks by rules.

CSV columns: ``TIMESTAMP,ContextTokens,GeneratedTokens`` (Azure's LLM inference traces of 2023 and 2024; times as
``2023-11-16 18:15:46.6805900``) and ``Timestamp,Model,Request tokens,Response tokens,…`` (BurstGPT; times in seconds).
"""

from __future__ import annotations

import calendar
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite, nan
from operator import eq, ge, gt, le, lt
from typing import Any

from taskrouter.errors import BadInput
from taskrouter.simulate.traces import Broken, Request, Told, Trace

KEPT = 20
"""Broken lines that are told one by one."""
TOKENS_PER_S = 50.0
"""Tokens a model writes in a second, where a CSV says tokens and not seconds."""
HOLD_S = 0.5
MOST = 1e12
"""Seconds (about 30,000 years) and tokens beyond which a number is a mistake."""

TIME = ("TIMESTAMP", "Timestamp")
WRITTEN = ("GeneratedTokens", "Response tokens")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(\.\d+)?(?:Z|\+00:00)?")
_RULE = re.compile(r"(?:\*|(?P<column>[^<>=]+?)\s*(?P<op><=|>=|=|<|>)\s*(?P<value>.*?))\s*:\s*(?P<task>[^:]+)")
_OPS: Mapping[str, Callable[[Any, Any], bool]] = {"=": eq, "<": lt, ">": gt, "<=": le, ">=": ge}


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows whose ``column`` compares so belong to a task; no column: all rows."""

    task: str
    column: str = ""
    op: str = "="
    value: str = ""

    def fits(self, row: Mapping[str, str]) -> bool:
        """Whether a row is meant; numbers are compared as numbers. Raises ``ValueError`` for a text that is none."""
        if not self.column:
            return True
        held = row.get(self.column)
        if held is None:
            raise ValueError(f"there is no column {self.column!r}")
        if self.op == "=":
            return held == self.value
        return _OPS[self.op](float(held), float(self.value))


def rule(text: str) -> Rule:
    """``Model=GPT-4:reports``, ``ContextTokens>4000:long`` or ``*:short``. Raises ``BadInput``."""
    found = _RULE.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"--map {text}: write COLUMN=VALUE:TASK, COLUMN>NUMBER:TASK (or <, >=, <=), or *:TASK")
    column, op, value, task = found["column"], found["op"] or "=", found["value"] or "", found["task"].strip()
    if op != "=":
        try:
            number = float(value)
        except ValueError:
            number = nan
        if not isfinite(number):
            raise BadInput(f"--map {text}: {value!r} is no number to compare {column} with")
    return Rule(task, (column or "").strip(), op, value)


@dataclass(frozen=True, slots=True)
class Reading:
    """How lines are read: the tasks there are, the rules for CSVs, and what stands for figures a trace doesn't have."""

    tasks: frozenset[str]
    rules: Sequence[Rule] = ()
    hold_s: float = HOLD_S
    tokens_per_s: float = TOKENS_PER_S


def read_trace(lines: Iterable[str], how: Reading) -> Trace:
    """A trace from its lines, the first of which tells what it is. Raises ``BadInput`` where that can't be told.

    Requests are sorted by their arrival and shifted so that the first comes at 0. Lines that can't be used are told by
    their number; what comes of that is for the caller to say.
    """
    numbered = enumerate(lines, 1)
    for number, whole in numbered:
        line = whole.removeprefix("\ufeff")
        if not line.strip():
            continue
        first = (number, line)
        if line.lstrip().startswith("{"):
            if how.rules:
                raise BadInput("--map is for CSVs: each line of this trace names its task")
            return _collected(_jsonl(chain([first], numbered), how))
        return _collected(_csv(first, numbered, how))
    raise BadInput("the trace is empty: it has no line that says anything")


def _collected(found: Iterator[Request | Told | Broken]) -> Trace:
    requests: list[Request] = []
    told: list[Told] = []
    broken: list[Broken] = []
    count = 0
    for each in found:
        if isinstance(each, Request):
            requests.append(each)
        elif isinstance(each, Told):
            told.append(each)
        else:
            count += 1
            if len(broken) < KEPT:
                broken.append(each)
    requests.sort(key=lambda request: request.at)
    origin = requests[0].at if requests else 0.0
    shifted = tuple(Request(each.at - origin, each.task, each.hold_s, each.priority) for each in requests)
    told.sort(key=lambda each: each.at)  # of several processes that share a file each wrote its own in turn
    return Trace(shifted, tuple(told), origin, tuple(broken), count)


# --- our own ----------------------------------------------------------------------------------------------------------


def _jsonl(lines: Iterable[tuple[int, str]], how: Reading) -> Iterator[Request | Told | Broken]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            yield _record(json.loads(line), how)
        except (ValueError, OverflowError, RecursionError) as error:
            why = "it is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            yield Broken(number, why)


def _record(data: Any, how: Reading) -> Request | Told:
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  (one kind of error for a line)
    at = _number(data, "at", None, least=None)
    decided = data.get("decided")
    if decided is not None:
        if not isinstance(decided, dict) or not isinstance(decided.get("text"), str):
            raise ValueError("decided has no text")
        tasks = decided.get("tasks") or []
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise ValueError("decided.tasks is no list of tasks")
        return Told(at, tuple(tasks), decided["text"])
    priority = data.get("priority")
    if priority is not None and (type(priority) is not int or abs(priority) > 1000):
        raise ValueError("priority is no whole number from -1000 to 1000")
    return Request(at, _task(data.get("task"), how), _number(data, "hold_s", how.hold_s, least=0.0), priority)


def _task(name: Any, how: Reading) -> str:
    if not isinstance(name, str):
        raise ValueError("it names no task")  # noqa: TRY004
    if name not in how.tasks:
        raise ValueError(f"there is no task {name[:60]!r}")
    return name


def _number(data: Mapping[str, Any], name: str, default: float | None, *, least: float | None) -> float:
    held = data.get(name, default)
    if isinstance(held, bool) or not isinstance(held, int | float) or not isfinite(held):
        raise ValueError(f"{name} is no number")
    if abs(held) > MOST:
        raise ValueError(f"{name} is beyond {MOST:g}")
    if least is not None and held < least:
        raise ValueError(f"{name} is below {least:g}")
    return float(held)


# --- CSVs -------------------------------------------------------------------------------------------------------------


def _csv(first: tuple[int, str], lines: Iterable[tuple[int, str]], how: Reading) -> Iterator[Request | Told | Broken]:
    try:
        header = [name.strip() for name in next(csv.reader([first[1]]))]
    except csv.Error as error:
        raise BadInput(f"the trace's first line is neither JSON nor a CSV's header: {error}") from error
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise BadInput(f"the trace's header names {twice!r} twice")
    time = next((name for name in TIME if name in header), None)
    written = next((name for name in WRITTEN if name in header), None)
    if time is None or written is None:
        raise BadInput(
            "the trace is neither JSONL nor a CSV with the columns TIMESTAMP,ContextTokens,GeneratedTokens or "
            "Timestamp,Model,Request tokens,Response tokens"
        )
    if not how.rules:
        raise BadInput("a CSV says no task: map its rows with --map, such as --map '*:TASK'")
    for each in how.rules:
        if each.column and each.column not in header:
            raise BadInput(f"--map names the column {each.column!r}; the trace has {', '.join(header)}")
        if each.task not in how.tasks:
            raise BadInput(f"--map names the task {each.task!r}; there are {', '.join(sorted(how.tasks))}")
    for number, line in lines:
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line], strict=True))
            if len(cells) != len(header):
                raise ValueError(f"it has {len(cells)} columns, the header {len(header)}")
            yield _row(dict(zip(header, cells, strict=True)), time, written, how)
        except (ValueError, csv.Error) as error:
            yield Broken(number, str(error))


def _row(row: Mapping[str, str], time: str, written: str, how: Reading) -> Request:
    at = _instant(row[time])
    tokens = float(row[written])
    if not 0 <= tokens <= MOST:
        raise ValueError(f"{written} is no count of tokens")
    task = next((each.task for each in how.rules if each.fits(row)), None)
    if task is None:
        raise ValueError("no --map rule fits it")
    return Request(at, task, tokens / how.tokens_per_s)


def _instant(text: str) -> float:
    """Seconds, from a number of them or from a date and a time (UTC)."""
    found = _ISO.fullmatch(text.strip())
    if found is None:
        seconds = float(text)
        if not abs(seconds) <= MOST:
            raise ValueError(f"{text!r} is no time")
        return seconds
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    if not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        raise ValueError(f"{text!r} is no time")
    if hour > 23 or minute > 59 or second > 60:  # leap seconds are written so
        raise ValueError(f"{text!r} is no time")
    return calendar.timegm((year, month, day, hour, minute, second)) + float(found[7] or 0.0)
