"""The core that the residency tests judge; the seeded faults hand theirs to the same test functions."""

from __future__ import annotations

import pytest

from taskrouter.residency.core import Residency

from .account import CoreFactory


@pytest.fixture
def core() -> CoreFactory:
    return Residency
