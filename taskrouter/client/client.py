"""``connect``: a running server, used like a manager."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from taskrouter.client.handles import RemoteModel
from taskrouter.client.leases import RemoteLease
from taskrouter.client.pipelines import RemotePipeline
from taskrouter.client.transport import Transport
from taskrouter.errors import BadInput
from taskrouter.manager.asking import check_bounds
from taskrouter.media.limits import MediaLimits

if TYPE_CHECKING:
    from taskrouter.client.blocking import BlockingClient

API_KEY, ADMIN_KEY = "TASKROUTER_API_KEY", "TASKROUTER_ADMIN_KEY"
TIMEOUT_S = 600.0


def connect(
    url: str,
    *,
    api_key: str | None = None,
    admin_key: str | None = None,
    timeout_s: float | None = TIMEOUT_S,
    media: MediaLimits | None = None,
) -> Client:
    """A client of the server at ``url``, such as ``http://127.0.0.1:8700``; nothing is sent yet.

    Keys are by default those of ``TASKROUTER_API_KEY`` and ``TASKROUTER_ADMIN_KEY``, where they are set. ``timeout_s``
    is for how long the server may be silent during a call (``None``: for ever); how long a call may wait for its model
    is said by ``get_model`` and ``handle``. ``media`` bounds what is read on this side. Raises ``BadInput``.
    """
    check_bounds(timeout_s, None)
    key = api_key if api_key is not None else os.environ.get(API_KEY) or None
    admin = admin_key if admin_key is not None else os.environ.get(ADMIN_KEY) or None
    return Client(Transport(url, key, admin, timeout_s or None), media or MediaLimits())


class Client:
    """``async with connect(url) as client``. Belongs to the event loop that uses it first.

    What changes or shows the server itself needs the admin key; tasks need an API key where the server has any.
    Everything raises ``ServerUnreachable`` where no server answers, ``ServerRefused`` for a key that may not ask, and
    what the same call of a manager raises.
    """

    def __init__(self, transport: Transport, limits: MediaLimits) -> None:
        self._transport = transport
        self._limits = limits

    def __repr__(self) -> str:
        return f"<Client of {self._transport.url}>"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._transport.url

    # --- asking -------------------------------------------------------------------------------------------------------

    async def get_model(self, task: str, *, timeout: float | None = None) -> RemoteModel:
        """A handle on the task's model: with an admin key its selected option is ready when this returns, else the
        first call loads it.

        ``timeout`` bounds queue and load in seconds, here and of each call. Raises ``UnknownTask``, and with an admin
        key what loading raises.
        """
        handle = self.handle(task, timeout=timeout)
        if self._transport.has_admin_key:
            # The only thing that is wrong with these arguments: an external API, which is always ready.
            with suppress(BadInput):
                await self.load_model(task, timeout=timeout)
        else:
            await self._transport.manage("GET", f"/v1/models/{quote(task, safe='')}", key="api")
        return handle

    def handle(self, task: str, *, option: str | None = None, timeout: float | None = None) -> RemoteModel:
        """The same handle, with nothing asked yet. ``option`` is the only one to ask. Raises ``BadInput``."""
        _check_name("task", task)
        if option is not None:
            _check_name("option", option)
        check_bounds(timeout, None)
        return RemoteModel(self._transport, task, only=option, timeout=timeout, limits=self._limits)

    def lease(self, task: str, *, option: str | None = None, timeout: float | None = None) -> RemoteLease:
        """``async with client.lease(task) as model``: the model can't be evicted meanwhile, and takes one slot.

        ``option`` leases another option than the selected one; ``timeout`` bounds the wait for it, in seconds. It lasts
        as long as a connection of its own. Raises ``BadInput``, and on entry what a call to the task may raise.
        """
        _check_name("task", task)
        if option is not None:
            _check_name("option", option)
        check_bounds(timeout, None)
        return RemoteLease(self._transport, task, only=option, timeout=timeout, limits=self._limits)

    def pipeline(self, tasks: Sequence[str]) -> RemotePipeline:
        """``async with client.pipeline([task, …])``: these tasks are coming, in this order, from whoever is inside.

        Raises ``BadInput`` for what is no list of names, and on entry ``UnknownTask``.
        """
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise BadInput(f"pipeline() takes a list of tasks, such as ['{tasks}'], not {type(tasks).__name__}")
        names = tuple(tasks)
        for name in names:
            _check_name("task", name)
        return RemotePipeline(self._transport, names)

    async def tasks(self) -> dict[str, tuple[str, ...]]:
        """The tasks that this key may ask, each with its options."""
        answer = await self._transport.manage("GET", "/v1/models", key="api")
        found: dict[str, tuple[str, ...]] = {}
        for row in answer.get("data", ()):
            task, slash, option = str(row.get("id")).partition("/")
            found[task] = (*found.get(task, ()), option) if slash else found.get(task, ())
        return found

    # --- what people do while it runs: with the admin key -------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Devices, models, tasks and who waits."""
        return await self._admin("GET", "status")

    async def models(self) -> dict[str, Any]:
        """Every option: its model's state, its bytes, and whether it fits."""
        return await self._admin("GET", "models")

    async def spend(self) -> dict[str, Any]:
        """What calls to external providers cost."""
        return await self._admin("GET", "spend")

    async def explain(self, task: str) -> str:
        """How the task's latest requests were answered, and what was decided for its models."""
        return str((await self._admin("GET", _of(task, "explain"))).get("text", ""))

    async def load_model(
        self, task: str, *, option: str | None = None, wait: bool = True, timeout: float | None = None
    ) -> dict[str, Any]:
        """Load the task's model, and wait until it is ready; without ``wait`` answer at once, with an ``operation``."""
        check_bounds(timeout, None)
        body: dict[str, Any] = {"wait": wait}
        body |= {name: value for name, value in (("option", option), ("timeout_s", timeout)) if value is not None}
        return await self._admin("POST", _of(task, "load"), body, timeout=timeout if wait else None)

    async def operation(self, id: str) -> dict[str, Any]:
        """How far a load is that wasn't waited for."""
        _check_name("operation", id)
        return await self._admin("GET", f"operations/{quote(id, safe='')}")

    async def unload_model(self, task: str, *, force: bool = False, option: str | None = None) -> dict[str, Any]:
        """Unload the task's model once its calls have ended; ``force``: they are told to stop."""
        body = {"force": force} if option is None else {"force": force, "option": option}
        return await self._admin("POST", _of(task, "unload"), body)

    async def remove_files(
        self, task: str, *, option: str | None = None, force: bool = False, dry_run: bool = False
    ) -> dict[str, Any]:
        """Delete the files of the task's model from the server's Hugging Face cache; ``dry_run``: say what would go.

        ``force`` unloads it first. Raises ``FilesKept`` and its kin, and then nothing was deleted, and
        ``RemovalFailed``.
        """
        body: dict[str, Any] = {"force": force, "dry_run": dry_run}
        return await self._admin("POST", _of(task, "remove"), body if option is None else {**body, "option": option})

    async def set_selected_model(self, task: str, option: str, *, persist: bool = False) -> dict[str, Any]:
        """Select another option of a task; ``persist``: in the server's file as well."""
        return await self._admin("POST", _of(task, "select"), {"option": option, "persist": persist})

    async def pin_model(self, task: str, pinned: bool = True, *, option: str | None = None) -> dict[str, Any]:
        """Keep the task's model from being evicted, or no longer."""
        body = {"pinned": pinned} if option is None else {"pinned": pinned, "option": option}
        return await self._admin("POST", _of(task, "pin"), body)

    async def clear_cooldown(self, task: str) -> dict[str, Any]:
        """Forget the failures of the task's model, so that the next request tries it again at once."""
        return await self._admin("POST", _of(task, "cooldown/clear"), {})

    async def evict_lru_model(self) -> dict[str, Any]:
        """Unload the idle model used longest ago."""
        return await self._admin("POST", "evict", {})

    async def reload(self) -> dict[str, Any]:
        """Let the server read its file again. Raises ``ConfigError`` for a bad one, and then nothing has changed."""
        return await self._admin("POST", "reload", {})

    async def drain(self, draining: bool = True) -> dict[str, Any]:
        """Let the server say that it isn't ready, so that nobody sends it more; or ready again."""
        return await self._admin("POST", "drain", {"draining": draining})

    async def _admin(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> dict[str, Any]:
        return dict(await self._transport.manage(method, f"/admin/{path}", body, timeout=timeout))

    # --- the end ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls that are under way fail. Idempotent."""
        await self._transport.close()

    def blocking(self) -> BlockingClient:
        """The same client for synchronous callers: its loop runs in a thread."""
        from taskrouter.client.blocking import BlockingClient

        return BlockingClient(self)


def _of(task: str, what: str) -> str:
    _check_name("task", task)
    return f"tasks/{quote(task, safe='')}/{what}"


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not name or name in (".", ".."):
        raise BadInput(f"{what} is {name!r}; it must be a name")
