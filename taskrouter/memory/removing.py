"""A model's files in the Hugging Face cache, deleted: of which revisions, how many bytes, and then so.

Which blobs belong to one revision only, and what else goes with it, is for ``huggingface_hub`` to say. First of all
goes what makes a snapshot a model (``config.json``, files of GGUF): however a deletion ends, ``locate`` takes nothing
that it began with for whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskrouter.errors import FilesNotDownloaded, FilesShared, RemovalFailed
from taskrouter.residency.messages import size

DEFAULT = "main"
"""The revision of who names none."""
_MARKS = ("config.json", "*.gguf")


@dataclass(frozen=True, slots=True)
class Needed:
    """What another option needs of a repository: the files of this revision, or (``anything``) nobody knows which."""

    option: str
    revision: str | None = None
    anything: bool = False


@dataclass(frozen=True, slots=True)
class Deletion:
    """What is to be deleted of one repository: ``revisions`` (commits); ``kept`` are its others in the cache.

    ``bytes`` is what that frees on the disk: what the kept ones use as well isn't counted.
    """

    repo: str
    revisions: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    bytes: int = 0
    folder: Path | None = None
    strategy: Any = None
    """The library's; ``None``: the whole folder."""

    def execute(self) -> None:
        """Delete it. Blocks. Raises ``RemovalFailed`` where a file can't be deleted, or something is left."""
        if self.folder is None:
            return
        there = dict(self._files(self.folder))
        closed = next((each for each in self._parents(self.folder) if not os.access(each, os.W_OK | os.X_OK)), None)
        if closed is not None:
            raise self._failed(there, closed, "it can't be written to")
        try:
            for snapshot in self._snapshots(self.folder):
                _unmake(snapshot)
            if self.strategy is None:
                shutil.rmtree(self.folder)
            else:
                self.strategy.execute()
        except OSError as error:
            raise self._failed(
                there, self._named(error, self.folder), error.strerror or type(error).__name__
            ) from error
        # Of some errors the library only logs a line.
        left = next((path for path in [*there, *self._targets(self.folder)] if os.path.lexists(path)), None)
        if left is not None:
            raise self._failed(there, left, "permission denied, or it changed meanwhile")

    def _targets(self, folder: Path) -> list[Path]:
        """The files and folders that are to be gone."""
        if self.strategy is None:
            return [folder]
        plan = self.strategy
        return sorted({*plan.repos, *plan.snapshots, *plan.refs, *plan.blobs})

    def _files(self, folder: Path) -> Iterator[tuple[Path, int]]:
        """Every file and link beneath them, with its bytes."""
        for target in self._targets(folder):
            for path in [target, *target.rglob("*")]:
                if path.is_symlink():
                    yield path, 0
                elif path.is_file():
                    yield path, _size(path)

    def _parents(self, folder: Path) -> list[Path]:
        """The folders that something is deleted in."""
        targets = self._targets(folder)
        within = {path for target in targets for path in target.rglob("*") if path.is_dir() and not path.is_symlink()}
        return sorted({*(target.parent for target in targets), *filter(Path.is_dir, targets), *within})

    def _snapshots(self, folder: Path) -> list[Path]:
        if self.strategy is not None and folder not in self.strategy.repos:
            return sorted(self.strategy.snapshots)
        return sorted((folder / "snapshots").glob("*"))

    def _named(self, error: OSError, folder: Path) -> Path:
        """What an error is about: of what is in a folder that was opened only the name is told."""
        told = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else folder
        left = (path for target in self._targets(folder) for path in target.rglob("*") if path.name == told.name)
        return told if told.is_absolute() else next(left, folder)

    def _failed(self, there: dict[Path, int], path: Path, why: str) -> RemovalFailed:
        freed = sum(count for each, count in there.items() if not os.path.lexists(each))
        assert self.folder is not None, "there is something to delete"
        begun = any(not os.path.lexists(each) for each in there)
        gone = f"{size(freed)} of its {size(self.bytes)} were deleted before that" if begun else "nothing was deleted"
        again = " Until it is fetched again the model counts as not there." if begun else ""
        return RemovalFailed(
            f"{self.repo}: {_shown(path, self.folder.parent)} in the Hugging Face cache could not be deleted ({why}); "
            f"{gone}.{again} See to it, and ask again.",
            freed_bytes=freed,
        )


def plan(repo: str, revision: str | None = None, others: Iterable[Needed] = ()) -> Deletion:
    """What is to be deleted for an option that is loaded from ``repo`` at ``revision``. Deletes nothing; blocks.

    Of an option that names a revision that one goes; else all of the repository goes, but for what ``others`` name.
    Nothing in the cache is an empty answer. Raises ``FilesShared`` where others need what this option uses,
    ``FilesNotDownloaded`` for a repository that is a link to elsewhere, and ``RemovalFailed`` where the cache can't be
    read.
    """
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    others = list(others)
    folder = Path(os.path.expanduser(constants.HF_HUB_CACHE)).resolve() / f"models--{repo.replace('/', '--')}"
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):
        return Deletion(repo)
    except OSError as error:
        raise RemovalFailed(
            f"{repo}: the Hugging Face cache can't be read ({error.strerror}); nothing was deleted."
        ) from error
    if not os.path.lexists(folder):
        return Deletion(repo)
    if folder.is_symlink():
        raise FilesNotDownloaded(
            f"{repo}: {folder.name} in the Hugging Face cache is a link to a folder of yours elsewhere. Nothing was "
            "deleted."
        )
    _refuse_shared(repo, [each.option for each in others if each.anything])
    found = next((each for each in cache.repos if each.repo_path == folder), None)
    if found is None:
        why = next((str(each) for each in cache.warnings if folder.name in str(each)), "it can't be read")
        return _damaged(repo, folder, revision, others, why.replace(f"{folder.parent}{os.sep}", ""))
    own = _at(found, revision)
    _refuse_shared(repo, [each.option for each in others if own & _at(found, each.revision)])
    needed = {commit for each in others for commit in _at(found, each.revision)}
    every = {each.commit_hash for each in found.revisions}
    gone = own if revision is not None else every - needed
    if revision is None and not every:
        return Deletion(repo, bytes=_bytes(folder), folder=folder)  # what a deletion that was cut off left
    if not gone:
        return Deletion(repo, kept=tuple(sorted(every)))
    strategy = cache.delete_revisions(*gone)
    freed = strategy.expected_freed_size
    if gone == every:
        freed = max(freed, _bytes(folder))  # parts of downloads, too
    return Deletion(repo, tuple(sorted(gone)), tuple(sorted(every - gone)), freed, folder, strategy)


def _at(found: Any, revision: str | None) -> set[str]:
    """The commit that a branch, tag or commit is in the cache; empty where it isn't there."""
    name = revision or DEFAULT
    return {each.commit_hash for each in found.revisions if name == each.commit_hash or name in each.refs}


def _refuse_shared(repo: str, options: list[str]) -> None:
    if options:
        raise FilesShared(
            f"the files of {repo} are needed by {', '.join(options)}, too; nothing was deleted. Take what no longer "
            "needs them out of models.yaml, and reload it."
        )


def _damaged(repo: str, folder: Path, revision: str | None, others: list[Needed], why: str) -> Deletion:
    """A folder that the library can't read, as after a deletion that was cut off: only all of it can go."""
    _refuse_shared(repo, [each.option for each in others])
    if revision is not None:
        raise RemovalFailed(
            f"{repo}: nobody can say which files are those of revision {revision}: {folder.name} in the Hugging Face "
            f"cache is damaged ({why}). Nothing was deleted; delete that folder by hand."
        )
    left = sorted(each.name for each in (folder / "snapshots").glob("*"))
    return Deletion(repo, tuple(left), bytes=_bytes(folder), folder=folder)


def _unmake(snapshot: Path) -> None:
    """Let a snapshot be no model any more."""
    for mark in _MARKS:
        for path in sorted(snapshot.rglob(mark)):
            path.unlink(missing_ok=True)


def _bytes(folder: Path) -> int:
    return sum(_size(path) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0  # gone since it was listed


def _shown(path: Path, cache: Path) -> str:
    """A path beneath the cache; where that is stays this machine's."""
    return str(path.relative_to(cache)) if path.is_relative_to(cache) else path.name
