"""What an adapter is told of a start, and what it answers: the seam between one engine's flags and everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskrouter.media.showing import Showing
from taskrouter.types import CPU, DeviceId


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a model's files without loading them.

    folder
        What the engine is pointed at: an absolute path.
    weight_bytes
        Bytes of the weights once loaded, over all devices together.
    kv_bytes_per_token
        Bytes of KV cache per token over all devices together; 0 where that isn't known.
    ceiling
        The model's own longest context in tokens; ``None`` where its configuration doesn't say.
    lacks
        What it surely can't take beside text, and why.
    showing
        How it is shown videos, of which it is given pictures; ``None``: it is given them whole.
    """

    folder: str
    weight_bytes: int
    kv_bytes_per_token: int = 0
    ceiling: int | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    showing: Showing | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """One device of the placement: the bytes granted there, of ``total``, of which ``free`` are free now."""

    device: DeviceId
    uuid: str
    total: int
    free: int
    granted: int

    @property
    def on_gpu(self) -> bool:
        return self.device != CPU


@dataclass(frozen=True, slots=True)
class Start:
    """One start: on loopback and this port, answering only to this key, as a model of this name."""

    places: tuple[Place, ...]
    port: int
    name: str
    api_key: str

    @property
    def on_gpu(self) -> bool:
        return self.places[0].on_gpu


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line, and what its environment has beside ours. ``argv[0]`` is the program."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
