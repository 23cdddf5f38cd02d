"""The command line: it parses, calls the manager, and prints: for people, or with ``--json`` for programs.

What a command does is imported when it runs, so that ``--help`` and shell completion are quick.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``arguments`` are those of the process by default.

    Everything this library raises on purpose becomes one message on stderr; see ``exits`` for the codes.
    """
    from taskrouter.cli.app import run_app
    from taskrouter.cli.exits import Exit, leave

    code = run_app(arguments)
    if code == Exit.INTERRUPTED and arguments is None:
        leave(code)
    return code
