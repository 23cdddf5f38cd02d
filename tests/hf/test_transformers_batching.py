"""Calls of one model that come while it works are worked on together: fewer passes, the same answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager
from taskrouter.backends.base import LoadedModel
from taskrouter.backends.hf import batching, passes, rows
from taskrouter.backends.hf.families import LOOK_AT_ALL_ROWS, rope_types
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, CallFailed
from taskrouter.types import CPU
from taskrouter.verbs import ChatRequest, ClassifyRequest, DetectRequest, EmbedRequest, GenerateRequest

from .checkpoints import CHARGES, CONTEXT, request, say
from .families import DETECTORS, sentence_bert
from .test_transformers_classify import picture

pytestmark = pytest.mark.anyio

TOGETHER = 8


class Door:
    """Stands before a module: notes how many rows and tokens each pass has, and holds the pass that a test names."""

    def __init__(self, module: Any, *, hold_at: int = 1) -> None:
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.reached, self.go = threading.Event(), threading.Event()
        self._hold_at = hold_at
        self._hook = module.register_forward_pre_hook(self._pass, with_kwargs=True)

    def _pass(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        first = next(inputs[name] for name in ("input_ids", "pixel_values", "input_values") if name in inputs)
        self.rows.append(first.shape[0])
        mask = inputs.get("attention_mask")
        self.tokens.append(mask.numel() if mask is not None else 0)
        if len(self.rows) == self._hold_at:
            self.reached.set()
            self.go.wait(30)

    def open(self) -> None:
        self.go.set()
        self._hook.remove()


async def together(model: LoadedModel, verb: str, requests: Sequence[Any]) -> tuple[list[Any], Door]:
    """Answers of requests that all came while the model was at work on something else, and what it did for them."""
    door, something_else = Door(model.raw, hold_at=0), threading.Event()
    model._worker.submit(lambda: something_else.wait(30), threading.Event())  # type: ignore[attr-defined]
    tasks = [asyncio.create_task(model.call(verb, each)) for each in requests]
    await asyncio.sleep(0)
    something_else.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    door.open()
    return answers, door


async def at_work(model: LoadedModel) -> tuple[asyncio.Task[Any], Door]:
    """A call of one token that the model is held in, so that what is asked now is worked on next, together."""
    door = Door(model.raw)
    busy = asyncio.create_task(model.call("chat", say("w1", max_tokens=1)))
    await asyncio.to_thread(door.reached.wait, 30)
    return busy, door


def in_the_order_of_their_ends(*tasks: asyncio.Task[Any]) -> list[asyncio.Task[Any]]:
    """The tasks, once each has ended."""
    ended: list[asyncio.Task[Any]] = []
    for task in tasks:
        task.add_done_callback(ended.append)
    return ended


@pytest.fixture
async def model(backend: TransformersBackend, chat_folder: Path) -> AsyncIterator[LoadedModel]:
    loaded = await backend.load(request(chat_folder, batch=TOGETHER), (CPU,), CHARGES)
    yield loaded
    assert await backend.unload(loaded, timeout_s=5) == {}


def varied() -> list[ChatRequest]:
    """Prompts of other lengths, drawn in other ways, ended in other ways."""
    return [
        say("w1", max_tokens=9),
        say("w1", "w2", "w3", "w4", "w5", "w6", max_tokens=3),
        say("w7", "w8", max_tokens=12, temperature=1.0, seed=3),
        say("w9", "w10", "w11", max_tokens=12, temperature=0.7, top_p=0.8, seed=4),
        say("w2", "w2", max_tokens=12, stop=("w1", "w3")),
    ]


async def test_answers_written_together_are_those_written_alone(model: LoadedModel) -> None:
    requests = varied()
    alone = [await model.call("chat", each) for each in requests]
    answers, door = await together(model, "chat", requests)
    assert answers == alone
    assert door.rows == [5] * 12  # one pass a token, as many as the longest has


async def test_completions_go_together_too(model: LoadedModel) -> None:
    requests = [GenerateRequest(" ".join(["w5"] * size), max_tokens=4) for size in (1, 2, 7)]
    alone = [await model.call("generate", each) for each in requests]
    answers, door = await together(model, "generate", requests)
    assert answers == alone
    assert max(door.rows) == 3


async def test_nobody_waits_for_another_to_come(model: LoadedModel) -> None:
    door = Door(model.raw, hold_at=0)
    await model.call("chat", say("w1", max_tokens=2))
    assert door.rows == [1, 1]
    door.open()


async def test_who_is_done_goes_while_others_are_still_written(model: LoadedModel) -> None:
    busy, door = await at_work(model)
    short = asyncio.create_task(model.call("chat", say("w1", max_tokens=2)))
    long = asyncio.create_task(model.call("chat", say("w2", max_tokens=20)))
    await asyncio.sleep(0)
    later = Door(model.raw, hold_at=6)
    door.open()
    await busy
    assert (await short).usage.completion_tokens == 2
    await asyncio.to_thread(later.reached.wait, 30)
    assert not long.done()
    later.open()
    assert (await long).usage.completion_tokens == 20


async def test_pieces_of_a_stream_that_is_written_with_others_are_its_answer(model: LoadedModel) -> None:
    streamed = say("w4", "w5", max_tokens=6)
    alone = await model.call("chat", streamed)
    busy, door = await at_work(model)

    async def listen() -> str:
        return "".join([chunk.text async for chunk in model.stream("stream_chat", streamed)])

    tasks = [asyncio.create_task(listen()), asyncio.create_task(listen())]
    await asyncio.sleep(0)
    door.open()
    await busy
    assert await asyncio.gather(*tasks) == [alone.text] * 2


async def test_a_caller_who_goes_away_leaves_the_others_as_they_are(model: LoadedModel) -> None:
    stays = say("w2", "w3", max_tokens=20)
    alone = await model.call("chat", stays)
    busy, door = await at_work(model)
    goes = asyncio.create_task(model.call("chat", say("w1", max_tokens=100)))
    kept = asyncio.create_task(model.call("chat", stays))
    ended = in_the_order_of_their_ends(goes, kept)
    await asyncio.sleep(0)
    later = Door(model.raw, hold_at=5)
    door.open()
    await busy
    await asyncio.to_thread(later.reached.wait, 30)
    goes.cancel()
    await asyncio.sleep(0)
    later.go.set()
    with pytest.raises(asyncio.CancelledError):
        await goes
    assert await kept == alone
    await asyncio.sleep(0)
    assert ended == [goes, kept]  # the lease of who went away ended then, not with the batch
    later.open()


@pytest.mark.slow
async def test_all_that_are_written_together_take_no_more_memory_than_one_may(model: LoadedModel) -> None:
    requests = [say(*["w3"] * 9, *[f"w{n}"]) for n in range(10, 15)]  # written to the end of the context
    alone = [await model.call("chat", each) for each in requests]
    answers, door = await together(model, "chat", requests)
    assert answers == alone
    assert all(answer.usage.total_tokens == CONTEXT for answer in answers)
    assert max(door.rows) == 5
    assert max(size for rows, size in zip(door.rows, door.tokens, strict=True) if rows > 1) <= CONTEXT


async def test_where_padding_would_be_counted_only_prompts_of_one_length_go_together(model: LoadedModel) -> None:
    model.raw.generation_config.repetition_penalty = 1.5
    requests = [say("w1", max_tokens=6), say("w2", max_tokens=6), say("w1", "w2", "w3", max_tokens=6)]
    alone = [await model.call("chat", each) for each in requests]
    answers, door = await together(model, "chat", requests)
    assert answers == alone
    assert sorted(door.rows) == [1] * 6 + [2] * 6


async def test_a_bad_request_among_good_ones_is_refused_alone(model: LoadedModel) -> None:
    bad = ChatRequest(messages=({"role": "narrator", "content": "w1"},))
    answers, _ = await together(model, "chat", [say("w1", max_tokens=3), bad, say("w2", max_tokens=3)])
    assert [type(answer).__name__ for answer in answers] == ["ChatAnswer", "BadInput", "ChatAnswer"]


async def test_what_runs_out_of_memory_together_is_done_alone(model: LoadedModel) -> None:
    requests = [say("w1", "w2", max_tokens=7), say("w3", max_tokens=7)]
    alone = [await model.call("chat", each) for each in requests]
    forward = model.raw.forward

    def small(*args: Any, **inputs: Any) -> Any:
        if inputs["input_ids"].shape[0] > 1 and inputs["attention_mask"].shape[1] > 6:
            raise MemoryError("can't allocate memory")  # stands for a device that is full, after some tokens
        return forward(*args, **inputs)

    model.raw.forward = small
    answers, door = await together(model, "chat", requests)
    del model.raw.forward
    assert answers == alone
    assert 2 in door.rows
    assert door.rows[-1] == 1


async def test_who_comes_while_others_are_written_is_let_in_soon(model: LoadedModel) -> None:
    first, late = say("w1", max_tokens=60), say("w2", "w3", max_tokens=2)
    alone = [await model.call("chat", each) for each in (first, late)]
    door = Door(model.raw, hold_at=5)
    writing = asyncio.create_task(model.call("chat", first))
    await asyncio.to_thread(door.reached.wait, 30)
    joining = asyncio.create_task(model.call("chat", late))
    ended = in_the_order_of_their_ends(writing, joining)
    await asyncio.sleep(0)
    door.go.set()
    assert [await joining, await writing] == [alone[1], alone[0]]
    await asyncio.sleep(0)
    assert ended == [joining, writing]
    assert len(door.rows) == 60
    assert [place for place, rows in enumerate(door.rows) if rows == 2][:2] == [rows.JOIN_AFTER, rows.JOIN_AFTER + 1]
    door.open()


async def test_who_waits_beside_a_full_batch_ends_when_he_goes_away(model: LoadedModel) -> None:
    fills = say(*["w3"] * 60, max_tokens=60)  # nobody fits beside it
    door = Door(model.raw, hold_at=3)
    writing = asyncio.create_task(model.call("chat", fills))
    waits = asyncio.create_task(model.call("chat", say(*["w4"] * 60, max_tokens=60)))
    ended = in_the_order_of_their_ends(writing, waits)
    await asyncio.to_thread(door.reached.wait, 30)
    waits.cancel()
    await asyncio.sleep(0)
    door.go.set()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert (await writing).usage.completion_tokens == 60
    await asyncio.sleep(0)
    assert ended == [waits, writing]
    assert set(door.rows) == {1}
    door.open()


async def test_whatever_native_code_raises_is_its_callers_alone_and_typed(model: LoadedModel) -> None:
    class Panic(BaseException):
        """As what is written in Rust raises."""

    tokenizer = model._parts.processor  # type: ignore[attr-defined]
    template = tokenizer.apply_chat_template

    def panicking(messages: Any, **how: Any) -> Any:
        if "w9" in str(messages):
            raise Panic("index out of bounds")
        return template(messages, **how)

    tokenizer.apply_chat_template = panicking
    answers, _ = await together(model, "chat", [say("w1", max_tokens=2), say("w9"), say("w2", max_tokens=2)])
    del tokenizer.apply_chat_template
    assert [type(answer).__name__ for answer in answers] == ["ChatAnswer", "CallFailed", "ChatAnswer"]
    assert "Panic: index out of bounds" in str(answers[1])


@pytest.mark.parametrize(
    "rope", [{"rope_parameters": {"rope_type": "longrope"}}, {"text_config": {"rope_scaling": {"type": "dynamic"}}}]
)
def test_models_that_look_at_the_longest_row_have_one_slot(rope: dict[str, Any]) -> None:
    assert rope_types(rope) & LOOK_AT_ALL_ROWS
    assert not rope_types({"rope_parameters": {"full_attention": {"rope_type": "default"}}}) & LOOK_AT_ALL_ROWS


async def test_a_checkpoint_that_looks_at_the_longest_row_is_asked_one_at_a_time(
    backend: TransformersBackend, spoil: Any
) -> None:
    folder = spoil()
    config = json.loads((folder / "config.json").read_text())
    for rope_type, slots in (("linear", 8), ("dynamic", 1)):
        config["rope_parameters"] = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 10_000.0}
        (folder / "config.json").write_text(json.dumps(config))
        found = await backend.preflight(request(folder, batch=TOGETHER))
        assert found.slots == slots


async def test_what_fails_alone_too_fails_for_its_caller_only(model: LoadedModel) -> None:
    forward = model.raw.forward

    def fussy(*args: Any, **inputs: Any) -> Any:
        if (inputs["input_ids"] == 12).any():  # the seventh word
            raise RuntimeError("no sevens")
        return forward(*args, **inputs)

    model.raw.forward = fussy
    answers, _ = await together(model, "chat", [say("w1", max_tokens=1), say("w7", max_tokens=1)])
    del model.raw.forward
    assert isinstance(answers[1], CallFailed)
    assert "no sevens" in str(answers[1])
    assert answers[0].usage.completion_tokens == 1


async def test_texts_of_several_calls_are_read_together(backend: TransformersBackend, tmp_path: Path) -> None:
    sentence_bert(tmp_path / "embed")
    model = await backend.load(request(tmp_path / "embed", batch=TOGETHER), (CPU,), CHARGES)
    requests = [EmbedRequest(("w1 w2", "w3")), EmbedRequest(("w4 w5 w6 w7",)), EmbedRequest(("w8", "w9", "w10"))]
    alone = [await model.call("embed", each) for each in requests]
    answers, door = await together(model, "embed", requests)
    assert door.rows == [6]
    for answer, expected in zip(answers, alone, strict=True):
        assert answer.usage == expected.usage
        for mine, theirs in zip(answer.vectors, expected.vectors, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
    await backend.unload(model, timeout_s=5)


async def test_one_text_does_not_wait_for_the_many_of_another(backend: TransformersBackend, tmp_path: Path) -> None:
    sentence_bert(tmp_path / "embed")
    model = await backend.load(request(tmp_path / "embed", batch=TOGETHER), (CPU,), CHARGES)
    many = asyncio.create_task(model.call("embed", EmbedRequest(("w1 w2 w3",) * 200)))
    one = asyncio.create_task(model.call("embed", EmbedRequest(("w4 w5 w6 w7 w8",))))
    door = Door(model.raw, hold_at=4)
    await asyncio.to_thread(door.reached.wait, 30)
    ended = in_the_order_of_their_ends(many, one)
    door.open()
    assert len((await one).vectors) == 1
    assert len((await many).vectors) == 200
    await asyncio.sleep(0)
    assert ended == [one, many]
    await backend.unload(model, timeout_s=5)


async def test_a_call_waits_for_slow_inputs_of_others_no_longer_than_a_moment(
    backend: TransformersBackend, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await backend.load(request(image_folder, batch=TOGETHER), (CPU,), CHARGES)
    monkeypatch.setattr(batching, "GATHER_S", 0.0)  # every input counts as slow
    answers, door = await together(model, "classify", [ClassifyRequest(picture())] * 3)
    assert door.rows == [1, 1, 1]
    assert answers[0] == answers[1] == answers[2]
    await backend.unload(model, timeout_s=5)


async def test_pictures_of_several_calls_are_seen_in_one_pass(backend: TransformersBackend, image_folder: Path) -> None:
    model = await backend.load(request(image_folder, batch=TOGETHER), (CPU,), CHARGES)
    requests = [ClassifyRequest(picture().resize((20 + n, 30)), top_k=3) for n in range(4)]
    alone = [await model.call("classify", each) for each in requests]
    bad = ClassifyRequest(b"no picture")
    answers, door = await together(model, "classify", [*requests, bad])
    assert door.rows == [4]
    assert isinstance(answers.pop(), BadInput)
    for answer, expected in zip(answers, alone, strict=True):
        assert [each.label for each in answer] == [each.label for each in expected]
        assert [each.score for each in answer] == pytest.approx([each.score for each in expected], abs=1e-5)
    await backend.unload(model, timeout_s=5)


@pytest.mark.slow
async def test_objects_of_several_pictures_are_found_in_one_pass(backend: TransformersBackend, tmp_path: Path) -> None:
    DETECTORS["rt_detr"](tmp_path / "rt")
    model = await backend.load(request(tmp_path / "rt", batch=TOGETHER), (CPU,), CHARGES)
    requests = [DetectRequest(picture().resize((40 + 9 * n, 30)), threshold=0.0) for n in range(3)]
    alone = [await model.call("detect", each) for each in requests]
    answers, door = await together(model, "detect", requests)
    assert door.rows == [3]
    for answer, expected in zip(answers, alone, strict=True):
        assert len(answer) == len(expected)
        assert [each.score for each in answer] == pytest.approx([each.score for each in expected], abs=1e-5)
        assert answer[0].box == pytest.approx(expected[0].box, abs=1e-2)
    await backend.unload(model, timeout_s=5)


async def test_no_more_is_stacked_than_the_memory_booked_allows(
    backend: TransformersBackend, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await backend.load(request(image_folder, batch=TOGETHER), (CPU,), CHARGES)
    monkeypatch.setattr(passes, "working_bytes", lambda _: passes.PICTURES_TAKE * 3 * (3 * 32 * 32 * 4) - 1)
    _, door = await together(model, "classify", [ClassifyRequest(picture())] * 5)
    assert door.rows == [2, 2, 1]
    await backend.unload(model, timeout_s=5)


@pytest.mark.parametrize(
    ("keys", "option", "slots"), [("", "", 8), ("max_batch_size: 3", "", 3), ("", "max_concurrency: 2", 2)]
)
async def test_as_many_callers_get_a_lease_as_may_be_answered_together(
    chat_folder: Path, tmp_path: Path, keys: str, option: str, slots: int
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        f"tasks: {{t: {{kind: chat, selected: m, options: {{m: {{model_id: '{chat_folder}', framework: transformers,"
        f" {option}}}}}}}}}\ninference: {{{keys}}}\n"
    )
    async with ModelManager(file) as manager:
        model = await manager.load_model("t")
        async with manager.lease("t") as lease:
            door = Door(lease.raw)
        tasks = [asyncio.create_task(model.chat(f"w{n}", max_tokens=4)) for n in range(10)]
        await asyncio.to_thread(door.reached.wait, 30)
        await asyncio.sleep(0.05)
        assert [each.leases for each in manager.statistics().models.values()] == [slots]
        door.go.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.usage and answer.usage.completion_tokens for answer in answers] == [4] * 10
        assert 1 < max(door.rows) <= slots
        door.open()
