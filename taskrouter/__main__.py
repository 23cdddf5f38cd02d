"""``python -m taskrouter``: the same as the command ``taskrouter``."""

from __future__ import annotations

import sys

from taskrouter.cli import main

if __name__ == "__main__":
    sys.exit(main())
