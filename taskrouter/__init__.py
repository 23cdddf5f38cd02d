"""Many AI models on few GPUs: a task is resolved to a model, room is made for it, and it is loaded.

The public names are imported on first use: ``import taskrouter`` loads no torch, no provider's SDK, no web framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskrouter import errors
    from taskrouter.client import connect
    from taskrouter.config import InferenceConfig, ModelConfig, TaskConfig
    from taskrouter.errors import ConfigError, InsufficientMemory, Overloaded, TaskRouterError, UnknownTask
    from taskrouter.manager import Lease, Model, ModelManager, Statistics, Stream
    from taskrouter.verbs import ChatAnswer, ChatChunk, Label, Usage

_HOMES = {
    "client": ("connect",),
    "config": ("InferenceConfig", "ModelConfig", "TaskConfig"),
    "errors": ("ConfigError", "InsufficientMemory", "Overloaded", "TaskRouterError", "UnknownTask"),
    "manager": ("Lease", "Model", "ModelManager", "Statistics", "Stream"),
    "verbs": ("ChatAnswer", "ChatChunk", "Label", "Usage"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ChatAnswer",
    "ChatChunk",
    "ConfigError",
    "InferenceConfig",
    "InsufficientMemory",
    "Label",
    "Lease",
    "Model",
    "ModelConfig",
    "ModelManager",
    "Overloaded",
    "Statistics",
    "Stream",
    "TaskConfig",
    "TaskRouterError",
    "UnknownTask",
    "Usage",
    "connect",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("taskrouter.errors")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'taskrouter' has no attribute {name!r}")
    return getattr(importlib.import_module(f"taskrouter.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
