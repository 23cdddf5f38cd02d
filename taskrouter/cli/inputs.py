"""What ``taskrouter run`` is given: files, stdin, or text; read here, because the user chose the paths."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from taskrouter.cli.printing import note
from taskrouter.errors import BadInput
from taskrouter.media.limits import MediaLimits, opened

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Input:
    """One input: what to call it, and where its bytes (``source``) or its text are."""

    name: str
    source: Any
    text: str | None = None
    what: str = "input"

    def read(self, limits: MediaLimits) -> bytes:
        """All of its bytes. Raises ``BadInput``."""
        with opened(self.source, limits, what=self.what) as open_file:
            return open_file.file.read()

    def read_text(self, limits: MediaLimits) -> str:
        """Its text. Raises ``BadInput`` for what is no UTF-8."""
        if self.text is not None:
            return self.text
        data = self.read(limits)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.name} is no UTF-8 text (byte {error.start}): convert it first.") from error


def find_inputs(given: Sequence[str], limits: MediaLimits, *, text: bool) -> list[Input]:
    """The inputs, each seen to be there and within the limits; stdin is read. Raises ``BadInput``.

    ``media.roots`` guards what others name; what the user writes on the command line is the user's own choice. Where
    ``text`` is wanted, what names no file is the text itself.
    """
    if given.count(STDIN) > 1:
        raise BadInput("stdin (-) can be given once")
    limits = replace(limits, roots=None)
    return [_find(item, limits, text=text) for item in given]


def _find(item: str, limits: MediaLimits, *, text: bool) -> Input:
    what = "text" if text else "input"
    if item == STDIN:
        if sys.stdin is None:
            raise BadInput("stdin is closed: pipe the input in, or give a path.")
        data = sys.stdin.buffer.read(limits.max_bytes + 1)
        found = Input("stdin", data, what="input on stdin")
    elif text and not item.strip():
        raise BadInput("the text is empty: there is nothing to answer.")
    elif text and not os.path.exists(item):
        if re.fullmatch(r"\S*(/|\.[A-Za-z0-9]{1,5})\S*", item):
            note(f"there is no file {item}; it is taken as the text itself")
        return Input(item, None, text=item)
    else:
        found = Input(item, item, what=what)
    with opened(found.source, limits, what=found.what):
        return found
