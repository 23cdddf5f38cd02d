"""A model in a process of its own answers as one beside the caller does: the same verbs, answers and errors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.engines import guardian
from taskrouter.backends.hf.isolated.model import IsolatedModel
from taskrouter.backends.hf.isolated.process import Traced
from taskrouter.backends.hf.isolated.wire import OUT_OF_BAND
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import (
    BadInput,
    CallFailed,
    ContextTooLong,
    MediaTooLarge,
    ModelDied,
    SleepFailed,
    UnsupportedVerb,
)
from taskrouter.media.limits import MediaLimits
from taskrouter.types import CPU, GIB, Charges, ModelRequest
from taskrouter.verbs import ChatRequest, ClassifyRequest, DepthRequest, EmbedRequest, GenerateRequest

from .checkpoints import request, say, seen
from .families import sentence_bert
from .families_seeing import depth_anything

CHARGES: Charges = {CPU: GIB}
Main = Callable[[], Coroutine[Any, Any, None]]


class Stage:
    """Four models, each twice: in this process and in one of its own, started once for all tests."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.runner = asyncio.Runner()
        self.backend = TransformersBackend()
        self.here: dict[str, LoadedModel] = {}
        self.apart: dict[str, IsolatedModel] = {}
        self.folders = folders

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def load(self) -> None:
        for name, folder in self.folders.items():
            self.here[name] = await self.backend.load(request(folder, batch=4), (CPU,), CHARGES)
        wanted = {name: request(folder, isolation="process", batch=4) for name, folder in self.folders.items()}
        loaded = await asyncio.gather(*[self.backend.load(each, (CPU,), CHARGES) for each in wanted.values()])
        for name, model in zip(wanted, loaded, strict=True):
            assert isinstance(model, IsolatedModel)
            self.apart[name] = model

    async def close(self) -> None:
        for model in (*self.here.values(), *self.apart.values()):
            assert await self.backend.unload(model, timeout_s=5) == {}
        await self.backend.close()

    async def both(self, name: str, verb: str, asked: Any) -> list[Any]:
        """What each of the two answers, or raises."""
        models: list[LoadedModel] = [self.here[name], self.apart[name]]
        return [await _outcome(model.call(verb, asked)) for model in models]

    async def same(self, name: str, verb: str, asked: Any) -> Any:
        here, apart = await self.both(name, verb, asked)
        assert not isinstance(here, Exception), here
        assert apart == here
        return apart

    async def same_error(self, name: str, verb: str, asked: Any) -> Exception:
        here, apart = await self.both(name, verb, asked)
        assert isinstance(here, Exception)
        assert (type(apart), str(apart)) == (type(here), str(here))
        assert isinstance(apart, Exception)
        return apart


async def _outcome(answer: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await answer
    except Exception as error:
        return error


@pytest.fixture(scope="module")
def stage(
    chat_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("state")
    embedding = tmp_path_factory.mktemp("embedding") / "tiny-bert"
    sentence_bert(embedding)
    depth = tmp_path_factory.mktemp("depth") / "tiny-depth"
    depth_anything(depth)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="tr-", dir="/tmp") as temporary:
        patch.setattr(tempfile, "tempdir", temporary)
        patch.setenv("XDG_STATE_HOME", str(state))
        patch.setenv("OMP_NUM_THREADS", "1")
        stage = Stage({"chat": chat_folder, "image": image_folder, "embed": embedding, "depth": depth})
        try:
            stage.run(stage.load())
            yield stage
            pids = [model.info["pid"] for model in stage.apart.values()]
            held = {each for pid in pids for each in guardian.segments(pid)}
            said = [line for model in stage.apart.values() for line in model.process.process.output.lines()]
        finally:
            stage.run(stage.close())
            stage.runner.close()
        assert all(guardian.is_zombie(pid) for pid in pids)
        assert list(Path(temporary).glob("taskrouter-*")) == []
        assert list((state / "taskrouter" / "engines").glob("*")) == []
        assert held == set(), "shared memory with a name can be left behind"
        assert said == []


pytestmark = pytest.mark.slow


def test_text_is_answered_alike(stage: Stage) -> None:
    async def main() -> None:
        for words in ("w1", "w7 w8 w9"):
            await stage.same("chat", "chat", say(words, max_tokens=12))
        await stage.same("chat", "chat", say("w1", max_tokens=12, temperature=1.5, seed=3))
        await stage.same("chat", "generate", GenerateRequest("w1 w2", max_tokens=5))
        vectors = await stage.same("embed", "embed", EmbedRequest(("w1 w2", "w3")))
        assert len(vectors.vectors) == 2

    stage.run(main())


def test_a_stream_comes_in_the_same_pieces(stage: Stage) -> None:
    async def main() -> None:
        asked = say("w1 w2", max_tokens=10)
        models: list[LoadedModel] = [stage.here["chat"], stage.apart["chat"]]
        here, apart = [[piece async for piece in model.stream("stream_chat", asked)] for model in models]
        assert apart == here
        assert len(apart) > 5
        assert apart[-1].usage is not None

    stage.run(main())


def test_pictures_are_classified_alike_however_they_are_given(stage: Stage, tmp_path: Path) -> None:
    async def main() -> None:
        picture = PIL.Image.effect_noise((400, 300), 80).convert("RGB")  # as an array it goes beside the pickle
        array = np.asarray(picture)
        file = tmp_path / "picture.png"
        picture.save(file)
        answers = [
            await stage.same("image", "classify", ClassifyRequest(source))
            for source in (picture, array, str(file), file, file.read_bytes())
        ]
        assert all(answer == answers[0] for answer in answers)
        with file.open("rb") as here, PIL.Image.open(file) as lazy:
            assert await stage.apart["image"].call("classify", ClassifyRequest(here)) == answers[0]
            assert await stage.apart["image"].call("classify", ClassifyRequest(lazy)) == answers[0]

    stage.run(main())


def test_arrays_come_back_as_they_are(stage: Stage) -> None:
    async def main() -> None:
        picture = np.asarray(PIL.Image.effect_noise((400, 300), 80).convert("RGB"))
        here, apart = await stage.both("depth", "depth", DepthRequest(picture))
        assert apart.values.shape == (300, 400)
        assert apart.values.nbytes > OUT_OF_BAND
        assert np.array_equal(apart.values, here.values)
        assert (apart.values.dtype, apart.unit) == (here.values.dtype, here.unit)
        apart.values[0] = 0  # whoever asked may do with it as they like

    stage.run(main())


def test_what_it_is_told_of_limits_holds_in_its_process(stage: Stage, tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "picture.png"
        PIL.Image.new("RGB", (40, 30)).save(file)
        small, elsewhere = MediaLimits(max_pixels=100), MediaLimits(roots=(str(tmp_path / "no"),))
        with PIL.Image.open(file) as opened:
            for source in (str(file), file.read_bytes(), opened):
                error = await stage.same_error("image", "classify", ClassifyRequest(source, limits=small))
                assert isinstance(error, MediaTooLarge)
        error = await stage.same_error("image", "classify", ClassifyRequest(str(file), limits=elsewhere))
        assert "media.roots" in str(error)

    stage.run(main())


def test_errors_keep_their_types_and_texts(stage: Stage) -> None:
    async def main() -> None:
        too_long = await stage.same_error("chat", "chat", say("w1 " * 500))
        assert isinstance(too_long, ContextTooLong)
        role = ChatRequest(messages=({"role": "nobody", "content": "w1"},))
        assert isinstance(await stage.same_error("chat", "chat", role), BadInput)
        assert isinstance(await stage.same_error("image", "classify", ClassifyRequest(b"no picture")), BadInput)
        assert isinstance(await stage.same_error("image", "classify", ClassifyRequest(io.StringIO("x"))), BadInput)
        assert isinstance(await stage.same_error("chat", "classify", ClassifyRequest(b"")), UnsupportedVerb)
        assert isinstance(await stage.same_error("chat", "stream_chat", say("w1")), UnsupportedVerb)
        picture = np.zeros((32, 32, 3), np.uint8)
        broken = await stage.same_error("image", "classify", ClassifyRequest(picture, labels=(["x"],)))  # type: ignore[arg-type]
        assert isinstance(broken, CallFailed)
        assert isinstance(broken.__cause__, Traced)
        assert "hf/calling.py" in str(broken.__cause__)
        await stage.same("chat", "chat", say("w1", max_tokens=3))

    stage.run(main())


class Known:
    """A class of the caller's own that the other process can't import."""


def test_what_can_not_travel_is_refused_and_costs_nothing_else(stage: Stage) -> None:
    async def main() -> None:
        apart = stage.apart["image"]
        with pytest.raises(BadInput, match="can't be sent to its process: TypeError"):
            await apart.call("classify", ClassifyRequest(threading.Lock()))
        Known.__module__ = "nobody.has.this"
        with pytest.raises(BadInput, match="can't be sent to its process"):
            await apart.call("classify", ClassifyRequest(Known()))
        with pytest.raises(UnsupportedVerb, match="isolation: in_process"):
            _ = apart.raw

    stage.run(main())


def test_what_is_known_of_it_is_what_is_known_beside_the_caller(stage: Stage) -> None:
    for name, apart in stage.apart.items():
        here = stage.here[name]
        assert apart.verbs == here.verbs
        assert dict(here.info).items() <= dict(apart.info).items()
        assert apart.info["isolation"] == "process"
        assert Path(apart.info["log"]).parent.name == "logs"
        assert here.measured is not None
        assert apart.measured is not None
        assert apart.measured.device_bytes >= here.measured.device_bytes + apart.base > 100 << 20


@pytest.mark.parametrize("begun", [True, False])
def test_a_cancelled_call_ends_when_the_process_says_so_and_not_before(stage: Stage, begun: bool) -> None:
    """Also when it hears of the call and of its end at once."""

    async def main() -> None:
        apart = stage.apart["chat"]
        pid = apart.info["pid"]
        if not begun:
            os.kill(pid, signal.SIGSTOP)
        call = asyncio.ensure_future(apart.call("chat", say("w1", max_tokens=100)))
        try:
            await seen(lambda: bool(apart.process._calls))
            await asyncio.sleep(0.02 if begun else 0)
            os.kill(pid, signal.SIGSTOP)
            for _ in range(3):  # impatience changes nothing
                call.cancel()
                await asyncio.wait({call}, timeout=0.05)
                assert not call.done()
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await call
        assert apart.process._calls == {}
        await stage.same("chat", "chat", say("w1", max_tokens=3))

    stage.run(main())


def test_a_stream_that_is_left_stops_the_work(stage: Stage) -> None:
    async def main() -> None:
        apart = stage.apart["chat"]
        pieces = apart.stream("stream_chat", say("w1", max_tokens=100))
        await anext(pieces)
        await pieces.aclose()  # type: ignore[attr-defined]
        assert apart.process._calls == {}
        await stage.same("chat", "chat", say("w1", max_tokens=3))

    stage.run(main())


def test_calls_that_come_together_are_each_answered_right(stage: Stage) -> None:
    async def main() -> None:
        asked = [say(f"w{number}", max_tokens=4) for number in range(8)]
        expected = [await stage.here["chat"].call("chat", each) for each in asked]
        assert await asyncio.gather(*[stage.apart["chat"].call("chat", each) for each in asked]) == expected

    stage.run(main())


def test_many_calls_leave_no_descriptor_and_no_thread(stage: Stage) -> None:
    async def main() -> None:
        array = np.zeros((300, 400, 3), np.uint8)
        await stage.apart["image"].call("classify", ClassifyRequest(array))
        pid = stage.apart["image"].info["pid"]

        def open_now() -> Counter[str]:
            """What both processes have open, by kind: a descriptor or two come and go beside the calls."""
            found: Counter[str] = Counter()
            for process in ("self", pid):
                for name in os.listdir(f"/proc/{process}/fd"):
                    with contextlib.suppress(FileNotFoundError):
                        found[os.readlink(f"/proc/{process}/fd/{name}").partition(":")[0]] += 1
            return found

        calls = 30
        before, threads = open_now(), threading.active_count()
        for _ in range(calls):
            await stage.apart["image"].call("classify", ClassifyRequest(array))
        assert (open_now() - before).total() < calls / 3, open_now() - before
        assert threading.active_count() <= threads + 1

    stage.run(main())


def test_it_sleeps_and_answers_as_before(stage: Stage) -> None:
    async def main() -> None:
        backend, apart = stage.backend, stage.apart["chat"]
        before = await apart.call("chat", say("w1 w2", max_tokens=10))
        asleep = await backend.demote(apart, timeout_s=5)
        assert asleep.ram_bytes > apart.base
        assert asleep.residue == {}
        with pytest.raises(ModelDied, match="asleep"):
            await apart.call("chat", say("w1"))
        with pytest.raises(SleepFailed, match="is asleep"):
            await backend.demote(apart, timeout_s=5)
        await backend.promote(apart, CHARGES)
        assert await apart.call("chat", say("w1 w2", max_tokens=10)) == before
        with pytest.raises(SleepFailed, match="doesn't sleep"):
            await backend.promote(apart, CHARGES)
        await stage.same("chat", "chat", say("w1", max_tokens=3))

    stage.run(main())


def test_its_loads_wait_for_nobody_and_can_be_called_off(chat_folder: Path) -> None:
    def traits(asked: ModelRequest) -> Any:
        return TransformersBackend().traits(asked)

    here, apart = traits(request(chat_folder)), traits(request(chat_folder, isolation="process"))
    assert (here.serial_group, apart.serial_group) == ("transformers", None)
    assert apart.cancellable
    assert apart.start_s > here.start_s
    assert (apart.slots, apart.can_sleep) == (here.slots, here.can_sleep)
    assert traits(request(chat_folder, isolation="process", devices=("cpu",))).can_sleep is False
