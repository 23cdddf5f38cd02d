"""Fixtures every test may use."""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import settings

# The same examples every time; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


# A shell that starts the tests in the background has SIGINT ignored, by them and by all they start: the tests of Ctrl-C
# would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there before the first test is nobody's garbage: looking through it at each collection takes half of the
    time of those tests that want to see that something is gone.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
