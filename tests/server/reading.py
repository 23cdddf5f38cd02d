"""Fake models that do read the media they are given, as real ones do: by ``taskrouter.media``, under its limits."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from typing import Any

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.fake import FakeBackend, FakeModel
from taskrouter.media.limits import opened
from taskrouter.types import Charges, DeviceId, ModelKey, ModelRequest
from taskrouter.verbs import EmbedRequest, Picture

MEDIA = ("image", "audio", "video", "input")


class ReadingModel(FakeModel):
    """Reads what it is asked about, in a thread, twice: an option that is asked next has to find it, too."""

    backend: ReadingBackend

    async def call(self, verb: str, request: Any) -> Any:
        for source in sources_of(request):
            first, again = await asyncio.gather(*(asyncio.to_thread(_read, source, request.limits) for _ in range(2)))
            assert first == again
            self.backend.read.append(first)
        return await super().call(verb, request)


def sources_of(request: Any) -> list[Any]:
    if isinstance(request, EmbedRequest):
        return [each.source for each in request.inputs if isinstance(each, Picture)]
    return [getattr(request, name) for name in MEDIA if hasattr(request, name)]


def _read(source: Any, limits: Any) -> bytes:
    with opened(source, limits, what="file") as file:
        return file.file.read()


class ReadingBackend(FakeBackend):
    """``read``: the bytes of all media, in order. ``happened``: of each entry of the journal, whether it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[bytes] = []
        self.happened: defaultdict[tuple[str, str], threading.Event] = defaultdict(threading.Event)

    def _note(self, what: str, key: ModelKey) -> None:
        super()._note(what, key)
        self.happened[what, self._labels[key]].set()

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> LoadedModel:
        model = await super().load(request, devices, charges)
        assert isinstance(model, FakeModel)
        model.__class__ = ReadingModel
        assert isinstance(model, ReadingModel)
        model.backend = self
        return model
