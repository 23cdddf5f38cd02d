"""What a fake model answers, and how its calls end. Time is virtual: nothing sleeps."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.fake_script import ALL_VERBS
from taskrouter.errors import BadInput, ModelDied, UnsupportedVerb
from taskrouter.types import GIB
from taskrouter.verbs import (
    Box,
    ChatAnswer,
    ChatRequest,
    ClassifyRequest,
    DepthRequest,
    Detection,
    DetectRequest,
    EmbedRequest,
    GenerateRequest,
    Label,
    SegmentRequest,
    Sighting,
    Track,
    TrackRequest,
)

from .stage import ASK, GPU, load, now, request, run, until

# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_takes_its_time_and_calls_run_side_by_side() -> None:
    async def main() -> None:
        model = await load(FakeBackend(), request(call_s=2))
        await asyncio.gather(*(model.call("chat", ASK) for _ in range(3)))
        assert now() == 2
        assert (model.calls, model.active) == (3, 0)

    run(main)


def test_a_cancelled_call_lasts_until_its_work_has_stopped() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(call_s=60, stop_s=3))
        task = asyncio.ensure_future(model.call("chat", ASK))
        await until(1)
        task.cancel()
        await until(2)
        task.cancel()
        await until(3.9)
        assert not task.done()
        assert model.active == 1
        with pytest.raises(asyncio.CancelledError):
            await task
        assert now() == 4
        assert model.active == 0
        assert backend.labels("call-cancelled") == ["small"]

    run(main)


def test_a_closed_stream_lasts_until_its_work_has_stopped() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(stop_s=3))
        async with aclosing(model.stream("stream_chat", ASK)) as stream:
            assert (await anext(stream)).text == "small: "
            assert model.active == 1
        assert now() == 3
        assert model.active == 0
        assert backend.labels("call-cancelled") == ["small"]

    run(main)


def test_a_hanging_call_ends_when_it_is_cancelled_or_resumed() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(hang="call"))
        dropped = asyncio.ensure_future(model.call("chat", ASK))
        await until(1000)
        assert not dropped.done()
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        resumed = asyncio.ensure_future(model.call("chat", ASK))
        await asyncio.sleep(1)
        backend.resume("small")
        assert (await resumed).text == "small: how are you"

    run(main)


def test_a_model_scripted_to_die_takes_all_its_calls_with_it_and_is_itself_again_after_a_reload() -> None:
    async def main() -> None:
        backend = FakeBackend()
        wanted = request(fail="die", fail_times=1, call_s=1)
        model = await load(backend, wanted)
        watcher = asyncio.ensure_future(model.wait_dead())
        calls = [asyncio.ensure_future(model.call("chat", ASK)) for _ in range(2)]
        await until(0.5)
        late = asyncio.ensure_future(model.call("chat", ASK))
        ended = await asyncio.gather(*calls, late, return_exceptions=True)
        assert [type(error) for error in ended] == [ModelDied] * 3
        assert now() == 1
        assert isinstance(await watcher, ModelDied)
        with pytest.raises(ModelDied):
            await model.call("chat", ASK)
        assert backend.in_use == {GPU: GIB}
        assert await backend.unload(model, timeout_s=1) == {}
        reloaded = await load(backend, wanted)
        assert isinstance(await reloaded.call("chat", ASK), ChatAnswer)
        assert backend.labels("died") == ["small"]

    run(main)


def test_a_model_scripted_to_die_dies_in_mid_stream() -> None:
    async def main() -> None:
        model = await load(FakeBackend(), request(fail="die"))
        stream = model.stream("stream_chat", ASK)
        assert (await anext(stream)).text == "small: "
        with pytest.raises(ModelDied):
            await anext(stream)
        assert model.active == 0

    run(main)


def test_a_killed_model_tells_its_watcher_and_a_cancelled_watcher_harms_nothing() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request())
        first = asyncio.ensure_future(model.wait_dead())
        await asyncio.sleep(1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        backend.kill("small")
        backend.kill("small")
        assert isinstance(await model.wait_dead(), ModelDied)
        assert backend.labels("died") == ["small"]

    run(main)


# --- answers ----------------------------------------------------------------------------------------------------------


def ask(verb: str, wanted: Any, **engine_args: Any) -> Any:
    async def main() -> Any:
        return await (await load(FakeBackend(), request(**engine_args))).call(verb, wanted)

    return run(main)


def test_chat_echoes_the_last_user_message_with_the_models_label() -> None:
    turns = (
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "image"}]},
        {"role": "assistant", "content": "three"},
    )
    answer = ask("chat", ChatRequest(turns))
    assert answer.text == "small: two [image]"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.finish_reason) == (4, 3, "stop")


def test_chat_cuts_its_answer_at_max_tokens() -> None:
    answer = ask("chat", ChatRequest(({"role": "user", "content": "a b c"},), max_tokens=2))
    assert (answer.text, answer.finish_reason) == ("small: a", "length")


def test_a_stream_has_the_same_text_as_the_chat_and_ends_with_the_usage() -> None:
    async def main() -> None:
        model = await load(FakeBackend(), request(call_s=2))
        chunks = [chunk async for chunk in model.stream("stream_chat", ASK)]
        whole = await model.call("chat", ASK)
        assert [chunk.text for chunk in chunks] == ["small: ", "how ", "are ", "you", ""]
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
        assert chunks[-1].usage == whole.usage
        assert now() == 4

    run(main)


@pytest.mark.parametrize(
    ("scripted", "labels"),
    [
        (None, [Label("small", 1.0)]),
        ("cat", [Label("cat", 1.0)]),
        (["cat", "dog"], [Label("cat", 2 / 3), Label("dog", 1 / 3)]),
        ({"dog": 0.1, "cat": 0.9}, [Label("cat", 0.9), Label("dog", 0.1)]),
    ],
)
def test_classify_answers_labels_best_first(scripted: Any, labels: list[Label]) -> None:
    assert ask("classify", ClassifyRequest(b""), answer=scripted) == tuple(labels)
    assert ask("classify", ClassifyRequest(b"", top_k=1), answer=scripted) == tuple(labels[:1])


def test_every_verb_answers_the_same_each_time() -> None:
    asked = {
        "chat": ASK,
        "classify": ClassifyRequest(b""),
        "generate": GenerateRequest("go on"),
        "embed": EmbedRequest(("x", "y")),
        "detect": DetectRequest(b"media"),
        "segment": SegmentRequest(b"media"),
        "track": TrackRequest(b"media"),
    }
    for verb in sorted(ALL_VERBS - {"stream_chat"}):
        answer = ask(verb, asked.get(verb, b"media"))
        assert answer
        assert repr(answer) == repr(ask(verb, asked.get(verb, b"media")))


def test_embedding_differs_by_text_and_stays_within_one() -> None:
    one, two = ask("embed", EmbedRequest(("x", "y"))).vectors
    assert one != two
    assert ask("embed", EmbedRequest(("x",))).vectors == (one,)
    assert len(one) == 8
    assert all(-1 <= number <= 1 for number in one + two)


def test_a_scripted_answer_replaces_the_models_own() -> None:
    assert ask("chat", ASK, answer="forty two").text == "forty two"
    assert ask("generate", GenerateRequest("why"), answer="because").text == "because"
    assert ask("detect", DetectRequest(b"")) == (Detection("small", 1.0, Box(0, 0, 1, 1)),)
    assert ask("detect", DetectRequest(b"", ("cup", "jug")))[1].label == "jug"
    said = [{"label": "cup", "score": 0.4, "box": [1, 2, 3, 4]}, {"label": "jug"}]
    assert [each.label for each in ask("detect", DetectRequest(b""), answer=said)] == ["jug"]
    assert ask("detect", DetectRequest(b"", threshold=0.1), answer=said)[0].box.bottom == 4
    assert ask("depth", DepthRequest(b""), answer=[[1, 2]]).values.tolist() == [[1, 2]]
    (track,) = ask("track", TrackRequest(b""), answer=[{"label": "cup", "box": [0, 0, 2, 2]}])
    assert track == Track(1, "cup", (Sighting(0, 0.0, Box(0, 0, 2, 2), 1.0),))
    (region,) = ask("segment", SegmentRequest(b""), answer=[{"label": "cup", "box": [1, 0, 3, 2]}])
    assert (region.label, region.mask.tolist()) == ("cup", [[False, True, True]] * 2)
    assert [label.label for label in ask("classify", ClassifyRequest(b"", labels=("x", "y")))] == ["x", "y"]


def test_a_question_that_is_none_is_bad_input_and_the_model_stays_usable() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request())
        for verb, wanted in (("chat", ChatRequest(())), ("chat", "hello"), ("classify", ClassifyRequest(b"", top_k=0))):
            with pytest.raises(BadInput):
                await model.call(verb, wanted)
        assert backend.labels("call-failed") == ["small"] * 3
        assert (await model.call("chat", ASK)).text
        assert model.active == 0

    run(main)


def test_a_verb_the_model_was_not_given_is_refused_by_name() -> None:
    async def main() -> None:
        model = await load(FakeBackend(), request(verbs=["classify"]))
        assert model.verbs == {"classify"}
        with pytest.raises(UnsupportedVerb, match="small can't answer chat; it can be asked classify"):
            await model.call("chat", ASK)
        other = await load(FakeBackend(), request())
        with pytest.raises(UnsupportedVerb, match="can't answer stream_chat"):
            await other.call("stream_chat", ASK)
        with pytest.raises(UnsupportedVerb, match="can't stream chat"):
            await anext(other.stream("chat", ASK))

    run(main)
