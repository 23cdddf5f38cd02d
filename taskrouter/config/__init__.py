"""models.yaml to a frozen ``Catalog``.

``load_catalog`` reads a file, ``parse_catalog`` bytes; ``model_request`` turns an option into what a backend loads,
with its identity; ``json_schema`` is the format for editors. Names are imported on first use, because pydantic takes a
while.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskrouter.config.catalog import Catalog, InferenceConfig, ModelConfig, TaskConfig, Unavailable
    from taskrouter.config.frameworks import Frameworks
    from taskrouter.config.identity import model_request
    from taskrouter.config.load import load_catalog, parse_catalog
    from taskrouter.config.schema import (
        DeviceBudget,
        EngineConfig,
        MediaConfig,
        MemoryConfig,
        ProviderConfig,
        ServerConfig,
        TelemetryConfig,
        json_schema,
    )
    from taskrouter.config.sizes import parse_size

_HOMES = {
    "catalog": ("Catalog", "InferenceConfig", "ModelConfig", "TaskConfig", "Unavailable"),
    "frameworks": ("Frameworks",),
    "identity": ("model_request",),
    "load": ("load_catalog", "parse_catalog"),
    "schema": ("DeviceBudget", "EngineConfig", "MediaConfig", "MemoryConfig", "ProviderConfig", "ServerConfig",
               "TelemetryConfig", "json_schema"),
    "sizes": ("parse_size",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Catalog",
    "DeviceBudget",
    "EngineConfig",
    "Frameworks",
    "InferenceConfig",
    "MediaConfig",
    "MemoryConfig",
    "ModelConfig",
    "ProviderConfig",
    "ServerConfig",
    "TaskConfig",
    "TelemetryConfig",
    "Unavailable",
    "json_schema",
    "load_catalog",
    "model_request",
    "parse_catalog",
    "parse_size",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
