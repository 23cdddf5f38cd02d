"""What the core can be asked: its settings, the states of a model, and frozen views of its books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from taskrouter.types import Charges, DeviceId, ModelKey

MODEL_SLOTS = DeviceId("models")
"""``max_models`` is a device on which each resident model charges 1."""

HOST_BUDGET = DeviceId("host")
"""``host_budget`` is a device on which each sleeping model charges its RAM, beside what it charges on ``cpu``."""


class State(Enum):
    """Where a model is in its life. HOST: asleep, its weights in host RAM."""

    DISK = "disk"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEMOTING = "demoting"
    HOST = "host"
    PROMOTING = "promoting"
    UNLOADING = "unloading"
    STUCK = "stuck"
    COOLDOWN = "cooldown"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the core decides. Times are seconds.

    ageing_s: what one step of priority is worth in waiting time. claim_s: how long a claim protects. min_residency_s:
    how long a just loaded model is protected; ``None``: once its load time, at most ``residency_cap_s``.
    failures_to_cooldown: consecutive failed loads after which a model is refused at once, for ``cooldown_s`` the first
    time, doubled each time up to ``cooldown_cap_s``. host_budget: bytes of host RAM for sleeping models; 0: none sleep.
    """

    policy: str = "lru"
    max_models: int = 0
    host_budget: int = 0
    ageing_s: float = 3.0
    claim_s: float = 5.0
    min_residency_s: float | None = None
    residency_cap_s: float = 60.0
    failures_to_cooldown: int = 2
    cooldown_s: float = 10.0
    cooldown_cap_s: float = 300.0


@dataclass(frozen=True, slots=True)
class DeviceBooks:
    """One device's ledger, in bytes. ``free`` may be negative after foreign growth."""

    device: DeviceId
    capacity: int
    foreign: int
    overhead: int
    charged: int
    promised: int
    residue: int
    free: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as the core sees it."""

    key: ModelKey
    label: str
    state: State
    generation: int
    devices: tuple[DeviceId, ...]
    charges: Charges
    leases: int
    claims: int
    waiting: int
    pinned: bool
    last_used: float | None
    loaded_at: float | None
    load_s: float
    wake_s: float
    cooldown_until: float | None
    residue: Charges
    need_bytes: int
    measured: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the core knows, frozen; holds no reference to a model object."""

    devices: Mapping[DeviceId, DeviceBooks]
    models: Mapping[ModelKey, ModelStatus]
    waiting: int
    oldest_arrival: float | None
    earliest_deadline: float | None
