"""What both packaged engines' command lines have in common: engine_args to words, the GPUs they see, and fractions."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from taskrouter.backends.engines.launch import Start
from taskrouter.backends.showing import OF_VIDEOS, spelled
from taskrouter.errors import PreflightFailed
from taskrouter.types import ModelRequest

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Else the processes of one engine find each other by the host's name, and listen on whatever that stands for."""

QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
"""Sends nothing home; takes no module from the folder it is started in, where a user's own ``datasets`` may lie; and
its last words reach the log before it dies."""


def own(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The flags that taskrouter writes, each with what to do instead, from what to do and the flags that is said of."""
    return {name: instead for instead, names in groups.items() for name in names}


def said(request: ModelRequest) -> dict[str, Any]:
    """An option's ``engine_args`` by the flags' own names: dashes, none in front."""
    return {_name(key): value for key, value in request.engine_args.items()}


def words(request: ModelRequest, ours: Mapping[str, str], *, without: Collection[str] = ()) -> Iterator[str]:
    """An option's ``engine_args`` as command-line words, without those named. ``ours`` are the flags we write.

    ``true`` is the bare flag, ``false`` its ``--no-`` form, a list several words, a mapping JSON. Raises
    ``PreflightFailed`` for a flag of ours, and for a value that says nothing.
    """
    for key, value in request.engine_args.items():
        name = _name(key)
        # vLLM takes --flag.part and --flag.part+ for a flag that is JSON.
        flag = name.partition(".")[0].removesuffix("+")
        for bare in (flag, flag.removeprefix("no-")):
            if bare in ours:
                raise PreflightFailed(
                    f"{request.label}: engine_args.{key} is what taskrouter writes itself; {ours[bare]}."
                )
        if spelled(key) in OF_VIDEOS:  # no flags: videos are made pictures before the engine sees them
            continue
        if value is None:
            raise PreflightFailed(f"{request.label}: engine_args.{key} has no value; write true for a bare flag.")
        if name not in without:
            yield from _words(name, value)


def visible(start: Start) -> dict[str, str]:
    """The environment that shows an engine its GPUs and no other: by UUID, since an index means other things to NVML
    and to CUDA. On the CPU: none.
    """
    if not start.on_gpu:
        return {"CUDA_VISIBLE_DEVICES": ""}
    named = [place.uuid or place.device.removeprefix("cuda:") for place in start.places]
    return {"CUDA_VISIBLE_DEVICES": ",".join(named)}


def fraction(part: int, whole: int) -> str:
    """A share of a device, rounded down to four digits: a grant is never exceeded."""
    return f"{min(max(part * 10_000 // max(whole, 1), 1), 10_000) / 10_000:.4f}"


def _name(key: str) -> str:
    flag, dot, part = key.lstrip("-").partition(".")
    return flag.replace("_", "-") + dot + part


def _words(name: str, value: Any) -> list[str]:
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [f"--{name}", *map(_word, value)]
    word = _word(value)
    # A value that looks like a flag would be taken for one.
    return [f"--{name}={word}"] if word.startswith("-") else [f"--{name}", word]


def _word(value: Any) -> str:
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return json.dumps(_plain(value))
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
