"""The bodies of small requests: the admin API's, leases and pipelines."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskrouter.errors import BadInput
from taskrouter.http.exchange import Exchange
from taskrouter.http.strict_json import strict_object

MOST_BYTES = 1 << 16

Name = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """A field that isn't known is refused: it was meant to say something."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Nothing(Body):
    """There is nothing to say."""


class Load(Body):
    """``option``: another one than the selected one. ``wait``: answer when it is ready."""

    option: Name | None = None
    wait: bool = False
    timeout_s: Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)] | None = None


class Unload(Body):
    """``force``: calls at work are told to stop."""

    option: Name | None = None
    force: bool = False


class Remove(Body):
    """``force``: a loaded model is unloaded first. ``dry_run``: say what would be deleted."""

    option: Name | None = None
    force: bool = False
    dry_run: bool = False


class Select(Body):
    """``persist``: in the file as well."""

    option: Name
    persist: bool = False


class Pin(Body):
    """Pin or unpin."""

    pinned: bool
    option: Name | None = None


class Drain(Body):
    """Refuse new work, or take it again."""

    draining: bool


class Lease(Body):
    """``task``: as ``model`` elsewhere; ``option``: this one and no other."""

    task: Name
    option: Name | None = None


class Pipeline(Body):
    """``tasks``: in the order in which they come."""

    tasks: list[Name]


T = TypeVar("T", bound=BaseModel)


async def body_of(exchange: Exchange, kind: type[T]) -> T:
    """A request's body; none at all is an empty one. Raises ``BadInput``."""
    data = await exchange.body(MOST_BYTES)
    try:
        return kind.model_validate(strict_object(data) if data.strip() else {})
    except ValidationError as error:
        wrong = (
            f"{'.'.join(map(str, each['loc']))[:80] or 'the body'}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False)[:20]
        )
        raise BadInput("; ".join(wrong)) from None
