"""Chat: templates, sampling, streaming, and a cancellation that really stops the generation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.hf.generation import Detokenizer, Sampling, StopText
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, CallFailed, UnsupportedVerb
from taskrouter.types import CPU
from taskrouter.verbs import ChatRequest, Usage

from .checkpoints import CHARGES, CONTEXT, request, say

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model(backend: TransformersBackend, chat_folder: Path) -> AsyncIterator[LoadedModel]:
    loaded = await backend.load(request(chat_folder), (CPU,), CHARGES)
    yield loaded
    assert await backend.unload(loaded, timeout_s=5) == {}


class Gate:
    """Counts a module's forward passes, and holds the one that a test names until it is told to go."""

    def __init__(self, module: Any, *, hold_at: int) -> None:
        self.passes = 0
        self.reached, self.go = threading.Event(), threading.Event()
        self._hold_at = hold_at
        self._hook = module.register_forward_pre_hook(self._pass)

    def _pass(self, *_: Any) -> None:
        self.passes += 1
        if self.passes == self._hold_at:
            self.reached.set()
            self.go.wait(30)

    def remove(self) -> None:
        self._hook.remove()


async def test_an_answer_is_greedy_and_counted(model: LoadedModel) -> None:
    answer = await model.call("chat", say("w1", "w2", max_tokens=4))
    assert answer == await model.call("chat", say("w1", "w2", max_tokens=4))
    assert answer.usage == Usage(prompt_tokens=4, completion_tokens=4)
    assert answer.finish_reason == "length"
    assert len(answer.text.split()) == 4


async def test_the_answer_is_what_generate_gives(model: LoadedModel, chat_folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_folder)
    inputs = tokenizer("<user> w7 w9 w30 <assistant>", return_tensors="pt", add_special_tokens=False)
    tokens = model.raw.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = await model.call("chat", say("w7", "w9", "w30", max_tokens=8))
    assert answer.text == tokenizer.decode(tokens)


async def test_a_streams_pieces_are_the_answer_and_the_last_has_the_usage(model: LoadedModel) -> None:
    asked = say("w1", max_tokens=12, temperature=1.5, seed=3)
    answer = await model.call("chat", asked)
    chunks = [chunk async for chunk in model.stream("stream_chat", asked)]
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert len(chunks) > 10
    assert all(chunk.finish_reason is None and chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].finish_reason, chunks[-1].usage) == (answer.finish_reason, answer.usage)


async def test_without_a_bound_the_answer_ends_with_the_context(model: LoadedModel) -> None:
    answer = await model.call("chat", say("w1"))
    assert answer.usage == Usage(3, CONTEXT - 3)
    assert (await model.call("chat", say("w1", max_tokens=10_000))).usage == answer.usage


async def test_the_end_token_ends_the_answer_and_is_not_shown(model: LoadedModel) -> None:
    first = (await model.call("chat", say("w1", max_tokens=1))).text
    from .checkpoints import WORDS

    model.raw.generation_config.eos_token_id = [1, WORDS.index(first)]
    answer = await model.call("chat", say("w1", max_tokens=9))
    assert (answer.text, answer.finish_reason, answer.usage) == ("", "stop", Usage(3, 1))


async def test_the_tokenizers_end_token_counts_where_the_model_names_none(model: LoadedModel) -> None:
    import torch

    end = torch.tensor([1])
    model.raw.generation_config.eos_token_id = None
    model.raw.generation_config.pad_token_id = None
    logits = model.raw.lm_head.register_forward_hook(lambda _, __, scores: scores.index_fill(-1, end, 1e9))
    answer = await model.call("chat", say("w1"))
    assert (answer.finish_reason, answer.usage) == ("stop", Usage(3, 1))
    logits.remove()
    model.raw.generation_config.eos_token_id = [9, 1]
    assert (await model.call("chat", say("w1", max_tokens=3))).usage == Usage(3, 3)


async def test_a_stop_text_ends_the_answer_before_it_in_both_verbs(model: LoadedModel) -> None:
    sampled = {"max_tokens": 20, "temperature": 1.5, "seed": 3}
    words = (await model.call("chat", say("w1", **sampled))).text.split()
    stop = f"{words[4]} {words[5]}"
    before = " ".join(words).split(stop)[0]
    asked = say("w1", stop=("never seen", stop), **sampled)
    answer = await model.call("chat", asked)
    assert (answer.text, answer.finish_reason) == (before, "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 20
    chunks = [chunk async for chunk in model.stream("stream_chat", asked)]
    assert "".join(chunk.text for chunk in chunks) == before


async def test_a_seed_gives_the_same_text_whatever_torchs_generator_does(model: LoadedModel) -> None:
    import torch

    texts = set()
    for disturbance in range(3):
        torch.manual_seed(disturbance)
        texts.add((await model.call("chat", say("w1", max_tokens=10, temperature=2.0, seed=11))).text)
    assert len(texts) == 1
    state = torch.get_rng_state()
    unseeded = {(await model.call("chat", say("w1", max_tokens=10, temperature=2.0))).text for _ in range(3)}
    assert len(unseeded) > 1
    assert torch.equal(state, torch.get_rng_state())


async def test_sampling_settings_are_honoured(model: LoadedModel) -> None:
    greedy = (await model.call("chat", say("w1", max_tokens=8))).text
    for settings in ({"temperature": 0.0}, {"temperature": 9.0, "top_p": 1e-9}, {"seed": 5}):
        assert (await model.call("chat", say("w1", max_tokens=8, **settings))).text == greedy
    assert (await model.call("chat", say("w1", max_tokens=8, top_p=0.999, seed=1))).text != greedy


def one(content: Any, role: Any = "user", **options: Any) -> ChatRequest:
    return ChatRequest(messages=({"role": role, "content": content},), **options)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ChatRequest(messages=()), "at least one message"),
        (one("w1", role="judge"), "chat template does not take these messages: no such role: judge"),
        (one("w1", role=None), "message 0 wants a role"),
        (one(None), "content wants text"),
        (one([{"type": "text", "text": "w1"}, {"type": "image_url"}]), "part of type 'image_url'.*text only"),
        (one(["w1"]), "part of type 'str'"),
        (
            one("w1", extra={"tools": [], "top_k": 3}),
            "extra has tools, top_k, which Transformers models here don't take",
        ),
        (one("w1 " * 126), f"come to 128 tokens, and the model's context is {CONTEXT}"),
        (one("w1", max_tokens=0), "max_tokens wants a whole number at least 1, not 0"),
        (one("w1", temperature=-0.1), "temperature wants"),
        (one("w1", temperature=float("nan")), "temperature wants"),
        (one("w1", top_p=0), "top_p wants a number above 0 and at most 1, not 0"),
        (one("w1", seed=-1), "seed wants"),
        (one("w1", stop=("",)), "stop wants"),
    ],
)
async def test_what_the_model_cannot_take_is_bad_input(model: LoadedModel, asked: ChatRequest, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        await model.call("chat", asked)
    with pytest.raises(BadInput, match=message):
        [chunk async for chunk in model.stream("stream_chat", asked)]


async def test_text_parts_are_one_text(model: LoadedModel) -> None:
    parts = [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]
    assert await model.call("chat", one(parts, max_tokens=3)) == await model.call("chat", say("w1 w2", max_tokens=3))


async def test_max_context_bounds_prompt_and_answer(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await backend.load(request(chat_folder, max_context=10), (CPU,), CHARGES)
    assert (await model.call("chat", say("w1"))).usage == Usage(3, 7)
    with pytest.raises(BadInput, match="come to 12 tokens, and the model's context is 10"):
        await model.call("chat", say(*["w1"] * 10))
    await backend.unload(model, timeout_s=5)


async def test_a_cancelled_call_returns_only_when_the_generation_has_stopped(model: LoadedModel) -> None:
    gate = Gate(model.raw, hold_at=5)
    call = asyncio.create_task(model.call("chat", say("w1")))
    await asyncio.to_thread(gate.reached.wait)
    for _ in range(3):  # however often it is asked
        call.cancel()
        await asyncio.wait({call}, timeout=0)
        assert not call.done()
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    stopped_at = gate.passes
    assert stopped_at == 5
    gate.remove()
    assert (await model.call("chat", say("w1", max_tokens=2))).usage == Usage(3, 2)
    assert gate.passes == stopped_at


async def test_a_call_cancelled_before_its_turn_never_runs(model: LoadedModel) -> None:
    gate = Gate(model.raw, hold_at=1)
    first = asyncio.create_task(model.call("chat", say("w1", max_tokens=2)))
    await asyncio.to_thread(gate.reached.wait)
    second = asyncio.create_task(model.call("chat", say("w2", max_tokens=50)))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.go.set()
    await first
    assert (await model.call("chat", say("w1", max_tokens=1))).usage == Usage(3, 1)
    assert gate.passes == 3
    gate.remove()


async def test_a_closed_stream_stops_the_generation(model: LoadedModel) -> None:
    gate = Gate(model.raw, hold_at=4)
    stream = model.stream("stream_chat", say("w1"))
    first = await anext(stream)
    await asyncio.to_thread(gate.reached.wait)
    closing = asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]
    await asyncio.wait({closing}, timeout=0)
    assert not closing.done()
    gate.go.set()
    await closing
    assert first.text
    assert gate.passes == 4
    gate.remove()


async def test_a_cancelled_stream_stops_the_generation(model: LoadedModel) -> None:
    gate = Gate(model.raw, hold_at=3)

    async def read() -> None:
        async for _ in model.stream("stream_chat", say("w1")):
            pass

    reading = asyncio.create_task(read())
    await asyncio.to_thread(gate.reached.wait)
    reading.cancel()
    await asyncio.wait({reading}, timeout=0)
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert gate.passes == 3
    gate.remove()


async def test_the_loop_is_free_while_the_model_answers(model: LoadedModel) -> None:
    gate = Gate(model.raw, hold_at=1)
    call = asyncio.create_task(model.call("chat", say("w1", max_tokens=1)))
    await asyncio.to_thread(gate.reached.wait)
    assert not call.done()
    gate.go.set()
    assert (await call).usage == Usage(3, 1)
    gate.remove()


async def test_an_error_in_mid_stream_reaches_the_reader(model: LoadedModel) -> None:
    passes = 0

    def fail(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise ValueError("boom")

    hook = model.raw.register_forward_pre_hook(fail)
    pieces = []
    with pytest.raises(CallFailed, match="boom"):
        async for chunk in model.stream("stream_chat", say("w1")):
            pieces.append(chunk.text)  # noqa: PERF401  what came before the error counts
    assert len(pieces) == 2
    hook.remove()


async def test_each_verb_is_asked_in_its_own_way(model: LoadedModel) -> None:
    with pytest.raises(UnsupportedVerb, match="answers in pieces"):
        await model.call("stream_chat", say("w1"))
    with pytest.raises(UnsupportedVerb, match="answers at once"):
        await anext(model.stream("chat", say("w1")))
    with pytest.raises(UnsupportedVerb, match="can't classify"):
        await model.call("classify", None)
    waiting = asyncio.create_task(model.wait_dead())
    await asyncio.wait({waiting}, timeout=0)
    assert not waiting.done()
    waiting.cancel()


# --- the pieces, without a model --------------------------------------------------------------------------------------


class ByteTokenizer:
    """A token a byte: characters arrive in parts."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("text", ["plain", "größe", "日本語 text", "👩‍👩‍👧!", "cut" + "é" * 5])
def test_characters_are_shown_whole(text: str) -> None:
    detokenizer = Detokenizer(ByteTokenizer())
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert detokenizer.flush() == ""


def test_a_character_that_never_completes_is_shown_at_the_end() -> None:
    detokenizer = Detokenizer(ByteTokenizer())
    assert "".join(detokenizer.push(byte) for byte in "aé".encode()[:-1]) == "a"
    assert detokenizer.flush() == "\ufffd"


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (("END",), ["a", "bE", "N", "D", "c"], "ab"),
        (("END",), ["abE", "N", "x"], "abENx"),
        (("END",), ["abEN"], "abEN"),
        (("bc", "b"), ["abc"], "a"),
        (("aab",), ["a", "a", "a", "b"], "a"),
        ((), ["x", "y"], "xy"),
    ],
)
def test_stop_texts_are_found_across_pieces_and_nothing_of_them_is_shown(
    stops: tuple[str, ...], pieces: list[str], shown: str
) -> None:
    text = StopText(stops)
    seen = "".join(text.push(piece) for piece in pieces) + text.push("", last=True)
    assert seen == shown
    assert text.hit == any(stop in "".join(pieces) for stop in stops)


def test_drawing_by_noise_is_drawing_from_the_distribution() -> None:
    import torch

    chances = torch.tensor([0.6, 0.3, 0.1])
    draw = Sampling(temperature=1.0, top_p=None, seed=0, device="cpu")
    drawn = draw.drawn(chances.log().expand(20_000, 3)).argmax(-1)
    assert torch.bincount(drawn, minlength=3) / 20_000 == pytest.approx(chances, abs=0.02)
    nucleus = Sampling(temperature=1.0, top_p=0.85, seed=0, device="cpu")
    kept = nucleus.drawn(chances.log().expand(20_000, 3)).argmax(-1)
    assert torch.bincount(kept, minlength=3) / 20_000 == pytest.approx(torch.tensor([2 / 3, 1 / 3, 0]), abs=0.02)
