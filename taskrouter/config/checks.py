"""What must agree across keys: names that name something, keys that go together, sizes that fit.

These look at the plain data, not at the parsed models, so that they run in the same pass as everything else, also in a
file that has other problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from taskrouter.config.fields import DEVICE_PATTERN
from taskrouter.config.fill import Report
from taskrouter.config.frameworks import COMMAND, EXTERNAL, Frameworks, misspelt, nearest
from taskrouter.config.paths import Path
from taskrouter.config.secrets import show
from taskrouter.config.sizes import parse_size
from taskrouter.residency.messages import size
from taskrouter.types import GIB

QUANTIZATIONS = frozenset({
    "4bit", "8bit", "int4", "int8", "nf4", "fp4", "fp8", "mxfp4", "nvfp4", "awq", "awq_marlin", "gptq", "gptq_marlin",
    "bitsandbytes", "gguf", "hqq", "quanto", "torchao", "aqlm", "eetq", "vptq", "compressed-tensors", "modelopt",
    "none",
})  # fmt: skip


def check(data: dict[str, Any], *, frameworks: Frameworks, report: Report) -> None:
    """Report everything that doesn't agree. Values whose type is wrong are skipped: that is said elsewhere."""
    tasks = _mapping(data.get("tasks"))
    for name, task in tasks.items():
        check_task(("tasks", name), _mapping(task), frameworks=frameworks, report=report)
        for option, fields in _mapping(_mapping(task).get("options")).items():
            _check_size(("tasks", name, "options", option), _mapping(fields), data, report)
    default = data.get("default_task")
    if isinstance(default, str) and default not in tasks:
        _names_nothing(("default_task",), default, "task", tasks, report)
    if isinstance(default, str) and "default" in tasks and default != "default":
        report(("tasks", "default"), "a task can't be called default while default_task names another", "rename it")
    for pipeline, steps in _mapping(data.get("pipelines")).items():
        for index, step in _texts(steps):
            if step not in tasks:
                _names_nothing(("pipelines", pipeline, index), step, "task", tasks, report)
    _check_names("engines", data, frameworks.names, "framework", report)
    _check_names("providers", data, frameworks.provider_names, "provider", report)
    _check_batches(_mapping(data.get("inference")), report)
    _check_memory(_mapping(data.get("memory")), report)


def check_task(path: Path, task: dict[str, Any], *, frameworks: Frameworks, report: Report) -> None:
    """Report what doesn't agree within one task and its options."""
    options = _mapping(task.get("options"))
    selected = task.get("selected")
    if isinstance(selected, str) and options and selected not in options:
        _names_nothing((*path, "selected"), selected, "option", options, report)
    seen = {selected} if isinstance(selected, str) else set()
    for index, name in _texts(task.get("fallback")):
        if options and name not in options:
            _names_nothing((*path, "fallback", index), name, "option", options, report)
        elif name in seen:
            report((*path, "fallback", index), f"{show(name)} is tried before this already", "remove it")
        seen.add(name)
    if task.get("when_cold") == "fallback" and not task.get("fallback"):
        report((*path, "when_cold"), "when_cold: fallback needs a fallback list", "write fallback: [an option]")
    for name, fields in options.items():
        if isinstance(fields, dict):
            _check_option((*path, "options", name), fields, frameworks, report)


def _check_option(path: Path, option: dict[str, Any], frameworks: Frameworks, report: Report) -> None:
    framework, provider = option.get("framework"), option.get("provider")
    if isinstance(framework, str) and (near := misspelt(framework, frameworks.names)):
        report((*path, "framework"), f"unknown framework {show(framework)}", f"did you mean {near!r}?")
    if isinstance(provider, str) and (near := misspelt(provider, frameworks.provider_names)):
        report((*path, "provider"), f"unknown provider {show(provider)}", f"did you mean {near!r}?")
    if framework == EXTERNAL and "provider" not in option:
        report(
            (*path, "provider"), "framework: external_api needs a provider", "write provider: anthropic, for example"
        )
    if framework == COMMAND and not option.get("command"):
        report((*path, "command"), "framework: command needs the command to run",
               'write command: [program, --port, "{port}"]')  # fmt: skip
    quantization = option.get("quantization")
    if isinstance(quantization, str) and (near := _misspelt_quantization(quantization)):
        report((*path, "quantization"), f"unknown quantization {show(quantization)}", f"did you mean {near!r}?")


def _misspelt_quantization(word: str) -> str | None:
    """Frameworks know more quantizations than we do, so only a sure slip is refused: same digits, near letters."""
    near = misspelt(word, QUANTIZATIONS)
    return near if near and re.sub(r"\D", "", near) == re.sub(r"\D", "", word) else None


def _check_size(path: Path, option: dict[str, Any], data: dict[str, Any], report: Report) -> None:
    limit = _bytes(_mapping(data.get("inference")).get("max_memory_per_model"))
    need = _bytes(option.get("vram_gb"), bare=GIB)
    if limit is not None and need is not None and need > limit > 0:
        report((*path, "vram_gb"),
               f"{size(need)} is more than inference.max_memory_per_model ({size(limit)})",
               "raise that, or remove the option")  # fmt: skip


def _check_names(section: str, data: dict[str, Any], right: frozenset[str], what: str, report: Report) -> None:
    for name in _mapping(data.get(section)):
        if near := misspelt(name, right):
            report((section, name), f"unknown {what}", f"did you mean {near!r}?")


def _check_batches(inference: dict[str, Any], report: Report) -> None:
    default, most = inference.get("default_batch_size", 1), inference.get("max_batch_size", 8)
    if isinstance(default, int) and isinstance(most, int) and default > most > 0:
        key = "default_batch_size" if "default_batch_size" in inference else "max_batch_size"
        report(("inference", key), f"default_batch_size {default} is over max_batch_size {most}", "")


def _check_memory(memory: dict[str, Any], report: Report) -> None:
    devices = _mapping(memory.get("devices"))
    for name, fields in devices.items():
        path = ("memory", "devices", name)
        if not re.match(DEVICE_PATTERN, name):
            report(path, "this is no device", "write cpu, cuda:0, cuda:1, …")
        budget, reserve = _bytes(_mapping(fields).get("budget")), _bytes(_mapping(fields).get("reserve"))
        if budget is not None and (budget == 0 or (reserve is not None and reserve >= budget)):
            report((*path, "budget"), "this budget leaves nothing for models", "raise it, or lower the reserve")
    budgeted = bool(devices) and all("budget" in _mapping(fields) for fields in devices.values())
    if memory.get("share") is True and not budgeted:
        report(("memory", "share"), "share: true needs an explicit budget for each device",
               "write memory.devices: {cuda:0: {budget: 10GiB}}")  # fmt: skip


def _names_nothing(path: Path, name: str, what: str, choices: dict[str, Any], report: Report) -> None:
    near = nearest(name, set(choices))
    listed = ", ".join(show(choice)[1:-1] for choice in list(choices)[:8])
    hint = f"did you mean {near!r}?" if near else f"there is: {listed or 'none'}"
    report(path, f"there is no {what} {show(name)}", hint)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> Iterator[tuple[int, str]]:
    if isinstance(value, list):
        yield from ((index, item) for index, item in enumerate(value) if isinstance(item, str))


def _bytes(value: Any, *, bare: int | None = None) -> int | None:
    """Bytes of a size; a bare number counts in units of ``bare``. ``None`` for what is no size."""
    if isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 40:
        return None
    return int(value * bare) if bare else (0 if value == 0 else None)
