"""The fake backend keeps the contract that it is there to test others against. Time is virtual: nothing sleeps."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from taskrouter.backends.base import Backend
from taskrouter.backends.fake import FakeBackend, FakeModel, FakeScript
from taskrouter.config.frozen import freeze
from taskrouter.errors import LoadFailed, ModelDied, OutOfMemory, PreflightFailed
from taskrouter.types import GIB, DeviceId, Footprint
from taskrouter.verbs import ClassifyRequest, Label

from .stage import ASK, GPU, check_free, load, now, request, run, until

# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_fake_is_a_backend_for_the_type_checker() -> None:
    backend: Backend = FakeBackend()
    assert backend.traits(request()).cancellable


def test_sizes_may_be_written_as_people_write_them() -> None:
    async def main() -> None:
        backend = FakeBackend()
        assert (await backend.preflight(request(bytes="2GiB"))).need == Footprint(2 * GIB)
        assert (await backend.preflight(request(bytes=7))).need == Footprint(7)
        assert (await backend.preflight(request(bytes=7, estimate="1KiB"))).need == Footprint(1024)
        assert (await backend.preflight(request())).need == Footprint(GIB)

    run(main)


def test_settings_may_come_frozen_as_the_configuration_hands_them_out() -> None:
    async def main() -> None:
        frozen = request(**freeze({"verbs": ["classify"], "answer": {"cat": 0.9}, "bytes": "1MiB"}))
        model = await load(FakeBackend(), frozen)
        assert model.verbs == {"classify"}
        assert await model.call("classify", ClassifyRequest(b"")) == (Label("cat", 0.9),)

    run(main)


@pytest.mark.parametrize(
    ("engine_args", "said"),
    [
        ({"laod_s": 1}, "did you mean load_s?"),
        ({"zzz": 1}, "it knows answer, bytes, call_s"),
        ({"load_s": -1}, "a number of seconds, 0 or more"),
        ({"load_s": True}, "a number of seconds"),
        ({"call_s": float("nan")}, "a number of seconds"),
        ({"unload_s": "2"}, "a number of seconds"),
        ({"bytes": "2"}, "a size with its unit"),
        ({"bytes": -1}, "a number of bytes"),
        ({"estimate": 1.5}, "a number of bytes"),
        ({"fail": "oops"}, "oom or error or die or preflight"),
        ({"hang": "lod"}, "did you mean load?"),
        ({"hang": ["load"]}, "load or call or unload"),
        ({"fail": "oom", "fail_times": 0}, "a whole number, 1 or more"),
        ({"fail_times": 1}, "does nothing without engine_args.fail"),
        ({"slots": 1.0}, "a whole number, 1 or more"),
        ({"serial_group": ""}, "a name"),
        ({"exclusive": "yes"}, "true or false"),
        ({"cancellable": 0}, "true or false"),
        ({"verbs": []}, "a list of verbs"),
        ({"verbs": ["chatt"]}, "did you mean chat?"),
    ],
)
def test_a_bad_setting_fails_the_preflight_and_says_what_is_expected(engine_args: dict[str, Any], said: str) -> None:
    async def main() -> None:
        backend = FakeBackend()
        assert backend.traits(request(**engine_args)).slots is None
        with pytest.raises(PreflightFailed) as caught:
            await backend.preflight(request(**engine_args))
        assert said in str(caught.value)
        assert str(caught.value).startswith("small can't be loaded: engine_args.")

    run(main)


def test_all_bad_settings_are_named_at_once() -> None:
    async def main() -> None:
        with pytest.raises(PreflightFailed) as caught:
            await FakeBackend().preflight(request(load_s="x", slotz=1))
        assert "load_s" in str(caught.value)
        assert "did you mean slots?" in str(caught.value)

    run(main)


def test_traits_are_what_the_script_says() -> None:
    traits = FakeBackend().traits(request(slots=2, serial_group="g", exclusive=True, cancellable=False, load_s=3))
    assert (traits.slots, traits.serial_group, traits.exclusive_on_device) == (2, "g", True)
    assert (traits.cancellable, traits.start_s) == (False, 3.0)


def test_engine_args_go_over_a_script_given_to_the_constructor() -> None:
    async def main() -> None:
        backend = FakeBackend({"small": FakeScript(bytes=5, slots=3)})
        assert (await backend.preflight(request())).need == Footprint(5)
        assert (await backend.preflight(request(bytes=6))).need == Footprint(6)
        assert backend.traits(request(bytes=6)).slots == 3
        assert backend.traits(request("other")).slots is None

    run(main)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_load_takes_its_bytes_from_its_start_and_its_time() -> None:
    async def main() -> None:
        backend = FakeBackend()
        task = asyncio.ensure_future(load(backend, request(load_s=5, bytes=7)))
        await until(4.9)
        assert not task.done()
        assert backend.in_use == {GPU: 7}
        model = await task
        assert now() == 5
        assert model.measured == Footprint(7)
        assert await backend.unload(model, timeout_s=1) == {}
        check_free(backend)
        assert backend.events == [
            (what, "small#1") for what in ("load-start", "load-end", "unload-start", "freed", "unload-end")
        ]

    run(main)


def test_a_model_on_two_devices_takes_its_bytes_on_each() -> None:
    async def main() -> None:
        backend, other = FakeBackend(), DeviceId("cuda:1")
        await backend.load(request(bytes=7), (GPU, other), {})
        assert backend.in_use == {GPU: 7, other: 7}

    run(main)


@pytest.mark.parametrize(("how", "error"), [("oom", OutOfMemory), ("error", LoadFailed)])
def test_only_the_first_loads_fail_where_the_script_says_so(how: str, error: type[Exception]) -> None:
    async def main() -> None:
        backend = FakeBackend()
        for attempt in (1, 2):
            with pytest.raises(error) as caught:
                await load(backend, request(fail=how, fail_times=2, load_s=1))
            assert type(caught.value) is error
            assert now() == attempt
            check_free(backend)
        await load(backend, request(fail=how, fail_times=2, load_s=1))
        assert [what for what, _ in backend.events if what != "load-start"] == [
            "load-failed",
            "load-failed",
            "load-end",
        ]

    run(main)


def test_a_load_fails_every_time_unless_the_script_limits_it() -> None:
    async def main() -> None:
        backend = FakeBackend()
        for _ in range(5):
            with pytest.raises(LoadFailed):
                await load(backend, request(fail="error"))
        with pytest.raises(PreflightFailed):
            await backend.preflight(request(fail="preflight"))

    run(main)


def test_a_load_beyond_the_capacity_runs_out_of_memory_and_is_remembered() -> None:
    async def main() -> None:
        backend = FakeBackend(capacity={GPU: 10})
        await load(backend, request("a", bytes=6))
        await load(backend, request("exact", bytes=4))
        with pytest.raises(OutOfMemory, match="11 bytes on cuda:0, which has 10"):
            await load(backend, request("b", bytes=1))
        assert backend.in_use == {GPU: 10}
        assert [(over.label, over.wanted, over.capacity) for over in backend.overcommitted] == [("b", 11, 10)]
        assert backend.labels("load-failed") == ["b"]

    run(main)


def test_two_loads_at_once_count_against_the_capacity_together() -> None:
    async def main() -> None:
        backend = FakeBackend(capacity={GPU: 10})
        loads = [load(backend, request(label, bytes=6, load_s=1)) for label in "ab"]
        first, second = await asyncio.gather(*loads, return_exceptions=True)
        assert isinstance(first, FakeModel)
        assert isinstance(second, OutOfMemory)

    run(main)


def test_a_cancelled_load_works_on_for_stop_s_and_then_holds_nothing() -> None:
    async def main() -> None:
        backend = FakeBackend()
        task = asyncio.ensure_future(load(backend, request(load_s=9, stop_s=2)))
        await until(1)
        task.cancel()
        await until(2)
        task.cancel()
        await until(2.9)
        assert not task.done()
        assert backend.in_use == {GPU: GIB}
        with pytest.raises(asyncio.CancelledError):
            await task
        assert now() == 3
        check_free(backend)
        assert backend.labels("load-cancelled") == ["small"]

    run(main)


def test_a_hanging_load_ends_when_it_is_resumed_or_cancelled() -> None:
    async def main() -> None:
        backend = FakeBackend()
        stuck = asyncio.ensure_future(load(backend, request("a", hang="load")))
        dropped = asyncio.ensure_future(load(backend, request("b", hang="load")))
        await until(1000)
        assert not stuck.done()
        backend.resume("a")
        assert (await stuck).label == "a"
        assert not dropped.done()
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        assert backend.in_use == {GPU: GIB}

    run(main)


# --- unloading --------------------------------------------------------------------------------------------------------


def test_bytes_that_come_free_late_are_waited_for() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(unload_s=1, late_free_s=3))
        task = asyncio.ensure_future(backend.unload(model, timeout_s=10))
        await until(3.9)
        assert backend.in_use == {GPU: GIB}
        assert await task == {}
        assert now() == 4
        check_free(backend)

    run(main)


def test_bytes_that_come_free_after_the_bound_are_residue_until_then() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(late_free_s=30))
        assert await backend.residue("small#1") == {}
        assert await backend.unload(model, timeout_s=10) == {GPU: GIB}
        assert now() == 10
        again = await load(backend, request(late_free_s=30))
        assert await backend.residue("small#1") == {GPU: GIB}
        assert backend.in_use == {GPU: 2 * GIB}
        await until(30)
        await asyncio.sleep(0)
        assert await backend.residue("small#1") == {}
        assert backend.in_use == {GPU: GIB}
        assert again.raw is not None

    run(main)


def test_a_hanging_unload_leaves_a_residue_that_resume_reclaims() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(hang="unload"))
        assert await backend.unload(model, timeout_s=5) == {GPU: GIB}
        await until(500)
        assert await backend.residue("small#1") == {GPU: GIB}
        backend.resume("small")
        assert await backend.residue("small#1") == {}
        check_free(backend)

    run(main)


def test_weights_that_somebody_kept_are_residue_until_they_are_dropped() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request())
        kept = model.raw
        assert kept is not None
        assert await backend.unload(model, timeout_s=1) == {GPU: GIB}
        assert model.raw is None
        del kept
        gc.collect()
        assert await backend.residue("small#1") == {}
        check_free(backend)

    run(main)


def test_nothing_but_the_manager_keeps_a_model_alive() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request())
        seen = weakref.ref(model)
        await model.call("chat", ASK)
        await backend.unload(model, timeout_s=1)
        del model
        gc.collect()
        assert seen() is None

    run(main)


def test_a_model_used_after_its_unload_says_so() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request())
        await backend.unload(model, timeout_s=1)
        with pytest.raises(ModelDied, match="after it was unloaded"):
            await model.call("chat", ASK)
        assert model.calls == 0

    run(main)


def test_unloading_a_model_at_work_ends_the_work_and_stands_in_the_journal() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(call_s=9))
        call = asyncio.ensure_future(model.call("chat", ASK))
        await until(1)
        await backend.unload(model, timeout_s=1)
        with pytest.raises(ModelDied):
            await call
        assert now() == 1
        assert backend.labels("unload-busy") == ["small"]

    run(main)


def test_closing_waits_for_no_late_bytes_and_may_be_repeated() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(late_free_s=30))
        await backend.unload(model, timeout_s=1)
        await backend.close()
        await backend.close()
        await until(100)
        assert await backend.residue("small#1") == {GPU: GIB}

    run(main)


def test_repr_shows_what_is_in_use() -> None:
    async def main() -> None:
        backend = FakeBackend()
        assert repr(backend) == "<FakeBackend empty>"
        model = await load(backend, request(bytes="1.5GiB"))
        assert repr(backend) == "<FakeBackend cuda:0 1.5 GiB>"
        assert repr(model) == "<FakeModel small 0 active, 0 calls>"
        can_sleep = "no: its script doesn't say can_sleep"
        assert model.info == {"label": "small", "bytes": 3 * GIB // 2, "devices": (GPU,), "can_sleep": can_sleep}

    run(main)
