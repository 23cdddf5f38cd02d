"""Run by SGLang's interpreter: does its own parser take these words? ``sglang.py '["--model-path", …]'`` prints JSON.

The words may come on standard input instead. Only parsed: what SGLang makes of them (``resolve_once``) reads the
checkpoint and wants the GPU. Stands alone: nothing of taskrouter is there. This folder must not be imported from, since
a module called sglang in it would hide the real one.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

FOLDER = os.path.dirname(os.path.abspath(__file__))


def answer(error: str | None = None) -> NoReturn:
    print(json.dumps({"ok": error is None, "error": error}))  # noqa: T201 (its answer)
    sys.exit(0)


def complaint(parser: Any, text: str) -> str:
    """What a parser said, with what was probably meant: the nearest flags, or the nearest of the choices."""
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    if "unrecognized" in text:
        wrong = re.findall(r"--[\w.-]+", text)
        switches = [word for word in wrong if word.startswith("--no-") and f"--{word[5:]}" in flags]
        if switches:
            return f"{text} (--{switches[0][5:]} can only be switched on: leave it out)"
        return text + meant(wrong, flags)
    choice = re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", text)
    return text + (meant([choice[1]], re.split(r", ", choice[2].replace("'", ""))) if choice else "")


def meant(wrong: Iterable[str], known: list[str]) -> str:
    close = [difflib.get_close_matches(word, known, n=1) for word in wrong]
    found = [words[0] for words in close if words]
    return f" (did you mean {', '.join(found)}?)" if found else ""


def main() -> None:
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != FOLDER]
    words = json.loads(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read())
    from sglang.srt.server_args import ServerArgs, prepare_server_args

    # Not abbreviated, as its own parser allows: --tensor-parallel would be taken for a flag that is ours to write.
    parser = argparse.ArgumentParser(prog="sglang serve", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    said = io.StringIO()
    wrong: str | None = None
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(words)
            prepare_server_args(words)
    except SystemExit:
        text = said.getvalue().strip().splitlines()[-1:] or ["its parser refused them"]
        wrong = text[0].partition("error: ")[2] or text[0]
    except Exception as error:  # noqa: BLE001 (whatever it raises is its answer)
        answer(f"{type(error).__name__}: {error}")
    answer(wrong and complaint(parser, wrong))


if __name__ == "__main__":
    main()
