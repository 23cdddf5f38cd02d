"""Run by an engine's interpreter: ask one parser script about many command lines. Nothing of taskrouter is there."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys


def main() -> None:
    script, lines = sys.argv[1], json.loads(sys.argv[2])
    spec = importlib.util.spec_from_file_location("asked", script)
    assert spec is not None
    assert spec.loader is not None
    asked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(asked)
    for line in lines:
        sys.argv = [script, json.dumps(line)]
        with contextlib.suppress(SystemExit):
            asked.main()


if __name__ == "__main__":
    main()
