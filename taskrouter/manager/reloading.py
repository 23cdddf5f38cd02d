"""A models.yaml that was edited, taken over while everything runs: by diff, whole or not at all.

The file is read and checked beside the loop; what follows happens between two events: the catalog, the selection, the
core's configuration. Models that are the same go on whatever else changed; those that no option names any more drain
and go. An option that was selected meanwhile stays selected, unless the file selects another one than before.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskrouter.config import Catalog, TaskConfig, load_catalog
from taskrouter.errors import Problem, TaskRouterError
from taskrouter.manager import specs
from taskrouter.manager.removing import Removing
from taskrouter.residency.events import Configure

logger = logging.getLogger("taskrouter")

SECTIONS = ("default_task", "inference", "memory", "pipelines", "engines", "providers", "server", "media", "telemetry")

AT_START = (
    "memory.share", "server.host", "server.port", "telemetry.service_name", "telemetry.otlp_endpoint",
)  # fmt: skip
"""Keys that are read once: what they say later acts after a restart."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload changed: options (``task/option``), tasks and sections, and selections as ``(was, is)``.

    ``restart`` are keys that were changed and act only when the process is started anew.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    selected: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    restart: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()

    def data(self) -> dict[str, Any]:
        """What changed, for programs."""
        names = {name: list(getattr(self, name)) for name in ("added", "removed", "changed", "restart")}
        return {**names, "selected": {task: list(both) for task, both in self.selected.items()}}

    def __str__(self) -> str:
        words = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        said = [f"{word} {', '.join(names)}" for word, names in words if names]
        said += [f"{task} selects {now}, not {was} any more" for task, (was, now) in self.selected.items()]
        said += [f"{key} acts after a restart" for key in self.restart]
        return "; ".join(said) or "nothing changed"


class Reloading(Removing):
    """Reload, by call or by signal."""

    _reloads = 0
    _applied = 0
    _last = Reloaded()
    _signals: tuple[tuple[signal.Signals, Any], ...] = ()
    """Signals that reload, and what they did before."""

    async def reload(self) -> Reloaded:
        """Read the file again, and go on with what it says now; answers what changed.

        Models that are the same go on serving, those that no option names any more drain and go; nothing is loaded
        before it is asked for. Whatever is wrong with the file changes nothing: raises ``ConfigError`` with every
        problem, or ``ConfigNotFound``. Of two reloads at once the one that began later decides.
        """
        self.enter()
        self._reloads += 1
        number = self._reloads
        catalog = await asyncio.to_thread(
            load_catalog, self._catalog.path, frameworks=self._registry.frameworks(), environ=self._environ
        )
        self.enter()  # raises where all was shut down meanwhile
        if number < self._applied:
            return self._last
        self._applied = number
        self._last = self._take_over(catalog)
        logger.info("%s was reloaded: %s", catalog.path, self._last)
        return self._last

    def _take_over(self, catalog: Catalog) -> Reloaded:
        """Between two events: what the file says from now on."""
        performer = self.enter()
        before, written, selected = self._catalog, self._written, self._selected
        requests = self._requests
        self._configure(catalog)
        self.__dict__.pop("_specs_known", None)
        self._targets.clear()
        self._selected = {
            name: _selected(task, written.get(name), selected.get(name)) for name, task in catalog.tasks.items()
        }
        self._warmed = {name: how for name, how in self._warmed.items() if name in catalog.tasks}
        reloaded = _difference(before, catalog, selected, self._selected)
        named = {use.request.key: use.request for use in reversed(self._uses)}
        for key in requests.keys() - named.keys() - self._core.snapshot().models.keys():
            del requests[key]  # of an earlier file still, and by now nothing of it is left
        requests.update(named)
        self.router.externals.configure(catalog)
        self.router.configure((*reloaded.removed, *reloaded.changed), catalog.tasks)
        self._record(performer)
        machine = self._devices
        performer.post(
            Configure(tuple(self._specs().values()), specs.devices(catalog, machine), specs.settings(catalog, machine))
        )
        if performer.pipelines is not None:
            performer.pipelines.declare(catalog.pipelines)
            performer.pipelines.selected()
        elif catalog.pipelines:
            performer.pipelines = self._pipelines(performer)
        self._watchers.tell("reloaded", **reloaded.data())
        return reloaded

    def reload_on(self, number: signal.Signals) -> None:
        """Reload whenever the process gets this signal, until the shutdown; what is wrong with the file is logged.

        ``manager.reload_on(signal.SIGHUP)``. On the main thread's loop only: raises ``RuntimeError`` elsewhere, and
        ``NotImplementedError`` where the platform's loops take no signals.
        """
        performer = self.enter()
        before = signal.getsignal(number)
        performer.loop.add_signal_handler(number, self.reload_soon)
        self._signals = (*self._signals, (number, before))

    def reload_soon(self) -> None:
        """Begin to reload; what is wrong with the file is logged. To be called on the manager's loop."""
        self.enter().spawn(self._reload_or_log(), name="reload")

    async def _reload_or_log(self) -> None:
        try:
            await self.reload()
        except (TaskRouterError, OSError) as error:
            logger.error("%s was not reloaded, all goes on as it was: %s", self._catalog.path, error)  # noqa: TRY400

    def _stop_listening(self) -> None:
        listening, self._signals = self._signals, ()
        for number, before in reversed(listening):
            if self.performer is not None:
                self.performer.loop.remove_signal_handler(number)
                signal.signal(number, before or signal.SIG_DFL)  # under nohup it was ignored, and is again


def _selected(task: TaskConfig, written: str | None, selected: str | None) -> str:
    """What a task selects after a reload: what the file does, if that is new; else what was selected meanwhile."""
    if selected is None or selected not in task.options or task.selected != written:
        return task.selected
    return selected


def _difference(before: Catalog, now: Catalog, selected: Mapping[str, str], selects: Mapping[str, str]) -> Reloaded:
    old, new = dict(_options(before)), dict(_options(now))
    changed = [name for name in new if name in old and new[name] != old[name]]
    changed += [name for name in now.tasks if name in before.tasks and _own(now, name) != _own(before, name)]
    changed += [name for name in SECTIONS if getattr(now, name) != getattr(before, name)]
    return Reloaded(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(changed),
        selected={
            name: (selected[name], option) for name, option in selects.items() if selected.get(name, option) != option
        },
        restart=tuple(key for key in AT_START if _value(before, key) != _value(now, key)),
        warnings=now.warnings,
    )


def _value(catalog: Catalog, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(catalog, section), name)


def _options(catalog: Catalog) -> Iterator[tuple[str, object]]:
    for task in catalog.tasks.values():
        for name, config in task.options.items():
            yield f"{task.task_name}/{name}", config


def _own(catalog: Catalog, task: str) -> dict[str, object]:
    """What is written for a task beside its options and which is selected."""
    return catalog.tasks[task].model_dump(exclude={"options", "selected"})
