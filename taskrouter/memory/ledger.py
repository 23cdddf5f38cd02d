"""Measured footprints and load times, remembered on disk: what a model took last time is the best estimate.

One JSON file in the user's cache, written whole and renamed into place, under an flock so that two processes don't lose
each other's entries. It is a cache: a file that can't be read is ignored and rewritten, a full disk is logged. Nothing
here is ever fatal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from taskrouter.folders import cache_folder
from taskrouter.types import Footprint, ModelKey

logger = logging.getLogger(__name__)

VERSION = 1
MOST_MODELS = 4096
"""Beyond this the models measured longest ago are forgotten."""


Entries: TypeAlias = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a model took on this kind of device, and the seconds that its loads took (a moving average), if known."""

    need: Footprint
    load_s: float | None = None


class FootprintLedger:
    """Footprints by model key and kind of device. Methods do file I/O: call them in a thread."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else default_path()

    def get(self, key: ModelKey, device_kind: str) -> Footprint | None:
        """What this model was measured to take on this kind of device (``cpu``, ``NVIDIA H100 …``)."""
        found = self.find(key, device_kind)
        return None if found is None else found.need

    def find(self, key: ModelKey, device_kind: str) -> Remembered | None:
        """The same, with its load time."""
        entry = self._read().get(key, {}).get(device_kind)
        if entry is None:
            return None
        return Remembered(Footprint(entry["device_bytes"], entry["ram_bytes"]), entry.get("load_s"))

    def put(self, key: ModelKey, device_kind: str, footprint: Footprint, load_s: float | None = None) -> None:
        """Remember a measurement; it replaces the one before."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                models = self._read()
                kinds = models.pop(key, {})
                kinds[device_kind] = {"device_bytes": footprint.device_bytes, "ram_bytes": footprint.ram_bytes}
                if load_s is not None:
                    kinds[device_kind]["load_s"] = round(load_s, 3)
                models[key] = kinds
                for oldest in list(models)[: max(len(models) - MOST_MODELS, 0)]:
                    del models[oldest]
                self._write(models)
        except OSError as error:
            logger.warning("the measured size of %s could not be kept in %s: %s", key, self.path, error)

    def _read(self) -> Entries:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("remembered model sizes in %s can't be read and are ignored: %s", self.path, error)
            return {}
        try:
            return _checked(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("remembered model sizes in %s are damaged and will be rewritten: %s", self.path, error)
            return {}

    def _write(self, models: Entries) -> None:
        descriptor, name = tempfile.mkstemp(prefix=self.path.name, dir=self.path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"version": VERSION, "footprints": models}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(
            self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def default_path() -> Path:
    """``$XDG_CACHE_HOME/taskrouter/footprints.json``, by default under ``~/.cache``."""
    return cache_folder() / "footprints.json"


def _checked(data: Any) -> Entries:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r}, not {VERSION}")
    checked: Entries = {}
    for key, kinds in data["footprints"].items():
        for kind, entry in kinds.items():
            sizes: dict[str, Any] = {name: entry[name] for name in ("device_bytes", "ram_bytes")}
            if not all(type(size) is int and size >= 0 for size in sizes.values()):
                raise ValueError(f"{key} on {kind}: {entry!r}")
            load_s = entry.get("load_s")
            if load_s is not None:
                if type(load_s) not in (int, float) or not isfinite(load_s) or load_s < 0:
                    raise ValueError(f"{key} on {kind}: {entry!r}")
                sizes["load_s"] = load_s
            checked.setdefault(key, {})[kind] = sizes
    return checked
