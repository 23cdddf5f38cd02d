"""The decoders are an extra: say so where one is missing, instead of a bare import error."""

from __future__ import annotations

import importlib

from taskrouter.errors import MissingDependency


def need(*modules: str, what: str) -> None:
    """Import what reading ``what`` needs. Raises ``MissingDependency``, which names the extra that brings it."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingDependency(
                f"reading {what} needs {module}, which isn't installed: pip install 'taskrouter[transformers]'."
            ) from error
