"""The program of a model's process: ``python -m taskrouter.backends.hf.isolated.child``, its standard input a socket.

Whatever it prints goes to the model's log, where a crash in native code leaves its stack too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import socket
import sys

from taskrouter.backends.hf.isolated.host import Host, leave


def given() -> socket.socket:
    """The socket that came as standard input, which reads nothing from then on."""
    end = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return end


async def main() -> None:
    await Host(given()).serve()


if __name__ == "__main__":
    faulthandler.enable(all_threads=False)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(main())
    leave()
