"""Task names for the shell's completion."""

from __future__ import annotations

import os

from taskrouter.cli.which_file import ENV, HERE


def task_names(incomplete: str) -> list[str]:
    """The tasks of the file a command would use by default; none where it can't be read: a shell wants no errors."""
    from taskrouter.backends.registry import Registry
    from taskrouter.config import load_catalog
    from taskrouter.errors import TaskRouterError

    path = HERE if os.path.lexists(HERE) else os.environ.get(ENV, "")
    try:
        tasks = load_catalog(path, frameworks=Registry().frameworks()).tasks
    except TaskRouterError:
        return []
    return [name for name in tasks if name.startswith(incomplete)]
