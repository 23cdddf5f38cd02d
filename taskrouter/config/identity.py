"""A model's identity: a digest of everything that reaches ``load()``."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from taskrouter.config.catalog import Catalog, ModelConfig, TaskConfig
from taskrouter.config.frameworks import EXTERNAL, KEEP_WEIGHTS, TOLD_CONCURRENCY
from taskrouter.config.frozen import thaw
from taskrouter.config.schema import HANG_TIMEOUT_S
from taskrouter.config.secrets import show
from taskrouter.errors import UnknownOption
from taskrouter.types import ModelKey, ModelRequest


def model_request(task: TaskConfig, option_name: str, *, catalog: Catalog) -> ModelRequest:
    """What a backend is asked to load for this option; raises ``UnknownOption``.

    Options that are the same model get the same ``key``, whatever their names and tasks: the readable part of the
    key is made from ``model_id``. A ``model_id`` that names something beside the file becomes an absolute path.
    """
    option = task.options.get(option_name)
    if option is None:
        raise UnknownOption(f"the task {task.task_name!r} has no option {show(option_name)}: "
                            f"it has {', '.join(task.options)}")  # fmt: skip
    framework = catalog.frameworks.resolve(option.framework)
    loaded: dict[str, Any] = {
        "framework": framework,
        "model_id": option.model_id if framework == EXTERNAL else resolve_model_id(option.model_id, catalog.base_dir),
        "revision": option.revision,
        "quantization": option.quantization,
        "dtype": option.dtype,
        "max_context": option.max_context,
        "devices": option.devices,
        "isolation": option.isolation,
        "trust_remote_code": option.trust_remote_code,
        "engine_args": thaw(option.engine_args),
        "command": option.command,
        "health": option.health,
        "sleep_calls": option.sleep_calls.model_dump() if option.sleep_calls is not None else None,
        "env": thaw(option.env),
        "python": interpreter(framework, catalog),
        "max_concurrency": option.max_concurrency if framework in TOLD_CONCURRENCY else None,
    }
    return ModelRequest(
        key=_key(loaded, _beside(option)),
        label=option_name,
        hang_timeout_s=catalog.engines[framework].hang_timeout_s if framework in catalog.engines else HANG_TIMEOUT_S,
        sleep="auto" if option.sleep == "discard" and framework in KEEP_WEIGHTS else option.sleep,
        batch=catalog.inference.max_batch_size,
        pieces=catalog.inference.default_batch_size,
        base_dir=catalog.base_dir,
        **loaded,
    )


def resolve_model_id(model_id: str, base_dir: str) -> str:
    """An absolute path where ``model_id`` is written as a path, or names something that exists in ``base_dir``."""
    expanded = os.path.expanduser(model_id)
    path = os.path.join(base_dir, expanded)
    if os.path.isabs(expanded) or model_id.startswith(("./", "../")) or os.path.exists(path):
        return os.path.realpath(path)
    return model_id


def _key(loaded: dict[str, Any], beside: list[str | None]) -> ModelKey:
    canonical = json.dumps([loaded, beside], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(loaded["model_id"].rstrip("/"))).strip("-") or "model"
    return ModelKey(f"{readable[:48]}#{digest}")


def _beside(option: ModelConfig) -> list[str | None]:
    """Two providers may give two models one name."""
    return [option.provider, option.api_endpoint] if option.is_external else []


def interpreter(framework: str, catalog: Catalog) -> str | None:
    """The interpreter the file names for this engine, as an absolute path; ``None`` where it names none."""
    engine = catalog.engines.get(framework)
    if engine is None or engine.python is None:
        return None
    return os.path.abspath(os.path.join(catalog.base_dir, os.path.expanduser(engine.python)))
