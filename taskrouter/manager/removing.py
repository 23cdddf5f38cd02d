"""A model's files deleted from the Hugging Face cache, while everything runs.

Meanwhile nothing is loaded from that repository: every load begins with a preflight, and those of its models are
refused, the ones under way at their end. So what is loaded, or on its way, is refused or unloaded first; what comes
after it finds the files gone, and fetches them. Other processes that use the same cache can't be held off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from opentelemetry.context import Context, get_current

from taskrouter import errors
from taskrouter.manager.changing import Changing
from taskrouter.manager.performing import Performer
from taskrouter.manager.posting import STOP_BOUND_S
from taskrouter.manager.repositories import needs, reads, repository_of
from taskrouter.manager.specs import Use
from taskrouter.memory.removing import Deletion, plan
from taskrouter.residency import State
from taskrouter.residency.events import Retire
from taskrouter.types import ModelKey

logger = logging.getLogger("taskrouter")


@dataclass(frozen=True, slots=True)
class Removed:
    """What was deleted for an option (``dry_run``: what would be).

    ``revisions`` are the commits of ``repo`` that went, ``kept`` its others in the cache; ``bytes`` were freed on the
    disk. ``unloaded`` names the models that were unloaded for it.
    """

    task: str
    option: str
    repo: str
    revisions: tuple[str, ...]
    kept: tuple[str, ...]
    bytes: int
    unloaded: tuple[str, ...]
    dry_run: bool

    def data(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)


class Removing(Changing):
    """Deleting what was downloaded."""

    async def remove_files(
        self, task_type: str, option: str | None = None, *, force: bool = False, dry_run: bool = False
    ) -> Removed:
        """Delete the files of an option's model (``None``: the selected one's) from the Hugging Face cache.

        Where the option names a revision, that one's; else all of the repository but the revisions that other options
        name. A loaded model is refused (``ModelLoaded``) unless ``force``, which unloads it as ``unload_model`` does.
        What isn't in the cache is no error. Once begun it is done whole, also where the caller is cancelled.

        Raises ``UnknownTask``, ``UnknownOption``, ``BadInput`` for an external option, ``FilesNotDownloaded`` for files
        that are nobody's download, ``FilesShared`` where other options need them, ``WouldDeadlock``, ``ModelStuck``,
        and ``RemovalFailed`` where a file can't be deleted.
        """
        performer = self.enter()
        use = self._local_use(task_type, option)
        repo = repository_of(use)
        keys = self._going(use, repo)
        there = self._check_free(performer, repo, keys, force=force)
        if dry_run:
            found = await asyncio.to_thread(plan, repo, use.request.revision, needs(self._uses, use, repo))
            return _removed(use, found, there, dry_run=True)
        for key in keys:
            self._check_own_lease(key)
        work = self._remove(performer, use, repo, get_current(), force=force)
        removed: Removed = await asyncio.shield(performer.spawn_operation(work))
        return removed

    def _local_use(self, task_type: str, option: str | None) -> Use:
        task = self._task(task_type)
        name = task.selected if option is None else option
        found = next((use for use in self._uses if (use.task, use.option) == (task.task_name, name)), None)
        if found is not None:
            return found
        task.with_selected(name)  # raises for an option that isn't there
        raise errors.BadInput(f"{task.task_name}/{name} is an external API: it has no files here")

    def _going(self, use: Use, repo: str) -> list[ModelKey]:
        """The models whose files go: the option's, and what an earlier file named and is still there."""
        named = {each.request.key for each in self._uses}
        left = [key for key in self._core.snapshot().models if key not in named and reads(self._requests[key], repo)]
        return [use.request.key, *left] if use.request.key in self._specs_known else left

    def _check_free(
        self, performer: Performer, repo: str, keys: Iterable[ModelKey], *, force: bool
    ) -> tuple[str, ...]:  # fmt: skip
        """The names of those that are loaded or on their way. Raises ``ModelLoaded`` for them, unless ``force``."""
        if repo in performer.removing:
            raise errors.FilesKept(f"the files of {repo} are being deleted already", retry_after_s=1.0)
        there = tuple(self._requests[key].label for key in keys if self._is_held(key))
        if there and not force:
            raise errors.ModelLoaded(
                f"{', '.join(there)} is loaded, or waited for, so the files of {repo} were not deleted. Unload it "
                "first, or say force."
            )
        return there

    def _is_held(self, key: ModelKey) -> bool:
        status = self._core.snapshot().models.get(key)
        return status is not None and (status.state not in (State.DISK, State.COOLDOWN) or status.waiting > 0)

    async def _remove(self, performer: Performer, use: Use, repo: str, context: Context, *, force: bool) -> Removed:
        """Raises what ``remove_files`` does."""
        # Whoever would be refused in the end isn't unloaded before.
        await asyncio.to_thread(plan, repo, use.request.revision, needs(self._uses, use, repo))
        keys = self._going(use, repo)
        there = self._check_free(performer, repo, keys, force=force)
        performer.removing.add(repo)
        try:
            for key in keys:
                performer.post(Retire(key))  # nor is it loaded ahead
                while self._is_held(key):
                    await self._unload(performer, key, context, force=True)
            await self._preflighted(performer, repo)
            found = await asyncio.to_thread(self._delete, use, repo)
        finally:
            performer.removing.discard(repo)
        removed = _removed(use, found, there)
        logger.info(
            "%s/%s: deleted %d revisions of %s from the Hugging Face cache, %d bytes",
            use.task, use.option, len(removed.revisions), repo, removed.bytes,
        )  # fmt: skip
        self._watchers.tell(
            "files_removed", model=use.request.label, tasks=[use.task], repo=repo, revisions=list(removed.revisions),
            bytes=removed.bytes,
        )  # fmt: skip
        return removed

    async def _preflighted(self, performer: Performer, repo: str) -> None:
        """Wait until none is under way that may read or fetch these files: threads can't be stopped."""
        under_way = {task for key, task in performer.preflights.items() if reads(self._requests[key], repo)}
        if under_way:
            _, left = await asyncio.wait(under_way, timeout=STOP_BOUND_S)
            if left:
                raise errors.ModelLoaded(
                    f"the files of {repo} are being checked or downloaded, so none was deleted. Ask again when that "
                    "is over.",
                    retry_after_s=STOP_BOUND_S,
                )

    def _delete(self, use: Use, repo: str) -> Deletion:
        """In a thread. By now the file may name other options."""
        found = plan(repo, use.request.revision, needs(self._uses, use, repo))
        try:
            found.execute()
        except errors.RemovalFailed as error:
            logger.warning("%s/%s: its files could not all be deleted: %s", use.task, use.option, error)
            raise
        return found


def _removed(use: Use, found: Deletion, unloaded: tuple[str, ...], *, dry_run: bool = False) -> Removed:
    return Removed(
        use.task, use.option, found.repo, found.revisions, found.kept, found.bytes, unloaded, dry_run=dry_run
    )  # fmt: skip
