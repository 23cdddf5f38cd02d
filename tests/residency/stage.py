"""A world for event lists: a few words to set the scene, and each answer as a list of short strings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.books import Settings
from taskrouter.types import CPU, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec, TicketId, Traits

from .account import CoreFactory, Job, Ticket
from .world import World

GPU0, GPU1 = DeviceId("cuda:0"), DeviceId("cuda:1")


def spec(
    name: str,
    need: int,
    *,
    ram: int = 0,
    devices: tuple[DeviceId, ...] = (GPU0,),
    traits: Traits | None = None,
    **more: Any,
) -> ModelSpec:
    """A model of so many bytes that may be put on any one of these devices."""
    sets = tuple((device,) for device in devices)
    return ModelSpec(ModelKey(name), name, Footprint(need, ram), sets, traits=traits or Traits(), **more)


class Stage(World):
    """Ten bytes on ``cuda:0`` unless told otherwise; models are named by single letters."""

    def __init__(
        self, core: CoreFactory, *models: ModelSpec, room: int = 10, gpus: int = 1, ram: int = 100,
        audit_every: int = 1, preflights_pass: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        devices = [DeviceSpec(device, 4 * room, budget=room) for device in (GPU0, GPU1)[:gpus]]
        devices.append(DeviceSpec(CPU, ram, budget=ram))
        super().__init__(core, devices, models, Settings(**settings), audit_every=audit_every)
        self.preflights_pass = preflights_pass
        self._mark = 0
        self._deep = False

    def send(self, event: ev.Event) -> list[act.Action]:
        """As the world does; then preflights pass at once, where the scene says so."""
        if self._deep:
            return super().send(event)
        self._mark = len(self.performed)
        self._deep = True
        try:
            super().send(event)
            while self.preflights_pass and (job := next((job for job in self.jobs if job.kind == "preflight"), None)):
                self.preflight_ok(job)
        finally:
            self._deep = False
        return self.performed[self._mark :]

    # --- words ----------------------------------------------------------------------------------------------------

    def ask(self, name: str, wait: float = 120.0, **more: Any) -> Ticket:
        return self.acquire(ModelKey(name), wait, **more)

    def resident(self, *names: str, after: float = 200.0) -> None:
        """These were loaded (in a second), used once and left idle, one after the other, long enough ago."""
        for name in names:
            ticket = self.ask(name)
            self.loaded(name)
            self.release(ticket)
        self.advance(after)

    def loaded(self, name: str, took: float = 1.0, measured: Footprint | None = None) -> list[str]:
        self.advance(took)
        self.load_ok(self.the("load", name), measured)
        return self.said

    def unloaded(self, name: str, residue: int = 0) -> list[str]:
        self.unload_ok(self.the("unload", name), {GPU0: residue} if residue else None)
        return self.said

    def failed(self, name: str, *, oom: bool = False) -> list[str]:
        self.load_failed(self.the("load", name), oom=oom)
        return self.said

    def done(self, ticket: Ticket) -> list[str]:
        self.release(ticket)
        return self.said

    def tell(self, event: ev.Event) -> list[str]:
        self.send(event)
        return self.said

    def retire(self, name: str) -> list[str]:
        return self.tell(ev.Retire(ModelKey(name)))

    def pin(self, name: str, pinned: bool = True) -> list[str]:
        return self.tell(ev.Pin(ModelKey(name), pinned))

    def change(self, name: str, **fields: Any) -> list[str]:
        return self.tell(ev.Reconfigure(replace(self.specs[ModelKey(name)], **fields)))

    def the(self, kind: str, name: str) -> Job:
        job = self.job(kind, ModelKey(name))
        assert job is not None, f"no {kind} of {name} is under way"
        return job

    def until(self, when: float) -> list[str]:
        """Let time pass; everything that was said on the way."""
        start = len(self.performed)
        self.advance_to(when)
        return self.brief(self.performed[start:])

    # --- what was said --------------------------------------------------------------------------------------------

    @property
    def said(self) -> list[str]:
        """What the core answered last."""
        return self.brief(self.performed[self._mark :])

    @property
    def history(self) -> list[str]:
        return self.brief(self.performed)

    def brief(self, actions: list[act.Action]) -> list[str]:
        """One string per action, wake-ups and matter-of-course preflights left out."""
        out = []
        for action in actions:
            match action:
                case act.WakeAt():
                    continue
                case act.Preflight() if self.preflights_pass:
                    continue
                case act.Grant(key, _, tickets):
                    out.append(f"Grant {key} {numbers(tickets)}")
                case act.Refuse(tickets, refusal):
                    out.append(f"Refuse {refusal.key} {numbers(tickets)}: {refusal.reason.value}")
                case act.Unload(key, _, _, why):
                    out.append(f"Unload {key} for {why.wanted}" if why.wanted else f"Unload {key}: {why.reason.value}")
                case _:
                    out.append(f"{type(action).__name__} {action.key}")
        return out


def numbers(tickets: tuple[TicketId, ...]) -> str:
    return ",".join(map(str, tickets))
