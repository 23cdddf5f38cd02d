"""What traffic gets: grants, refusals, the longest wait and the loads that were paid for it.

The figures a throwaway prototype of the core got are in the comments; the core must do no worse.
"""

from __future__ import annotations

import pytest

from taskrouter.residency.events import Reason

from . import traffic
from .account import CoreFactory


@pytest.mark.slow
def test_a_rare_model_is_served_beside_endless_traffic_for_another(core: CoreFactory) -> None:
    seen = traffic.endless_a_rare_c(core)
    # Prototype: 25 of 25, longest wait 71 s. Half of its 120 s, a lease of 0.5 s, an unload of 1 s and a load of 10 s.
    assert len(seen.waits("c")) == 25
    assert max(seen.waits("c")) <= 71.5
    assert seen.refused == []
    assert max(seen.waits("a")) <= 30
    assert seen.loads <= 1 + 25 + 25


@pytest.mark.slow
def test_two_models_asked_for_in_turn_on_one_place_do_not_thrash(core: CoreFactory) -> None:
    seen = traffic.alternating(core)
    # Prototype: 1,800 of 1,800 granted with 89 loads.
    assert len(seen.granted) == 1800
    assert seen.loads <= 89
    assert max(seen.waits()) <= 35


@pytest.mark.slow
def test_a_large_model_among_small_ones_is_served_and_costs_no_more_evictions_than_its_room(core: CoreFactory) -> None:
    seen = traffic.one_large_among_small(core)
    assert seen.refused == []
    assert len(seen.waits("large")) == 11
    assert max(seen.waits("large")) <= 10
    assert max(seen.waits()) <= 10
    # Eight of twenty go for it and it goes for one of them; its visits leave room for ten of twenty until it has gone.
    assert seen.loads <= 21 + 11 * 20


@pytest.mark.slow
def test_two_hundred_users_of_twelve_models_on_one_device(core: CoreFactory) -> None:
    seen = traffic.closed_loop(core, gpus=1)
    # Prototype: 16,500 grants with 780 loads.
    assert len(seen.granted) >= 16_500
    assert len(seen.granted) / seen.loads >= 21
    assert seen.refused == []
    assert max(seen.waits()) <= 40


@pytest.mark.slow
def test_two_hundred_users_of_twelve_models_on_two_devices(core: CoreFactory) -> None:
    seen = traffic.closed_loop(core, gpus=2)
    assert len(seen.granted) >= 24_000
    assert len(seen.granted) / seen.loads >= 17
    assert seen.refused == []
    assert max(seen.waits()) <= 20


def test_leases_of_twenty_minutes_are_never_cut_short_and_who_can_wait_is_served(core: CoreFactory) -> None:
    seen = traffic.leases_of_twenty_minutes(core)
    assert [ticket.ask.key for ticket in seen.refused] == ["c"]  # the one with a minute
    assert seen.refused[0].arrival == 660.0
    assert seen.refusals() == [Reason.DEADLINE]
    assert len(seen.waits("c")) == 1
    assert max(seen.waits("c")) <= 1200
    assert len(seen.waits("a")) == 4
    assert len(seen.waits("b")) == 3


def test_who_cannot_be_served_in_time_drains_nobody_and_is_refused_on_time(core: CoreFactory) -> None:
    seen = traffic.deadline_shorter_than_the_load(core)
    assert seen.refusals() == [Reason.DEADLINE] * 20
    assert seen.loads == 1
    waits = [ticket.granted_at - ticket.arrival for ticket in seen.granted if ticket.arrival > 31]
    assert waits
    assert max(waits) == 0.0  # nobody who asked for the busy model ever waited


def test_a_load_begun_for_the_impatient_goes_on_and_serves_those_who_come_later(core: CoreFactory) -> None:
    seen = traffic.hopeless_then_patient(core)
    assert seen.loads == 1
    assert [ticket.arrival for ticket in seen.refused] == [0.0, 10.0, 20.0]
    assert [ticket.arrival for ticket in seen.granted] == [29.0, 32.0]
