"""The small parts of the core, each by itself: policies, a device's account, a model's record, refusals in words."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskrouter.residency import Residency, events, messages
from taskrouter.residency.accounts import Account
from taskrouter.residency.actions import Refusal, Refuse
from taskrouter.residency.books import MODEL_SLOTS, Settings, State
from taskrouter.residency.events import Reason
from taskrouter.residency.policy import Missing, by_priority, drop_unneeded, oldest, take
from taskrouter.residency.records import Model
from taskrouter.types import CPU, GIB, MIB, DeviceId, DeviceReading, DeviceSpec, Footprint, ModelKey, TicketId

from .stage import GPU0, GPU1, spec

DEVICES = (GPU0, GPU1, CPU)
LARGE, SMALL, THIRD = ModelKey("large"), ModelKey("small"), ModelKey("third")


# --- policies ---------------------------------------------------------------------------------------------------------


def holding(charges: dict[DeviceId, int], name: str = "m") -> Model:
    """A model that holds these bytes."""
    model = Model(spec(name, 1))
    model.charges = charges
    return model


bytes_held = st.dictionaries(st.sampled_from(DEVICES), st.integers(0, 9))
models = st.lists(bytes_held.map(holding), max_size=7)
lacks = st.dictionaries(st.sampled_from(DEVICES), st.integers(1, 20))


def worthless(model: Model) -> float:
    """No model is worth more than another."""
    return 0.0


def suffices(chosen: tuple[Model, ...] | list[Model], lacking: Missing) -> bool:
    return all(sum(m.charges.get(device, 0) for m in chosen) >= lack for device, lack in lacking.items())


@given(models, lacks)
def test_what_is_taken_suffices_where_all_together_do_and_stops_there(candidates: list[Model], lack: Missing) -> None:
    missing = dict(lack)
    chosen = take(iter(candidates), missing)
    assert [model for model in candidates if model in chosen] == chosen
    assert (not missing) == suffices(candidates, lack)
    for device, still in missing.items():
        assert still == lack[device] - sum(model.charges.get(device, 0) for model in candidates)
    assert missing or not lack or not suffices(chosen[:-1], lack)


@given(models, lacks)
def test_what_is_kept_suffices_and_none_of_it_could_stay(candidates: list[Model], lack: Missing) -> None:
    if not suffices(candidates, lack):
        return
    chosen = take(candidates, dict(lack))
    kept = drop_unneeded(chosen, lack)
    assert [model for model in chosen if model in kept] == kept
    assert suffices(kept, lack)
    for fewer in combinations(kept, max(len(kept) - 1, 0)):
        assert not kept or not suffices(fewer, lack)


def test_the_unneeded_are_dropped_from_the_last_chosen_on() -> None:
    first, second, third = (holding({GPU0: size}) for size in (2, 2, 2))
    assert drop_unneeded([first, second, third], {GPU0: 4}) == [first, second]


def test_a_candidate_that_frees_nothing_where_it_is_missing_is_passed_by() -> None:
    elsewhere, here = holding({GPU1: 8}), holding({GPU0: 8, GPU1: 1})
    missing = {GPU0: 5}
    assert take([elsewhere, here], missing) == [here]
    assert missing == {}


def test_what_is_still_missing_is_told() -> None:
    missing = {GPU0: 9, CPU: 2}
    model = holding({GPU0: 4, CPU: 2})
    assert oldest([model], missing, worthless) == [model]
    assert missing == {GPU0: 5}


def test_nothing_missing_takes_nobody() -> None:
    assert oldest([holding({GPU0: 8})], {}, worthless) == []


def test_lower_priority_goes_first_and_equals_keep_their_order() -> None:
    high, low, other = (Model(spec(name, 1, priority=value)) for name, value in (("h", 2), ("l", -1), ("o", 2)))
    assert by_priority([high, low, other]) == [low, high, other]


# --- one device's account ---------------------------------------------------------------------------------------------


def free_with(device: DeviceSpec, foreign: int = 0, overhead: int = 0, charged: int = 0) -> int:
    account = Account(device)
    account.read(DeviceReading(foreign, overhead))
    account.charged = charged
    return account.free


@pytest.mark.parametrize(
    ("device", "foreign", "overhead", "charged", "free"),
    [
        pytest.param(DeviceSpec(GPU0, 100, budget=40), 0, 0, 0, 40, id="an explicit budget"),
        pytest.param(DeviceSpec(GPU0, 100, budget=40), 60, 0, 0, 40, id="others beside the budget cost nothing"),
        pytest.param(DeviceSpec(GPU0, 100, budget=40), 61, 0, 0, 39, id="others beyond the budget do"),
        pytest.param(DeviceSpec(GPU0, 100, budget=40), 59, 2, 0, 39, id="and so does our own overhead"),
        pytest.param(DeviceSpec(GPU0, 100, budget=40), 70, 0, 40, -10, id="which may end below zero"),
        pytest.param(DeviceSpec(GPU0, 100, budget=40, reserve=5), 0, 0, 0, 35, id="the reserve is no room"),
        pytest.param(DeviceSpec(GPU0, 100, budget=40, reserve=5), 60, 0, 0, 35, id="nor are others' bytes in it"),
        pytest.param(DeviceSpec(GPU0, 100, budget=200), 10, 0, 0, 90, id="a budget above the device is the device"),
        pytest.param(DeviceSpec(GPU0, 100), 0, 0, 0, 85, id="the threshold where no budget is written"),
        pytest.param(DeviceSpec(GPU0, 100), 10, 5, 20, 50, id="under which others count in full"),
        pytest.param(DeviceSpec(GPU0, 100, threshold=0.5, reserve=10), 0, 0, 0, 40, id="the reserve comes off it, too"),
        pytest.param(DeviceSpec(GPU0, 100, budget=40), -5, -5, 0, 40, id="a driver's negative numbers are zero"),
    ],
)
def test_free_bytes_are_what_budget_device_and_neighbours_leave(
    device: DeviceSpec, foreign: int, overhead: int, charged: int, free: int
) -> None:
    assert free_with(device, foreign, overhead, charged) == free


def test_promises_and_residue_are_not_free_either_and_stand_on_lines_of_their_own() -> None:
    account = Account(DeviceSpec(GPU0, 100, budget=40))
    account.charged, account.promised, account.residue = 10, 8, 3
    view = account.view()
    assert (view.device, view.capacity, view.charged, view.promised, view.residue, view.free) == (
        GPU0,
        40,
        10,
        8,
        3,
        19,
    )


# --- one model's record -----------------------------------------------------------------------------------------------


def test_a_model_says_what_it_is_in_a_line() -> None:
    model = Model(spec("qwen", 4))
    model.state = State.READY
    model.leases[TicketId(1)] = 0.0
    assert repr(model) == "<Model qwen ready 1 leases, 0 waiting>"


def test_more_room_after_out_of_memory_is_a_quarter_at_least_a_byte_at_most_the_device() -> None:
    assert [Model(spec("a", need, ram=7)).grown(100).device_bytes for need in (0, 1, 40, 90, 100)] == [
        1,
        2,
        50,
        100,
        100,
    ]
    assert Model(spec("a", 40, ram=7)).grown(100).ram_bytes == 7


# --- refusals in words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0.0 MiB"), (14 * MIB, "14.0 MiB"), (GIB, "1.0 GiB"), (int(6.25 * GIB), "6.2 GiB"), (-2 * GIB, "-2.0 GiB")],
)
def test_bytes_are_told_in_gib_and_small_ones_in_mib(amount: int, text: str) -> None:
    assert messages.size(amount) == text


def core_of(max_models: int = 0) -> Residency:
    """A 10 GiB device with *large* (8, pinned) there; *small* (4) asks for room."""
    specs = [
        spec("large", 8 * GIB, pinned=True, slots=1),
        spec("small", 4 * GIB),
        spec("third", MIB),
    ]
    core = Residency([DeviceSpec(GPU0, 12 * GIB, budget=10 * GIB)], specs, Settings(max_models=max_models))
    core.handle(events.Acquire(TicketId(1), LARGE, deadline=100.0), now=0.0)
    core.handle(events.Preflighted(LARGE, 1), now=0.0)
    core.handle(events.Loaded(LARGE, 1), now=10.0)
    return core


def told(what: str, device: DeviceId, needed: int, room: int, *, max_models: int = 0) -> Refusal:
    core = core_of(max_models)
    return messages.no_room(core, core._models[SMALL], what, device, needed, room)


@pytest.mark.parametrize(
    ("what", "reason", "texts"),
    [
        (
            "too_large",
            Reason.TOO_LARGE,
            ("more than the 2.0 GiB on cuda:0 there is", "raise memory.devices.cuda:0.budget"),
        ),
        (
            "pinned",
            Reason.PINNED,
            ("at most 2.0 GiB", "pinned (large 8.0 GiB)", "Unpin one", "devices.cuda:0.budget"),
        ),
        ("own_lease", Reason.OWN_LEASE, ("resident: large 8.0 GiB", "Leave that lease before asking for small")),
        ("no_room", Reason.NO_ROOM, ("only 2.0 GiB can be had", "(nothing)", "restart the process")),
    ],
)
def test_a_refusal_for_room_names_model_device_numbers_and_what_to_do(
    what: str, reason: Reason, texts: tuple[str, ...]
) -> None:
    refusal = told(what, GPU0, 4 * GIB, 2 * GIB)
    assert (refusal.reason, refusal.key) == (reason, SMALL)
    for text in ("small needs 4.0 GiB on cuda:0", *texts):
        assert text in refusal.message


@pytest.mark.parametrize(
    ("what", "texts"),
    [
        ("too_large", ("room for 1 model, more than the room for 0 models", "raise memory.max_models")),
        ("pinned", ("room for 1 model; at most 0 models", "pinned (large 1 model)", "raise memory.max_models")),
        ("own_lease", ("room for 1 model", "resident: large 1 model")),
        ("no_room", ("room for 1 model; only 0 models can be had",)),
    ],
)
def test_where_the_count_of_models_is_the_limit_the_words_are_of_models(what: str, texts: tuple[str, ...]) -> None:
    refusal = told(what, MODEL_SLOTS, 1, -1 if what == "pinned" else 0, max_models=1)
    for text in texts:
        assert text in refusal.message
    assert "GiB" not in refusal.message
    assert "memory.devices" not in refusal.message


def test_residue_is_named_after_the_model_that_left_it_and_a_stuck_load_after_itself() -> None:
    core = core_of()
    core.handle(events.Release(TicketId(1)), now=11.0)
    core.handle(events.Retire(LARGE), now=11.0)
    core.handle(events.Unloaded(LARGE, 1, {GPU0: 7 * GIB}), now=12.0)
    core.handle(events.Acquire(TicketId(2), THIRD, deadline=100.0), now=12.0)
    core.handle(events.Preflighted(THIRD, 1), now=12.0)
    core.handle(events.LoadStuck(THIRD, 1), now=13.0)
    refuse = core.handle(events.Acquire(TicketId(3), SMALL, deadline=100.0), now=13.0)[0]
    assert isinstance(refuse, Refuse)
    assert refuse.refusal.reason is Reason.NO_ROOM
    assert "only 3.0 GiB can be had" in refuse.refusal.message
    assert "(large 7.0 GiB, third (stuck))" in refuse.refusal.message


def test_a_warm_up_without_free_room_says_how_much_there_is_on_each_device() -> None:
    core = core_of()
    refusal = messages.no_free_room(core, core._models[SMALL])
    assert refusal.reason is Reason.NO_ROOM
    assert refusal.message == "small needs 4.0 GiB; warm-up takes free memory only, and there is 2.0 GiB on cuda:0."


def test_the_other_refusals_name_the_model_and_what_to_do() -> None:
    core = core_of()
    small, large = core._models[SMALL], core._models[LARGE]
    small.failures, small.cooldown_until = 3, 25.0
    cooling = messages.cooldown(small, 20.0)
    assert (cooling.reason, cooling.retry_after_s) == (Reason.COOLDOWN, 5.0)
    assert "small failed 3 times in a row and is not tried again for 5 s" in cooling.message
    assert "clear its cooldown" in cooling.message
    assert "small can't be loaded: its load is stuck" in messages.stuck(small, small).message
    behind = messages.stuck(small, large)
    assert "the load of large, which it must wait for, is stuck" in behind.message
    assert "Restart the process" in behind.message
    assert messages.retired(small).message == "small was unloaded by request while this call waited."
    assert "the manager is shutting down" in messages.shutdown(small).message


@pytest.mark.parametrize(
    ("state", "text", "retry"),
    [
        (State.LOADING, "it is loading and needs about 10 s more; the load goes on", 10.0),
        (State.READY, "it is loaded and all of its 1 slots are in use; raise max_concurrency", 40.0),
        (State.DRAINING, "it is being drained to make room for another model", 40.0),
        (State.UNLOADING, "it is being unloaded, and has to be loaded again", 11.0),
    ],
)
def test_a_deadline_says_what_was_waited_for_and_when_to_ask_again(state: State, text: str, retry: float) -> None:
    core = core_of()
    large = core._models[LARGE]
    large.state, large.load_started = state, 50.0
    refusal = messages.deadline(core, large, 5.0, 50.0)
    assert (refusal.reason, refusal.key) == (Reason.DEADLINE, LARGE)
    assert refusal.message.startswith("large was not ready after 5.0 s: ")
    assert text in refusal.message
    assert refusal.retry_after_s == pytest.approx(retry)


def test_a_deadline_of_a_cold_model_says_who_was_in_the_way_or_that_the_time_was_too_short() -> None:
    core = core_of()
    small = core._models[SMALL]  # takes 2 + 8 s to load, by estimate
    short, long = messages.deadline(core, small, 5.0, 50.0), messages.deadline(core, small, 15.0, 50.0)
    assert "loading it takes about 10 s, more than the time allowed" in short.message
    assert "4.0 GiB of room" in short.message
    assert "it waits for 4.0 GiB of room; in use: large (1 in use)" in long.message
    assert long.retry_after_s == pytest.approx(50.0)
    assert "no time was allowed for loading it" in messages.deadline(core, small, 0.0, 50.0).message
    core.handle(events.Release(TicketId(1)), now=60.0)
    assert "older requests come first" in messages.deadline(core, small, 15.0, 60.0).message
    core._models[LARGE].state = State.PROMOTING
    assert "it waits for 4.0 GiB of room; on its way in: large" in messages.deadline(core, small, 15.0, 60.0).message


def test_the_core_in_a_line_shows_its_books() -> None:
    assert repr(core_of(max_models=3)) == ("<Residency 1 ready, 0 loading, 8.0/10.0 GiB cuda:0, 1/3 models, 0 waiting>")


def test_a_part_is_told_in_the_unit_of_the_whole() -> None:
    assert messages.share(GPU0, 512 * MIB, 10 * GIB) == "0.5/10.0 GiB cuda:0"
    assert messages.share(GPU0, 3 * MIB, 10 * MIB) == "3.0/10.0 MiB cuda:0"


def test_a_footprint_is_charged_on_each_device_of_the_set_and_in_host_memory_once() -> None:
    model = Model(spec("a", 4, ram=3))
    assert model.charges_on((GPU0, GPU1), count_models=True) == {GPU0: 4, GPU1: 4, CPU: 3, MODEL_SLOTS: 1}
    assert model.charges_on((CPU,), count_models=False) == {CPU: 7}
    assert Model(spec("b", 4)).need == Footprint(4)
