"""A file to a ``Catalog``: read, guarded, filled, checked; every problem in one pass."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from taskrouter.config.catalog import Catalog, Unavailable, make_inference, make_tasks
from taskrouter.config.checks import check
from taskrouter.config.fill import fill
from taskrouter.config.frameworks import COMMAND, EXTERNAL, KEEP_WEIGHTS, Frameworks
from taskrouter.config.frozen import thaw
from taskrouter.config.not_yet import not_yet
from taskrouter.config.paths import Path
from taskrouter.config.schema import FileFields
from taskrouter.config.section import Collector, Enough
from taskrouter.config.tree import MAX_BYTES, read_tree, refuse
from taskrouter.errors import ConfigNotFound, Problem

ONLY_FOR = {
    "provider": EXTERNAL, "api_endpoint": EXTERNAL, "requires_api_key": EXTERNAL, "api_key_env": EXTERNAL,
    "price": EXTERNAL, "timeout_s": EXTERNAL, "max_retries": EXTERNAL, "command": COMMAND, "health": COMMAND,
    "sleep_calls": COMMAND,
}  # fmt: skip
"""Option keys that mean something to one framework only."""

NOT_FOR = {
    "env": frozenset({"transformers", "pytorch", "fake", EXTERNAL}),
    "isolation": frozenset({"vllm", "sglang", COMMAND, "fake"}),
}
"""Option keys that mean nothing to some frameworks, and something to all others (plug-ins among them)."""

NOT_FOR_EXTERNAL = (
    "revision", "quantization", "dtype", "vram_gb", "ram_gb", "devices", "keep_alive_s", "pinned", "isolation", "sleep",
    "trust_remote_code",
)  # fmt: skip
"""Option keys about being resident, which an external option never is."""


def load_catalog(
    path: str | os.PathLike[str], *, frameworks: Frameworks, environ: Mapping[str, str] | None = None
) -> Catalog:
    """Read models.yaml. Raises ``ConfigNotFound``, or ``ConfigError`` with every problem of the file."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        problem = Problem(name, 0, 0, "", "there is no such file", "write one, or give the path of yours")
        raise ConfigNotFound([problem]) from None
    except IsADirectoryError:
        raise refuse(name, "this is a folder", "give the file in it, such as models.yaml") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise refuse(name, f"the file can't be read: {reason}") from error
    base_dir = os.path.dirname(os.path.abspath(name))
    return parse_catalog(data, file=name, base_dir=base_dir, frameworks=frameworks, environ=environ)


def parse_catalog(
    data: bytes, *, file: str, base_dir: str, frameworks: Frameworks, environ: Mapping[str, str] | None = None
) -> Catalog:
    """The catalog in ``data``; ``file`` names it in messages, relative paths count from ``base_dir``.

    Raises ``ConfigError`` with every problem found.
    """
    tree, problems = read_tree(data, file=file)
    if tree.kind != "map":
        raise refuse(file, "the file is no mapping", "start it with tasks:", tree.line, tree.column)
    rename = {"tasks": "models"} if "models" in tree.entries and "tasks" not in tree.entries else {}
    collector = Collector(file, tree, rename=rename)
    collector.take(problems)
    raw: Any = None
    parsed = None
    try:
        raw = fill(tree, file=file, environ=os.environ if environ is None else environ, report=collector.report)
        collector.find_secrets(raw)
        values = {("tasks" if name == rename.get("tasks") else name): value for name, value in raw.items()}
        if "models" in values:
            values.pop("models")
            collector.report(("models",), "tasks: and models: are two names of one key", "keep one", at_key=True)
        check(values, frameworks=frameworks, report=collector.report)
        parsed = collector.validate(FileFields, values)
    except Enough:
        pass
    collector.raise_if_any()
    assert parsed is not None, "a file without problems is parsed"
    unavailable = tuple(_unavailable(parsed, frameworks))
    return Catalog(
        path=file,
        base_dir=base_dir,
        frameworks=frameworks,
        tasks=make_tasks(parsed),
        default_task=parsed.default_task,
        inference=make_inference(parsed.inference),
        memory=parsed.memory,
        pipelines=parsed.pipelines,
        engines=parsed.engines,
        providers=parsed.providers,
        server=parsed.server,
        media=parsed.media,
        telemetry=parsed.telemetry,
        warnings=tuple(_warnings(parsed, unavailable, collector)),
        unavailable=unavailable,
        raw=thaw(raw),
    )


def _unavailable(parsed: FileFields, frameworks: Frameworks) -> Iterator[Unavailable]:
    for name, task in parsed.tasks.items():
        for option, fields in task.options.items():
            if reason := frameworks.unavailable(fields.framework, fields.provider):
                yield Unavailable(name, option, reason, option == task.selected)


def _warnings(parsed: FileFields, unavailable: tuple[Unavailable, ...], collector: Collector) -> list[Problem]:
    found: list[Problem] = []
    for item in unavailable:
        fields = parsed.tasks[item.task].options[item.option]
        key = "provider" if fields.provider is not None else "framework"
        hint = "it is selected: calls to this task will fail" if item.selected else ""
        found.append(collector.problem(("tasks", item.task, "options", item.option, key), item.reason, hint))
    for path, purpose in not_yet(parsed):
        found.append(collector.problem(path, f"nothing acts on this key yet ({purpose})", "", at_key=True))
    for path, message in _idle_keys(parsed):
        found.append(collector.problem(path, message, "remove it", at_key=True))
    for path, message in _blind_budgets(parsed):
        found.append(collector.problem(path, message, "write price: {input_per_mtok: …}", at_key=True))
    return sorted(found, key=lambda p: (p.line, p.column, p.path))


def _blind_budgets(parsed: FileFields) -> Iterator[tuple[Path, str]]:
    """Budgets that options spend unseen: without a price a call costs nothing."""
    for name, settings in parsed.providers.items():
        if settings.daily_budget_usd is None:
            continue
        free = [
            f"{task}/{option}"
            for task, fields in parsed.tasks.items()
            for option, each in fields.options.items()
            if each.framework == EXTERNAL and each.provider == name and each.price is None
        ]
        if free:
            yield ("providers", name, "daily_budget_usd"), f"calls to {', '.join(free)} don't count: they have no price"


def _idle_keys(parsed: FileFields) -> Iterator[tuple[Path, str]]:
    """Keys of options that say something their framework has no use for."""
    for name, task in parsed.tasks.items():
        for option, fields in task.options.items():
            for key, field in type(fields).model_fields.items():
                if getattr(fields, key) == field.get_default(call_default_factory=True):
                    continue
                external = fields.framework == EXTERNAL
                elsewhere = ONLY_FOR.get(key, fields.framework) != fields.framework
                idle = fields.framework in NOT_FOR.get(key, ()) and not (key == "env" and fields.isolation == "process")
                if elsewhere or idle or (external and key in NOT_FOR_EXTERNAL):
                    path = ("tasks", name, "options", option, key)
                    yield path, f"{key} means nothing to framework {fields.framework}"
            if fields.sleep == "discard" and fields.framework in KEEP_WEIGHTS:
                path = ("tasks", name, "options", option, "sleep")
                yield path, f"framework {fields.framework} can't drop its weights: discard is as auto to it"
