"""A plug-in that weighs pictures, by verbs of its own: some declared as they should be, some not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from taskrouter.backends.base import Call, Medium, Preflight
from taskrouter.errors import BadInput
from taskrouter.types import MIB, Charges, DeviceId, Footprint, ModelRequest, Traits


class Unit(Enum):
    GRAMS = "g"
    OUNCES = "oz"


@dataclass(frozen=True, slots=True)
class Weigh:
    """What ``weigh`` is asked."""

    picture: Medium
    others: tuple[Medium, ...] = ()
    unit: Unit = Unit.GRAMS
    least: Annotated[int, Field(ge=0)] = 0
    threshold: str = ""
    how: Literal["fast", "exact"] = "fast"
    day: date | None = None
    limits: Any = None

    def __post_init__(self) -> None:
        if self.threshold == "impossible":
            raise ValueError("there is no such threshold")


@dataclass(frozen=True, slots=True)
class Weight:
    """What it answers: bytes of each picture, and what else it was asked."""

    sizes: tuple[int, ...]
    asked: dict[str, Any]
    day: date | None = None


class Compare(BaseModel):
    """What ``compare`` is asked: a pydantic model."""

    model_config = ConfigDict(extra="forbid")

    pictures: Annotated[list[Medium], Field(min_length=2)]
    upto: int = Field(5, alias="up-to")


@dataclass
class Bare:
    """Nothing."""


@dataclass
class Unreadable:
    """A request that pydantic can't make of JSON."""

    handle: asyncio.Event


@dataclass
class Part:
    picture: Medium


@dataclass
class Nested:
    """A request whose media stand too deep to be read."""

    parts: list[Part]


class Loose(BaseModel):
    """A request that takes any name beside its own, and its medium by two."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    picture: Medium = Field(alias="image")


class Scales:
    """A model that weighs. ``requests``: what it was asked."""

    verbs = frozenset({"weigh", "compare", "lie", "hold", "hum", "detect", "nest", "loosen"})
    measured = Footprint(MIB)
    info: ClassVar[dict[str, Any]] = {}
    raw = None

    def __init__(self, requests: list[Any]) -> None:
        self.requests = requests

    async def call(self, verb: str, request: Any) -> Any:
        self.requests.append(request)
        if verb == "weigh":
            sizes = await asyncio.to_thread(lambda: tuple(map(_size, (request.picture, *request.others))))
            if min(sizes) < request.least:
                raise BadInput(f"it weighs less than {request.least}")
            asked = {"unit": request.unit.value, "threshold": request.threshold, "how": request.how}
            return Weight(sizes, asked, request.day)
        return {"compare": lambda: [_size(each) for each in request.pictures]}.get(verb, lambda: {"no": "number"})()

    def stream(self, verb: str, request: Any) -> Any:
        raise NotImplementedError

    async def wait_dead(self) -> Exception:
        never: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        return await never


def _size(medium: Any) -> int:
    # Not by a path: what comes over HTTP was read before.
    assert isinstance(medium, bytes) or hasattr(medium, "read"), medium
    return len(medium if isinstance(medium, bytes) else medium.read())


class ScalesBackend:
    """The backend for ``framework: scales``."""

    calls: ClassVar = {
        "weigh": Call(Weigh, Weight),
        "compare": Call(Compare, list[int]),
        "lie": Call(Bare, int),
        "hold": Call(Unreadable, int),
        "nest": Call(Nested, int),
        "loosen": Call(Loose, dict[str, str]),
        "sing": Call(Bare, str),
    }

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def traits(self, request: ModelRequest) -> Traits:
        return Traits(cancellable=True, slots=2, start_s=0.1)

    async def preflight(self, request: ModelRequest) -> Preflight:
        return Preflight(Footprint(MIB), Scales.verbs)

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> Scales:
        return Scales(self.requests)

    async def unload(self, model: Any, *, timeout_s: float) -> Charges:
        return {}

    async def residue(self, key: str) -> Charges:
        return {}

    async def close(self) -> None:
        """Nothing is held."""
