"""What refusals say: what happened, to which model, and what to do. Built only when somebody is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskrouter.residency.actions import Refusal
from taskrouter.residency.books import MODEL_SLOTS, State
from taskrouter.residency.events import Reason
from taskrouter.residency.records import Model
from taskrouter.residency.waiting import Phase
from taskrouter.types import CPU, GIB, MIB, DeviceId

if TYPE_CHECKING:
    from taskrouter.residency.store import Store

COMING = (State.LOADING, State.PROMOTING, State.STUCK)


def size(amount: int) -> str:
    """Bytes for people: ``6.2 GiB``, ``14.0 MiB``."""
    return f"{amount / GIB:.1f} GiB" if abs(amount) >= GIB else f"{amount / MIB:.1f} MiB"


def share(device: DeviceId, part: int, whole: int) -> str:
    """A part of a whole in the unit of the whole: ``14.0/24.0 GiB cuda:0``, ``2/3 models``."""
    if device == MODEL_SLOTS:
        return f"{part}/{whole} models"
    unit, name = (GIB, "GiB") if abs(whole) >= GIB else (MIB, "MiB")
    return f"{part / unit:.1f}/{whole / unit:.1f} {name} {device}"


def _quantity(device: DeviceId, amount: int) -> str:
    return f"{amount} model{'' if amount == 1 else 's'}" if device == MODEL_SLOTS else size(amount)


def _amount(device: DeviceId, amount: int) -> str:
    return f"room for {_quantity(device, amount)}" if device == MODEL_SLOTS else f"{size(amount)} on {device}"


def _knob(device: DeviceId) -> str:
    """What to raise in the file."""
    return "memory.max_models" if device == MODEL_SLOTS else f"memory.devices.{device}.budget"


def no_room(core: Store, model: Model, what: str, device: DeviceId, needed: int, room: int) -> Refusal:
    """The model can't fit, whatever is waited for; ``what`` as the planner found it."""
    label = model.spec.label
    if what == "too_large":
        text = (
            f"{label} needs {_amount(device, needed)}, more than the {_amount(device, room)} there is at all. "
            f"Pick a smaller option or a stronger quantization, or raise {_knob(device)}."
        )
        return Refusal(Reason.TOO_LARGE, model.key, text)
    held = [
        other
        for other in core.resident_models()
        if other.charges.get(device) and other is not model and (what != "pinned" or other.spec.pinned)
    ]
    names = ", ".join(f"{other.spec.label} {_quantity(device, other.charges[device])}" for other in held) or "nothing"
    most = _quantity(device, max(room, 0))
    if what == "pinned":
        text = (
            f"{label} needs {_amount(device, needed)}; at most {most} can be had beside what is "
            f"pinned ({names}). Unpin one, pick a smaller option, or raise {_knob(device)}."
        )
        return Refusal(Reason.PINNED, model.key, text)
    if what == "own_lease":
        text = (
            f"{label} needs {_amount(device, needed)}, and room could only come from a model this caller holds a lease "
            f"on (resident: {names}). Leave that lease before asking for {label}."
        )
        return Refusal(Reason.OWN_LEASE, model.key, text)
    residue = core.residue_on(device)
    text = (
        f"{label} needs {_amount(device, needed)}; only {most} can be had: memory that unloads did not "
        f"give back, or stuck loads hold ({residue}). Drop the references that keep it alive, or restart the process."
    )
    return Refusal(Reason.NO_ROOM, model.key, text)


def no_free_room(core: Store, model: Model) -> Refusal:
    """A warm-up (or a restoring load) found no free bytes, and those never evict."""
    asked = {device for placement in model.spec.placements for device in placement}
    asked |= {CPU} if model.need.ram_bytes else set()
    free = ", ".join(f"{size(core.books(device).free)} on {device}" for device in core.devices() if device in asked)
    need = size(model.need.device_bytes)
    text = f"{model.spec.label} needs {need}; warm-up takes free memory only, and there is {free}."
    return Refusal(Reason.NO_ROOM, model.key, text)


def deadline(core: Store, model: Model, waited: float, now: float) -> Refusal:
    """The deadline of a ticket passed; says what it waited for and when asking again makes sense."""
    label, want = model.spec.label, model.want
    retry: float | None
    if model.state in (State.LOADING, State.STUCK):
        retry = max(model.load_started + model.load_s - now, 0.1)
        doing = f"it is loading and needs about {retry:.0f} s more; the load goes on"
    elif model.state in (State.READY, State.DRAINING):
        retry = max(model.busy_for(now), 0.1)
        doing = f"it is loaded and all of its {model.slots} slots are in use; raise max_concurrency or the deadline"
        if model.state is State.DRAINING:
            doing = "it is being drained to make room for another model"
    elif model.state is State.UNLOADING:
        retry = model.unload_s + model.load_s
        doing = "it is being unloaded, and has to be loaded again"
    elif model.state is State.PROMOTING:
        retry = max(model.load_started + model.wake_s - now, 0.1)
        doing = f"it is waking and needs about {retry:.0f} s more; that goes on"
    elif model.state is State.DEMOTING:
        retry, doing = model.unload_s + model.wake_s, "it is being put to sleep, and has to be woken again"
    elif want is not None and want.phase is Phase.PREFLIGHT:
        retry, doing = model.load_s, "its files were still being checked"
    elif waited <= 0:
        retry, doing = model.load_s, "no time was allowed for loading it"
    else:
        busy = [other for other in core.resident_models() if other.leases]
        retry = max((other.busy_for(now) for other in busy), default=0.0) + model.load_s
        names = ", ".join(f"{other.spec.label} ({len(other.leases)} in use)" for other in busy)
        room = size(model.need.device_bytes)
        if waited < model.load_s:
            doing = (
                f"loading it takes about {model.load_s:.0f} s, more than the time allowed, so nothing that was used "
                f"lately was evicted to make {room} of room"
            )
        else:
            coming = ", ".join(other.spec.label for other in core.resident_models() if other.state in COMING)
            what = (
                f"in use: {names}" if names else f"on its way in: {coming}" if coming else "older requests come first"
            )
            doing = f"it waits for {room} of room; {what}"
    text = f"{label} was not ready after {waited:.1f} s: {doing}. Ask again later, or allow more time."
    return Refusal(Reason.DEADLINE, model.key, text, retry_after_s=retry)


def cooldown(model: Model, now: float) -> Refusal:
    """The model failed repeatedly."""
    left = max((model.cooldown_until or now) - now, 0.0)
    text = (
        f"{model.spec.label} failed {model.failures} times in a row and is not tried again for {left:.0f} s. "
        f"Fix the cause (the last error says it), or clear its cooldown."
    )
    return Refusal(Reason.COOLDOWN, model.key, text, retry_after_s=left)


def stuck(model: Model, culprit: Model) -> Refusal:
    """A load is stuck in a thread, and this one would have to queue behind it."""
    who = "its load" if culprit is model else f"the load of {culprit.spec.label}, which it must wait for,"
    text = f"{model.spec.label} can't be loaded: {who} is stuck and can't be killed. Restart the process."
    return Refusal(Reason.STUCK, model.key, text)


def retired(model: Model) -> Refusal:
    """The model was unloaded on request."""
    return Refusal(Reason.RETIRED, model.key, f"{model.spec.label} was unloaded by request while this call waited.")


def removed(model: Model) -> Refusal:
    """The model stands in the configuration no more."""
    return Refusal(Reason.REMOVED, model.key, f"{model.spec.label} is no longer configured: the file was reloaded.")


def shutdown(model: Model) -> Refusal:
    """The manager shuts down."""
    return Refusal(Reason.SHUTDOWN, model.key, f"{model.spec.label} is not loaded: the manager is shutting down.")
