"""Which models.yaml a command uses: the one given, else the one in this folder, else the environment's."""

from __future__ import annotations

import os
from pathlib import Path

from taskrouter.cli.printing import note
from taskrouter.errors import ConfigNotFound, Problem

HERE = "models.yaml"
ENV = "TASKROUTER_CONFIG"


def file_if_any(given: Path | None) -> str | None:
    """The same, for commands that need none; ``None`` where there is none."""
    return which_file(given) if given is not None or os.path.lexists(HERE) or os.environ.get(ENV) else None


def which_file(given: Path | None) -> str:
    """The path to use; says on stderr which, where it wasn't given. Raises ``ConfigNotFound`` where there is none."""
    if given is not None:
        return str(given)
    named = os.environ.get(ENV, "")
    if os.path.lexists(HERE):
        ignored = named and os.path.realpath(named) != os.path.realpath(HERE)
        note(f"using ./{HERE}" + (f" ({ENV} names another; give it as the file to use it)" if ignored else ""))
        return HERE
    if named:
        note(f"using {named} (from {ENV})")
        return named
    hint = f"give the path of yours, or name it in {ENV}; `taskrouter schema` prints its format"
    raise ConfigNotFound([Problem(HERE, 0, 0, "", f"there is no {HERE} in this folder and {ENV} isn't set", hint)])
