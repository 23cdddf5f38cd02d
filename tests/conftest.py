"""Fixtures every test may use."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The same examples every time; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
