"""Stands in for SGLang's kernels where there are none: everything is there, nothing can be called."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

__version__ = "0.0.0"


class _Missing:
    """Something of sgl_kernel: it has every attribute, and can't be called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> _Missing:
        return _missing(f"{self.name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{self.name} is a stand-in: there are no kernels for the CPU here")


def _missing(name: str) -> _Missing:
    if name.rpartition(".")[2].startswith("__"):
        raise AttributeError(name)
    return _Missing(name)


def __getattr__(name: str) -> Any:
    return _missing(name)


class _Stubs(MetaPathFinder, Loader):
    """Any submodule that is asked for is there, and as empty."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("sgl_kernel.") else None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = _missing  # type: ignore[method-assign]


sys.meta_path.append(_Stubs())


def _operators() -> None:
    """The same for what is looked up as ``torch.ops.sgl_kernel.…_cpu`` while a module is imported."""
    import torch
    from torch._ops import _OpNamespace

    class Operators(_OpNamespace):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.endswith("_cpu"):
                    return _missing(f"ops.{name}")
                raise

    torch.ops.sgl_kernel = Operators("sgl_kernel")


_operators()
