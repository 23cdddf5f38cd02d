"""What both engines' command lines share: engine_args as words, fractions, and what a grant is spent on."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from taskrouter.backends.engines import flags, grant
from taskrouter.backends.engines.launch import Checkpoint
from taskrouter.errors import PreflightFailed
from taskrouter.types import GIB, MIB, ModelRequest
from tests.engines.command_lines import FIRST, RAM, SECOND, SEVEN_B, SMALL, request, start

HABITS = grant.Habits(spare_tokens=0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"--enforce-eager": True}, ["--enforce-eager"]),
        ({"enforce-eager": False}, ["--no-enforce-eager"]),
        ({"seed": 7}, ["--seed", "7"]),
        ({"seed": -7}, ["--seed=-7"]),
        ({"share": 0.5}, ["--share", "0.5"]),
        ({"names": ["a", 1]}, ["--names", "a", "1"]),
        ({"names": []}, ["--names"]),
        ({"adapters": [{"name": "a", "path": "b"}]}, ["--adapters", '{"name": "a", "path": "b"}']),
        ({"limits": MappingProxyType({"image": (1, 2), "on": True})}, ["--limits", '{"image": [1, 2], "on": true}']),
        ({"compilation_config.cudagraph_mode": "NONE"}, ["--compilation-config.cudagraph_mode", "NONE"]),
        ({"template": "{{ a }}\n b"}, ["--template", "{{ a }}\n b"]),
        ({"first": 1, "second": True}, ["--first", "1", "--second"]),
    ],
)
def test_engine_args_are_these_words(args: dict[str, Any], words: list[str]) -> None:
    assert list(flags.words(request("vllm", engine_args=args), {})) == words


@pytest.mark.parametrize("key", ["host", "--host", "no-host", "max_len", "max-len.part", "max-len+"])
def test_a_flag_of_ours_is_refused_however_it_is_spelled(key: str) -> None:
    ours = flags.own({"leave it out": ("host",), "write max_context": ("max-len",)})
    with pytest.raises(PreflightFailed, match=r"m: engine_args\..* is what taskrouter writes itself; (leave|write)"):
        list(flags.words(request("vllm", engine_args={key: 1}), ours))


def test_a_fraction_never_exceeds_its_part() -> None:
    assert flags.fraction(2 * GIB, 3 * GIB) == "0.6666"
    assert flags.fraction(1, 80 * GIB) == "0.0001"
    assert flags.fraction(5, 4) == "1.0000"
    assert flags.fraction(5, 0) == "1.0000"


def test_gpus_are_named_by_uuid_and_the_cpu_sees_none() -> None:
    assert flags.visible(start(FIRST, SECOND)) == {"CUDA_VISIBLE_DEVICES": "GPU-11111111-aaaa,GPU-22222222-bbbb"}
    assert flags.visible(start(replace(SECOND, uuid=""))) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert flags.visible(start(RAM)) == {"CUDA_VISIBLE_DEVICES": ""}


def divided(granted: int, checkpoint: Checkpoint = SEVEN_B, habits: grant.Habits = HABITS) -> grant.Grant:
    place = replace(FIRST, granted=granted)
    return grant.divide(request("vllm"), checkpoint, start(place), habits, max_concurrency=None)


def test_a_grant_is_weights_and_work_and_what_is_beside_and_the_rest_is_cache() -> None:
    ours = divided(24 * GIB)
    assert (ours.weights, ours.working, ours.beside) == (14 * GIB, int(2.8 * GIB), int(0.6 * GIB) + GIB)
    assert ours.left == 24 * GIB - ours.weights - ours.working - ours.beside
    assert ours.cache(1024) == ours.left


def test_auto_is_the_most_that_fits_rounded_down_to_512_and_never_above_the_ceiling() -> None:
    fixed = 14 * GIB + int(2.8 * GIB) + int(0.6 * GIB) + GIB
    per_token = SEVEN_B.kv_bytes_per_token
    assert divided(fixed + 5000 * per_token).most() == 4608
    assert divided(fixed + 512 * per_token).most() == 512
    assert divided(fixed + 131_071 * per_token).most() == 130_560
    assert divided(fixed + 131_072 * per_token).most() is None, "all that the model can"


def test_auto_with_nothing_left_is_refused_with_the_numbers() -> None:
    fixed = 14 * GIB + int(2.8 * GIB) + int(0.6 * GIB) + GIB
    with pytest.raises(PreflightFailed) as caught:
        divided(fixed + 511 * SEVEN_B.kv_bytes_per_token).most()
    assert str(caught.value) == (
        "m: 18.5 GiB on cuda:0 are too little: 14.0 GiB are weights, 2.8 GiB to work in and 1.6 GiB the engine's own "
        "(estimated), and a KV cache wants 64.0 MiB. Raise vram_gb to 18.5, or pick a smaller option."
    )


def test_a_ceiling_below_512_may_fit_too() -> None:
    tiny = Checkpoint("/m", MIB, kv_bytes_per_token=1024, ceiling=256)
    assert divided(3 * GIB, tiny).most() is None


def test_what_is_not_known_is_left_to_the_engine() -> None:
    assert divided(24 * GIB, replace(SEVEN_B, kv_bytes_per_token=0)).most() is None
    assert divided(24 * GIB, replace(SEVEN_B, ceiling=None)).most() is None


def test_a_written_context_is_refused_only_where_what_is_certain_does_not_fit() -> None:
    """Working memory is an estimate: it gives way to a context that somebody wrote."""
    tokens = 8192 * SEVEN_B.kv_bytes_per_token
    certain = 14 * GIB + int(0.3 * GIB) + tokens
    assert divided(certain).cache(8192) == tokens
    with pytest.raises(
        PreflightFailed, match=r"a max_context of 8192 wants 1\.0 GiB\. Raise vram_gb to 19\.4, write a s"
    ):
        divided(certain - 1).cache(8192)


def test_an_option_that_asks_for_nothing_gets_the_usual_at_least() -> None:
    assert divided(16 * GIB).fitting() == 8192
    assert divided(24 * GIB).fitting() == 45_568
    assert divided(16 * GIB, replace(SEVEN_B, ceiling=4096)).fitting() == 4096
    assert divided(3 * GIB, SMALL).fitting() is None


def test_a_table_of_requests_is_counted_beside_the_cache() -> None:
    habits = grant.Habits(spare_tokens=128, slots=2048, slot_bytes=4)
    ours = divided(24 * GIB, habits=habits)
    assert ours.table == 8192
    assert ours.cache(1024) == ours.left - 1024 * 8192
    assert habits.table(16) == 64


@pytest.mark.parametrize("devices", [1, 2, ("cuda:0", "cuda:1", "cuda:2")])
def test_a_grant_of_just_the_need_leaves_the_cache_that_was_counted(devices: int | tuple[str, ...]) -> None:
    spans = devices if isinstance(devices, int) else len(devices)
    asked = ModelRequest(request("vllm").key, "m", "vllm", "org/seven", devices=devices, max_context=6000)
    habits = grant.Habits(spare_tokens=256)
    granted = grant.need(asked, SEVEN_B, habits, on_gpu=True, max_concurrency=None)
    places = [replace(FIRST, granted=granted)] * spans
    ours = grant.divide(asked, SEVEN_B, start(*places), habits, max_concurrency=None)
    assert ours.left == ours.wants(6000) == (6000 + 256) * ours.per_token
