"""The frozen nouns that cross floors.

Bytes are ints and mean bytes; seconds are floats and mean seconds on the manager's monotonic clock. Nothing here does
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NewType

GIB = 1 << 30
MIB = 1 << 20

DeviceId = NewType("DeviceId", str)
"""``cuda:0``, ``cuda:1``, …, or ``cpu``: something with a byte budget."""

CPU = DeviceId("cpu")
"""Host RAM. The one ledger for the ``cpu`` device, sleeping models and ``ram_gb``."""

ModelKey = NewType("ModelKey", str)
"""A model's identity: a digest of everything that reaches ``load()``, readable in front (``qwen-7b#1f0c…``)."""

TicketId = NewType("TicketId", int)
"""A request waiting for a lease, and then the lease it was granted: one number for both."""

Charges = Mapping[DeviceId, int]
"""Bytes per device."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes a model takes: ``device_bytes`` on *each* device it spans, and ``ram_bytes`` of host RAM beside that."""

    device_bytes: int
    ram_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Traits:
    """What the residency core must know of a backend.

    serial_group
        Loads in one group run one at a time (in-process Transformers is one group); ``None``: no such limit.
    exclusive_on_device
        Nothing else on that device starts or is freed while it loads (engines that profile memory).
    cancellable
        A load under way can be cancelled and gives its bytes back.
    can_sleep
        Its weights can wait in host RAM instead of being dropped.
    keeps_weights
        Asleep it holds its weights in host RAM; else it reads them anew when it wakes, and saves the rest of a start.
    slots
        Operations one model runs at a time where the file doesn't say; ``None``: any number.
    start_s
        Seconds a start takes beside reading the weights: the prior of the load-time estimate.
    """

    serial_group: str | None = None
    exclusive_on_device: bool = False
    cancellable: bool = False
    can_sleep: bool = False
    keeps_weights: bool = True
    slots: int | None = None
    start_s: float = 2.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the residency core knows of one model.

    ``placements`` are the device sets it may be put on, in order of preference; ``need`` is charged on each device of
    the set. ``declared`` says that ``need.device_bytes`` was written by a person, and then it is a floor under what is
    measured. ``selected`` models are loaded back after a failed load that evicted them.
    """

    key: ModelKey
    label: str
    need: Footprint
    placements: tuple[tuple[DeviceId, ...], ...]
    traits: Traits = field(default_factory=Traits)
    slots: int | None = None
    priority: int = 0
    pinned: bool = False
    keep_alive_s: float | None = None
    selected: bool = False
    declared: bool = True


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device's byte budget. ``capacity`` is the most that may ever be charged there.

    ``total`` is what the hardware (or the cgroup) has. An explicit ``budget`` replaces ``total × threshold``;
    ``reserve`` is kept free in either case.
    """

    id: DeviceId
    total: int
    budget: int | None = None
    threshold: float = 0.85
    reserve: int = 0

    @property
    def limit(self) -> int:
        """Bytes that may be in use by anyone: all of the device under an explicit budget, else its threshold."""
        return (self.total if self.budget is not None else int(self.total * self.threshold)) - self.reserve

    @property
    def capacity(self) -> int:
        """Bytes that models may be charged when nobody else uses the device."""
        return self.limit if self.budget is None else min(self.budget - self.reserve, self.limit)


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What was observed of a device: bytes other processes hold, and our own bytes that belong to no model."""

    foreign: int = 0
    overhead: int = 0


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Everything that reaches a backend's ``load()``: a model's identity is just this, less what names or watches it.

    ``key`` and ``label`` name it. ``sleep`` (``auto``, ``discard``, ``never``) says whether it may wait in host RAM;
    ``sleep_calls`` are what tells the program of a ``command`` to do so: ``{"sleep": "POST /sleep", "wake": …}``.
    ``hang_timeout_s`` only says how long an engine may be silent before it counts as hung. ``python`` is the
    interpreter an engine runs under (``None``: this one), an absolute path; ``max_concurrency`` stands here for engines
    that are told at their start how many requests to run at a time. ``batch`` is how many calls a Transformers model
    works on together at most, and ``pieces`` how many pieces of one call's long input.
    """

    key: ModelKey
    label: str
    framework: str
    model_id: str
    revision: str | None = None
    quantization: str | None = None
    dtype: str | None = None
    max_context: int | str | None = None
    devices: int | tuple[str, ...] = 1
    isolation: str = "in_process"
    trust_remote_code: bool = False
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    health: str | None = None
    sleep_calls: Mapping[str, str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    max_concurrency: int | None = None
    hang_timeout_s: float = 60.0
    sleep: str = "auto"
    batch: int = 1
    pieces: int = 1
    base_dir: str = "."
