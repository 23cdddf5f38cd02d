"""`taskrouter engines`: environments made from pinned sets, lists, and what is wrong. Nothing here is downloaded."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.engines import guardian
from taskrouter.backends.engines import install as making
from taskrouter.backends.engines.install import KNOWN_GOOD, PinnedSet, install, known_good, python_in
from taskrouter.config.writing import write_engine
from taskrouter.errors import BadInput, LoadFailed
from tests.cli.stage import Cli

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def file(folder: Path, python: str = "", framework: str = "vllm") -> Path:
    option = f"{{model_id: m, framework: {framework}, vram_gb: 1}}"
    engines = f"engines: {{{framework}: {{python: {python}}}}}\n" if python else ""
    path = folder / "models.yaml"
    path.write_text(f"tasks: {{t: {{selected: m, options: {{m: {option}}}}}}}\n{engines}", encoding="utf-8")
    return path


# --- sets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("cpu", [True, False])
def test_every_engine_has_a_pinned_set_for_each_kind_of_machine(engine: str, cpu: bool) -> None:
    pinned = known_good(engine, cpu=cpu)
    every = [*pinned.requirements, *pinned.locked]
    assert every
    assert all("==" in each for each in every)
    assert any(each.split("==")[0].split("[")[0] in (engine, f"{engine}-cpu") for each in every)
    if cpu:
        assert pinned.torch is not None
        assert "==" in pinned.torch


def test_the_pins_are_in_one_file() -> None:
    assert KNOWN_GOOD.name == "known_good.toml"
    assert known_good("vllm", cpu=True).digest(None, ()) != known_good("vllm", cpu=False).digest(None, ())


def test_an_engine_that_has_no_set_is_refused_with_those_that_have(cli: Cli) -> None:
    result = cli("engines", "install", "vlm")
    assert result.code == 2
    assert "there is no engine 'vlm' to install; there are vllm, sglang" in result.err


# --- making -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A wheel made by hand: pip installs it without asking anybody for anything."""
    import zipfile

    wheel = tmp_path / "tinyengine-1.0-py3-none-any.whl"
    info = "tinyengine-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinyengine.py", "VALUE = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyengine\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.mark.slow
def test_an_environment_is_made_once_and_anew_where_it_was_never_finished(tmp_path: Path, package: Path) -> None:
    pinned = PinnedSet("tiny.cpu", None, locked=(str(package),))
    folder = tmp_path / "engine"
    assert install(pinned, folder) is True
    first = (folder / making.MARKER).stat().st_mtime_ns
    assert install(pinned, folder) is False
    assert (folder / making.MARKER).stat().st_mtime_ns == first
    (folder / making.MARKER).write_text('{"digest": null}')
    (folder / "half").touch()
    assert install(pinned, folder) is True
    assert not (folder / "half").exists()
    assert install(PinnedSet("tiny.cpu", None, locked=(str(package),), requirements=()), folder, force=True) is True
    assert python_in(folder).exists()


@pytest.mark.slow
def test_what_pip_can_not_install_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A constraint of the caller's environment doesn't count: the set is complete in itself.
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "no-such-file"))
    pinned = PinnedSet("tiny.cpu", None, locked=(str(tmp_path / "missing-1.0-py3-none-any.whl"),))
    with pytest.raises(LoadFailed, match=r"could not be made: .*pip install") as failed:
        install(pinned, tmp_path / "engine")
    assert "missing-1.0" in str(failed.value)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("beside", ["notes.txt", "pyvenv.cfg"])
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_somebody_elses_is_left_alone_also_where_it_is_an_environment(
    tmp_path: Path, beside: str, force: bool
) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / beside).touch()
    (tmp_path / "engine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="wasn't made by this command; name another with --dir"):
        install(PinnedSet("tiny.cpu", None), tmp_path / "engine", force=force)
    assert (tmp_path / "engine" / "thesis.txt").exists()
    with pytest.raises(BadInput, match="wasn't made by this command"):
        install(PinnedSet("tiny.cpu", None), tmp_path / "engine" / "thesis.txt")


def test_a_requirement_that_is_a_folder_counts_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.py").write_text("1")
    pinned, extra = PinnedSet("tiny.cpu", None), [str(tmp_path / "more"), "numpy"]
    before = pinned.digest(None, extra)
    assert pinned.digest(None, extra) == before
    (tmp_path / "more" / "a.py").write_text("2")
    assert pinned.digest(None, extra) != before


def test_a_set_for_a_gpu_is_not_fetched_to_be_proved_where_there_is_none(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskrouter.memory.devices import discover

    cpu = tuple(info for info in discover() if info.id == "cpu")
    monkeypatch.setattr("taskrouter.cli.engine_install.discover", lambda: cpu)
    result = cli("engines", "install", "vllm")
    assert result.code == 2
    assert "no GPU here to prove vllm.cuda on: --cpu takes the set for the CPU" in result.err


@pytest.mark.slow
def test_being_told_to_end_takes_pip_along(tmp_path: Path) -> None:
    sdist = tmp_path / "slow"
    sdist.mkdir()
    # pip's first step with it runs this: it says who it is, and takes its time.
    (sdist / "backend.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    (sdist / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    program = (
        "import sys\nfrom taskrouter.cli import engine_install, main\n"
        "from taskrouter.backends.engines.install import PinnedSet\n"
        "engine_install.known_good = lambda *a, **b: PinnedSet('tiny.cpu', None)\nsys.exit(main(sys.argv[1:]))\n"
    )
    folder = tmp_path / "engine"
    command = [sys.executable, "-c", program, "engines", "install", "vllm", "--cpu", "--dir", str(folder)]
    with subprocess.Popen([*command, "--with", str(sdist)], stderr=subprocess.PIPE, text=True) as running:
        until = time.monotonic() + 60
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        running.terminate()
        _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert said.endswith("taskrouter: interrupted\n")
    assert not folder.exists()
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while guardian.start_time(pid) and not guardian.is_zombie(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not guardian.start_time(pid) or guardian.is_zombie(pid)


@pytest.mark.slow
def test_an_interrupt_takes_pip_along_and_the_half_made_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen.communicate

    def interrupted(self: subprocess.Popen[str], *args: Any, **more: Any) -> object:
        if "pip" in str(self.args):
            assert self.stdout is not None
            self.stdout.close()
            raise KeyboardInterrupt
        return real(self, *args, **more)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install(PinnedSet("tiny.cpu", None, locked=("a==1",)), tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_a_torch_that_is_no_cpu_build_is_said_with_the_way_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_run", lambda command, folder: "2.13.0\n")
    folder = tmp_path / "engine"
    with pytest.raises(LoadFailed, match=r"needs a CPU build of torch, and pip brought 2\.13\.0\..*--index-url"):
        install(PinnedSet("vllm.cpu", "torch==2.13.0", build="cpu"), folder)


# --- writing ----------------------------------------------------------------------------------------------------------

WRITTEN = """\
# What we serve.
tasks:
  say:          # the only one
    selected: "parrot"
    options: {parrot: {model_id: m, framework: vllm}}

memory: {max_models: 2}   # a small card
"""


def test_writing_keeps_comments_order_quotes_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(WRITTEN)
    path.chmod(0o640)
    assert write_engine(path, "vllm", tmp_path / ".venvs" / "vllm" / "bin" / "python") == ".venvs/vllm/bin/python"
    text = path.read_text()
    assert text.startswith(WRITTEN)
    assert text.endswith("engines:\n  vllm:\n    python: .venvs/vllm/bin/python\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert write_engine(path, "vllm", Path("/elsewhere/bin/python")) == "/elsewhere/bin/python"
    assert path.read_text().count("python:") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["models.yaml"]


LAID_OUT = """\
%YAML 1.1
---
tasks:
    say:
        selected:   parrot     # aligned by hand
        fallback:
            - a
        options:
            parrot: { model_id: m, framework: vllm,
                      engine_args: {x: 1} }
            a: {model_id: m, framework: vllm}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "engines:\n  vllm:\n    python: /p\n"),
        ("engines:\n", "engines: {vllm: {python: /p}}\n"),
        ("engines: {}   # none\n", "engines: {vllm: {python: /p}}   # none\n"),
        ("engines: {sglang: {python: /s}}\n", "engines: {sglang: {python: /s}, vllm: {python: /p}}\n"),
        ("engines: {vllm: {python: '/old one'}}\n", "engines: {vllm: {python: /p}}\n"),
        ("engines:\n    sglang: # s\n        python: /s # t\n# end\n",
         "engines:\n    sglang: # s\n        python: /s # t\n    vllm:\n      python: /p\n# end\n"),
        ("engines:\n  vllm:\n    hang_timeout_s: 9\nmedia: {}",
         "engines:\n  vllm:\n    hang_timeout_s: 9\n    python: /p\nmedia: {}"),
        ("engines:\r\n  vllm: {start_timeout_s: 9}\r\n", "engines:\r\n  vllm: {start_timeout_s: 9, python: /p}\r\n"),
    ],
)  # fmt: skip
def test_writing_changes_nothing_else_in_a_file_however_it_is_laid_out(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes((LAID_OUT + before).encode())
    write_engine(path, "vllm", Path("/p"))
    assert path.read_bytes() == (LAID_OUT + after).encode()


@pytest.mark.parametrize(
    "text",
    [
        "engines:\n  vllm:\n    python: |\n      x\nmedia: {}\n",
        "{tasks: {}}\n",
        "tasks: {}\n...\n",
    ],
)
def test_what_can_not_be_written_in_place_is_written_anew(tmp_path: Path, text: str) -> None:
    import yaml

    path = tmp_path / "models.yaml"
    path.write_text(text)
    write_engine(path, "vllm", Path("/p q"))
    after = yaml.safe_load(path.read_text())
    assert after["engines"]["vllm"]["python"] == "/p q"


def test_a_file_that_can_not_be_read_or_replaced_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "models.yaml"
    for text in ("tasks: {a: [", "- a list\n", "engines: [not, a, mapping]\n", "engines: {vllm: /s}\n",
                 "engines: {sglang: &s {python: /s}, vllm: *s}\n"):  # fmt: skip
        path.write_text(text)
        with pytest.raises(BadInput, match="nothing was written"):
            write_engine(path, "vllm", Path("/python"))
        assert path.read_text() == text
    path.write_text(WRITTEN)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_engine(path, "vllm", Path("/python"))
    assert path.read_text() == WRITTEN
    assert [each.name for each in tmp_path.iterdir()] == ["models.yaml"]


# --- list and doctor --------------------------------------------------------------------------------------------------


def test_list_shows_each_engine_and_who_uses_it(cli: Cli, tmp_path: Path) -> None:
    result = cli("engines", "list", file(tmp_path), "--json")
    assert result.code == 0
    by_name = {engine["name"]: engine for engine in result.data["engines"]}
    assert list(by_name) == ["vllm", "sglang", "command"]
    assert by_name["vllm"]["python"] == sys.executable
    assert by_name["vllm"]["can"] == "not installed"
    assert by_name["vllm"]["used_by"] == ["t/m"]
    assert "not installed" in cli("engines", "list", file(tmp_path)).out


def test_an_engine_that_no_selected_option_needs_is_worth_knowing_and_not_wrong(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    options = "{here: {model_id: m, framework: fake}, there: {model_id: m, framework: vllm}}"
    path.write_text(f"tasks: {{t: {{selected: here, options: {options}}}}}\n")
    result = cli("engines", "doctor", path)
    assert result.code == 0
    assert "not selected: vllm isn't installed; `taskrouter engines install vllm` makes one" in result.out
    assert cli("engines", "doctor", file(tmp_path)).code == 1


def test_list_and_doctor_need_no_file(cli: Cli) -> None:
    assert cli("engines", "list").code == 0
    assert cli("engines", "doctor").out.strip() == "nothing is wrong"


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("no/such/python", "which is no program that can be run"),
        ("models.yaml", "which is no program that can be run"),
        ("/bin/true", "which is no Python interpreter that works (exit status 0: it printed nothing)"),
        ("/bin/cat", "which is no Python interpreter that works (exit status 1"),
    ],
)
def test_the_doctor_names_an_interpreter_that_is_none(cli: Cli, tmp_path: Path, python: str, said: str) -> None:
    result = cli("engines", "doctor", file(tmp_path, python))
    assert result.code == 1
    assert "wrong: engines.vllm.python is " in result.out
    assert said in result.out
    assert "`taskrouter engines install vllm` makes one" in result.out


@pytest.mark.slow
def test_the_doctor_tells_an_engine_that_is_missing_from_one_that_does_not_import(cli: Cli, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    path = file(tmp_path, "env/bin/python")
    assert "where it isn't installed" in cli("engines", "doctor", path).out
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    info = site / "vllm-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n")
    (site / "vllm.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    result = cli("engines", "doctor", path, "--json")
    assert result.code == 1
    (wrong,) = result.data["wrong"]
    assert wrong.startswith("vllm 9.9 can't be imported under ")
    assert wrong.endswith("ImportError: libcudart.so.13: cannot open shared object file")
    assert result.data["engines"][0]["version"] == "9.9"


@pytest.mark.slow
def test_the_doctor_sees_what_a_killed_run_left(cli: Cli, tmp_path: Path) -> None:
    from taskrouter.backends.engines import sweep

    folder = tmp_path / "state" / "taskrouter" / "engines"
    folder.mkdir(parents=True)
    me = os.getpid()
    engine = {"label": "qwen", "token": "none", "pid": me, "started": guardian.start_time(me), "tmp": ""}
    over = {"pid": 1, "started": 0}
    state = {
        "boot": sweep.boot_id(),
        "pids": sweep.pid_namespace(),
        "manager": over,
        "guardian": over,
        "engines": [engine],
    }
    # This very process stands for what was left: so somebody else must look.
    (folder / "1-x.json").write_text(json.dumps(state))
    done = subprocess.run(
        [sys.executable, "-m", "taskrouter", "engines", "doctor"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "wrong: qwen was left running by an earlier run" in done.stdout
