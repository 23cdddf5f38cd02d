"""How many bytes of large bodies are held in memory at once: each is bounded, and so are all of them together."""

from __future__ import annotations

from taskrouter.http.failing import Refused

LARGE = 1 << 20
"""Bytes; smaller bodies aren't counted."""
RETRY_S = 1.0


class Room:
    """As many bytes as the largest single body may have, so that one alone always finds room."""

    def __init__(self) -> None:
        self._held = 0

    def check(self, size: int, most: int, *, held: int = 0) -> None:
        """Raises ``Refused`` (503) where a body of ``size`` bytes, ``held`` of them here, doesn't fit beside others.

        ``most``: how many bytes a body may have.
        """
        if self._held - held + size > most:
            raise Refused(
                503,
                "other requests hold as many bytes as this server takes in JSON at a time; ask again, or send media as "
                "a form's files, which are kept on the disk",
                code="bodies",
                retry_after_s=RETRY_S,
            )

    def hold(self, size: int, most: int, *, held: int = 0) -> None:
        """A body has grown from ``held`` to ``size`` bytes. Raises as ``check``, and then nothing has changed."""
        self.check(size, most, held=held)
        self._held += size - held

    def leave(self, held: int) -> None:
        """It is gone."""
        self._held -= held
