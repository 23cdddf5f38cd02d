"""Server-sent events: the data of each, as they come in pieces of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from taskrouter.client.refusals import error_of
from taskrouter.errors import ServerUnreachable

_LONGEST = 1 << 26


class Events:
    """Takes bytes and gives events, heartbeats left out; ``done`` once ``[DONE]`` was among them.

    ``of_any``: their data may be any JSON, as whoever the server asks has it.
    """

    def __init__(self, where: str, *, of_any: bool = False) -> None:
        self.done = False
        self._of_any = of_any
        self._where = where
        self._rest = bytearray()
        self._data: list[bytes] = []

    def take(self, chunk: bytes) -> Iterator[Any]:
        """The events that these bytes end. Raises what the server tells in one of them."""
        begun = len(self._rest)
        self._rest += chunk
        end = self._rest.rfind(b"\n", begun)
        if end < 0:
            if len(self._rest) > _LONGEST:
                raise ServerUnreachable(f"{self._where} sent an event of more than {_LONGEST:,} bytes")
            return
        lines = bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        for line in lines:
            data = self._line(line.removesuffix(b"\r"))
            if data is not None and not self.done:
                yield self._event(data)

    def _line(self, line: bytes) -> bytes | None:
        """An event's data, where this line ends one that is not the last."""
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            whole, self._data = b"\n".join(self._data), []
            if whole != b"[DONE]":
                return whole
            self.done = True
        return None

    def _event(self, data: bytes) -> Any:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ServerUnreachable(f"{self._where} sent an event that is no JSON") from error
        if not isinstance(event, Mapping):
            if self._of_any:
                return event
            raise ServerUnreachable(f"{self._where} sent an event that is a {type(event).__name__}")
        told = event.get("error")
        if isinstance(told, Mapping) and told:
            raise error_of(told, 0, None, self._where)
        return event
