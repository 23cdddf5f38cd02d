"""What the core decided lately, and by which rule: short records in a bounded ring, for people who ask why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from taskrouter.residency.messages import size
from taskrouter.types import DeviceId, ModelKey

KEPT = 256
"""Decisions remembered, over all models."""


class Rule(Enum):
    """What decided. The values are words for people."""

    FREE = "there was room"
    PENDING = "room that was becoming free already sufficed"
    IDLE = "idle models made room"
    DRAIN = "only models in use could make room, and half of the wait (or the time to load) had come"
    AHEAD = "it will be needed soon"
    RESTORE = "it is loaded back after a load that failed"
    SHRUNK = "the device had less room than was charged"
    KEEP_ALIVE = "it had been idle for its keep_alive_s"
    HOST_ROOM = "the RAM it slept in was wanted by one worth more"
    COLDER = "it could not wake where it slept, and was loaded elsewhere"
    RETIRED = "it was asked to go"
    REMOVED = "it is no longer configured"
    REFUSED = "it was refused"


@dataclass(frozen=True, slots=True)
class Victim:
    """A model that gave way: what it freed, what that was expected to cost, and whether it sleeps."""

    key: ModelKey
    label: str
    bytes: int
    cost: float
    sleeps: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision, at ``at`` (the core's clock). ``need`` and ``free`` are bytes on the devices it went to.

    ``cost`` of a victim is in the policy's unit: under ``lru`` seconds until it is back, under ``cost_aware`` its
    worth.
    """

    at: float
    key: ModelKey
    label: str
    rule: Rule
    devices: tuple[DeviceId, ...] = ()
    need: int = 0
    free: int = 0
    victims: tuple[Victim, ...] = ()
    considered: int = 0
    text: str = ""

    def __str__(self) -> str:
        if self.rule is Rule.REFUSED:
            return f"{self.label} was refused: {self.text}"
        if not self.devices:
            return f"{self.label} went: {self.rule.value}"
        went = ", ".join(
            f"{each.label} ({size(each.bytes)}, {'put to sleep' if each.sleeps else 'unloaded'}, cost {each.cost:.3g})"
            for each in self.victims
        )
        gave = f"; of {self.considered} considered {went} gave way" if went else ""
        room = f"{size(self.need)} on {'+'.join(self.devices)}, where {size(self.free)} were free"
        return f"{self.label} got {room}: {self.rule.value}{gave}"
