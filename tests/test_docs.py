"""The how-to pages say what is so: what they show is run, and what they list is all there is."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.backends import base, registry
from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.fake_script import ALL_VERBS, FakeScript, read_script
from taskrouter.cli.app import app
from taskrouter.config.schema import EngineConfig
from taskrouter.errors import TaskRouterError
from taskrouter.manager.performing import UNLOAD_BOUND_S
from taskrouter.manager.refusals import _CLASSES as CLASSES
from taskrouter.residency import Settings, State
from taskrouter.residency.events import Reason
from taskrouter.verbs import PASS_THROUGH, Why
from tests.docs_messages import log_lines, texts
from tests.docs_session import play
from tests.pages import ROOT, blocks, commands, named_files, page, quoted, rows, run_command

PAGES = (
    "library.md",
    "models-yaml.md",
    "operations.md",
    "plug-ins.md",
    "quantization.md",
    "routing.md",
    "server.md",
    "simulate.md",
    "testing.md",
)


def whole_program(block: str) -> bool:
    return "asyncio.run(" in block


def sessions(text: str) -> list[str]:
    """The blocks that are neither a file of their own nor a whole program."""
    files = named_files(text).values()
    return [block for block in blocks(text, "python") if block not in files and not whole_program(block)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where nothing measured elsewhere is remembered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def program(folder: Path, *command: str) -> str:
    """Run Python in the folder; what it printed, errors included."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, text=True, timeout=100, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


# --- all pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_linked_from_the_readme_and_its_lines_are_short(name: str) -> None:
    assert f"(docs/{name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    may_be_long = ("|", "models.yaml:", "# ")
    assert not [line for line in page(name).splitlines() if len(line) > 120 and not line.startswith(may_be_long)]


@pytest.mark.parametrize("name", PAGES)
def test_every_python_block_of_a_page_is_run(name: str) -> None:
    text = page(name)
    run = [*sessions(text), *named_files(text).values(), *filter(whole_program, blocks(text, "python"))]
    shown = re.findall(r"^```python.*\n", text, re.MULTILINE)
    assert len(shown) == len([block for block in run if block in blocks(text, "python")])


@pytest.mark.parametrize("name", [*PAGES, "../README.md"])
def test_every_yaml_file_of_a_page_is_right_but_where_it_shows_problems(name: str, folder: Path) -> None:
    for info, body in re.findall(r"^```yaml( \w+)?\n(.*?)^```", page(name), re.DOTALL | re.MULTILINE):
        (folder / "models.yaml").write_text(body)
        found: tuple[str, ...] = ()
        known = registry.Registry()
        if "framework: countwords" in body:
            known.register("countwords", FakeBackend())
        try:
            ModelManager(folder / "models.yaml", registry=known, environ={"PARROT_GB": "2"})
        except errors.ConfigError as error:
            found = tuple(str(problem) for problem in error.problems)
        assert bool(found) is (info == " problems"), found


# --- library.md -------------------------------------------------------------------------------------------------------


def test_the_library_page_does_what_it_says(folder: Path) -> None:
    text = page("library.md")
    (folder / "models.yaml").write_text(blocks(text, "yaml")[0])
    assert play(sessions(text)) >= 20


@pytest.mark.slow
def test_the_library_pages_whole_programs_run_from_the_checkout(folder: Path) -> None:
    pytest.importorskip("transformers")
    for block in filter(whole_program, blocks(page("library.md"), "python")):
        (folder / "program.py").write_text(f"import os\nos.chdir({str(ROOT)!r})\n{block}")
        (printed,) = re.findall(r"print\(.*\)  # (.+)", block)
        assert program(folder, "program.py").splitlines()[-1] == printed


def test_every_error_class_is_in_the_table_with_its_status() -> None:
    public = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, TaskRouterError) and not name.startswith("_")
    }
    table = {quoted(row[0])[0]: row for row in rows(page("library.md"), "class")}
    assert table.keys() == public.keys()
    for name, row in table.items():
        assert row[3] == str(public[name].status_hint), name
        assert row[1], name


def test_what_the_page_says_of_builtin_classes_is_so() -> None:
    said = re.search(r"^`ConfigError`, `UnknownTask`.*?\n\n", page("library.md"), re.DOTALL | re.MULTILINE)
    assert said is not None
    for clause in re.split(r",(?= `(?:InsufficientMemory|Overloaded|ConfigNotFound)`)", said[0]):
        *ours, builtin = quoted(clause)
        for name in ours:
            assert issubclass(getattr(errors, name), getattr(__import__("builtins"), builtin)), (name, builtin)


def test_the_verbs_of_the_page_are_those_of_a_handle_with_all_their_arguments() -> None:
    from taskrouter import Model

    verbs = {name for name in ALL_VERBS | PASS_THROUGH if hasattr(Model, name)} | {"ask"}
    table = {re.search(r"model\.(\w+)", row[0])[1]: row[0] for row in rows(page("library.md"), "verb")}  # type: ignore[index]
    assert table.keys() == verbs
    for verb in ("chat", "classify", "detect", "depth", "segment", "track", "generate", "embed", "request"):
        for argument in inspect.signature(getattr(Model, verb)).parameters:
            assert argument == "self" or argument in table[verb], argument


# --- testing.md -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_of_testing_a_service_passes_under_pytest(folder: Path) -> None:
    for name, body in named_files(page("testing.md")).items():
        (folder / name).write_text(body)
    plain = ("-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:hypothesispytest")
    printed = program(folder, "-m", "pytest", "-q", *plain, "test_my_service.py")
    assert f"{page('testing.md').count('async def test_')} passed" in printed


def test_the_page_names_every_setting_of_a_fake_model_with_its_default() -> None:
    fields = {field.name: field for field in dataclasses.fields(FakeScript)}
    table = {quoted(row[0])[0]: row for row in rows(page("testing.md"), "setting")}
    assert table.keys() == fields.keys()
    for name, row in table.items():
        if row[2] in (words := {"none": None, "nothing": frozenset(), "all": ALL_VERBS}):
            assert fields[name].default == words[row[2]], name
        else:
            (shown,) = quoted(row[2])
            value: Any = {"false": False, "true": True}.get(shown, shown)
            value = float(shown) if re.fullmatch(r"\d+", shown) else value
            assert read_script("x", {name: value}) == FakeScript(), name


def test_the_words_a_fake_model_takes_are_those_the_page_lists() -> None:
    for name in ("fail", "hang"):
        (row,) = [row for row in rows(page("testing.md"), "setting") if row[0] == f"`{name}`"]
        with pytest.raises(errors.PreflightFailed) as caught:
            read_script("x", {name: 1})
        assert set(re.findall(r"\w+(?= or|$)", str(caught.value).split(" is not ")[1])) == set(quoted(row[1]))


def test_the_journals_words_are_those_of_the_fake_backend() -> None:
    assert FakeBackend.__doc__ is not None
    listed = re.search(r"What can happen: (.*?)\n\n", page("testing.md"), re.DOTALL)
    said = re.search(r"what being ``(.*?)``", FakeBackend.__doc__, re.DOTALL)
    assert listed is not None
    assert said is not None
    assert quoted(listed[1]) == re.split(r",\s+", said[1])


def test_the_other_blocks_of_the_testing_page_run() -> None:
    play(sessions(page("testing.md")))


# --- routing.md -------------------------------------------------------------------------------------------------------


def test_the_routing_page_does_what_it_says(folder: Path) -> None:
    text = page("routing.md")
    (folder / "models.yaml").write_text(named_files(text)["models.yaml"])
    assert play(sessions(text)) == 3


def test_every_reason_an_option_is_passed_over_for_is_on_the_page() -> None:
    said = [reason for row in rows(page("routing.md"), "reason") for reason in quoted(row[0])]
    assert sorted(said) == sorted(why.value for why in Why)


# --- plug-ins.md ------------------------------------------------------------------------------------------------------


def test_the_plug_in_works_installed_and_registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page("plug-ins.md")
    for name, body in named_files(text).items():
        (folder / name).write_text(body)
    toml, _ = blocks(text, "toml")
    group, entry = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n(.+)\n', toml).groups()  # type: ignore[union-attr]
    info = folder / "countwords-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: countwords\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n".replace('"', ""))
    monkeypatch.syspath_prepend(str(folder))
    try:
        assert play(sessions(text)) == 2
    finally:
        sys.modules.pop("countwords", None)


def test_the_provider_of_the_page_answers_over_a_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page("plug-ins.md")
    (folder / "house.py").write_text(named_files(text)["house.py"])
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("HOUSE_KEY", "test-key-1")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    web = pytest.importorskip("aiohttp.web")
    status = 200

    async def answer(request: Any) -> Any:
        assert request.headers["Authorization"] == "Bearer test-key-1"
        return web.json_response({"text": f"you said {(await request.json())['prompt']}"}, status=status)

    async def main() -> None:
        nonlocal status
        app = web.Application()
        app.add_routes([web.post("/answer", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            known = registry.Registry()
            known.register_provider("house", importlib.import_module("house").HouseProvider())
            option = {"model_id": "m", "framework": "external_api", "provider": "house", "max_retries": 0}
            option["api_endpoint"] = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
            tasks = {"t": {"kind": "chat", "selected": "house", "options": {"house": option}}}
            (folder / "models.yaml").write_text(json.dumps({"tasks": tasks}))
            async with ModelManager(folder / "models.yaml", registry=known) as manager:
                model = await manager.get_model("t")
                assert (await model.chat("hi")).text == "you said hi"
                async with model.stream_chat("ho") as chunks:
                    assert [chunk.text async for chunk in chunks] == ["you said ho"]
                status = 500
                with pytest.raises(errors.ProviderOverloaded, match="t/house: the house answered 500"):
                    await model.chat("hi")
        finally:
            await runner.cleanup()

    try:
        asyncio.run(main())
    finally:
        sys.modules.pop("house", None)


def test_the_page_lists_every_method_of_a_backend_and_every_member_of_a_model() -> None:
    methods = {quoted(row[0])[0] for row in rows(page("plug-ins.md"), "method")}
    assert {method.split("(")[0] for method in methods} == set(registry.METHODS)
    sleeping = {quoted(row[0])[0] for row in rows(page("plug-ins.md"), "of a sleeper")}
    assert {method.split("(")[0] for method in sleeping} == {"demote", "promote"}
    for method in methods | sleeping:
        name, arguments = re.fullmatch(r"(\w+)\((.*)\)", method).groups()  # type: ignore[union-attr]
        seam: type = base.Sleeper if method in sleeping else base.Backend
        real = [one for one in inspect.signature(getattr(seam, name)).parameters if one != "self"]
        assert re.findall(r"\w+", arguments) == real, name
    members = {quoted(row[0])[0].split("(")[0] for row in rows(page("plug-ins.md"), "member")}
    assert members == {name for name in vars(base.LoadedModel) if not name.startswith("_")}


# --- operations.md ----------------------------------------------------------------------------------------------------


def test_the_operations_page_does_what_it_says(folder: Path) -> None:
    text = page("operations.md")
    (folder / "models.yaml").write_text(blocks(text, "yaml")[0])
    assert play(sessions(text)) == 3


def test_every_log_line_of_the_package_is_on_the_page_and_no_other() -> None:
    table = {(row[0], quoted(row[1])[0]) for row in rows(page("operations.md"), "level")}
    assert table == log_lines(ROOT / "taskrouter")


def test_the_refusals_of_the_page_are_those_of_the_core() -> None:
    table = rows(page("operations.md"), "the message says")
    source = ROOT / "taskrouter" / "residency" / "messages.py"
    said = texts(source)
    for row in table:
        assert any(quoted(row[0])[0] in text for text in said), row[0]
    reasons = {Reason[name] for name in re.findall(r"Reason\.(\w+)", source.read_text(encoding="utf-8"))}
    assert {quoted(row[1])[0] for row in table} == {CLASSES[reason].__name__ for reason in reasons}


def test_the_states_of_the_page_are_those_of_a_model() -> None:
    (said,) = re.findall(r"^States are (.*)\.$", page("operations.md"), re.MULTILINE)
    assert quoted(said) == [state.value for state in State]


def test_the_times_on_the_pages_are_those_of_the_code() -> None:
    library, operations = (" ".join(page(name).split()) for name in ("library.md", "operations.md"))
    settings = Settings()
    assert f"within {UNLOAD_BOUND_S:.0f} s leaves them charged" in operations
    assert f"start_timeout_s` ({EngineConfig.model_validate({}).start_timeout_s:.0f} s)" in operations
    first, most = settings.cooldown_s, settings.cooldown_cap_s / 60
    assert settings.failures_to_cooldown == 2
    assert f"two failures in a row a model is refused for {first:.0f} s, then {2 * first:.0f} s, up to" in operations
    assert f"refused at once for a while ({first:.0f} s, doubling up to {most:.0f} min)" in library
    assert f"a step is worth {settings.ageing_s:.0f} s of waiting" in library
    assert f"most {settings.residency_cap_s:.0f} s" in page("models-yaml.md")


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_commands_the_pages_name_exist() -> None:
    groups = [group.typer_instance for group in app.registered_groups if group.typer_instance is not None]
    commands_ = [command for each in (app, *groups) for command in each.registered_commands]
    known = {command.name or command.callback.__name__ for command in commands_ if command.callback}
    for name in PAGES:
        assert set(re.findall(r"[`$] ?taskrouter (\w+)", page(name))) <= known, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [c for name in PAGES for c in commands(page(name))], ids=lambda example: example.command[:60]
)
def test_a_command_of_a_page_does_what_the_page_says(example: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run_command(example, tmp_path)
