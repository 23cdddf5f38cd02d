"""Run by SGLang's interpreter in place of ``-m sglang.launch_server``, with what can't stand in a command line.

The API key comes by the environment: a command line is everybody's to read. And SGLang's processes meet by a file in
this start's own temporary folder: SGLang 0.5.23 would have them meet by torch's TCPStore, which listens on every
interface of the machine and asks nobody who they are.

Stands alone: nothing of taskrouter is there.
"""

import os
import runpy
import sys
import tempfile

FOLDER = os.path.dirname(os.path.abspath(__file__))

if __name__ == "__main__":
    # In this folder a module is called sglang, too.
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != FOLDER]
    key = os.environ.pop("TASKROUTER_API_KEY", None)
    if key:
        sys.argv += ["--api-key", key]
    os.environ["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"file://{tempfile.gettempdir()}/rendezvous"
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
