"""What a provider is: the seam between routing and an external API.

Found by name through the entry-point group ``taskrouter.providers``; the entry point names a class whose constructor
takes no argument. Being imported must be cheap: its SDK is imported by ``connect``, never by the module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a provider is reached, and how. ``base_url`` ``None``: the provider's own. The key is never shown."""

    base_url: str | None
    api_key: str | None = field(repr=False)
    max_connections: int = 100
    connect_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the provider's name of the model, and the bound on the call in seconds (for a stream: on its first
    byte, and on each pause after it). ``who`` is what errors call the option,
    ``key_env`` the environment variable that its key is in."""

    who: str
    model_id: str
    timeout_s: float
    key_env: str = ""


@dataclass(frozen=True, slots=True)
class Takes:
    """What a model of this provider takes beside text, and within which limits.

    ``kinds``: of ``image``, ``audio``, ``video``, ``document``; ``verbs``: what it can be asked. Bytes are those of the
    medium itself, before it is encoded. Types that are empty: any; ``text/*`` is all of that kind.
    """

    verbs: frozenset[str]
    kinds: frozenset[str] = frozenset()
    image_types: frozenset[str] = frozenset()
    audio_types: frozenset[str] = frozenset()
    document_types: frozenset[str] = frozenset()
    most_images: int = 100
    most_image_bytes: int = 10 << 20
    most_request_bytes: int = 32 << 20


class Connection(Protocol):
    """A client of one endpoint, bound to the event loop that made it; it is used by many calls at a time."""

    async def call(self, verb: str, request: Any, call: Call) -> Any:
        """Answer one request. Never retries: that is routing's to decide. Cancelled, it closes its connection.

        Raises ``BadInput`` (``UnsupportedInput``, ``ContextTooLong``) for what the provider can't take, and a class of
        ``ProviderFailed`` for everything else.
        """

        # A connection that holds to ``call.timeout_s`` itself may say so: ``bounds_calls = True`` saves a second timer.

    def stream(self, verb: str, request: Any, call: Call) -> AsyncIterator[Any]:
        """Answer in pieces (an async generator), the last with the usage. The same rules; closing it is cancelling."""

    async def close(self) -> None:
        """Close the connections. Idempotent."""


class ChecksKeys(Protocol):
    """What a connection can do beside, for ``validate --check-keys``."""

    async def check(self, call: Call) -> None:
        """Ask for something that costs nothing and takes a key.

        Raises ``ProviderAuth`` for a key that is refused, and the others as ``call`` does.
        """


class Provider(Protocol):
    """One provider of external APIs."""

    key_env: str
    """The environment variable its key is in, where the file names none."""

    def takes(self, model_id: str) -> Takes:
        """What this model takes. Pure; for a model nobody knows, what the provider's current models take."""

    def base_url(self, api_endpoint: str) -> str:
        """The base URL of an endpoint that may be written in full (``…/v1/messages``)."""

    def connect(self, endpoint: Endpoint) -> Connection:
        """A client. Raises ``MissingDependency`` where the SDK isn't installed."""
