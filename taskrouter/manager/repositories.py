"""Which options are loaded from which repository of the hub, and what of it they need. Reads no file but for names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from taskrouter.config.frameworks import FROM_HUB
from taskrouter.errors import FilesNotDownloaded
from taskrouter.manager.specs import Use
from taskrouter.memory.hub import on_hub
from taskrouter.memory.removing import Needed
from taskrouter.types import ModelRequest

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
"""Variables that say where a process has its cache."""


def repository_of(use: Use) -> str:
    """The repository that an option's ``model_id`` is. Raises ``FilesNotDownloaded`` where it is none."""
    name, request = f"{use.task}/{use.option}", use.request
    if request.framework not in FROM_HUB:
        why = f"where framework {request.framework} has the files of {name} is its own to know"
    elif Path(request.model_id).is_relative_to(SAMPLES):
        why = f"{name} is a sample that ships with the package"
    elif not on_hub(request.model_id, request.base_dir):
        why = f"{name} is loaded from {use.config.model_id}, which is your own, and no model of the hub"
    elif other := next((variable for variable in CACHES if variable in request.env), None):
        why = f"the env of {name} sets {other}, so its files may be in another cache than this process's"
    else:
        return request.model_id
    raise FilesNotDownloaded(f"{why}: only what can be downloaded again is deleted. Nothing was.")


def reads(request: ModelRequest, repo: str) -> bool:
    """Whether this model is loaded from a repository, or names it in what its framework or program is told."""
    return request.model_id == repo or _names(request, repo)


def needs(every: Iterable[Use], own: Use, repo: str) -> list[Needed]:
    """What all other options of the file need of a repository.

    Of one that only names it (a tokenizer or a draft model in ``engine_args``, a word of a ``command``) nobody knows
    which revision that is.
    """
    return [
        Needed(f"{use.task}/{use.option}", use.request.revision, _anything(use.request, repo))
        for use in every
        if (use.task, use.option) != (own.task, own.option) and reads(use.request, repo)
    ]


def _anything(request: ModelRequest, repo: str) -> bool:
    return request.framework not in FROM_HUB or _names(request, repo)


def _names(request: ModelRequest, repo: str) -> bool:
    """Whether anything that it is told names the repository, or a path in its folder of the cache."""
    name = re.compile(rf"(?<![\w./-]){re.escape(repo)}(?![\w/-]|\.\w)")
    folder = re.compile(rf"(?<![\w.-])models--{re.escape(repo.replace('/', '--'))}(?![\w.-])")
    told = (request.engine_args, request.command, request.env)
    return folder.search(request.model_id) is not None or any(
        name.search(word) or folder.search(word) for word in _words(told)
    )


def _words(told: Any) -> Iterator[str]:
    if isinstance(told, str):
        yield told
    elif isinstance(told, dict):
        for name, value in told.items():
            yield from (str(name), *_words(value))
    elif isinstance(told, (list, tuple)):
        for each in told:
            yield from _words(each)
