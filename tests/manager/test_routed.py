"""Tasks with several options: who answers, why the others didn't, and what a caller sees of that."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors, routing
from taskrouter.backends.external.base import Takes
from taskrouter.backends.fake import FakeModel
from taskrouter.manager import StillMachine
from taskrouter.manager.handles import Model
from taskrouter.types import GIB
from taskrouter.verbs import Why
from tests.manager.acme import OPTION, Acme, AcmeConnection, Purse
from tests.manager.stage import Stage, now, option, play, settle, spawn, until


class Routes(Stage):
    """A task ``t`` whose local option falls back to an external one, and ``e``, the external one alone."""

    def __init__(
        self, folder: Path, near: dict[str, Any] | None = None, far: dict[str, Any] | None = None, **more: Any
    ) -> None:
        sections = {name: more.pop(name) for name in ("providers", "inference") if name in more}
        far = {**OPTION, **(far or {})}
        tasks = {
            "t": {
                "kind": "chat",
                "selected": "near",
                "fallback": ["far"],
                "options": {"near": option("near", **(near or {})), "far": far},
                **more,
            },
            "e": {"kind": "chat", "selected": "far", "options": {"far": far}},
            "f": {
                "kind": "chat",
                "selected": "far",
                "fallback": ["near"],
                "options": {"near": option("near", **(near or {})), "far": far},
            },
            "other": {"kind": "chat", "selected": "other", "options": {"other": option("other", vram_gb=9)}},
        }
        super().__init__(folder, tasks, **sections)
        self.acme, self.purse = Acme(), Purse()
        self.registry.register_provider("acme", self.acme)
        self.manager = ModelManager(
            self.file, registry=self.registry, machine=StillMachine({"cuda:0": 10 * GIB}), spend=self.purse,
            tracer_provider=None,
        )  # fmt: skip

    @property
    def far(self) -> AcmeConnection:
        return self.acme.only

    async def ask(self, task: str = "t") -> Any:
        return await (await self.manager.get_model(task)).chat("hi")


def overloaded(**more: Any) -> errors.ProviderOverloaded:
    return errors.ProviderOverloaded("busy", status=529, **more)


def test_the_selected_option_answers_and_nothing_was_passed_over(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        answer = await stage.ask()
        assert (answer.text, answer.routed.option, answer.routed.passed) == ("near: hi", "near", ())
        assert stage.acme.connections == []

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_an_option_that_can_not_fit_is_passed_over_and_the_answer_says_so(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        answer = await stage.ask()
        assert (answer.text, answer.routed.option) == ("acme", "far")
        (passed,) = answer.routed.passed
        assert (passed.option, passed.why) == ("near", Why.CANT_FIT)
        assert "10.0 GiB" in passed.text
        async with (await stage.manager.get_model("t")).stream_chat("hi") as chunks:
            assert "".join([chunk.text async for chunk in chunks]) == "acme"
            assert chunks.routed is not None
            assert chunks.routed.option == "far"
        assert stage.manager.tasks["t"].selected == "near"  # a fallback never changes the selection

    play(Routes(tmp_path, {"vram_gb": 20}), main)  # type: ignore[arg-type]


def test_a_local_model_that_fails_is_passed_over_within_the_same_call(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        answer = await stage.ask()
        assert (answer.text, [each.why for each in answer.routed.passed]) == ("acme", [Why.NOT_READY])
        assert stage.leases() == 0

    play(Routes(tmp_path, {"fail": "error"}), main)  # type: ignore[arg-type]


def test_a_local_model_that_is_not_ready_in_time_leaves_the_answer_to_the_next_one(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        answer = await stage.ask()
        assert (answer.text, now()) == ("acme", 5)
        assert [each.why for each in answer.routed.passed] == [Why.NOT_READY]
        await until(40)
        assert (await stage.ask()).text == "near: hi"  # the load went on

    play(Routes(tmp_path, {"load_s": 30}, max_wait_s=5), main)  # type: ignore[arg-type]


def test_once_a_load_was_measured_requests_that_can_not_wait_for_it_do_not(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        await stage.manager.get_model("t", timeout=100)
        await stage.manager.unload_model("t")
        begun = now()
        answer = await stage.ask()
        assert (answer.text, now()) == ("acme", begun)
        assert [each.why for each in answer.routed.passed] == [Why.TOO_SLOW]
        await until(begun + 31)
        assert (await stage.ask()).text == "near: hi"  # it was loaded for those who come later

    play(Routes(tmp_path, {"load_s": 30}, max_wait_s=20, inference={"warmup_on_startup": False}), main)  # type: ignore[arg-type]


@pytest.mark.parametrize("when_cold", ["wait", "fallback", "fail"])
def test_when_cold_decides_what_a_request_does_while_the_selected_one_loads(tmp_path: Path, when_cold: str) -> None:
    async def main(stage: Routes) -> None:
        if when_cold == "fail":
            with pytest.raises(errors.Cold, match="t/near is not loaded"):
                await stage.ask()
            assert now() == 0
        else:
            answer = await stage.ask()
            assert (answer.routed.option, now()) == (("near", 30) if when_cold == "wait" else ("far", 0))
        await until(31)
        assert (await stage.ask()).routed.option == "near"
        assert stage.backend.labels("load-start") == ["near"]

    play(Routes(tmp_path, {"load_s": 30}, when_cold=when_cold), main)  # type: ignore[arg-type]


def test_a_thousand_callers_of_a_cold_model_warm_it_once(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        answers = await asyncio.gather(*[stage.ask() for _ in range(1000)])
        assert {answer.routed.option for answer in answers} == {"far"}
        await until(31)
        assert stage.backend.labels("load-start") == ["near"]

    play(Routes(tmp_path, {"load_s": 30}, when_cold="fallback"), main)  # type: ignore[arg-type]


def test_a_bad_request_is_asked_nowhere_else(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.BadInput("no such role")]
        with pytest.raises(errors.BadInput, match="no such role"):
            await stage.ask("f")
        stage.far.fails = [errors.UnsupportedInput("it takes no images"), overloaded()]
        assert (await stage.ask("f")).routed.option == "near"
        assert (await stage.ask("f")).routed.option == "near"
        assert (await stage.ask("f")).routed.option == "far"

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_when_every_option_is_passed_over_one_error_has_each_reason(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.ProviderAuth("t/far: the key is refused")]
        with pytest.raises(errors.NoOptionLeft) as left:
            await stage.ask()
        reasons = [str(each).partition(" (")[0] for each in left.value.passed]
        assert reasons == ["near: cant_fit", "far: auth"]
        assert "the key is refused" in str(left.value)
        assert isinstance(left.value.__cause__, errors.InsufficientMemory)
        with pytest.raises(errors.NoOptionLeft, match="far: breaker_open") as left:
            await stage.ask()
        assert left.value.retry_after_s is not None

    play(Routes(tmp_path, {"vram_gb": 20}), main)  # type: ignore[arg-type]


def test_an_only_options_own_error_stays_what_it_is(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.ProviderAuth("e/far: the key is refused")]
        with pytest.raises(errors.ProviderAuth, match="the key is refused"):
            await stage.ask("e")

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (1, 2), (None, 3)])
def test_the_last_option_left_is_asked_again_as_often_as_the_file_says(
    tmp_path: Path, retries: int | None, asked: int
) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [overloaded() for _ in range(10)]
        with pytest.raises(errors.ProviderOverloaded):
            await stage.ask("e")
        assert len(stage.far.asked) == asked

    play(Routes(tmp_path, far={} if retries is None else {"max_retries": retries}), main)  # type: ignore[arg-type]


def test_a_retry_waits_as_long_as_the_provider_says(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.ProviderQuota("429", retry_after_s=7)]
        assert (await stage.ask("e")).text == "acme"
        asked_again = now()
        assert 7 <= asked_again <= 7.7
        stage.far.fails = [errors.ProviderQuota("429", retry_after_s=1000)]
        with pytest.raises(errors.ProviderQuota) as refused:
            await stage.ask("e")
        assert (refused.value.retry_after_s, now()) == (1000, asked_again)
        with pytest.raises(errors.ProviderQuota):  # and nobody else asks before that
            await stage.ask("e")
        assert len(stage.far.asked) == 3

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_provider_that_does_not_answer_within_timeout_s_is_passed_over(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 60
        with pytest.raises(errors.ProviderTimeout, match="within 3 s"):
            await stage.ask("e")
        assert (now(), stage.far.at_work) == (3, 0)

    play(Routes(tmp_path, far={"timeout_s": 3}), main)  # type: ignore[arg-type]


def test_a_stream_that_breaks_before_its_first_piece_is_asked_elsewhere_and_after_it_ends_with_an_error(
    tmp_path: Path,
) -> None:
    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("e")
        stage.far.fails = [overloaded()]
        async with model.stream_chat("hi") as chunks:
            assert "".join([chunk.text async for chunk in chunks]) == "acme"
        assert len(stage.far.asked) == 2
        stage.far.breaks = errors.ProviderUnreachable("cut")
        text = ""
        with pytest.raises(errors.ProviderUnreachable):
            async with model.stream_chat("hi") as chunks:
                async for chunk in chunks:
                    text += chunk.text
        assert text == "ac"
        assert len(stage.far.asked) == 3

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_caller_who_leaves_stops_the_call_and_a_shutdown_waits_for_those_at_work(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 10
        call = spawn(stage.ask("e"))
        await settle()
        assert stage.far.at_work == 1
        call.cancel()
        await asyncio.wait({call})
        await settle()
        assert stage.far.at_work == 0
        last = spawn(stage.ask("e"))
        await settle()
        await stage.manager.shutdown(drain_s=60)
        assert ((await last).text, now()) == ("acme", 10)
        assert stage.far.closed == 1

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_shutdown_ends_calls_that_take_too_long(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 1000
        call = spawn(stage.ask("e"))
        await settle()
        await stage.manager.shutdown(drain_s=5)
        with pytest.raises(errors.ManagerClosed, match="still answering 5 s after"):
            await call

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_lease_is_of_one_option_and_an_external_one_takes_no_slot(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        async with stage.manager.lease("t") as lease:
            assert (await lease.chat("hi")).text == "near: hi"
            assert stage.leases() == 1
            model = await stage.manager.get_model("t")
            assert (await model.chat("again")).text == "near: again"
        async with stage.manager.lease("t", option="far") as lease:
            assert (await lease.chat("hi")).text == "acme"
            assert stage.leases() == 0
            assert lease.info["provider"] == "acme"
            stage.far.fails = [overloaded() for _ in range(9)]
            with pytest.raises(errors.ProviderOverloaded):
                await lease.chat("hi")

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_max_concurrency_bounds_the_calls_to_an_external_option(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 1
        await asyncio.gather(*[stage.ask("e") for _ in range(10)])
        assert (stage.far.most_at_work, now()) == (2, 5)

    play(Routes(tmp_path, far={"max_concurrency": 2}), main)  # type: ignore[arg-type]


def test_the_key_is_read_when_it_is_needed_from_the_variable_that_the_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ACME_KEY", "TEAM_KEY", "OWN_KEY"):
        monkeypatch.delenv(variable, raising=False)

    async def main(stage: Routes) -> None:
        with pytest.raises(errors.ProviderAuth, match="set OWN_KEY"):
            await stage.ask("e")
        monkeypatch.setenv("OWN_KEY", "k1")
        await until(10)
        await stage.ask("e")
        assert stage.acme.connections[-1].endpoint.api_key == "k1"
        monkeypatch.setenv("OWN_KEY", "k2")
        await stage.ask("e")
        assert [each.endpoint.api_key for each in stage.acme.connections] == ["k1", "k2"]
        assert "k2" not in repr(stage.acme.connections[-1].endpoint)

    far = {"requires_api_key": True, "api_key_env": "OWN_KEY"}
    play(Routes(tmp_path, far=far, providers={"acme": {"api_key_env": "TEAM_KEY"}}), main)  # type: ignore[arg-type]

    async def teams(stage: Routes) -> None:
        with pytest.raises(errors.ProviderAuth, match="set TEAM_KEY"):
            await stage.ask("e")

    far = {"requires_api_key": True}
    play(Routes(tmp_path, far=far, providers={"acme": {"api_key_env": "TEAM_KEY"}}), teams)  # type: ignore[arg-type]


def test_the_pool_of_a_provider_is_the_files(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        await stage.ask("e")
        endpoint = stage.far.endpoint
        assert (endpoint.max_connections, endpoint.connect_timeout_s) == (7, 2)

    settings = {"acme": {"max_connections": 7, "connect_timeout_s": 2}}
    play(Routes(tmp_path, providers=settings), main)  # type: ignore[arg-type]


PRICE = {"input_per_mtok": 3.0, "output_per_mtok": 15.0}


def test_what_calls_cost_is_recorded_from_the_options_price(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        await stage.ask("e")
        async with (await stage.manager.get_model("e")).stream_chat("hi") as chunks:
            _ = [chunk async for chunk in chunks]
        for record in stage.purse.records:
            assert (record["task"], record["option"], record["model_id"]) == ("e", "far", "acme-1")
            assert (record["input_tokens"], record["output_tokens"]) == (1000, 200)
            assert record["usd"] == pytest.approx((1000 * 3 + 200 * 15) / 1e6)
        assert len(stage.purse.records) == 2
        async with (await stage.manager.get_model("e")).stream_chat("hi") as chunks:
            await anext(chunks)
        await settle()
        assert len(stage.purse.records) == 3  # one that was left in the middle costs too

    play(Routes(tmp_path, far={"price": PRICE}), main)  # type: ignore[arg-type]


def test_what_a_call_cost_that_was_not_had_to_its_end_is_estimated(tmp_path: Path) -> None:
    """Its provider worked on it, and is paid: a budget that didn't count it would never be spent."""

    async def main(stage: Routes) -> None:
        model, asked = await stage.manager.get_model("e"), "word " * 80
        stage.far.delay_s = 60
        with pytest.raises(errors.ProviderTimeout):
            await model.chat(asked)
        with pytest.raises(errors.ProviderTimeout):
            async with model.stream_chat(asked) as chunks:
                await anext(chunks)
        leaver = spawn(model.chat(asked))
        await settle()
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        stage.far.delay_s = 0
        for broken in (errors.ProviderBrokeOff("cut"), overloaded(), errors.ProviderUnreachable("nobody there")):
            stage.far.fails = [broken]
            with pytest.raises(type(broken)):
                await model.chat(asked)
        await settle()
        counted = [(each["input_tokens"], each["output_tokens"]) for each in stage.purse.records]
        assert counted == [(100, 0)] * 4  # those that were refused cost nothing

    play(Routes(tmp_path, far={"price": PRICE, "timeout_s": 3, "max_retries": 0}), main)  # type: ignore[arg-type]


def test_what_a_provider_can_not_take_is_known_before_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}

    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("f")
        answer = await model.chat([{"role": "user", "content": [sound]}])
        assert answer.routed is not None
        assert (answer.routed.option, answer.routed.passed[0].text) == ("near", "acme-1 takes no audio")
        monkeypatch.setattr(Acme, "takes", lambda self, model_id: Takes(frozenset({"embed"})))
        answer = await model.chat("hi")
        assert answer.routed is not None
        assert (answer.routed.option, answer.routed.passed[0].text) == ("near", "acme can't chat with acme-1")
        assert answer.routed.passed[0].why is Why.UNABLE
        assert stage.far.asked == []

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_picture_too_large_for_one_option_goes_to_the_next(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.MediaTooLarge("5 MiB at most")]
        answer = await stage.ask("f")
        assert answer.routed is not None
        assert (answer.text, answer.routed.passed[0].why) == ("near: hi", Why.UNABLE)

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_local_model_that_cools_down_is_passed_over_at_once(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        whys = []
        for _ in range(6):
            answer = await stage.ask("t")
            assert answer.routed is not None
            whys += [each.why for each in answer.routed.passed]
        assert whys[0] is Why.NOT_READY
        assert whys[-1] is Why.COOLDOWN
        loads = len(stage.backend.labels("load-start"))
        answer = await stage.ask("t")
        assert "failed to load repeatedly" in answer.routed.passed[0].text
        assert len(stage.backend.labels("load-start")) == loads

    play(Routes(tmp_path, {"fail": "error", "fail_times": 100}), main)  # type: ignore[arg-type]


def test_streams_that_break_off_speak_against_their_option(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.breaks = errors.ProviderBrokeOff("cut")
        model = await stage.manager.get_model("f")
        for _ in range(routing.LEAST // 2 + 1):  # each had begun, which was an answer
            with pytest.raises(errors.ProviderBrokeOff):
                async with model.stream_chat("hi") as chunks:
                    assert [chunk.text async for chunk in chunks] == []
            await settle()
        answer = await model.chat("hi")
        assert answer.routed is not None
        assert (answer.text, answer.routed.passed[0].why) == ("near: hi", Why.BREAKER)
        assert answer.routed.passed[0].text == "it failed lately, last with: cut"

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_callers_who_are_told_to_come_back_at_one_instant_do_not_all_come_then(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [overloaded(retry_after_s=8) for _ in range(4)]
        ends: list[float] = []

        async def one() -> None:
            await stage.ask("e")
            ends.append(now())

        await asyncio.gather(*[one() for _ in range(4)])
        assert len(set(ends)) == 4
        assert all(8 <= end <= 8.8 for end in ends)

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_spent_budget_passes_its_provider_over(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        for _ in range(2):
            await stage.ask("e")
        with pytest.raises(errors.BudgetSpent, match=r"providers\.acme\.daily_budget_usd"):
            await stage.ask("e")
        assert len(stage.far.asked) == 2

    settings = {"acme": {"daily_budget_usd": 0.01}}
    play(Routes(tmp_path, far={"price": PRICE}, providers=settings), main)  # type: ignore[arg-type]


def test_a_budget_is_never_passed_by_more_than_the_requests_in_flight(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 1
        for _ in range(5):
            await asyncio.gather(*[stage.ask("e") for _ in range(4)], return_exceptions=True)
        assert len(stage.far.asked) <= 2 + 4

    settings = {"acme": {"daily_budget_usd": 0.01}}
    play(Routes(tmp_path, far={"price": PRICE}, providers=settings), main)  # type: ignore[arg-type]


def test_a_request_that_is_surely_too_long_goes_to_an_option_with_more_context(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        answer = await (await stage.manager.get_model("t")).chat("word " * 1000)
        assert answer.routed is not None
        assert answer.routed.option == "far"
        (passed,) = answer.routed.passed
        assert passed.why is Why.UNABLE
        assert "max_context is 100" in passed.text
        assert (await stage.ask()).routed.option == "near"

    play(Routes(tmp_path, {"max_context": 100}), main)  # type: ignore[arg-type]


def test_the_callers_span_is_told_who_answered_and_who_was_passed_over(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        with stage.tracer.start_as_current_span("caller"):
            await stage.ask()
        (span,) = stage.spans("caller")
        assert span.attributes is not None
        assert span.attributes["taskrouter.option"] == "far"
        passed = span.attributes["taskrouter.passed"]
        assert isinstance(passed, tuple)
        assert str(passed[0]).startswith("near: cant_fit (near needs 20.0 GiB")

    play(Routes(tmp_path, {"vram_gb": 20}), main)  # type: ignore[arg-type]


def test_explain_tells_how_the_latest_requests_were_answered_and_why(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        assert stage.manager.explain("t").splitlines() == [
            "t asks near, then far; when_cold: wait",
            "no request was routed yet",
        ]
        await stage.ask()
        stage.far.fails = [errors.ProviderAuth("t/far: the key is refused")]
        with pytest.raises(errors.NoOptionLeft):
            await stage.ask()
        lines = stage.manager.explain("t").splitlines()
        assert "refused: no option of 't' could answer: near: cant_fit" in lines[1]
        assert "far: auth (t/far: the key is refused)" in lines[1]
        assert "far answered; passed over near: cant_fit (near needs 20.0 GiB" in lines[2]
        assert "near was refused: near needs 20.0 GiB on cuda:0" in lines[-1], "what the core decided comes last"
        for _ in range(100):
            await stage.ask("e")
        assert len(stage.manager.explain("e").splitlines()) == 33
        with pytest.raises(errors.UnknownTask):
            stage.manager.explain("nothing")

    play(Routes(tmp_path, {"vram_gb": 20}), main)  # type: ignore[arg-type]


def test_who_gets_no_turn_by_the_deadline_is_answered_elsewhere_or_refused(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 500
        busy = spawn(stage.ask("e"))
        await settle()
        with pytest.raises(errors.Overloaded, match="all of its 1 turns"):
            await stage.ask("e")
        assert now() == 120
        await busy
        async with stage.manager.lease("e"):
            late = spawn(stage.ask("e"))
            await settle()
            assert stage.far.at_work == 0
        await late

    play(Routes(tmp_path, far={"max_concurrency": 1, "timeout_s": 1000}), main)  # type: ignore[arg-type]


def test_getting_a_handle_is_no_evidence_that_an_option_is_well(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.ProviderAuth("no") for _ in range(3)]
        with pytest.raises(errors.ProviderAuth):
            await stage.ask("e")
        await until(routing.OPEN_S)
        model = await stage.manager.get_model("e")
        with pytest.raises(errors.ProviderAuth):
            await model.chat("hi")
        await until(routing.OPEN_S + 6)  # a failed probe doubled the pause
        with pytest.raises(errors.CoolingDown, match="failed 2 times in a row"):
            await stage.ask("e")

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_engine_args_of_an_external_option_are_the_defaults_of_its_calls(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("e")
        await model.chat("hi")
        await model.chat("hi", extra={"effort": "high"})
        assert [request.extra for request in stage.far.requests] == [
            {"effort": "low", "tier": "flex"},
            {"effort": "high", "tier": "flex"},
        ]

    play(Routes(tmp_path, far={"engine_args": {"effort": "low", "tier": "flex"}}), main)  # type: ignore[arg-type]


def test_a_fallback_that_is_selected_is_tried_once_and_a_handle_follows_the_selection(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("t")
        await stage.manager.set_selected_model("t", "far")
        stage.far.fails = [errors.ProviderAuth("no")]
        with pytest.raises(errors.ProviderAuth):
            await model.chat("hi")
        assert len(stage.far.asked) == 1
        assert stage.manager.explain("t").splitlines()[0] == "t asks far; when_cold: wait"
        await stage.manager.set_selected_model("t", "near")
        answer = await model.chat("hi")
        assert answer.routed is not None
        assert (answer.routed.option, answer.routed.passed) == ("near", ())

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_what_was_asked_is_not_kept_by_what_explain_remembers(tmp_path: Path) -> None:
    class Text(str):
        """One that can be watched."""

    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("t")
        stage.far.fails = [errors.ProviderAuth("no")]
        asked = Text("a secret")
        gone = weakref.ref(asked)
        with pytest.raises(errors.NoOptionLeft):
            await model.chat([{"role": "user", "content": asked}])
        del asked
        stage.far.requests.clear()
        await settle()
        gc.collect()
        assert gone() is None

    play(Routes(tmp_path, {"vram_gb": 20}), main)  # type: ignore[arg-type]


# --- what a review found ----------------------------------------------------------------------------------------------


def test_a_call_that_fails_after_max_wait_s_is_still_asked_elsewhere(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 130
        stage.far.fails = [overloaded()]
        answer = await stage.ask("f")
        assert answer.routed is not None
        assert (answer.routed.option, now()) == ("near", 130)

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_budget_and_a_limit_hold_inside_a_lease(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        async with stage.manager.lease("e") as lease:
            for _ in range(2):
                answer = await lease.chat("hi")
                assert answer.routed is not None
                assert answer.routed.option == "far"
            with pytest.raises(errors.BudgetSpent):
                await lease.chat("hi")
            assert len(stage.far.asked) == 2
            stage.purse.spent = 0
            stage.far.fails = [errors.ProviderQuota("429", retry_after_s=500)]
            for _ in range(3):
                with pytest.raises(errors.ProviderQuota):
                    await lease.chat("hi")
            assert len(stage.far.asked) == 3
            async with stage.manager.lease("e") as inner:
                assert inner.option == "far"

    settings = {"acme": {"daily_budget_usd": 0.01}}
    play(Routes(tmp_path, far={"price": PRICE, "max_concurrency": 1}, providers=settings), main)  # type: ignore[arg-type]


def test_a_stream_inside_an_external_lease_holds_its_turn_until_it_has_stopped(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        async with stage.manager.lease("e") as lease:
            async with lease.stream_chat("hi") as chunks:
                assert "".join([chunk.text async for chunk in chunks]) == "acme"
            async with lease.stream_chat("hi") as chunks:
                await anext(chunks)
            assert (await lease.chat("hi")).text == "acme"
        assert (await stage.ask("e")).text == "acme"

    play(Routes(tmp_path, far={"max_concurrency": 1}), main)  # type: ignore[arg-type]


@pytest.mark.parametrize("why", ["budget", "limit", "key"])
def test_who_queued_for_a_turn_is_looked_at_again_before_it_is_asked(tmp_path: Path, why: str) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 1
        if why == "limit":
            stage.far.fails = [errors.ProviderQuota("429", retry_after_s=1000)]
        elif why == "key":
            stage.far.fails = [errors.ProviderAuth("401")]
        ends = await asyncio.gather(*[stage.ask("e") for _ in range(20)], return_exceptions=True)
        assert len(stage.far.asked) == (2 if why == "budget" else 1)
        assert sum(isinstance(end, errors.TaskRouterError) for end in ends) == 20 - 2 * (why == "budget")

    settings = {"acme": {"daily_budget_usd": 0.01}}
    far = {"price": PRICE, "max_concurrency": 1}
    play(Routes(tmp_path, far=far, providers=settings), main)  # type: ignore[arg-type]


def test_a_busy_option_uses_half_of_the_time_while_another_could_be_asked(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.delay_s = 500
        busy = spawn(stage.ask("e"))
        await settle()
        begun = spawn(stage.ask("f"))
        await settle()
        late = await stage.ask("f")
        assert (late.routed.option, now()) == ("near", 60)
        assert [each.why for each in late.routed.passed] == [Why.NOT_READY]
        await busy
        await begun

    play(Routes(tmp_path, far={"max_concurrency": 1, "timeout_s": 1000}), main)  # type: ignore[arg-type]


def test_a_shutdown_refuses_who_waits_to_be_asked(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.ProviderQuota("429", retry_after_s=50)]
        napping = spawn(stage.ask("e"))
        await settle()
        stage.far.delay_s = 3
        await until(51.5)
        queued = [spawn(stage.ask("f")) for _ in range(3)]
        await settle()
        await stage.manager.shutdown(drain_s=60)
        ends = await asyncio.gather(napping, *queued, return_exceptions=True)
        closed = [end for end in ends if isinstance(end, errors.ManagerClosed)]
        assert len(closed) == 2, ends  # who was at work is answered
        assert [end.text for end in ends if not isinstance(end, BaseException)] == ["acme", "acme"]
        assert [each.closed for each in stage.acme.connections] == [1]

    play(Routes(tmp_path, far={"max_concurrency": 1}), main)  # type: ignore[arg-type]


def test_a_retry_that_sleeps_is_refused_by_a_shutdown_at_once(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.ProviderQuota("429", retry_after_s=50)]
        napping = spawn(stage.ask("e"))
        await settle()
        await stage.manager.shutdown(drain_s=60)
        with pytest.raises(errors.ManagerClosed, match="before this was asked again"):
            await napping
        assert now() < 1

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_the_first_call_on_a_handle_may_still_be_answered_by_the_option_that_was_cold(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("t")
        stage.far.fails = [errors.ProviderAuth("no key")]
        answer = await model.chat("hi")
        assert answer.routed is not None
        assert (answer.routed.option, now()) == ("near", 3)

    play(Routes(tmp_path, {"load_s": 3}, when_cold="fallback"), main)  # type: ignore[arg-type]


def test_readers_who_stop_reading_speak_against_nobody(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("t")
        for _ in range(8):
            async with model.stream_chat("word " * 100) as chunks:
                await anext(chunks)
                await asyncio.sleep(200)
                with pytest.raises(errors.ReaderGone):
                    _ = [chunk async for chunk in chunks]
        answer = await model.chat("hi")
        assert answer.routed is not None
        assert answer.routed.option == "near"

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


def test_a_lease_on_a_named_option_is_on_that_option_whatever_else_is_held(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        async with stage.manager.lease("t") as outer, stage.manager.lease("t", option="far") as inner:
            assert (outer.option, inner.option) == ("near", "far")
            assert (await inner.chat("hi")).text == "acme"
            async with stage.manager.lease("t", option="far") as again:
                assert (await again.chat("hi")).text == "acme"

    play(Routes(tmp_path, far={"max_concurrency": 1}), main)  # type: ignore[arg-type]


def test_a_stream_that_falls_silent_is_ended_after_timeout_s(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.pause_s = 60
        text = ""
        with pytest.raises(errors.ProviderTimeout, match="sent nothing more for 5 s"):
            async with (await stage.manager.get_model("e")).stream_chat("hi") as chunks:
                async for chunk in chunks:
                    text += chunk.text
        assert (text, now()) == ("a", 5)
        assert len(stage.purse.records) == 1

    play(Routes(tmp_path, far={"timeout_s": 5}), main)  # type: ignore[arg-type]


def test_a_missing_key_is_said_each_time_and_once_it_is_there_calls_go_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OWN_KEY", raising=False)

    async def main(stage: Routes) -> None:
        for _ in range(3):
            with pytest.raises(errors.KeyMissing, match="set OWN_KEY"):
                await stage.ask("e")
        monkeypatch.setenv("OWN_KEY", "k1")
        assert (await stage.ask("e")).text == "acme"
        stage.far.fails = [errors.ProviderAuth("e/far: the key of OWN_KEY is refused")]
        with pytest.raises(errors.ProviderAuth):
            await stage.ask("e")
        with pytest.raises(errors.CoolingDown, match="last with: e/far: the key of OWN_KEY is refused"):
            await stage.ask("e")
        await stage.manager.clear_cooldown("e")
        assert (await stage.ask("e")).text == "acme"

    far = {"requires_api_key": True, "api_key_env": "OWN_KEY"}
    play(Routes(tmp_path, far=far), main)  # type: ignore[arg-type]


def test_a_refused_request_tells_its_callers_span_every_reason(tmp_path: Path) -> None:
    async def main(stage: Routes) -> None:
        stage.far.fails = [errors.ProviderAuth("t/far: no")]
        with stage.tracer.start_as_current_span("caller"), pytest.raises(errors.NoOptionLeft):
            await stage.ask()
        (span,) = stage.spans("caller")
        assert span.attributes is not None
        passed = span.attributes["taskrouter.passed"]
        assert isinstance(passed, tuple)
        assert [str(each).partition(" (")[0] for each in passed] == ["near: cant_fit", "far: auth"]

    play(Routes(tmp_path, {"vram_gb": 20}), main)  # type: ignore[arg-type]


def test_a_local_model_that_refused_pictures_is_not_loaded_again_to_refuse_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    asked = [{"role": "user", "content": [picture]}]
    real = FakeModel.call

    async def text_only(self: FakeModel, verb: str, request: Any) -> Any:
        if not isinstance(request.messages[-1]["content"], str):
            raise errors.UnsupportedInput("this model takes text only")
        return await real(self, verb, request)

    monkeypatch.setattr(FakeModel, "call", text_only)

    async def main(stage: Routes) -> None:
        for _ in range(2):
            answer = await (await stage.manager.get_model("f")).chat(asked)
            assert answer.text == "acme"
        model = await stage.manager.get_model("t")
        for _ in range(3):
            answer = await model.chat(asked)
            assert answer.routed is not None
            assert [each.why for each in answer.routed.passed] == [Why.UNABLE]
            await stage.manager.unload_model("t")
        assert stage.backend.labels("load-start") == ["near"]
        answer = await model.chat("hi")
        assert answer.text == "near: hi"

    play(Routes(tmp_path), main)  # type: ignore[arg-type]


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


@pytest.mark.parametrize(
    ("near", "asked", "extra", "why"),
    [
        ({"lacks": ["image"]}, [{"role": "user", "content": [PICTURE]}], None, "takes no image: it is scripted so"),
        ({"lacks": ["tools"]}, "hi", {"tools": [{"type": "function"}]}, "takes no tools: it is scripted so"),
        ({"lacks": ["extra"]}, "hi", {"response_format": {}}, "takes no response_format: it is scripted so"),
        ({"lacks": ["extra", "tools"]}, "hi", {"tools": [{"type": "function"}]}, "takes no tools: it is scripted so"),
        ({"context": 10}, "ab" * 44, None, "has at least 11 tokens, and the context of near is 10"),
    ],
)
def test_what_a_local_model_can_not_do_is_known_before_it_is_loaded(
    tmp_path: Path, near: dict[str, Any], asked: Any, extra: Any, why: str
) -> None:
    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("f")
        stage.far.fails = [overloaded()]
        with pytest.raises(errors.NoOptionLeft, match=why):
            await model.chat(asked, extra=extra)
        for _ in range(2):  # as its preflight finds it; then as it is known
            answer = await Model(stage.manager, "t").chat(asked, extra=extra)
            assert answer.text == "acme"
            assert answer.routed is not None
            assert [each.why for each in answer.routed.passed] == [Why.UNABLE]
        assert stage.backend.labels("load-start") == []
        assert (await Model(stage.manager, "t").chat("hi")).text == "near: hi"

    play(Routes(tmp_path, near, far={"max_retries": 0}), main)  # type: ignore[arg-type]


def test_the_only_option_says_what_it_can_not_do_before_it_is_loaded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        for _ in range(2):
            with pytest.raises(errors.UnsupportedInput, match=r"^a takes no image: it is scripted so$"):
                await Model(stage.manager, "a").chat([{"role": "user", "content": [PICTURE]}])
        with pytest.raises(errors.ContextTooLong, match="at least 11 tokens"):
            async with Model(stage.manager, "a").stream_chat("ab" * 44) as chunks:
                [chunk async for chunk in chunks]
        assert stage.backend.labels("load-start") == []

    play(Stage(tmp_path, {"a": {"kind": "chat", "lacks": ["image"], "context": 10}}), main)


def test_a_written_limit_is_waited_for_or_passed_on_and_never_met(tmp_path: Path) -> None:
    limits = {"acme": {"requests_per_minute": 2}}

    async def main(stage: Routes) -> None:
        model = await stage.manager.get_model("e")
        begun = now()
        await asyncio.gather(*[model.chat("hi") for _ in range(5)])
        assert now() - begun == 122  # two at once, two after a minute (and the second that one may be late), one more
        late = [spawn(model.chat("hi")) for _ in range(8)]
        with pytest.raises(errors.ProviderQuota, match="all of its 2 requests a minute were sent") as caught:
            await late[-1]
        assert caught.value.retry_after_s is not None
        for each in late[:3]:
            each.cancel()
        answer = await (await stage.manager.get_model("f")).chat("hi")
        assert answer.routed is not None
        assert (answer.text, [each.why for each in answer.routed.passed]) == ("near: hi", [Why.RATE_LIMIT])
        await asyncio.gather(*late, return_exceptions=True)
        assert stage.far.most_at_work <= 2

    play(Routes(tmp_path, providers=limits, inference={"max_wait_s": 200}), main)  # type: ignore[arg-type]
