"""No proxy and no provider's own variables: a test talks to its server, and to nobody else."""

from __future__ import annotations

import os

import pytest

_MINE = ("ANTHROPIC_", "OPENAI_", "GOOGLE_", "GEMINI_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_MINE) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
