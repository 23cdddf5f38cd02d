"""Figures: percentiles by nearest rank, and what a device held over time."""

from __future__ import annotations

import pytest

from taskrouter.simulate.report import Meter, percentile


@pytest.mark.parametrize(
    ("instant", "waits", "share", "answer"),
    [
        (0, [], 0.5, 0.0),
        (0, [3.0], 0.5, 3.0),
        (1, [3.0], 0.5, 0.0),
        (1, [3.0], 0.51, 3.0),
        (98, [1.0, 2.0], 0.99, 1.0),
        (99, [2.0], 0.99, 0.0),
        (0, [1.0, 2.0, 3.0, 4.0], 0.95, 4.0),
    ],
)
def test_a_percentile_is_the_smallest_that_so_many_did_not_exceed(
    instant: int, waits: list[float], share: float, answer: float
) -> None:
    assert percentile(instant, waits, share) == answer


def test_a_meter_knows_mean_and_peak() -> None:
    meter = Meter(10)
    assert meter.mean(5.0) == 0.0
    meter.step(0.0, 4)
    assert meter.mean(0.0) == 0.0
    meter.step(1.0, 4)  # no step at all
    meter.step(2.0, 8)
    meter.step(3.0, 0)
    assert list(meter.at) == [0.0, 2.0, 3.0]
    assert meter.mean(4.0) == (2 * 4 + 8) / 4
    assert meter.peak == 8
