"""The external options of a file: one client per provider and key, a limiter per option, and what calls cost.

They have no residency, so they pass by the core. To callers they are residents all the same: operations run on them,
and a shutdown waits for those.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any, Protocol, cast

from taskrouter import errors
from taskrouter.backends.base import Backend, LoadedModel
from taskrouter.backends.external.base import Call, Connection, Endpoint, Provider
from taskrouter.backends.registry import Registry
from taskrouter.config import Catalog, ModelConfig
from taskrouter.config.frameworks import EXTERNAL
from taskrouter.manager.residents import Resident
from taskrouter.manager.turns import Turns
from taskrouter.types import ModelKey, ModelRequest
from taskrouter.verbs import Usage

logger = logging.getLogger("taskrouter")

TIMEOUT_S = 600.0
"""The bound on one call where the file says none: what the providers' own SDKs take."""
STOP_BOUND_S = 5.0
_WORKED_ON = (errors.ProviderTimeout, errors.ProviderBrokeOff, asyncio.CancelledError)
"""What a call ends in while its provider works on, and is paid for it."""
TOKENS_OF_A_MEDIUM = 1000
"""About what providers count for a picture; used only where one doesn't say what it counted."""


class Ledger(Protocol):
    """What the spend ledger is to the manager; ``taskrouter.spend.SpendLedger`` is one."""

    async def record(
        self, *, provider: str, task: str, option: str, model_id: str, input_tokens: int, output_tokens: int, usd: float
    ) -> None:
        """Keep what a call cost."""

    def spent_today(self, provider: str) -> float:
        """Dollars of today."""

    async def close(self) -> None:
        """Give up what it holds."""


def key_env_of(catalog: Catalog, config: ModelConfig, provider: Provider) -> str:
    """The environment variable that holds an option's key."""
    settings = catalog.providers.get(config.provider or "")
    return config.api_key_env or (settings.api_key_env if settings else None) or provider.key_env


def key_of(task: str, option: str) -> ModelKey:
    """How an external option is called where a model is named."""
    return ModelKey(f"external:{task}/{option}")


class ExternalModel:
    """One external option, asked like a loaded model."""

    measured = None
    verbs: frozenset[str] = frozenset()

    def __init__(self, externals: Externals, task: str, option: str, config: ModelConfig, provider: Provider) -> None:
        self._externals = externals
        self._task, self._option = task, option
        self._config = config
        self._provider = provider
        self._extra = dict(config.engine_args)
        self.key_env = key_env_of(externals.catalog, config, provider)
        self._call = Call(f"{task}/{option}", config.model_id, config.timeout_s or TIMEOUT_S, self.key_env)

    def __repr__(self) -> str:
        return f"<ExternalModel {self._call.who} {self._config.provider} {self._config.model_id}>"

    @property
    def raw(self) -> Any:
        """The provider's connection."""
        return self._connection()

    @property
    def info(self) -> Mapping[str, Any]:
        return {"provider": self._config.provider, "model_id": self._config.model_id, "endpoint": self._base_url()}

    def _base_url(self) -> str | None:
        endpoint = self._config.api_endpoint
        return self._provider.base_url(endpoint) if endpoint else None

    def _connection(self) -> Connection:
        key = os.environ.get(self.key_env) or None
        if key is None and self._config.requires_api_key:
            raise errors.KeyMissing(
                f"{self._call.who} needs the key of {self._config.provider}: set {self.key_env} in the environment"
            )
        return self._externals.connection(self._config.provider or "", self._provider, self._base_url(), key)

    async def call(self, verb: str, request: Any) -> Any:
        """Answer one request, within ``timeout_s``."""
        connection, request = self._connection(), self._with_extra(request)
        try:
            answer = await self._answer(connection, verb, request)
        except _WORKED_ON:
            await self._spent(Usage(_estimate(request), 0))
            raise
        # Some answers don't say what they took: embeddings, transcripts, servers that nearly speak an API.
        await self._spent(getattr(answer, "usage", None) or Usage(_estimate(request), 0))
        return answer

    async def _answer(self, connection: Connection, verb: str, request: Any) -> Any:
        bound = None if getattr(connection, "bounds_calls", False) else self._call.timeout_s
        try:
            if bound is None:
                return await connection.call(verb, request, self._call)
            async with asyncio.timeout(bound):
                return await connection.call(verb, request, self._call)
        except TimeoutError as error:
            if isinstance(error, errors.TaskRouterError):
                raise
            text = f"{self._call.who} did not answer within {self._call.timeout_s:g} s (timeout_s)"
            raise errors.ProviderTimeout(text) from error

    async def stream(self, verb: str, request: Any) -> AsyncIterator[Any]:
        """Answer in pieces. What an answer that was not had to its end cost is estimated: its provider doesn't say."""
        connection, request = self._connection(), self._with_extra(request)
        usage: Usage | None = None
        pieces, counted, worked_on = 0, False, False
        try:
            async with aclosing(connection.stream(verb, request, self._call)) as stream:  # type: ignore[type-var]
                while (piece := await self._next(stream)) is not None:
                    pieces += 1
                    usage = getattr(piece, "usage", None) or usage
                    if usage is not None and getattr(piece, "finish_reason", None) is not None and not counted:
                        counted = True
                        await self._spent(usage)
                    yield piece
        except _WORKED_ON:
            worked_on = True
            raise
        finally:
            if (pieces or worked_on) and not counted:
                await self._spent(usage or Usage(_estimate(request), pieces))

    async def _next(self, stream: Any) -> Any:
        """The next piece, ``None`` at the end. A server that only says that it is still there says nothing."""
        try:
            async with asyncio.timeout(self._call.timeout_s):
                return await anext(stream, None)
        except TimeoutError as error:
            if isinstance(error, errors.TaskRouterError):
                raise
            text = f"{self._call.who} sent nothing more for {self._call.timeout_s:g} s (timeout_s)"
            raise errors.ProviderTimeout(text) from error

    def _with_extra(self, request: Any) -> Any:
        """The request with ``engine_args`` as its defaults; what the caller says goes over them."""
        if not self._extra or not hasattr(request, "extra"):
            return request
        return replace(request, extra={**self._extra, **request.extra})

    async def _spent(self, usage: Usage) -> None:
        price = self._config.price
        try:
            read, written = max(int(usage.prompt_tokens), 0), max(int(usage.completion_tokens), 0)
            usd = (read * price.input_per_mtok + written * price.output_per_mtok) / 1e6 if price is not None else 0.0
            await self._externals.ledger.record(
                provider=self._config.provider or "", task=self._task, option=self._option,
                model_id=self._config.model_id, input_tokens=read, output_tokens=written, usd=usd,
            )  # fmt: skip
        except (ValueError, TypeError) as error:
            # A provider whose count makes no sense: its answer is an answer all the same.
            logger.warning("what %s cost can't be counted: %s", self._call.who, error)

    async def wait_dead(self) -> Exception:
        """Never: nothing of it is here."""
        await asyncio.Event().wait()
        raise AssertionError("an event nobody sets")


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _estimate(request: Any) -> int:
    """About how many tokens a request has: a quarter of its characters, and so many for each medium."""
    texts, media = [str(getattr(request, "prompt", "") or "")], 0
    texts += [str(text) for text in getattr(request, "inputs", ())]
    for message in getattr(request, "messages", ()):
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else [{"text": content}]:
            text = part.get("text") if isinstance(part, Mapping) else None
            media += text is None
            texts.append(str(text or ""))
    return sum(map(len, texts)) // 4 + media * TOKENS_OF_A_MEDIUM


def _settings(catalog: Catalog, task: str, option: str) -> tuple[Any, Any] | None:
    """All that decides how an external option is asked; ``None`` where there is none of that name."""
    known = catalog.tasks.get(task)
    config = known.options.get(option) if known is not None else None
    return None if config is None else (config, catalog.providers.get(config.provider or ""))


def to_midnight() -> float:
    """Seconds until the day of the books is over (UTC)."""
    now = datetime.now(UTC)
    return ((now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0) - now).total_seconds()


class Externals:
    """All external options of one manager, bound to its event loop."""

    def __init__(self, catalog: Catalog, registry: Registry, ledger: Ledger) -> None:
        self.catalog = catalog
        self.ledger = ledger
        self._registry = registry
        self._residents: dict[tuple[str, str], Resident] = {}
        self._turns: dict[tuple[str, str], Turns] = {}
        self._left: list[Resident] = []
        """Options that are configured no more, or otherwise, and still at work."""
        self._closings: set[asyncio.Task[None]] = set()
        self._naps: set[asyncio.Future[None]] = set()
        self._closed = False
        self.ending = False
        """Whether nothing new is begun."""
        self._connections: dict[tuple[str, str | None, str | None], Connection] = {}

    def configure(self, catalog: Catalog) -> None:
        """Go on with another file. Calls that are under way end as they began; clients are closed behind the last."""
        before, self.catalog = self.catalog, catalog
        for task, option in list(self._residents):
            if _settings(before, task, option) != _settings(catalog, task, option):
                self._left.append(self._residents.pop((task, option)))
        self._left = [resident for resident in self._left if resident.operations]
        for (task, option), turns in list(self._turns.items()):
            config = catalog.tasks[task].options.get(option) if task in catalog.tasks else None
            most = config.max_concurrency if config is not None else None
            turns.allow(inf if most is None else most)
            if most is None:
                del self._turns[task, option]
        for place in list(self._connections):
            if before.providers.get(place[0]) != catalog.providers.get(place[0]):
                closing = asyncio.get_running_loop().create_task(self._close_behind(self._connections.pop(place)))
                self._closings.add(closing)
                closing.add_done_callback(self._closings.discard)

    async def _close_behind(self, connection: Connection) -> None:
        if working := self._working():
            await asyncio.wait(working)
        try:
            await connection.close()
        except Exception:
            logger.exception("a client that is used no more could not be closed")

    def resident(self, task: str, option: str) -> Resident:
        """The option, as something that can be asked. Raises what keeps its provider from being used."""
        found = self._residents.get((task, option))
        if found is None:
            config = self.catalog.tasks[task].options[option]
            provider = self._registry.provider(config.provider or "")
            request = ModelRequest(key_of(task, option), f"{task}/{option}", EXTERNAL, config.model_id)
            model = ExternalModel(self, task, option, config, provider)
            found = Resident(request, 0, cast(Backend, None), cast(LoadedModel, model))
            self._residents[task, option] = found
        return found

    def account(self, task: str, option: str) -> str:
        """Whom the provider counts its calls to: what it says of its limits holds for one address and one key."""
        config = self.catalog.tasks[task].options[option]
        settings = self.catalog.providers.get(config.provider or "")
        variable = config.api_key_env or (settings.api_key_env if settings else None)
        return f"{config.provider} {config.api_endpoint or ''} {variable or ''}"

    def turns(self, task: str, option: str) -> Turns | None:
        """What bounds the calls to an option; ``None`` where nothing does."""
        most = self.catalog.tasks[task].options[option].max_concurrency
        if most is None:
            return None
        found = self._turns.get((task, option))
        if found is None:
            found = self._turns[task, option] = Turns(f"{task}/{option}", most)
        return found

    async def nap(self, until: float) -> None:
        """Wait until then (loop time). Raises ``ManagerClosed`` where all is ending."""
        self._check_open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._naps.add(future)
        alarm = loop.call_at(until, _wake, future)
        try:
            await future
        finally:
            alarm.cancel()
            self._naps.discard(future)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.ManagerClosed("the manager was shut down")

    def connection(self, name: str, provider: Provider, base_url: str | None, key: str | None) -> Connection:
        """The one client of this provider, address and key."""
        self._check_open()
        made = self._connections.get((name, base_url, key))
        if made is None:
            settings = self.catalog.providers.get(name)
            pool = (
                {}
                if settings is None
                else {
                    "max_connections": settings.max_connections,
                    "connect_timeout_s": settings.connect_timeout_s,
                }
            )
            made = provider.connect(Endpoint(base_url, key, **pool))  # type: ignore[arg-type]
            self._connections[name, base_url, key] = made
        return made

    def over_budget(self, provider: str) -> float | None:
        """The provider's daily budget in dollars, where it is spent."""
        settings = self.catalog.providers.get(provider)
        most = settings.daily_budget_usd if settings is not None else None
        return most if most is not None and self.ledger.spent_today(provider) >= most else None

    async def close(self, drain_s: float) -> None:
        """Let calls end for so many seconds, tell the others to stop, and close the clients."""
        self._closing()
        loop = asyncio.get_running_loop()
        end = loop.time() + drain_s
        while (working := self._working()) and loop.time() < end:
            await asyncio.wait(working, timeout=end - loop.time())
        for resident in (*self._residents.values(), *self._left):
            text = f"{resident.request.label} was still answering {drain_s:g} s after the manager began to shut down"
            resident.stop_operations(errors.ManagerClosed(text))
        if working := self._working():
            await asyncio.wait(working, timeout=STOP_BOUND_S)
        self._closed = True
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.close()
        if self._closings:
            await asyncio.wait(self._closings)
        await self.ledger.close()

    def _closing(self) -> None:
        """Refuse who waits: for a turn, or to ask again."""
        self.ending = True
        for turns in self._turns.values():
            turns.close()
        for nap in self._naps:
            if not nap.done():
                nap.set_exception(errors.ManagerClosed("the manager was shut down before this was asked again"))

    def _working(self) -> set[asyncio.Task[Any]]:
        return {
            operation.task
            for resident in (*self._residents.values(), *self._left)
            for operation in resident.operations
            if operation.task is not None
        }
