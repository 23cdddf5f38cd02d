"""What a server says while it runs, on standard error: what happens to models, and whatever is logged as a warning."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from taskrouter.manager import Happened, ModelManager

logger = logging.getLogger("taskrouter.http")
_NOT = frozenset({"reloaded", "files_removed"})
"""What is logged where it happens."""


@contextmanager
def logged(manager: ModelManager) -> Iterator[None]:
    """Meanwhile the log goes to standard error: of ours all but what is for debugging, of others the warnings.

    Handlers that somebody has set up already are left as they are.
    """
    ours = logging.getLogger("taskrouter")
    before = ours.level
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    ours.setLevel(logging.INFO)
    unwatch = manager.watch(_tell)
    try:
        yield
    finally:
        unwatch()
        ours.setLevel(before)


def _tell(happened: Happened) -> None:
    if happened.what not in _NOT:
        facts = (f"{name}={_shown(value)}" for name, value in happened.facts.items() if value not in (None, [], {}))
        logger.info("%s: %s", happened.what.replace("_", " "), ", ".join(facts) or "-")


def _shown(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value
