"""Run by SGLang's interpreter: does its own parser take these words? ``sglang.py '["--model-path", …]'`` prints JSON.

Stands alone: nothing of taskrouter is there. This folder must not be imported from, since a module called sglang in it
would hide the real one.
"""

import argparse
import contextlib
import difflib
import io
import json
import re
import sys
from typing import NoReturn


def answer(error: str | None = None) -> NoReturn:
    print(json.dumps({"ok": error is None, "error": error}))  # noqa: T201 (its answer)
    sys.exit(0)


def near(text: str) -> str:
    """The flags that a complaint's unknown flags were probably meant to be."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    meant = [difflib.get_close_matches(word, known, n=1) for word in re.findall(r"--[\w.-]+", text)]
    found = [words[0] for words in meant if words]
    return f" (did you mean {', '.join(found)}?)" if found else ""


def main() -> None:
    sys.path[:] = [place for place in sys.path if place != sys.path[0]]
    from sglang.srt.server_args import prepare_server_args

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            prepare_server_args(json.loads(sys.argv[1]))
    except SystemExit:
        text = said.getvalue().strip().splitlines()[-1:] or ["its parser refused them"]
        unknown = "unrecognized" in text[0]
        answer(text[0].partition("error: ")[2] + (near(text[0]) if unknown else ""))
    except Exception as error:  # noqa: BLE001 (whatever it raises is its answer)
        answer(f"{type(error).__name__}: {error}")
    answer()


main()
