"""A backend that loads nothing and does what it is told: for the tests of everybody who uses this library.

It is driven from models.yaml (``framework: fake`` with the ``engine_args`` of ``fake_script``) or by scripts::

    backend = FakeBackend({"small": FakeScript(load_s=5), "big": FakeScript(fail="oom", fail_times=1)},
                          capacity={"cuda:0": 24 * GIB})

It keeps a journal of what really happened (``events``) and the bytes that are really in use (``in_use``), beside
whatever the books say; a load that doesn't fit the ``capacity`` fails as on a device, and is remembered in
``overcommitted``. Time is the running loop's, so a loop with a virtual clock needs no real waiting.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from taskrouter.backends.base import Asleep, LoadedModel, Preflight
from taskrouter.backends.fake_model import FakeModel, FakeWeights, Hold, finish, work_on
from taskrouter.backends.fake_script import FakeScript, read_script
from taskrouter.backends.sleep import why_awake
from taskrouter.errors import LoadFailed, OutOfMemory, PreflightFailed, SleepFailed
from taskrouter.types import CPU, GIB, Charges, DeviceId, Footprint, ModelKey, ModelRequest, Traits

__all__ = ["FakeBackend", "FakeModel", "FakeScript", "FakeWeights", "Overcommit"]


class Overcommit(NamedTuple):
    """A load that would have put more on a device than it has."""

    label: str
    device: DeviceId
    wanted: int
    capacity: int


class FakeBackend:
    """The scripted backend. ``scripts`` are by a model's label; ``engine_args`` go over them.

    ``events`` is the journal: (what, key), what being ``preflight, load-start, load-end, load-failed, load-cancelled,
    call-start, call-end, call-failed, call-cancelled, died, unload-start, unload-busy, unload-end, freed, sleep-start,
    sleep-busy, sleep-end, sleep-failed, wake-start, wake-end, wake-failed, call-asleep``. Four of them show a broken
    promise: ``unload-busy`` and ``sleep-busy`` (while it worked), ``call-asleep``, and ``load-cancelled`` of a load
    that isn't cancellable.
    """

    def __init__(
        self, script: Mapping[str, FakeScript] | None = None, *, capacity: Mapping[str, int] | None = None
    ) -> None:
        self.events: list[tuple[str, ModelKey]] = []
        self.overcommitted: list[Overcommit] = []
        self._scripts = dict(script or {})
        self._capacity = dict(capacity or {})
        self._labels: dict[ModelKey, str] = {}
        self._failed: Counter[tuple[ModelKey, str]] = Counter()
        self._holds: list[Hold] = []
        self._hanging: dict[asyncio.Future[None], str] = {}
        self._models: weakref.WeakSet[FakeModel] = weakref.WeakSet()

    def __repr__(self) -> str:
        used = ", ".join(f"{device} {size / GIB:.1f} GiB" for device, size in sorted(self.in_use.items()))
        return f"<FakeBackend {used or 'empty'}>"

    # --- what tests look at and do ------------------------------------------------------------------------------------

    @property
    def in_use(self) -> dict[DeviceId, int]:
        """The bytes really taken on each device where any are."""
        used: Counter[DeviceId] = Counter()
        for hold in self._holds:
            used.update(hold.charges)
        return {device: size for device, size in used.items() if size}

    def labels(self, what: str) -> list[str]:
        """The models to which this happened, in order: ``labels("load-start") == ["a", "b"]``."""
        return [self._labels[key] for happened, key in self.events if happened == what]

    def kill(self, label: str) -> None:
        """Let the loaded model of this label die now."""
        for model in list(self._models):
            if model.label == label and not model.unloaded:
                model.die()

    def resume(self, label: str) -> None:
        """Let whatever hangs on this model go on: a load gets ready, calls answer, an unload's bytes come back."""
        for done, whose in list(self._hanging.items()):
            if whose == label:
                finish(done)
        for model in list(self._models):
            if model.label == label:
                model.wake()
        for hold in list(self._holds):
            if hold.label == label and hold.freed is not None:
                self._let_go(hold)

    # --- the Protocol -------------------------------------------------------------------------------------------------

    def traits(self, request: ModelRequest) -> Traits:
        """As scripted; a script that can't be read is for ``preflight`` to refuse."""
        try:
            script = self._script(request)
        except PreflightFailed:
            return Traits(cancellable=True)
        return Traits(
            serial_group=script.serial_group,
            exclusive_on_device=script.exclusive,
            cancellable=script.cancellable,
            can_sleep=script.can_sleep and why_awake(request) is None,
            slots=script.slots,
            start_s=script.load_s,
        )

    async def preflight(self, request: ModelRequest) -> Preflight:
        """Read the script; fail where it says so."""
        script = self._script(request)
        self._note("preflight", request.key)
        if self._fails(script, request.key, "preflight"):
            raise PreflightFailed(f"{request.label} can't be loaded: it is scripted to fail its preflight")
        need = Footprint(script.bytes if script.estimate is None else script.estimate)
        return Preflight(need, script.verbs, dict.fromkeys(script.lacks, "it is scripted so"), script.context)

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> LoadedModel:
        """Take the bytes, take ``load_s`` seconds, and be ready, or fail and give the bytes back."""
        script = self._script(request)
        key, label = request.key, request.label
        self._note("load-start", key)
        hold = Hold(key, label, dict.fromkeys(devices, script.bytes), FakeWeights(label))
        outcome = "load-failed"
        try:
            self._take(hold)
            await self._pause(script.load_s, label if script.hang == "load" else None)
            if self._fails(script, key, "oom"):
                raise OutOfMemory(f"{label} ran out of memory on {', '.join(devices)}: it is scripted to")
            if self._fails(script, key, "error"):
                raise LoadFailed(f"{label} could not be loaded: it is scripted to fail")
            model = FakeModel(request, script, hold, lambda what: self._note(what, key))
            model.doomed = self._fails(script, key, "die")
            outcome = "load-end"
        except asyncio.CancelledError:
            outcome = "load-cancelled"
            await work_on(script.stop_s)
            raise
        finally:
            if outcome != "load-end":
                self._free(hold)
            self._note(outcome, key)
        self._models.add(model)
        return model

    async def demote(self, model: LoadedModel, *, timeout_s: float) -> Asleep:
        """Take RAM, and after ``sleep_s`` give the device bytes back, but for a residue."""
        assert isinstance(model, FakeModel)
        script, hold = model.script, model.hold
        self._note("sleep-start", hold.key)
        if model.active:
            self._note("sleep-busy", hold.key)
        ram = script.bytes * len(hold.charges) if script.sleep_ram is None else script.sleep_ram
        left = dict.fromkeys(hold.charges, script.sleep_residue) if script.sleep_residue else {}
        awake = hold.charges
        try:
            self._check_rest(model, asleep=False)
            hold.charges = {**awake, CPU: awake.get(CPU, 0) + ram}
            self._check_capacity(hold)
            await self._pause(script.sleep_s, model.label if script.hang == "sleep" else None)
            if self._fails(script, hold.key, "sleep"):
                raise SleepFailed(f"{model.label} could not be put to sleep: it is scripted to fail")
            self._check_rest(model, asleep=False)
        except BaseException as error:
            hold.charges = awake
            self._note("sleep-failed", hold.key)
            if isinstance(error, OutOfMemory):
                raise SleepFailed(f"{model.label} could not be put to sleep: {error}") from error
            raise
        model.awake, hold.charges = awake, {**left, CPU: left.get(CPU, 0) + ram}
        self._note("sleep-end", hold.key)
        return Asleep(ram, left)

    async def promote(self, model: LoadedModel, charges: Charges) -> None:
        """Take the device bytes again, and be ready after ``wake_s``; the RAM is given back then."""
        assert isinstance(model, FakeModel)
        script, hold = model.script, model.hold
        self._note("wake-start", hold.key)
        asleep = hold.charges
        try:
            self._check_rest(model, asleep=True)
            devices = {**asleep, **model.awake}
            hold.charges = {each: max(asleep.get(each, 0), model.awake.get(each, 0)) for each in devices}
            self._check_capacity(hold)
            await self._pause(script.wake_s, model.label if script.hang == "wake" else None)
            if self._fails(script, hold.key, "wake"):
                raise SleepFailed(f"{model.label} did not wake: it is scripted to fail")
            self._check_rest(model, asleep=True)
        except BaseException:
            hold.charges = asleep
            self._note("wake-failed", hold.key)
            raise
        model.awake, hold.charges = {}, model.awake
        self._note("wake-end", hold.key)

    async def unload(self, model: LoadedModel, *, timeout_s: float) -> Charges:
        """Give the bytes back after ``unload_s``; they are seen free ``late_free_s`` later, or a residue is left."""
        assert isinstance(model, FakeModel)
        hold = model.hold
        self._note("unload-start", hold.key)
        if model.active:
            self._note("unload-busy", hold.key)
        loop = asyncio.get_running_loop()
        hold.freed = loop.create_future()
        model.unloaded = True
        model.wake()
        if model.script.hang != "unload":
            delay = model.script.unload_s + model.script.late_free_s
            hold.timer = loop.call_later(delay, self._let_go, hold)
        await asyncio.wait({hold.freed}, timeout=timeout_s)
        hold.missing = not hold.freed.done()
        self._note("unload-end", hold.key)
        return dict(hold.charges) if hold.missing else {}

    async def residue(self, key: str) -> Charges:
        """What unloads of this model left behind and is still missing."""
        left: Counter[DeviceId] = Counter()
        for hold in self._holds:
            if hold.key == key and hold.missing:
                left.update(hold.charges)
        return dict(left)

    async def close(self) -> None:
        """Stop waiting for late bytes. The journal stays."""
        for hold in self._holds:
            if hold.timer is not None:
                hold.timer.cancel()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _script(self, request: ModelRequest) -> FakeScript:
        self._labels[request.key] = request.label
        return read_script(request.label, request.engine_args, self._scripts.get(request.label))

    def _note(self, what: str, key: ModelKey) -> None:
        self.events.append((what, key))

    def _fails(self, script: FakeScript, key: ModelKey, how: str) -> bool:
        if script.fail != how or (script.fail_times is not None and self._failed[key, how] >= script.fail_times):
            return False
        self._failed[key, how] += 1
        return True

    def _take(self, hold: Hold) -> None:
        self._holds.append(hold)
        try:
            self._check_capacity(hold)
        except OutOfMemory:
            self._holds.remove(hold)
            raise

    def _check_capacity(self, hold: Hold) -> None:
        """See that what all hold together fits. Raises ``OutOfMemory``, and remembers it."""
        used = self.in_use
        for device in hold.charges:
            wanted = used.get(device, 0)
            if wanted > self._capacity.get(device, wanted):
                self.overcommitted.append(Overcommit(hold.label, device, wanted, self._capacity[device]))
                raise OutOfMemory(
                    f"{hold.label} ran out of memory: {wanted} bytes on {device}, which has {self._capacity[device]}"
                )

    def _check_rest(self, model: FakeModel, *, asleep: bool) -> None:
        if model.dead or bool(model.awake) is not asleep:
            state = "dead" if model.dead else "asleep" if model.awake else "awake"
            raise SleepFailed(f"{model.label} can't be {'woken' if asleep else 'put to sleep'}: it is {state}")

    def _let_go(self, hold: Hold) -> None:
        """Drop our reference to the weights; the bytes are free when the last reference is gone."""
        weights, hold.weights = hold.weights, None
        if weights is not None:
            hold.watch = weakref.ref(weights, lambda _: self._free(hold))

    def _free(self, hold: Hold) -> None:
        if hold in self._holds:
            self._holds.remove(hold)
            if hold.freed is not None:
                self._note("freed", hold.key)
                finish(hold.freed)

    async def _pause(self, seconds: float, hangs: str | None) -> None:
        if hangs is None:
            await asyncio.sleep(seconds)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hanging[done] = hangs
        try:
            await done
        finally:
            del self._hanging[done]
