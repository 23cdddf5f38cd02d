"""Run by vLLM's interpreter: does its own parser take these words? ``vllm.py '["--model", …]'`` prints JSON.

The words may come on standard input instead. Stands alone: nothing of taskrouter is there. This folder must not be
imported from, since a module called vllm in it would hide the real one.
"""

import contextlib
import difflib
import importlib
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
        return text + meant(re.findall(r"--[\w.-]+", text), flags)
    choice = re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", text)
    return text + (meant([choice[1]], re.split(r", ", choice[2].replace("'", ""))) if choice else "")


def meant(wrong: Iterable[str], known: list[str]) -> str:
    close = [difflib.get_close_matches(word, known, n=1) for word in wrong]
    found = [words[0] for words in close if words]
    return f" (did you mean {', '.join(found)}?)" if found else ""


def unregistered(arguments: Any) -> str | None:
    """What is wrong with words that the parser takes as any text, and only a start would look up, or nothing would."""
    if getattr(arguments, "model_tag", None) is not None:
        return f"{arguments.model_tag!r} belongs to no flag: the one before it takes no value"
    with contextlib.suppress(ImportError, AttributeError):
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

        if arguments.quantization not in (None, *QUANTIZATION_METHODS):
            return invalid("--quantization", arguments.quantization, QUANTIZATION_METHODS)
    with contextlib.suppress(ImportError, AttributeError):
        from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER

        if str(arguments.load_format) not in ("auto", *_LOAD_FORMAT_TO_MODEL_LOADER):
            return invalid("--load-format", arguments.load_format, _LOAD_FORMAT_TO_MODEL_LOADER)
    return None


def invalid(flag: str, value: str, known: Iterable[str]) -> str:
    return f"argument {flag}: invalid choice: {value!r} (choose from {', '.join(known)})"


def main() -> None:
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != FOLDER]
    words = json.loads(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read())
    for place in ("common", "launchers", "openai"):  # from 0.33 on, in 0.32, before
        with contextlib.suppress(ImportError):
            found = importlib.import_module(f"vllm.entrypoints.{place}.cli_args")
            make_arg_parser, validate_parsed_serve_args = found.make_arg_parser, found.validate_parsed_serve_args
            break
    else:
        raise ImportError("this release of vLLM keeps make_arg_parser where taskrouter doesn't know it")
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser
    from vllm.engine.arg_utils import AsyncEngineArgs

    # Not abbreviated: --tensor-parallel would be taken for a flag that is ours to write.
    parser = make_arg_parser(FlexibleArgumentParser(allow_abbrev=False))
    said = io.StringIO()
    wrong: str | None = None
    try:
        with contextlib.redirect_stderr(said):
            arguments = parser.parse_args(words)
        validate_parsed_serve_args(arguments)
        AsyncEngineArgs.from_cli_args(arguments)
        wrong = unregistered(arguments)
    except SystemExit:
        text = said.getvalue().strip().splitlines()[-1:] or ["its parser refused them"]
        wrong = text[0].partition("error: ")[2] or text[0]
    except Exception as error:  # noqa: BLE001 (whatever it raises is its answer)
        answer(f"{type(error).__name__}: {error}")
    answer(wrong and complaint(parser, wrong))


if __name__ == "__main__":
    main()
