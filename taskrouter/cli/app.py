"""The commands, their arguments and their help; what each does is imported when it runs."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from taskrouter.cli.exits import EPILOG, Exit, guarded
from taskrouter.cli.flags import Json
from taskrouter.cli.remote_commands import remote

app = typer.Typer(
    name="taskrouter",
    help="Many AI models on few GPUs: models.yaml names the tasks, and the models that do them take turns in memory.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FILE_HELP = "models.yaml; by default ./models.yaml, else the one that TASKROUTER_CONFIG names."


def run_app(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An answer may hold what the terminal's encoding can't say.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="taskrouter")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else Exit.OK if end.code is None else Exit.NO
    return Exit.OK


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"taskrouter {version('taskrouter')}")
        except PackageNotFoundError:
            print("taskrouter (run from a source tree that was never installed)")
        raise typer.Exit


@contextmanager
def _logging(*, verbose: bool) -> Iterator[None]:
    """Log everything, or nothing that the error which ends a command says again, with a traceback."""
    ours, traces = logging.getLogger("taskrouter"), logging.getLogger("taskrouter.telemetry")
    before = ours.level, traces.level
    with warnings.catch_warnings():
        if verbose:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
        else:
            warnings.simplefilter("ignore")
            ours.setLevel(logging.CRITICAL)
            traces.setLevel(logging.WARNING)
        try:
            yield
        finally:
            ours.setLevel(before[0])
            traces.setLevel(before[1])


@app.callback()
def _before(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done, with tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.with_resource(_logging(verbose=verbose))


def _complete_task(incomplete: str) -> list[str]:
    from taskrouter.cli.completion import task_names

    return task_names(incomplete)


@app.command(epilog=EPILOG)
@guarded
def demo(
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for the models, such as 70MiB; by default it holds two of three."),
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Also send the traces to this collector, such as http://localhost:4318."),
    ] = None,
    report: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the report on the video is written.")] = Path(
        "video_report"
    ),
    as_json: Json = False,
) -> int:
    """Run pictures, sounds and sentences through three models, of which only two fit in memory at a time.

    Then a video: what is said in it, what is seen and what happens, by three more; a report and a picture are written.

    Uses an NVIDIA GPU where there is one, else the CPU and RAM. Needs no network. Exit code 1: an answer was wrong.
    """
    from taskrouter.cli.demo import demo as show

    return show(budget=budget, otlp=otlp, as_json=as_json, report=report)


@app.command(epilog=EPILOG)
@guarded
def run(
    task: Annotated[str, typer.Argument(help="A task of models.yaml.", autocompletion=_complete_task)],
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="A path, or - for stdin; for chat also the text itself."),
    ],
    file: Annotated[Path | None, typer.Option("--file", "-f", help=_FILE_HELP)] = None,
    option: Annotated[str | None, typer.Option(help="Another option of the task than the selected one.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classification: how many labels.")] = 5,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Chat: the most tokens to answer with.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait for the model to be ready; default max_wait_s.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Ask a task's model: classify a picture or a sound, or answer a text (streamed as it is written)."""
    from taskrouter.cli.run import Question
    from taskrouter.cli.run import run as ask

    question = Question(task, inputs, option, top_k, max_tokens, timeout)
    return ask(question, file, as_json=as_json)


@app.command(epilog=EPILOG)
@guarded
def validate(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=_FILE_HELP)] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", help="A machine that isn't here: the next GPU's size, or cpu=SIZE. Repeatable."),
    ] = None,
    all_resident: Annotated[
        bool, typer.Option("--all-resident", help="Ask that all selected options fit at once.")
    ] = False,
    check_keys: Annotated[
        bool, typer.Option("--check-keys", help="Ask the providers whether they take the keys of external options.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Check models.yaml, then whether it fits the machine: what together, what by swapping, what never.

    Exit code 1: a selected option can't fit beside what is pinned, or can't be used here, or a key that was asked for
    isn't known to be taken; 2: the file is wrong.
    """
    from taskrouter.cli.validate import validate as check

    return check(file, device or (), all_resident=all_resident, keys=check_keys, as_json=as_json)


_Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", metavar="SIZE", help="A machine that isn't here: the next GPU's size, or cpu=SIZE. Repeatable."
    ),
]
_Trace = Annotated[Path | None, typer.Option(metavar="PATH", help="Requests: JSONL, or an Azure or BurstGPT CSV.")]
_Made = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="Requests that are made: zipf:1.1, shift, burst, cycle, alternate, storm, rare, huge."
    ),
]
_Requests = Annotated[
    int | None, typer.Option(min=1, max=10_000_000, help="How many requests are made; default 10,000.")
]
_Rate = Annotated[float | None, typer.Option(min=1e-6, max=1e6, help="Requests a second that are made; default 1.")]
_Hold = Annotated[
    float, typer.Option(min=0, max=1e6, help="Seconds a request uses its model, where the trace doesn't say.")
]
_Seed = Annotated[int | None, typer.Option(help="Another seed makes another trace of the same kind; default 0.")]
_Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="RULE", help="Rows of a CSV to a task: COLUMN=VALUE:TASK, COLUMN>N:TASK, *:TASK."),
]
_Tokens = Annotated[
    float | None,
    typer.Option(min=1e-3, max=1e6, help="Tokens a model writes in a second, for CSVs; default 50."),
]
_Skip = Annotated[bool, typer.Option("--skip-broken", help="Leave out lines that can't be used, and say so.")]


@app.command(epilog=EPILOG)
@guarded
def simulate(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=_FILE_HELP)] = None,
    trace: _Trace = None,
    synthetic: _Made = None,
    requests: _Requests = None,
    rate: _Rate = None,
    hold: _Hold = 0.5,
    seed: _Seed = None,
    rules: _Map = None,
    tokens_per_s: _Tokens = None,
    skip_broken: _Skip = False,
    device: _Devices = None,
    policy: Annotated[str | None, typer.Option(help="Another policy than the file's.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="A,B", help="Several policies side by side, such as lru,cost_aware.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Also draw it: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> int:
    """Rehearse models.yaml with a trace, on this machine or another: waits, cold starts, evictions; nothing is loaded.

    Exit code 2: the file, the trace or an argument is wrong.
    """
    from taskrouter.cli.rehearse import Source
    from taskrouter.cli.simulate import simulate as show

    source = Source(trace, synthetic, requests, rate, hold, seed, rules or (), tokens_per_s, skip_broken)
    return show(file, source, devices=device or (), policy=policy, compare=compare, plot=plot, as_json=as_json)


@app.command(epilog=EPILOG)
@guarded
def why(
    task: Annotated[str, typer.Argument(help="A task of models.yaml.", autocompletion=_complete_task)],
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=_FILE_HELP)] = None,
    trace: _Trace = None,
    synthetic: _Made = None,
    requests: _Requests = None,
    rate: _Rate = None,
    hold: _Hold = 0.5,
    seed: _Seed = None,
    rules: _Map = None,
    tokens_per_s: _Tokens = None,
    skip_broken: _Skip = False,
    device: _Devices = None,
    last: Annotated[int, typer.Option(min=1, help="How many decisions, the latest.")] = 20,
    as_json: Json = False,
) -> int:
    """Tell what was decided for a task's models and by which rule: from a trace, or by rehearsing it.

    Exit code 2: the file, the task, the trace or an argument is wrong.
    """
    from taskrouter.cli.rehearse import Source
    from taskrouter.cli.why import why as tell

    source = Source(trace, synthetic, requests, rate, hold, seed, rules or (), tokens_per_s, skip_broken)
    return tell(task, file, source, devices=device or (), last=last, as_json=as_json)


@app.command(epilog=EPILOG)
@guarded
def serve(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=_FILE_HELP)] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: the file's, 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; default: the file's, 8700. 0: any free one.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Serve models.yaml over HTTP: the OpenAI API, a call for every kind of task, an admin API, health and metrics.

    SIGTERM lets what is under way end, SIGHUP reads the file again. Exit code 2: the file or the address is wrong.
    """
    from taskrouter.cli.serve import serve as run

    return run(file, host=host, port=port, as_json=as_json)


@app.command(epilog=EPILOG)
@guarded
def schema(as_json: Json = False) -> int:
    """Print the JSON Schema of models.yaml, for editors and checks."""
    from taskrouter.cli.printing import print_json
    from taskrouter.config import json_schema

    # The answer is JSON either way; the flag is there so that every command takes it.
    print_json(json_schema())
    return Exit.OK


class By(StrEnum):
    """What spend is told apart by."""

    PROVIDER = "provider"
    TASK = "task"
    OPTION = "option"
    DAY = "day"


@app.command(epilog=EPILOG)
@guarded
def spend(
    days: Annotated[int, typer.Option(min=1, help="How many days, of which today (UTC) is the last.")] = 7,
    by: Annotated[By, typer.Option(help="One line for each of these.")] = By.OPTION,
    file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The ledger; by default taskrouter/spend.db in the user's state folder."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Show what calls to external providers cost: requests, tokens and dollars, over all processes of this user.

    Only reads: where nothing was spent it says so, with exit code 0. Exit code 1: the ledger can't be read.
    """
    from taskrouter.cli.spend import spend as show

    return show(file, days=days, by=by.value, as_json=as_json)


app.add_typer(remote)

engines = typer.Typer(
    help="The engines that run as child processes (vLLM, SGLang): install them, list them, find what is wrong.",
    epilog=EPILOG,
    no_args_is_help=True,
)
app.add_typer(engines, name="engines")


@engines.command(epilog=EPILOG)
@guarded
def install(
    engine: Annotated[str, typer.Argument(help="vllm or sglang.")],
    cpu: Annotated[bool, typer.Option("--cpu", help="The set for machines without a GPU.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where the environment goes; by default .venvs/ENGINE beside the file.")
    ] = None,
    torch: Annotated[
        str | None, typer.Option(help="What pip installs as torch, such as 'torch==2.13.0 --index-url …'.")
    ] = None,
    extra: Annotated[list[str] | None, typer.Option("--with", help="One more requirement. Repeatable.")] = None,
    write: Annotated[Path | None, typer.Option(help="A models.yaml that is told of it; comments are kept.")] = None,
    proof: Annotated[bool, typer.Option("--proof/--no-proof", help="Serve a sample with it before it counts.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Make it anew, also where it is there already.")] = False,
    as_json: Json = False,
) -> int:
    """Make an engine its own environment from a pinned set of packages, and prove it by serving a sample.

    Exit code 1: it could not be made, or can't serve here.
    """
    from taskrouter.cli.engine_install import Wanted, install_engine

    wanted = Wanted(engine, cpu, folder, torch, extra or (), write, proof, force)
    return install_engine(wanted, as_json=as_json)


@engines.command(name="list", epilog=EPILOG)
@guarded
def list_(file: Annotated[Path | None, typer.Argument(metavar="[FILE]")] = None, as_json: Json = False) -> int:
    """Show each engine: its version, what it can do here, its interpreter, and which options use it."""
    from taskrouter.cli.engine_state import list_engines
    from taskrouter.cli.which_file import file_if_any

    return list_engines(file_if_any(file), as_json=as_json)


@engines.command(epilog=EPILOG)
@guarded
def doctor(file: Annotated[Path | None, typer.Argument(metavar="[FILE]")] = None, as_json: Json = False) -> int:
    """Say what is wrong with the engines of models.yaml on this machine. Exit code 1: something is."""
    from taskrouter.cli.engine_state import doctor as examine
    from taskrouter.cli.which_file import file_if_any

    return examine(file_if_any(file), as_json=as_json)
