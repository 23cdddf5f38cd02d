"""A loaded Transformers model: its verbs, run in a thread of its own, those that came meanwhile together."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from taskrouter.backends.hf.arena import Arena, why_not, why_stays
from taskrouter.backends.hf.batching import Call, Others, work_on
from taskrouter.backends.hf.chat import chat
from taskrouter.backends.hf.classify import classify
from taskrouter.backends.hf.complete import complete
from taskrouter.backends.hf.depth import depth
from taskrouter.backends.hf.detect import detect
from taskrouter.backends.hf.embed import embed, run_vectors
from taskrouter.backends.hf.examine import Checkpoint
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.passes import run_passes
from taskrouter.backends.hf.rows import run_texts
from taskrouter.backends.hf.segment import segment
from taskrouter.backends.hf.storages import StorageRef, bytes_by_device, storages_of
from taskrouter.backends.hf.threads import Arrivals, Job, Worker
from taskrouter.backends.hf.track import track
from taskrouter.backends.hf.transcribe import transcribe
from taskrouter.backends.sleep import told
from taskrouter.errors import ModelDied, SleepFailed, UnsupportedVerb
from taskrouter.media.limits import MediaLimits
from taskrouter.types import Footprint, ModelKey, ModelRequest
from taskrouter.verbs import STREAMING_VERBS, ChatChunk


class TransformersModel:
    """The ``LoadedModel`` of this backend. Holds the only reference to the module; ``release`` drops it."""

    def __init__(self, request: ModelRequest, checkpoint: Checkpoint, parts: Parts, limits: MediaLimits) -> None:
        self.key: ModelKey = request.key
        self._label = request.label
        self._family = checkpoint.family
        self._shares = checkpoint.shares_passes
        self._verbs = checkpoint.verbs
        self._context = checkpoint.context
        self._parts: Parts | None = parts
        self._limits = limits
        self._measured = parts.measured
        self._fixed = why_not(parts.module)
        self._kept: tuple[StorageRef, ...] = ()
        self._info = MappingProxyType(
            {
                "architecture": checkpoint.architecture,
                "dtype": str(parts.module.dtype).removeprefix("torch."),
                "parameters": parts.module.num_parameters(),
                "device": parts.device,
                "context": checkpoint.context,
                "can_sleep": told(why_stays(request) or self._fixed, bytes_by_device(parts.storages)),
            }
        )
        self._arena: Arena | None = None
        self._batch = request.batch
        self._worker = Worker(f"taskrouter:{request.label}")

    @property
    def measured(self) -> Footprint | None:
        return self._measured

    @property
    def verbs(self) -> frozenset[str]:
        return self._verbs

    @property
    def raw(self) -> Any:
        return self._ready().module

    @property
    def info(self) -> Mapping[str, Any]:
        return self._info

    def __repr__(self) -> str:
        state = "unloaded" if self._parts is None else "asleep" if self._arena else self._info["device"]
        return f"<TransformersModel {self._label} {self._info['architecture']} {state}>"

    async def call(self, verb: str, request: Any) -> Any:
        """Answer one request; cancelled, it ends when the thread has stopped working on it."""
        if verb in STREAMING_VERBS:
            raise UnsupportedVerb(f"{self._label}: {verb} answers in pieces; use stream().")
        stop = threading.Event()
        outcome = self._queue(verb, request, stop, _ignore)
        return await self._worker.result(outcome, stop)

    async def stream(self, verb: str, request: Any) -> AsyncIterator[Any]:
        """Answer in pieces; closed or cancelled, it ends when the thread has stopped working on it."""
        if verb not in STREAMING_VERBS:
            raise UnsupportedVerb(f"{self._label}: {verb} answers at once; use call().")
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def emit(piece: str | None) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop was closed under us: nobody listens any more
                stop.set()

        outcome = self._queue(verb, request, stop, emit)
        outcome.add_done_callback(lambda _: emit(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield ChatChunk(piece)
        finally:
            stop.set()
            if not outcome.cancel():
                await self._worker.finished(outcome, stop)
        answer = outcome.result()
        yield ChatChunk("", answer.finish_reason, answer.usage)

    async def wait_dead(self) -> Exception:
        """Wait for ever: a model in this process lives as long as the process."""
        never: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        return await never

    def rested(self) -> Future[None]:
        """Settled once its thread has let go of the weights."""
        return self._worker.rested()

    def sleep(self) -> tuple[int, tuple[StorageRef, ...]]:
        """Move the weights to host RAM: the bytes that takes, and weak references to what must now die.

        Blocks. Raises what copying raises, or ``SleepFailed``; then the model is as it was.
        """
        parts = self._ready()
        if self._fixed is not None:
            raise SleepFailed(self._fixed)
        self._arena = Arena(parts.module)
        left, parts.storages = (*self._kept, *parts.storages), self._arena.storage()
        self._arena.let_go()
        return self._arena.bytes, left

    def keep_in_sight(self, left: tuple[StorageRef, ...]) -> None:
        """Remember what somebody still refers to since it went to sleep: an unload has to see it die, too."""
        self._kept = left

    def wake(self) -> None:
        """Move the weights back. Blocks. Raises what that raises; then the model still sleeps."""
        arena, parts = self._arena, self._parts
        if arena is None or parts is None:
            raise ModelDied(f"{self._label} doesn't sleep.")
        arena.wake()
        parts.storages = storages_of(parts.module)
        self._arena = None
        arena.close()

    def release(self) -> tuple[StorageRef, ...]:
        """Drop everything, and return weak references to what must now die. Idempotent."""
        parts, self._parts = self._parts, None
        self._worker.close()
        arena, self._arena = self._arena, None
        if arena is not None:
            arena.close()
        return () if parts is None else (*self._kept, *parts.storages)

    def _queue(self, verb: str, request: Any, stop: threading.Event, emit: Callable[[str], None]) -> Future[Any]:
        if verb not in self.verbs:
            raise UnsupportedVerb(f"{self._label} can't {verb}: it can {', '.join(sorted(self.verbs))}.")
        self._ready()
        group = _RUNNERS.get(verb, run_passes) if self._shares else None
        return self._worker.put(Asked(verb, request, emit), self._work, group, stop)

    def _work(self, jobs: Sequence[Job], arrivals: Arrivals) -> None:
        run = _RUNNERS.get(jobs[0].asked.verb, run_passes)

        def begun(job: Job) -> Call:
            return Call(job, self._label, functools.partial(self._answer, job.asked, job.stop))

        work_on(jobs, arrivals, begun, lambda calls, others: run(self._ready(), calls, others), self._batch)

    def _answer(self, asked: Asked, stop: threading.Event) -> Any:
        """The answer, or the steps to it."""
        verb, request = asked.verb, asked.request
        limits = getattr(request, "limits", None) or self._limits
        if verb in _OF_MEDIA:
            return _OF_MEDIA[verb](self._ready(), self._family, request, limits, stop)
        if verb == "embed":
            return embed(self._ready(), request, self._context, limits, stop)
        if verb == "generate":
            return complete(self._ready(), request, self._context, stop)
        return chat(self._ready(), self._family, request, self._context, limits, stop, asked.emit)

    def _ready(self) -> Parts:
        if self._parts is None:
            raise ModelDied(f"{self._label} was unloaded.")
        if self._arena is not None:
            raise ModelDied(f"{self._label} is asleep.")
        return self._parts


@dataclass(frozen=True, slots=True)
class Asked:
    """One operation as it was asked for; pieces of its answer go to ``emit``."""

    verb: str
    request: Any
    emit: Callable[[str], None]


_RUNNERS: Mapping[str, Callable[[Parts, Sequence[Call], Others], None]] = {
    "chat": run_texts,
    "stream_chat": run_texts,
    "generate": run_texts,
    "embed": run_vectors,
}
"""What meets the wants of calls, several at a time (of others: passes); those of one runner go together."""

_OF_MEDIA: Mapping[str, Callable[..., Any]] = {
    "classify": classify,
    "depth": depth,
    "detect": detect,
    "segment": segment,
    "track": track,
    "transcribe": transcribe,
}
"""What answers about a picture or a sound: ``(parts, family, request, limits, stop)``."""


def _ignore(_: str) -> None:
    """Nobody listens to the pieces of a whole answer."""
