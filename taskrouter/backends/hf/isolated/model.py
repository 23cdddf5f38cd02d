"""A model in a process of its own, as the manager holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from taskrouter.backends.engines.launch import Place
from taskrouter.backends.hf.isolated.host import HostedModel
from taskrouter.backends.hf.isolated.process import ModelProcess
from taskrouter.errors import UnsupportedVerb
from taskrouter.types import Charges, Footprint, ModelRequest


class IsolatedModel:
    """The ``LoadedModel`` of an isolated backend: every call is the other process's to check and to answer.

    ``base`` is the host RAM its process took before it loaded anything, ``pids`` its tree once it had.
    """

    def __init__(
        self,
        request: ModelRequest,
        process: ModelProcess,
        hosted: HostedModel,
        places: tuple[Place, ...],
        *,
        pids: frozenset[int],
        measured: Footprint | None,
        base: int,
    ) -> None:
        self.request = request
        self.process = process
        self.places = places
        self.pids = pids
        self.base = base
        self.residue: Charges | None = None
        """What it holds on its devices while it is asleep; ``None``: it is awake."""
        self._hosted = hosted
        self._measured = measured
        where = {"isolation": "process", "pid": process.process.pid, "log": str(process.process.output.path)}
        self._info = MappingProxyType({**hosted.info, **where})

    @property
    def measured(self) -> Footprint | None:
        return self._measured

    @property
    def verbs(self) -> frozenset[str]:
        return self._hosted.verbs

    @property
    def raw(self) -> Any:
        """Raises ``UnsupportedVerb``: the module can't leave its process."""
        raise UnsupportedVerb(
            f"{self.request.label}: its module is in a process of its own, so there is none to hand out here. Write "
            "isolation: in_process for an option whose raw object you need."
        )

    @property
    def info(self) -> Mapping[str, Any]:
        return self._info

    def __repr__(self) -> str:
        state = "" if self.residue is None else " asleep"
        return f"<IsolatedModel {self.request.label} pid {self._info['pid']}{state}>"

    async def call(self, verb: str, request: Any) -> Any:
        """Answer one request; cancelled, it ends when the process says that it has stopped working on it."""
        return await self.process.ask("call", verb, request)

    def stream(self, verb: str, request: Any) -> AsyncIterator[Any]:
        """Answer in pieces; closed or cancelled, it ends when the process says that it has stopped working on it."""
        return self.process.stream("stream", verb, request)

    async def wait_dead(self) -> Exception:
        """The error, once the process has ended or hangs."""
        return await self.process.wait_dead()

    def took(self) -> Charges:
        """What it holds on each of its devices, as far as that is known."""
        if self.residue is not None:
            return self.residue
        measured = self._measured
        return {place.device: measured.device_bytes if measured else place.granted for place in self.places}
