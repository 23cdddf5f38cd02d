"""What connections have in common, and what those through the ``openai`` and ``anthropic`` SDKs do, which are alike.

Requests go through the client's ``post``, which both SDKs document for whatever they have no method for: the key, the
headers, the pool, the bounds and the errors are theirs. Their typed methods would copy each request through its types
and build an answer of objects that we would take apart again; that is more than a third of a call's time
(docs/figures.md).
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing
from typing import Any

from taskrouter.backends.external import failures
from taskrouter.backends.external.base import Call, Endpoint
from taskrouter.backends.external.content import written
from taskrouter.errors import TaskRouterError

POOL_PART = 0.9
"""How much of a call's time may go in waiting for a connection of our own pool. Without this bound a full pool would
look like a provider that doesn't answer, and speak against it."""


class BoundedConnection:
    """Holds every call to its bound, and makes typed errors of whatever it ends in."""

    bounds_calls = True

    def __init__(self, key: str | None) -> None:
        self._key = key

    async def call(self, verb: str, request: Any, call: Call) -> Any:
        with self._typed(call):
            async with asyncio.timeout(call.timeout_s):
                return await self._answer(verb, request, call)

    async def check(self, call: Call) -> None:
        """Ask for the provider's models, which costs nothing and takes a key."""
        with self._typed(call):
            try:
                await self._check(call)
            except (AttributeError, TypeError, KeyError) as error:  # an SDK that stumbles over what was answered
                raise failures.nonsense(call, "no list of models") from error

    def _typed(self, call: Call) -> AbstractContextManager[None]:
        return failures.typed(call, self._key, lambda error: self._failure(error, call))

    async def _answer(self, verb: str, request: Any, call: Call) -> Any:
        raise NotImplementedError

    async def _check(self, call: Call) -> None:
        raise NotImplementedError

    def _failure(self, error: Exception, call: Call) -> TaskRouterError:
        raise NotImplementedError


class SDKConnection(BoundedConnection):
    """One client of such an SDK. Its own retries are off: they would wait as long as a server says."""

    key_env: str
    list_bound: int | None = None
    """How many models are asked for to check a key."""

    def __init__(self, sdk: Any, client: type, base_url: str, endpoint: Endpoint) -> None:
        super().__init__(endpoint.api_key)
        self._sdk, self._endpoint = sdk, endpoint
        limits = type(sdk.DEFAULT_CONNECTION_LIMITS)(
            max_connections=endpoint.max_connections, max_keepalive_connections=endpoint.max_connections
        )
        # No redirects: the SDK's own headers, with the key in them, would go wherever the answer points.
        http = sdk.DefaultAsyncHttpxClient(limits=limits, follow_redirects=False)
        self._response = importlib.import_module(type(limits).__module__.partition(".")[0]).Response
        self._client: Any = client(
            api_key=endpoint.api_key or "none",  # one that needs no key still has to be given one
            base_url=base_url,
            max_retries=0,
            http_client=http,
        )

    async def close(self) -> None:
        await self._client.close()

    async def _answer(self, verb: str, request: Any, call: Call) -> Any:
        path, body = await written(request, lambda read: self._written(verb, read, call))
        response = await self._client.post(
            path, body=body, cast_to=self._response, options={"timeout": self._timeout(call)}
        )
        try:
            data = response.json()
        except (ValueError, RecursionError) as error:
            raise failures.nonsense(call, response.text) from error
        if not isinstance(data, dict):
            raise failures.nonsense(call, data)
        return self._read(verb, request, data, call)

    async def stream(self, verb: str, request: Any, call: Call) -> AsyncIterator[Any]:
        with self._typed(call):
            async with asyncio.timeout(call.timeout_s):
                path, body = await written(request, lambda read: self._written(verb, read, call))
                events = await self._client.post(
                    path, body={**body, "stream": True}, cast_to=object, options={"timeout": self._timeout(call)},
                    stream=True, stream_cls=self._sdk.AsyncStream[object],
                )  # fmt: skip
            async with events, aclosing(self._chunks(events, call)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _check(self, call: Call) -> None:
        bound = {} if self.list_bound is None else {"limit": self.list_bound}
        models = await self._client.models.list(**bound, timeout=call.timeout_s)
        if not isinstance(getattr(models, "data", None), list):
            raise failures.nonsense(call, "no list of models")

    def _failure(self, error: Exception, call: Call) -> TaskRouterError:
        return failures.of_sdk(self._sdk, error, call, key_env=call.key_env or self.key_env)

    def _timeout(self, call: Call) -> Any:
        """A call's bound, on each step of it."""
        connect_s = min(self._endpoint.connect_timeout_s, call.timeout_s)
        return self._sdk.Timeout(call.timeout_s, connect=connect_s, pool=POOL_PART * call.timeout_s)

    def _written(self, verb: str, request: Any, call: Call) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request. Blocks where there are media. Raises ``BadInput``."""
        raise NotImplementedError

    def _read(self, verb: str, request: Any, data: dict[str, Any], call: Call) -> Any:
        """What a whole answer says."""
        raise NotImplementedError

    def _chunks(self, events: Any, call: Call) -> AsyncGenerator[Any, None]:
        """What a stream's events say, piece by piece."""
        raise NotImplementedError
