"""The backend for ``framework: transformers``: models in this process, or each in one of its own.

Where a model lives is its option's ``isolation``; which of the two backends does it is decided here, and only here.
Nothing heavy is imported; ``preflight`` and ``load`` import torch.
"""

from __future__ import annotations

from taskrouter.backends.base import Asleep, LoadedModel, Preflight
from taskrouter.backends.hf.in_process import InProcess
from taskrouter.backends.hf.isolated.backend import Isolated
from taskrouter.backends.hf.isolated.model import IsolatedModel
from taskrouter.media.limits import MediaLimits
from taskrouter.types import Charges, DeviceId, ModelRequest, Traits


class TransformersBackend:
    """Hands each model to the backend that it lives with. ``limits`` guard the images and sounds it is given."""

    def __init__(self, limits: MediaLimits | None = None) -> None:
        self.limits = limits if limits is not None else MediaLimits()
        self.in_process = InProcess(self.limits)
        self.isolated = Isolated(self.limits)

    def traits(self, request: ModelRequest) -> Traits:
        return self._for(request).traits(request)

    async def preflight(self, request: ModelRequest) -> Preflight:
        """Check the request, fetching what isn't in the cache; the event loop stays free."""
        return await self._for(request).preflight(request)

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> LoadedModel:
        return await self._for(request).load(request, devices, charges)

    async def demote(self, model: LoadedModel, *, timeout_s: float) -> Asleep:
        return await self._of(model).demote(model, timeout_s=timeout_s)

    async def promote(self, model: LoadedModel, charges: Charges) -> None:
        await self._of(model).promote(model, charges)

    async def unload(self, model: LoadedModel, *, timeout_s: float) -> Charges:
        return await self._of(model).unload(model, timeout_s=timeout_s)

    async def residue(self, key: str) -> Charges:
        return {**await self.in_process.residue(key), **await self.isolated.residue(key)}

    async def close(self) -> None:
        await self.isolated.close()
        await self.in_process.close()

    def _for(self, request: ModelRequest) -> InProcess | Isolated:
        return self.isolated if request.isolation == "process" else self.in_process

    def _of(self, model: LoadedModel) -> InProcess | Isolated:
        return self.isolated if isinstance(model, IsolatedModel) else self.in_process
