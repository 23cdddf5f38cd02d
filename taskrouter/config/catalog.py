"""What models.yaml says, frozen: the tasks, their options, and the settings.

``TaskConfig``, ``ModelConfig`` and ``InferenceConfig`` are made from plain dicts, as in the task-keyed managers whose
names they keep; the loader makes the same objects from a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from taskrouter.config.frameworks import EXTERNAL, Frameworks, nearest
from taskrouter.config.frozen import FrozenDict
from taskrouter.config.schema import (
    EngineConfig,
    FileFields,
    InferenceFields,
    MediaConfig,
    MemoryConfig,
    OptionFields,
    ProviderConfig,
    ServerConfig,
    TaskFields,
    TelemetryConfig,
)
from taskrouter.config.secrets import show
from taskrouter.config.section import parse_section
from taskrouter.config.sizes import parse_size
from taskrouter.errors import Problem, UnknownOption, UnknownTask
from taskrouter.types import GIB


class ModelConfig(OptionFields):
    """One way to do a task: a model and how it is loaded."""

    def __init__(self, config_dict: Mapping[str, Any]) -> None:
        _adopt(self, parse_section(OptionFields, config_dict, where="ModelConfig"))

    @property
    def vram_bytes(self) -> int:
        """Declared need in bytes; 0 where none is declared."""
        return int(self.vram_gb * GIB)

    @property
    def ram_bytes(self) -> int:
        """Declared host RAM in bytes; 0 where none is declared."""
        return int(self.ram_gb * GIB)

    @property
    def is_external(self) -> bool:
        """Whether this is an external API, which has no residency."""
        return self.framework == EXTERNAL

    def __repr__(self) -> str:
        return f"<ModelConfig {self.model_id} {self.framework} {self.quantization or '-'} {self.vram_gb:.1f} GiB>"

    __str__ = __repr__


class TaskConfig(TaskFields):
    """A named job, its options, and which one is selected."""

    task_name: str
    options: dict[str, ModelConfig]  # type: ignore[assignment]

    def __init__(self, task_name: str, config_dict: Mapping[str, Any]) -> None:
        parsed = parse_section(TaskFields, config_dict, where=f"task {show(task_name)}")
        _adopt(self, parsed, task_name=task_name, options=_models(parsed))

    def get_selected_config(self) -> ModelConfig:
        """The selected option."""
        return self.options[self.selected]

    def with_selected(self, name: str) -> TaskConfig:
        """A copy of this task with another option selected; raises ``UnknownOption``."""
        if name not in self.options:
            raise UnknownOption(f"the task {self.task_name!r} has no option {show(name)}: "
                                f"it has {', '.join(self.options)}")  # fmt: skip
        return self.model_copy(update={"selected": name})

    def __repr__(self) -> str:
        return f"<TaskConfig {self.task_name} {self.kind or '-'}: {self.selected} of {len(self.options)}>"

    __str__ = __repr__


class InferenceConfig(InferenceFields):
    """Settings for all models."""

    def __init__(self, config_dict: Mapping[str, Any]) -> None:
        _adopt(self, parse_section(InferenceFields, config_dict, where="InferenceConfig"))

    @property
    def max_bytes_per_model(self) -> int | None:
        """``max_memory_per_model`` in bytes; ``None`` for ``auto``."""
        return None if self.max_memory_per_model == "auto" else parse_size(self.max_memory_per_model)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An option that is written correctly and can't be used in this installation."""

    task: str
    option: str
    reason: str
    selected: bool


@dataclass(frozen=True, slots=True, repr=False)
class Catalog:
    """Everything one models.yaml says.

    ``raw`` is the file as plain data, environment variables filled in. ``warnings`` are what doesn't keep the file from
    being used; ``unavailable`` names the options that can't be called here, selected ones too.
    """

    path: str
    base_dir: str
    frameworks: Frameworks
    tasks: Mapping[str, TaskConfig]
    default_task: str | None
    inference: InferenceConfig
    memory: MemoryConfig
    pipelines: Mapping[str, tuple[str, ...]]
    engines: Mapping[str, EngineConfig]
    providers: Mapping[str, ProviderConfig]
    server: ServerConfig
    media: MediaConfig
    telemetry: TelemetryConfig
    warnings: tuple[Problem, ...] = ()
    unavailable: tuple[Unavailable, ...] = ()
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def media_roots(self) -> tuple[str, ...]:
        """The folders media may be read from, absolute."""
        return tuple(os.path.realpath(os.path.join(self.base_dir, os.path.expanduser(r))) for r in self.media.roots)

    @property
    def trace_file(self) -> str | None:
        """The file that requests are recorded in, absolute; ``None``: none."""
        name = self.telemetry.record_trace
        return None if name is None else os.path.abspath(os.path.join(self.base_dir, os.path.expanduser(name)))

    def find(self, name: str) -> TaskConfig:
        """The task of this name (``default``: the default task). Raises ``UnknownTask`` with the nearest spelling."""
        task = self.tasks.get(name)
        if task is None and name == "default" and self.default_task is not None:
            task = self.tasks[self.default_task]
        if task is None:
            near = nearest(str(name), list(self.tasks))
            hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(self.tasks)}"
            raise UnknownTask(f"there is no task {name!r} in {self.path}{hint}")
        return task

    def why_unavailable(self, task: str, option: str) -> str:
        """Why this option can't be used in this installation; empty where it can."""
        return next((u.reason for u in self.unavailable if (u.task, u.option) == (task, option)), "")

    def __repr__(self) -> str:
        return f"<Catalog {self.path}: {len(self.tasks)} tasks, {len(self.warnings)} warnings>"


def make_tasks(parsed: FileFields) -> Mapping[str, TaskConfig]:
    """The tasks of a file that was checked already."""
    tasks = {}
    for name, fields in parsed.tasks.items():
        tasks[name] = task = TaskConfig.__new__(TaskConfig)
        _adopt(task, fields, task_name=name, options=_models(fields))
    return FrozenDict(tasks)


def make_inference(fields: InferenceFields) -> InferenceConfig:
    """The inference settings of a file that was checked already."""
    config = InferenceConfig.__new__(InferenceConfig)
    _adopt(config, fields)
    return config


def _models(task: TaskFields) -> FrozenDict[str, ModelConfig]:
    models = {}
    for name, fields in task.options.items():
        models[name] = model = ModelConfig.__new__(ModelConfig)
        _adopt(model, fields)
    return FrozenDict(models)


def _adopt(target: BaseModel, parsed: BaseModel, **more: Any) -> None:
    """Give ``target`` the values of a section that was checked already, as pydantic's ``model_construct`` does."""
    object.__setattr__(target, "__dict__", {**parsed.__dict__, **more})
    object.__setattr__(target, "__pydantic_fields_set__", parsed.model_fields_set | set(more))
    object.__setattr__(target, "__pydantic_extra__", None)
    object.__setattr__(target, "__pydantic_private__", None)
