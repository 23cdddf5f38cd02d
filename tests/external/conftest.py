"""No proxy and no provider's own variables: a test talks to its server, and to nobody else."""

from __future__ import annotations

import functools
import os
import ssl

import pytest

from taskrouter.backends.external import openai

_MINE = ("ANTHROPIC_", "OPENAI_", "GOOGLE_", "GEMINI_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_MINE) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def one_set_of_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all certificates for each client would be half of the time, and nothing here is encrypted."""
    monkeypatch.setattr(ssl, "create_default_context", _certificates)


@functools.cache
def _certificates(*_args: object, **_how: object) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture
def openai_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on the loopback counts as OpenAI's own."""
    monkeypatch.setattr(openai, "OWN", "http://127.0.0.1")
