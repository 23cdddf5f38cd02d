"""The command as such: help, exit codes, completion, and how it ends when it is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

import taskrouter.cli.app
from taskrouter import errors
from taskrouter.cli import main
from taskrouter.cli.app import app
from taskrouter.cli.exits import EPILOG, Exit, exit_code
from taskrouter.errors import TaskRouterError

from .stage import FAKE, Cli, write

COMMANDS = ("demo", "run", "validate", "schema")
HEAVY = ("torch", "transformers", "numpy", "PIL", "av", "yaml", "pydantic")


def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "taskrouter", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **more},
    )  # fmt: skip


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_names_the_exit_codes_and_every_command_takes_json(command: str | None) -> None:
    result = CliRunner().invoke(app, [command, "--help"] if command else ["--help"], env={"COLUMNS": "400"})
    assert result.exit_code == 0
    assert EPILOG in result.output
    assert ("--json" in result.output) == (command is not None)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from taskrouter.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert "typer" in loaded
    assert not [name for name in HEAVY if name in loaded]


def test_the_package_runs_as_a_module() -> None:
    process = start("--version")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("taskrouter ")


def test_no_command_shows_help_and_a_wrong_one_is_usage(cli: Cli) -> None:
    assert "Usage:" in cli().out + cli().err
    wrong = cli("validat")
    assert wrong.code == 2
    assert "validate" in wrong.err
    assert cli("run", "look").code == 2
    assert cli("run", "look", "x", "--top-k", "0").code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError([]), 2),
        (errors.UnknownTask("x"), 2),
        (errors.UnknownOption("x"), 2),
        (errors.UnsupportedVerb("x"), 2),
        (errors.MediaTooLarge("x"), 2),
        (errors.InsufficientMemory("x"), 1),
        (errors.CheckpointMissing("x"), 1),
        (errors.CallFailed("x"), 1),
        (errors.DeviceInUse("x"), 1),
    ],
)
def test_what_was_given_wrong_is_2_and_what_failed_is_1(error: TaskRouterError, code: int) -> None:
    assert exit_code(error) == code


def test_the_schema_is_json_and_holds_a_real_file(cli: Cli) -> None:
    result = cli("schema")
    assert result.code == 0
    jsonschema.validate(yaml.safe_load(FAKE), result.data)
    assert result.data["title"] == "taskrouter models.yaml", "editors show it"
    assert cli("schema", "--json").data == result.data


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    process = start("schema")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(60), said) == (Exit.NOBODY_READS, "")
    process.stderr.close()


def test_ctrl_c_while_a_model_answers_ends_the_command_with_130(tmp_path: Path) -> None:
    option = "{model_id: m, framework: fake, engine_args: {bytes: 1MiB, hang: call}}"
    write(tmp_path, f"tasks: {{t: {{kind: chat, selected: m, options: {{m: {option}}}}}}}")
    process = start("run", "t", "hello", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert process.stdout.read(2) == "m:", "the first word came, and the rest hangs"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert err.splitlines()[-1] == "taskrouter: interrupted"
    assert "Traceback" not in err


INTERRUPTED_BESIDE_A_THREAD = """
import atexit, sys
import taskrouter.config
from taskrouter.cli import main

def interrupt():
    raise KeyboardInterrupt

taskrouter.config.json_schema = interrupt
atexit.register(print, "an import in a thread fails now", file=sys.stderr)
sys.argv = ["taskrouter", "schema"]
sys.exit(main())
"""


def test_an_interrupt_ends_the_process_before_its_libraries_clean_up() -> None:
    # Ctrl-C while a thread imported torch: torch's own end-of-process clean-up printed a screen of tracebacks.
    command = [sys.executable, "-c", INTERRUPTED_BESIDE_A_THREAD]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (Exit.INTERRUPTED, "taskrouter: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("demo",), ("validate", "--json"), ("schema",)])
def test_a_full_disk_behind_stdout_is_one_message(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    write(tmp_path)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "taskrouter", *arguments]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ended.returncode == Exit.NO
    assert ended.stderr.splitlines()[-1].startswith("taskrouter: the system refused: ")
    assert "Traceback" not in ended.stderr


def test_a_closed_stdout_is_said_before_anything_is_done(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    result = cli("demo")
    assert (result.code, result.err.count("\n")) == (Exit.NOBODY_READS, 1)
    assert "stdout is closed" in result.err


def test_a_closed_stderr_does_not_end_up_on_stdout(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli("run", "say", "hello").out == "parrot: hello\n"
    assert (cli("run", "nothing", "hello").code, cli("run", "nothing", "hello").out) == (2, "")


def test_an_interrupted_command_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskrouter.config.json_schema", interrupt, raising=False)
    result = cli("schema")
    assert (result.code, result.err) == (130, "taskrouter: interrupted\n")


def test_text_the_output_cannot_encode_is_escaped(tmp_path: Path) -> None:
    write(tmp_path)
    process = start("run", "say", "naïve ✓", PYTHONIOENCODING="ascii")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "parrot: na\\xefve \\u2713\n")


def test_logging_and_warnings_are_as_before_once_a_command_has_run(cli: Cli, tmp_path: Path) -> None:
    import logging
    import warnings

    ours = logging.getLogger("taskrouter")
    before = ours.level, logging.getLogger("taskrouter.telemetry").level, list(warnings.filters)
    assert cli("validate", write(tmp_path)).code == 0
    assert (ours.level, logging.getLogger("taskrouter.telemetry").level, list(warnings.filters)) == before


@pytest.mark.slow
def test_verbose_logs_what_the_error_alone_does_not_say(tmp_path: Path) -> None:
    write(tmp_path)
    for flags, logged in (((), False), (("--verbose",), True)):
        process = start(*flags, "run", "look", "--option", "blind", __file__)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert (" taskrouter: load of blind failed" in err) is logged, err


# --- completion -------------------------------------------------------------------------------------------------------


def test_the_shell_completes_commands_and_tasks(tmp_path: Path) -> None:
    write(tmp_path)

    def complete(words: str) -> str:
        env = {
            "_TASKROUTER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split())),
        }  # fmt: skip
        result = CliRunner().invoke(app, [], prog_name="taskrouter", env=env)
        return result.output

    assert set(COMMANDS) <= set(complete("taskrouter ").split())
    assert set(complete("taskrouter run ").split()) >= {"look", "say"}


@pytest.mark.parametrize("text", [None, "tasks: [", b"\xff"])
def test_completion_of_a_file_that_cannot_be_read_offers_nothing(tmp_path: Path, text: str | bytes | None) -> None:
    if text is not None:
        write(tmp_path, text)
    assert taskrouter.cli.app._complete_task("lo") == []


def test_completion_reads_the_file_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKROUTER_CONFIG", str(write(tmp_path, name="other.yaml")))
    assert taskrouter.cli.app._complete_task("lo") == ["look"]


# --- which file -------------------------------------------------------------------------------------------------------


def test_the_file_of_this_folder_is_used_before_the_environments(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(tmp_path, FAKE.replace("look:", "watch:"), name="other.yaml")
    monkeypatch.setenv("TASKROUTER_CONFIG", str(other))
    from_environment = cli("validate", "--json")
    assert from_environment.data["file"] == str(other)
    assert from_environment.err == f"taskrouter: using {other} (from TASKROUTER_CONFIG)\n"
    write(tmp_path)
    from_here = cli("validate", "--json")
    assert from_here.data["file"] == "models.yaml"
    assert "using ./models.yaml (TASKROUTER_CONFIG names another" in from_here.err
    given = cli("validate", other, "--json")
    assert (given.data["file"], given.err) == (str(other), "")


def test_no_file_at_all_says_how_to_name_one(cli: Cli) -> None:
    result = cli("validate", "--json")
    assert result.code == 2
    assert "TASKROUTER_CONFIG" in result.err
    assert result.data["error"]["type"] == "ConfigNotFound"
    assert json.loads(result.out)["ok"] is False


def test_main_takes_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["taskrouter", "nonsense"])
    assert main() == 2
