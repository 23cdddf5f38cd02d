"""The ASGI application: which path is whose, who may ask it, and what an error becomes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Token
from typing import Any, Protocol

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from taskrouter import telemetry
from taskrouter.errors import ManagerClosed
from taskrouter.http import (
    admin,
    anthropic,
    document,
    events,
    exposing,
    health,
    leases,
    models,
    openai,
    pipelines,
    tasks,
)
from taskrouter.http.exchange import Exchange, Gone, Receive, Scope, Send
from taskrouter.http.failing import Refused, failure_of
from taskrouter.http.keys import Keys
from taskrouter.http.missing import meant, style_of
from taskrouter.http.models import VERSION
from taskrouter.http.state import State
from taskrouter.http.transcriptions import transcriptions
from taskrouter.manager import ModelManager
from taskrouter.manager import pipelines as coming

logger = logging.getLogger("taskrouter.http")

CUT_OFF = "the server is shutting down, and what was under way had no more time: ask again once it is back"


class Endpoint(Protocol):
    """Answers one request; ``fields`` are those of its path."""

    def __call__(self, state: State, exchange: Exchange, **fields: str) -> Awaitable[None]: ...


Guard = Callable[[State, Exchange], None]


def open_to_all(state: State, exchange: Exchange) -> None:
    """Health is nobody's secret."""


def with_key(state: State, exchange: Exchange) -> None:
    """A caller's key is wanted, where there are any."""
    exchange.caller = state.keys.caller(exchange.headers)


def with_admin_key(state: State, exchange: Exchange) -> None:
    """The admin's key is wanted."""
    state.keys.check_admin(exchange.headers)


def with_any_key(state: State, exchange: Exchange) -> None:
    """The admin's key or a caller's is wanted, where there are any."""
    state.keys.check_reader(exchange.headers)


class Handler:
    """One path's ASGI application: checks who asks, bounds how much, answers, and tells what failed.

    ``style``: in whose shape; ``None``: a path that both APIs have, so it is the client's.
    """

    def __init__(self, state: State, endpoint: Endpoint, guard: Guard, style: str | None, route: str) -> None:
        self._route = route
        self._state = state
        self._endpoint = endpoint
        self._guard = guard
        self._style = style

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._state.watching, self._state.room)
        style = self._style
        exchange.style = style if style is not None else "anthropic" if VERSION in exchange.headers else "openai"
        entered = False
        begun = time.perf_counter()
        span, token = self._traced(exchange)
        try:
            self._guard(self._state, exchange)
            if exchange.caller is not None:
                self._state.enter(exchange, exchange.caller, asyncio.get_running_loop().time())
                entered = True
            fields = {name: str(value) for name, value in (scope.get("path_params") or {}).items()}
            # The server may begin a request in the context of the one before it on the same connection.
            if exchange.pipeline is coming.current():
                await self._endpoint(self._state, exchange, **fields)
            else:
                with coming.inside(exchange.pipeline):
                    await self._endpoint(self._state, exchange, **fields)
        except Gone:
            pass
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not (exchange.gone or self._state.ending) or task is None or task.uncancel():
                raise
            if not exchange.gone:
                # The time for what is under way is over. Should its client read nothing, the loop's end cancels again.
                with suppress(asyncio.CancelledError):
                    await _tell(exchange, ManagerClosed(CUT_OFF))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told something
            await _tell(exchange, error)
        finally:
            exchange.unwatch()
            if exchange.held:
                self._state.room.leave(exchange.held)
            if entered and exchange.caller is not None:
                self._state.leave(exchange, exchange.caller)
            self._state.ended(exchange, time.perf_counter() - begun)
            if span is not None and token is not None:
                detach(token)
                asked = exchange.asked
                told = {} if asked is None else {"task": asked.named.task, "option": asked.option}
                telemetry.end_request_span(span, exchange.status, **told)  # type: ignore[arg-type]

    def _traced(self, exchange: Exchange) -> tuple[Span | None, Token[Context] | None]:
        """Where anybody traces: the request's span, current from here on."""
        telemetry.leave_request()
        tracing = self._state.tracing
        if not tracing.wants(exchange.headers):
            return None, None
        span, context = telemetry.start_request_span(
            tracing.tracer, exchange.headers, exchange.scope["method"], self._route
        )
        return span, attach(context)


class Gateway(Starlette):
    """Starlette, asked only for what isn't a plain path: its router and middlewares cost a tenth of a request."""

    def __init__(self, routes: list[Route], **how: Any) -> None:
        super().__init__(routes=routes, **how)
        self._plain = {
            (method, route.path): route.app
            for route in routes
            if "{" not in route.path
            for method in route.methods or ()
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        plain = self._plain.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if plain is not None and not self.user_middleware:
            await plain(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _tell(exchange: Exchange, error: Exception) -> None:
    try:
        await exchange.fail(error)
    except Exception:  # the connection is gone, too
        logger.debug("request %s: nobody could be told of %r", exchange.id, error, exc_info=True)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    exchange = Exchange(scope, receive, send)
    exchange.style = style_of(exchange.path, theirs=VERSION in exchange.headers)
    text = f"there is nothing at {exchange.path[:200]!r}{meant(exchange.path, scope['app'].routes)}"
    await exchange.fail(Refused(404, text, code="not_found"))


async def _by_starlette(request: Request, error: Exception) -> Response:
    """What Starlette's router refuses: a method that a path doesn't have."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    refused = Refused(status, f"{request.method} isn't what {request.url.path[:200]!r} is asked with", code="method")
    style = style_of(request.url.path, theirs=VERSION.decode() in request.headers)
    return JSONResponse(failure_of(refused, style, "-").body, status, getattr(error, "headers", None))


def create_app(
    manager: ModelManager, keys: Keys | None = None, *, lifespan: bool = True, traced_per_second: int | None = None
) -> Starlette:
    """The server over a manager, as an ASGI application to be mounted or served.

    With ``lifespan`` it warms up when it starts and shuts the manager down when it ends. ``traced_per_second``: so many
    requests become spans, where anybody traces; ``None``: all.
    """
    state = State(manager, keys if keys is not None else Keys(), traced_per_second)

    def at(path: str, endpoint: Any, method: str, guard: Guard = with_key, style: str | None = "openai") -> Route:
        return Route(path, Handler(state, endpoint, guard, style, path), methods=[method])

    routes = [
        at("/v1/chat/completions", openai.chat_completions, "POST"),
        at("/v1/completions", openai.completions, "POST"),
        at("/v1/embeddings", openai.embeddings, "POST"),
        at("/v1/audio/transcriptions", transcriptions, "POST"),
        at("/v1/messages", anthropic.messages, "POST", style="anthropic"),
        at("/v1/messages/count_tokens", anthropic.count_tokens, "POST", style="anthropic"),
        at("/v1/models", models.models, "GET", style=None),
        at("/v1/models/{name:path}", models.model, "GET", style=None),
        at("/v1/tasks/{task:path}", tasks.task, "POST"),
        at("/v1/leases", leases.leases, "POST"),
        at("/v1/pipelines", pipelines.pipelines, "POST"),
        at("/health", health.health, "GET", open_to_all),
        at("/ready", health.ready, "GET", open_to_all),
        at("/metrics", exposing.metrics, "GET", with_any_key),
        at("/admin/status", admin.status, "GET", with_admin_key),
        at("/admin/models", admin.models, "GET", with_admin_key),
        at("/admin/spend", admin.spend, "GET", with_admin_key),
        at("/admin/events", events.events, "GET", with_admin_key),
        at("/admin/operations/{name}", admin.operation, "GET", with_admin_key),
        at("/admin/tasks/{task}/explain", admin.explain, "GET", with_admin_key),
        at("/admin/tasks/{task}/load", admin.load, "POST", with_admin_key),
        at("/admin/tasks/{task}/unload", admin.unload, "POST", with_admin_key),
        at("/admin/tasks/{task}/remove", admin.remove, "POST", with_admin_key),
        at("/admin/tasks/{task}/select", admin.select, "POST", with_admin_key),
        at("/admin/tasks/{task}/pin", admin.pin, "POST", with_admin_key),
        at("/admin/tasks/{task}/cooldown/clear", admin.clear_cooldown, "POST", with_admin_key),
        at("/admin/evict", admin.evict, "POST", with_admin_key),
        at("/admin/reload", admin.reload, "POST", with_admin_key),
        at("/admin/drain", admin.drain, "POST", with_admin_key),
        at("/openapi.json", document.openapi, "GET", open_to_all),
    ]
    state.routes = routes

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        manager.enter()
        warming = asyncio.ensure_future(manager.warmup_models())
        try:
            yield
        finally:
            state.end()
            warming.cancel()
            await asyncio.wait({warming})
            await manager.shutdown()
            state.forget()

    app = Gateway(
        routes=routes, lifespan=living if lifespan else None, exception_handlers={HTTPException: _by_starlette}
    )
    app.router.default = _not_found  # type: ignore[assignment]
    app.router.redirect_slashes = False
    app.state.taskrouter = state
    return app
