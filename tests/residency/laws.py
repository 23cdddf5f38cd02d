"""What must hold after every step, judged from the world's account and not from the core's.

Where the contract leaves the core free (estimates of how long a lease, an unload or a load takes), the bound used here
is the most lenient one, so that a breach is a breach whatever the core's averages say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.books import HOST_BUDGET, MODEL_SLOTS, State
from taskrouter.types import CPU, DeviceId, DeviceReading, ModelKey, TicketId

if TYPE_CHECKING:
    from .account import Bytes, Job, Step, Ticket
    from .world import World

RESIDENT = (State.READY, State.DRAINING)


# --- actions, one by one ----------------------------------------------------------------------------------------------


def on_preflight(world: World, action: act.Preflight) -> None:
    assert world.job("preflight", action.key) is None, f"{action.key} is preflighted twice at once"


def on_load(world: World, action: act.Load) -> None:
    key, spec = action.key, world.specs[action.key]
    assert key not in world.lives, f"{key} is loaded while a copy of it still holds bytes"
    assert world.job("load", key) is None, f"{key}: two loads in flight"
    assert not world.shut, f"{key} is loaded after Shutdown"
    assert key not in world.removed, f"{key} is loaded, which is no longer configured"
    assert key in world.preflighted, f"{key} is loaded without a passed preflight"
    assert action.devices in spec.placements, f"{key} is put on {action.devices}, not one of {spec.placements}"
    assert action.generation > world.generations.get(key, -1), f"{key}: generation {action.generation} was used before"
    if action.reason is ev.Reason.AHEAD:
        ahead(world, key)
    least = world.spread(world.need_low[key], action.devices)
    for device, count in least.items():
        if device != MODEL_SLOTS:
            assert action.charges.get(device, 0) >= count, f"{key}: charged {action.charges}, needs {least}"
    for device in (*world.devices, *([MODEL_SLOTS] if world.settings.max_models else [])):
        # Room must be there now, whatever is still on its way: unloading frees nothing until it is confirmed.
        new = max(action.charges.get(device, 0), least.get(device, 0))
        assert not new or world.used(device) + new <= world.allowed(device), (
            f"{key}: a load of {new} on {device}, where {world.used(device)} of {world.allowed(device)} are in use"
        )
    for job in world.jobs:
        if job.kind == "load" and spec.traits.serial_group is not None:
            assert world.specs[job.key].traits.serial_group != spec.traits.serial_group, (
                f"{key} and {job.key} load at once in serial group {spec.traits.serial_group}"
            )
        # A stuck load is written off: it keeps its bytes and its serial group, not its device.
        if job.kind != "preflight" and not job.stuck and set(job.devices) & set(action.devices):
            assert not spec.traits.exclusive_on_device, f"exclusive {key} starts beside the {job.kind} of {job.key}"
            assert job.kind != "load" or not world.specs[job.key].traits.exclusive_on_device, (
                f"{key} starts beside the exclusive load of {job.key}"
            )


def ahead(world: World, key: ModelKey) -> None:
    """What is loaded ahead, or makes room for that, delays no ticket that was promised nothing yet."""
    for other, waiters in world.waiting.items():
        leaves = other in world.lives and world.state(other) in (State.UNLOADING, State.DEMOTING)
        unpromised = bool(waiters) and (world.job("preflight", other) is not None or leaves)
        assert other == key or not unpromised, f"{key} is loaded ahead while {other} is waited for"


def gives_way(world: World, key: ModelKey, wanted: ModelKey) -> None:
    """Who makes room for what is only needed soon is needed later, or never, and is no more important."""
    assert world.rank(wanted) < world.rank(key), f"{key} makes room for {wanted}, which isn't needed sooner"
    assert world.specs[key].priority <= world.specs[wanted].priority, f"{key} makes room for {wanted}, which is less"


def on_cancel(world: World, action: act.CancelLoad) -> None:
    job = world.job("load", action.key)
    assert job is not None, f"CancelLoad of {action.key}, which isn't loading"
    assert job.generation == action.generation, f"CancelLoad of {action.key} names a load of another life"
    assert not job.cancelled, f"the load of {action.key} is cancelled twice"
    assert world.specs[action.key].traits.cancellable, f"{action.key} can't be cancelled"
    assert world.step is not None
    asked = isinstance(world.step.event, ev.GiveUp | ev.Release | ev.Retire | ev.Configure | ev.Shutdown)
    assert asked or job.reason in (ev.Reason.WARMUP, ev.Reason.RESTORE, ev.Reason.AHEAD), (
        f"nobody asked to cancel the load of {action.key}"
    )
    if isinstance(world.step.event, ev.GiveUp):
        assert job.reason is not ev.Reason.REQUEST or world.tickets[world.step.event.ticket].ask.key == action.key


def on_demote(world: World, action: act.Demote) -> None:
    key = action.key
    life = world.lives.get(key)
    assert life is not None, f"Demote of {key}, which isn't there"
    assert life.loaded_at is not None, f"Demote of {key}, which isn't loaded"
    assert life.generation == action.generation, f"Demote of {key} names another life"
    assert not life.asleep, f"Demote of {key}, which sleeps"
    assert not life.dead, f"Demote of {key}, which is dead"
    assert not any(job.key == key and job.kind != "preflight" for job in world.jobs), f"Demote of {key}, which is at it"
    assert not world.live(key), f"Demote of {key} under leases"
    assert world.specs[key].traits.can_sleep, f"{key} can't sleep"
    assert world.sleep_failures[key] < 2, f"{key} is put to sleep, which failed twice in a row"
    if action.why.reason is ev.Reason.AHEAD and action.why.wanted is not None:
        before = world.step.before.get(key) if world.step is not None else None
        if before is not None and before.state is State.READY:  # Who waited for its bed was chosen earlier.
            gives_way(world, key, action.why.wanted)
    for device in (CPU, HOST_BUDGET):
        assert world.used(device) + action.ram_bytes <= world.allowed(device), f"no room on {device} for {key} to sleep"
    beside_nobody_exclusive(world, key, life.devices)


def on_promote(world: World, action: act.Promote) -> None:
    key = action.key
    life = world.lives.get(key)
    assert life is not None, f"Promote of {key}, which isn't there"
    assert life.asleep, f"Promote of {key}, which doesn't sleep"
    assert not life.dead, f"Promote of {key}, which is dead"
    assert life.generation == action.generation, f"Promote of {key} names another life"
    assert action.devices == life.devices, f"{key} wakes on {action.devices}, and sleeps on {life.devices}"
    assert not any(job.key == key for job in world.jobs), f"Promote of {key}, at which something is at work"
    assert not world.shut, f"{key} is woken after Shutdown"
    for device in life.devices:
        more = life.awake.get(device, 0) - life.true.get(device, 0)
        assert more <= 0 or world.used(device) + more <= world.allowed(device), f"no room on {device} for {key} to wake"
    beside_nobody_exclusive(world, key, life.devices)


def beside_nobody_exclusive(world: World, key: ModelKey, devices: tuple[DeviceId, ...]) -> None:
    for job in world.jobs:
        exclusive = job.kind == "load" and not job.stuck and world.specs[job.key].traits.exclusive_on_device
        assert not exclusive or not set(job.devices) & set(devices), (
            f"{key} moves while {job.key} loads exclusively there"
        )


def on_unload(world: World, action: act.Unload) -> None:
    key = action.key
    life = world.lives.get(key)
    assert life is not None, f"Unload of {key}, which isn't there"
    assert life.loaded_at is not None, f"Unload of {key}, which isn't loaded"
    assert life.generation == action.generation, f"Unload of {key} names another life"
    assert world.job("unload", key) is None, f"{key} is unloaded twice"
    assert not world.live(key), f"Unload of {key} under the leases {[t.ask.ticket for t in world.live(key)]}"
    forced = key in world.retired or world.shut or life.cancelled or action.why.reason is ev.Reason.SLEEP_FAILED
    before = world.step.before.get(key) if world.step is not None else None
    # Who waits for a bed in RAM may be pinned meanwhile, and find none.
    forced = forced or before is None or before.state is State.DEMOTING
    # Who sleeps where it can't wake is forgotten to be loaded elsewhere: it gives way to nobody but itself.
    forced = forced or action.why.wanted == key
    assert forced or not world.specs[key].pinned, f"Unload of {key}, which is pinned"
    for job in world.jobs:
        exclusive = job.kind == "load" and not job.stuck and world.specs[job.key].traits.exclusive_on_device
        if exclusive and not world.shut:
            assert not set(job.devices) & set(life.devices), f"{key} is freed while {job.key} loads exclusively there"
    if action.why.reason is ev.Reason.ROOM:
        assert action.why.wanted is not None, f"Unload of {key} makes room for nobody"
        assert action.why.wanted in world.preflighted, (
            f"{key} is evicted for {action.why.wanted}, which passed no preflight"
        )
    elif action.why.reason is ev.Reason.AHEAD:
        assert action.why.wanted is not None, f"{key} makes room ahead for nobody"
        ahead(world, action.why.wanted)
        gives_way(world, key, action.why.wanted)
    elif action.why.reason is ev.Reason.HOST_ROOM:
        assert life.asleep, f"{key} is forgotten for RAM, and doesn't sleep"
        assert action.why.wanted in world.lives, f"{key} is forgotten for {action.why.wanted}, which isn't there"
    elif action.why.reason is ev.Reason.IDLE:
        keep = world.specs[key].keep_alive_s
        assert keep is not None, f"{key} was unloaded for idling, and has no keep_alive"
        assert not world.live(key, claims=True) or life.idle_since + keep <= world.now
        assert life.idle_since + keep <= world.now + 1e-9, f"{key} idles since {life.idle_since} only"


def on_kill(world: World, action: act.Kill) -> None:
    life = world.lives.get(action.key)
    assert life is not None, f"Kill of {action.key}, of which nothing is left"
    assert life.dead, f"Kill of {action.key}, which is alive"
    assert world.job("unload", action.key) is None, f"Kill of {action.key}, which is being unloaded already"


def on_grant(world: World, action: act.Grant, number: TicketId) -> Ticket:
    ticket, key = world.tickets[number], action.key
    assert ticket.state == "waiting", f"ticket {number} is granted after it was {ticket.state}"
    assert ticket.ask.key == key, f"ticket {number} asked for {ticket.ask.key} and is granted {key}"
    assert world.now <= ticket.ask.deadline, f"ticket {number} is granted after its deadline {ticket.ask.deadline}"
    life = world.lives.get(key)
    assert life is not None, f"ticket {number} is granted {key}, which isn't there"
    assert key not in world.removed, f"ticket {number} is granted {key}, which is no longer configured"
    assert life.loaded_at is not None, f"ticket {number} is granted {key}, which isn't loaded"
    assert life.generation == action.generation, f"ticket {number} is granted life {action.generation} of {key}"
    assert not life.dead, f"ticket {number} is granted {key}, which died"
    assert not life.asleep, f"ticket {number} is granted {key}, which sleeps"
    assert world.job("unload", key) is None, f"ticket {number} is granted {key} while it unloads"
    slots = slots_of(world, key)
    assert ticket.ask.claim or slots is None or len(world.live(key)) < slots, (
        f"{key}: a lease more than its {slots} slots"
    )
    return ticket


def on_refuse(world: World, number: TicketId, refusal: act.Refusal) -> Ticket:
    ticket = world.tickets[number]
    key, reason = ticket.ask.key, refusal.reason
    assert ticket.state == "waiting", f"ticket {number} is refused after it was {ticket.state}"
    assert refusal.message.strip(), f"ticket {number} is refused without a word"
    if reason is ev.Reason.DEADLINE:
        assert world.now >= ticket.ask.deadline, f"ticket {number} is refused before its deadline {ticket.ask.deadline}"
    elif reason is ev.Reason.COOLDOWN:
        assert refusal.retry_after_s is not None, (
            f"ticket {number} is refused in a cooldown without saying when to retry"
        )
        assert refusal.retry_after_s > 0, f"ticket {number}: retry after {refusal.retry_after_s} s"
    elif reason is ev.Reason.OWN_LEASE:
        assert ticket.ask.holding, f"ticket {number} holds nothing and is refused for its own lease"
    elif reason in (ev.Reason.TOO_LARGE, ev.Reason.NO_ROOM, ev.Reason.PINNED) and not ticket.ask.background:
        assert not feasible(world, key, lenient=False), (
            f"ticket {number} is refused {reason}, yet {key} could have room"
        )
    elif reason is ev.Reason.UNKNOWN_MODEL:
        assert key not in world.specs, f"{key} is known"
    elif reason is ev.Reason.REMOVED:
        assert key in world.removed, f"{key} is still configured"
    elif reason is ev.Reason.SHUTDOWN:
        assert world.shut, "refused for a shutdown that never was"
    return ticket


# --- the step as a whole ----------------------------------------------------------------------------------------------


def after_step(world: World, step: Step) -> None:
    for key, life in world.lives.items():
        life.booked = {device: count for device, count in world.core.status(key).charges.items() if count}
        if world.settings.max_models and not life.asleep:
            life.booked[MODEL_SLOTS] = 1
    if step.before or isinstance(step.event, ev.Tick):
        deadlines(world)
    batches: dict[ModelKey, list[act.Unload | act.Demote]] = {}
    for action in step.actions:
        if not isinstance(action, act.Unload | act.Demote) or action.why.reason is not ev.Reason.ROOM:
            continue
        # Who can't wake where it sleeps makes room for itself, to be loaded elsewhere.
        if action.why.wanted is not None and action.why.wanted != action.key:
            batches.setdefault(action.why.wanted, []).append(action)
    for wanted, batch in batches.items():
        eviction(world, wanted, batch, alone=len(batches) == 1)
    if step.before:
        for action in step.actions:
            if isinstance(action, act.Unload | act.Demote) and action.why.reason is ev.Reason.ROOM:
                protections(world, step, action)


def deadlines(world: World) -> None:
    """Nobody waits past the deadline, and the core asked to be woken by the earliest."""
    for key, tickets in world.waiting.items():
        for ticket in tickets.values():
            assert ticket.ask.deadline > world.now, f"ticket {ticket.ask.ticket} for {key} waits past its deadline"
            assert world.wake is not None, f"ticket {ticket.ask.ticket} waits and nothing will wake the core"
            assert world.wake <= ticket.ask.deadline, f"the core sleeps past ticket {ticket.ask.ticket}'s deadline"


def eviction(world: World, wanted: ModelKey, batch: list[act.Unload | act.Demote], *, alone: bool) -> None:
    """Each batch suffices, and nothing in it is superfluous."""
    waiting = [ticket for ticket in world.waiting[wanted].values() if not ticket.ask.background]
    if not waiting and all(isinstance(action, act.Demote) for action in batch):
        return  # who waited for a bed in RAM lies down, though whom it made room for is gone meanwhile
    assert waiting, f"{[u.key for u in batch]} are evicted for {wanted}, for which nobody waits"
    spec = world.specs[wanted]
    victims = {action.key for action in batch}
    if all(world.lives[key].asleep for key in victims) and State.DRAINING in map(world.state, world.lives):
        return  # who sleeps has nothing to drain, and goes before those that have
    leaving = [job for job in world.jobs if job.kind in ("unload", "demote") or job.cancelled]
    going = {key for key in world.lives if world.state(key) is State.DEMOTING}  # some wait for a bed in RAM still
    own = world.lives.get(wanted)
    # What was unloaded in the same step for another reason (a keep-alive that ended just then) may have come later.
    sure = [job for job in leaving if job.key in victims or job.since < world.now]

    def slack(need: Bytes, jobs: list[Job]) -> Bytes:
        return {
            device: world.allowed(device)
            - world.used(device, booked=True)
            + sum(frees(world, job, device) for job in jobs)
            + sum(world.lives[key].booked.get(device, 0) for key in going - {job.key for job in jobs})
            + (own.booked.get(device, 0) if own is not None else 0)
            - count
            for device, count in need.items()
        }

    least = [slack(world.spread(world.need_low[wanted], devices), leaving) for devices in spec.placements]
    assert any(min(room.values()) >= 0 for room in least), (
        f"evicting {sorted(victims)} makes no room for {wanted}: short by {least}"
    )
    overtaken(world, wanted, slack, sure)
    ended = world.step.event if world.step is not None else None
    if isinstance(ended, ev.Loaded) and victims == {ended.key} and world.lives[ended.key].cancelled:
        return  # nobody wanted it any more, and it was promised to another before it ended well all the same
    others = any(
        waiters and key != wanted and world.state(key) not in (State.READY,) for key, waiters in world.waiting.items()
    )
    restoring = world.failed_loads and any(s.selected and key not in world.lives for key, s in world.specs.items())
    if others or restoring or not alone or any(job.wanted not in (None, wanted) for job in world.jobs):
        return  # bytes may be reserved for somebody else: what is superfluous can't be told from outside
    most = [slack(world.spread(world.need_high[wanted], devices), sure) for devices in spec.placements]
    superfluous = [
        {key for key in victims if all(world.lives[key].booked.get(d, 0) <= left for d, left in room.items())}
        for room in most
    ]
    assert any(min(room.values()) >= 0 and not extra for room, extra in zip(least, superfluous, strict=True)), (
        f"evicting {sorted(victims)} for {wanted} is more than it needs: {superfluous}"
    )


def overtaken(world: World, wanted: ModelKey, slack: Callable[[Bytes, list[Job]], Bytes], sure: list[Job]) -> None:
    """Nobody who came later takes victims that would have done for somebody who waits since before."""
    assert world.step is not None
    before = world.step.before
    if not before or any(
        State.DRAINING in (before[key].state, world.state(key)) for key in world.lives if key in before
    ):
        return  # somebody's plan is committed, and what it was promised can't be told from outside
    if any(
        job.cancelled or (job.kind == "unload" and (job.wanted is None or world.lives[job.key].cancelled))
        for job in world.jobs
    ):
        return  # nor can who was promised the bytes of an unload (or a cancelled load) that was begun for nobody
    now = {action.key for action in world.step.actions if isinstance(action, act.Unload | act.Demote)}
    if any(job.wanted not in (None, wanted) and job.key not in now for job in world.jobs):
        return  # nor how much of what frees for somebody else will be left over
    if any(world.state(key) is State.DEMOTING and world.job("demote", key) is None for key in world.lives):
        return  # nor for whom a model gives way that still waits for its bed
    asleep = {key for key, life in world.lives.items() if life.asleep}
    cold = [key for key, w in world.waiting.items() if (key not in world.lives or key in asleep) and real(w)]
    for key in sorted(cold, key=lambda key: rank(world, key))[:1]:  # only the oldest waits for nobody's reservation
        waiters = world.waiting[key]
        spec, status = world.specs.get(key), world.core.status(key) if key in world.specs else None
        if spec is None or status is None or key == wanted or key not in world.preflighted or key in asleep:
            continue
        if world.job("preflight", key) or any(job.wanted == key for job in world.jobs):
            continue
        if (
            spec.traits.serial_group is not None
            or spec.traits.exclusive_on_device
            or any(world.specs[job.key].traits.exclusive_on_device for job in world.jobs if job.kind == "load")
        ):
            continue
        in_time = world.now + 2 * status.load_s + world.longest["unload"]
        if any(t.ask.holding or t.ask.background or t.ask.deadline < in_time for t in waiters.values()):
            continue
        rooms = [slack(world.spread(world.need_high[key], devices), sure) for devices in spec.placements]
        assert all(min(room.values()) < 0 for room in rooms), (
            f"{wanted} takes room that would do for {key}, which is older"
        )


def real(waiters: Mapping[TicketId, Ticket]) -> bool:
    """Whether somebody waits who isn't warm-up."""
    return any(not ticket.ask.background for ticket in waiters.values())


def rank(world: World, key: ModelKey) -> tuple[float, float, int]:
    """Where a wanted model stands in the queue: by its oldest ticket's static key (law 9)."""
    return min(
        (ticket.arrival - world.settings.ageing_s * ticket.ask.priority, ticket.arrival, ticket.ask.ticket)
        for ticket in world.waiting[key].values()
        if not ticket.ask.background
    )


def drain_floor(world: World, wanted: ModelKey) -> float:
    """No plan for this model may drain anything before this instant, whatever the core's estimates are."""
    horizon = 1.5 * (
        max(
            [world.longest["lease"], *(world.now - t.granted_at for held in world.held.values() for t in held.values())]
        )
        + world.longest["unload"]
        + max(world.longest["load"], world.core.status(wanted).load_s)
    )
    assert world.step is not None
    expired = [ticket for ticket in world.step.refused if ticket.ask.key == wanted]  # after the pass, at this instant
    floors = [
        min(ticket.arrival + (ticket.ask.deadline - ticket.arrival) / 2, ticket.ask.deadline - horizon)
        for ticket in (*world.waiting[wanted].values(), *expired)
        if not ticket.ask.background
    ]
    return min(floors, default=float("inf"))


def frees(world: World, job: Job, device: DeviceId) -> int:
    """What this job will free there."""
    life = world.lives[job.key]
    if job.kind == "demote" and device in (CPU, HOST_BUDGET):
        return life.awake.get(device, 0)
    return life.booked.get(device, 0)


def protections(world: World, step: Step, action: act.Unload | act.Demote) -> None:
    """A claim and the residency of a just loaded model hold until a drain may end them."""
    key, wanted = action.key, action.why.wanted
    assert wanted is not None
    before, life = step.before.get(key), world.lives[key]
    asking = list(world.waiting[wanted].values())
    if before is None or before.state is not State.READY or world.now >= drain_floor(world, wanted):
        return
    if any(ticket.ask.replaces == key for ticket in asking):
        return
    claims = step.ended_claims.get(key)
    if claims:
        last = max(ticket.granted_at for ticket in claims)
        until = min(last, *(ticket.arrival for ticket in asking)) + world.settings.claim_s
        assert world.now >= until, f"{key} is evicted at {world.now} under a claim that protects it until {until}"
    assert life.loaded_at is not None
    load_s = min(life.load_s, before.load_s, before.wake_s if life.awake else before.load_s)
    full = world.settings.min_residency_s
    if full is None:
        full = min(load_s, world.settings.residency_cap_s)
    young = world.now < life.loaded_at + full - 1e-6
    busy = world.now < life.idle_since + 0.2 * load_s - 1e-6
    assert not (young and busy), (
        f"{key}, loaded at {life.loaded_at} in {life.load_s} s, is evicted at {world.now} already"
    )


def feasible(world: World, key: ModelKey, *, lenient: bool) -> bool:
    """Whether all that isn't pinned (or stuck) could make room; ``lenient``: whether anyone could believe so."""
    need = (world.need_low if lenient else world.need_high)[key]
    blocked: list[Bytes] = [dict(lost) for lost in world.residue.values()]
    for other, life in world.lives.items():
        if other == key or world.job("unload", other) or world.job("demote", other):
            continue
        stuck = any(job.stuck and job.key == other for job in world.jobs)
        # Who asks again while a retired model still loads keeps it.
        kept = world.state(other) is State.LOADING and bool(world.waiting[other])
        leaving = other in world.retired and not kept
        pinned = world.specs[other].pinned and not leaving and not life.dead
        if (pinned and (not lenient or world.state(other) in RESIDENT)) or (stuck and not lenient):
            blocked.append(life.booked)
    overhead = 0 if lenient else 1
    for devices in world.specs[key].placements:
        for device, count in world.spread(need, devices).items():
            if device == MODEL_SLOTS:
                limit = world.settings.max_models
            else:
                reading = world.readings.get(device, DeviceReading())
                limit = min(world.devices[device].capacity, world.devices[device].limit - overhead * reading.overhead)
            if count + sum(held.get(device, 0) for held in blocked) > limit:
                break
        else:
            return True
    return False


def slots_of(world: World, key: ModelKey) -> int | None:
    spec = world.specs[key]
    known = (spec.slots, world.found_slots.get(key), spec.traits.slots)
    return next((slots for slots in known if slots is not None), None)
