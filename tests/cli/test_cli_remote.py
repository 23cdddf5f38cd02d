"""The commands that ask a running server: what they ask it, what they print, how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from tests.server.wire_stub import Stub, stub

from .stage import Cli

GIB = 1 << 30
BOOKS = {
    "device": "cuda:0", "capacity": 20 * GIB, "foreign": GIB, "overhead": 0, "charged": 6 * GIB, "promised": 0,
    "residue": 0, "free": 13 * GIB,
}  # fmt: skip
STATUS = {
    "devices": {"cuda:0": BOOKS, "models": {**BOOKS, "capacity": 3}}, "models": {}, "tasks": {}, "waiting": 2,
    "oldest_wait_s": 1.25, "healthy": True, "draining": False,
}  # fmt: skip
ROW = {
    "task": "say", "option": "parrot", "selected": True, "state": "ready", "pinned": True, "leases": 1, "waiting": 2,
    "need_bytes": 6 * GIB, "charged_bytes": 6 * GIB, "fit": "together", "fit_text": "fits beside all",
}  # fmt: skip
MODELS = {"models": [ROW, {**ROW, "option": "[giant]", "selected": False, "state": "disk", "pinned": False}]}
COMMANDS = (
    ("status",), ("load", "say"), ("unload", "say"), ("select", "say", "giant"), ("pin", "say"), ("explain", "say"),
    ("remove", "say"),
)  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A server whose address and admin key are in the environment."""
    with stub() as it:
        monkeypatch.setenv("TASKROUTER_URL", it.url)
        monkeypatch.setenv("TASKROUTER_ADMIN_KEY", "the-admin-key")
        monkeypatch.delenv("TASKROUTER_API_KEY", raising=False)
        yield it


def answering(server: Stub, answers: dict[str, Any], status: int = 200) -> None:
    async def answer(request: web.Request) -> web.Response:
        server.seen[-1]["json"] = await request.json() if request.can_read_body else None
        return web.json_response(answers[request.path.removeprefix("/admin/")], status=status)

    server.answer = answer


def told(server: Stub) -> tuple[str, str, Any]:
    """What the server was asked last."""
    return server.seen[-1]["method"], server.seen[-1]["path"], server.seen[-1]["json"]


def test_status_is_a_table_and_json(server: Stub, cli: Cli) -> None:
    answering(server, {"status": STATUS, "models": MODELS})
    result = cli("status")
    assert (result.code, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[:3] == [
        "task option state need held leases waiting fit",
        "say parrot * ready, pinned 6.0 GiB 6.0 GiB 1 2 fits beside all",
        "[giant] disk 6.0 GiB 6.0 GiB 1 2 fits beside all",
    ]
    assert "cuda:0 6.0 GiB 1.0 GiB 13.0 GiB 20.0 GiB" in lines
    assert lines[-1] == f"{server.url} is ready; 2 waiting, the oldest for 1.2 s"
    assert all(each["headers"]["Authorization"] == "Bearer the-admin-key" for each in server.seen)
    data = cli("status", "--json").data
    assert data == {"ok": True, "url": server.url, "status": STATUS, "models": MODELS["models"]}


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_server_in_which_nothing_moves_is_no_success(server: Stub, cli: Cli, arguments: tuple[str, ...]) -> None:
    answering(server, {"status": {**STATUS, "healthy": False}, "models": MODELS})
    result = cli("status", *arguments)
    assert result.code == 1
    assert '"ok": false' in result.out if arguments else "unhealthy" in result.out


@pytest.mark.parametrize(
    ("command", "path", "body", "answer", "text"),
    [
        (("load", "say"), "load", {"wait": True}, {"option": "parrot", "seconds": 1.26}, "say/parrot is ready (1.3 s)"),
        (("load", "say", "--option", "giant", "--timeout", "5"), "load",
         {"wait": True, "option": "giant", "timeout_s": 5.0}, {}, "say/giant is ready"),
        (("load", "say", "--no-wait"), "load", {"wait": False}, {"operation": "7-1"}, "say loads (operation 7-1)"),
        (("unload", "say"), "unload", {"force": False}, {"option": "parrot"}, "say/parrot is unloaded"),
        (("unload", "say"), "unload", {"force": False}, {"option": "parrot", "unloaded": False},
         "say/parrot was not loaded"),
        (("unload", "say", "--force", "--option", "giant"), "unload", {"force": True, "option": "giant"}, {},
         "say/giant is unloaded"),
        (("remove", "say"), "remove", {"force": False, "dry_run": False},
         {"option": "parrot", "repo": "o/p", "revisions": ["a"], "bytes": 3 * GIB, "unloaded": []},
         "say/parrot: deleted 1 revision of o/p, 3.0 GiB"),
        (("remove", "say", "--force", "--dry-run", "--option", "giant"), "remove",
         {"force": True, "dry_run": True, "option": "giant"},
         {"repo": "o/p", "revisions": ["a", "b"], "bytes": 3 * GIB, "unloaded": ["giant"], "dry_run": True},
         "say/giant: would unload it, and would delete 2 revisions of o/p, 3.0 GiB"),
        (("remove", "say", "--force"), "remove", {"force": True, "dry_run": False},
         {"option": "parrot", "repo": "o/p", "revisions": [], "bytes": 0, "unloaded": ["parrot"]},
         "say/parrot: unloaded it, and there is nothing of o/p in the Hugging Face cache to delete"),
        (("select", "say", "giant"), "select", {"option": "giant", "persist": False}, {}, "say selects giant"),
        (("select", "say", "giant", "--persist"), "select", {"option": "giant", "persist": True}, {},
         "say selects giant, and so does the server's file"),
        (("pin", "say"), "pin", {"pinned": True}, {"option": "parrot"}, "say/parrot is pinned"),
        (("pin", "say", "--off", "--option", "giant"), "pin", {"pinned": False, "option": "giant"}, {},
         "say/giant is no longer pinned"),
        (("explain", "say"), "explain", None, {"text": "say asks parrot\nno request"}, "say asks parrot\nno request"),
    ],
)  # fmt: skip
def test_what_is_asked_is_done_and_told(
    server: Stub, cli: Cli, command: tuple[str, ...], path: str, body: Any, answer: Any, text: str
) -> None:
    answering(server, {f"tasks/say/{path}": answer})
    result = cli(*command)
    assert (result.code, result.out, result.err) == (0, f"{text}\n", "")
    assert told(server) == ("GET" if body is None else "POST", f"/admin/tasks/say/{path}", body)
    data = cli(*command, "--json").data
    assert data["ok"] is True
    assert answer.items() <= data.items()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_server_that_is_not_there_is_one_line(cli: Cli, command: tuple[str, ...], as_json: bool) -> None:
    with stub() as gone:
        url = gone.url
    result = cli(*command, "--url", url, *(["--json"] if as_json else []))
    assert result.code == 1
    assert result.err.startswith(f"taskrouter: nothing answers at {url} (Connection refused)")
    assert len(result.err.splitlines()) == 1
    if as_json:
        assert result.data["error"]["type"] == "ServerUnreachable"
    else:
        assert result.out == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_what_the_server_refuses_is_said(server: Stub, cli: Cli, command: tuple[str, ...]) -> None:
    for status, code, exit_code, kind in (
        (401, "invalid_admin_key", 1, "ServerRefused"), (404, "unknown_task", 2, "UnknownTask"),
        (507, "insufficient_memory", 1, "InsufficientMemory"),
    ):  # fmt: skip
        error = {"error": {"message": "so it is", "type": "t", "param": None, "code": code}}

        async def refuse(request: web.Request, error: Any = error, status: int = status) -> web.Response:
            return web.json_response(error, status=status)

        server.answer = refuse
        result = cli(*command, "--json")
        assert (result.code, result.err) == (exit_code, "taskrouter: so it is\n")
        assert result.data["error"]["type"] == kind
        if kind == "ServerRefused":
            assert result.data["error"]["status"] == status


def test_a_key_that_was_not_sent_is_said_to_be_none(server: Stub, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "none", "code": "no_admin_key"}}, status=401)

    server.answer = refuse
    monkeypatch.delenv("TASKROUTER_ADMIN_KEY")
    result = cli("status", "--json")
    text = f"{server.url} wants its admin key, and none was sent: set TASKROUTER_ADMIN_KEY here to the server's"
    assert (result.code, result.err) == (1, f"taskrouter: {text}\n")
    assert result.data["error"] == {"type": "ServerRefused", "message": text, "status": 401}


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (("load", "--option", "parrot"), {"wait": True, "option": "parrot"}),
        (("load",), {"wait": True, "option": "parrot"}), (("unload",), {"force": False, "option": "parrot"}),
        (("remove",), {"force": False, "dry_run": False, "option": "parrot"}),
        (("pin",), {"pinned": True, "option": "parrot"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("code", ["unknown_task", "not_found"])
def test_a_task_and_its_option_may_be_one_name(
    server: Stub, cli: Cli, command: tuple[str, ...], body: Any, code: str
) -> None:
    name, *more = command
    gone = {"error": {"message": "there is nothing", "code": code}}
    answering(server, {f"tasks/say/{name}": {"repo": "o/p"}})
    known = server.answer
    assert known is not None

    async def answer(request: web.Request) -> web.StreamResponse:
        whole = request.raw_path == f"/admin/tasks/say%2Fparrot/{name}"
        return web.json_response(gone, status=404) if whole else await known(request)

    server.answer = answer
    result = cli(name, "say/parrot", *more)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("say/parrot")
    assert told(server) == ("POST", f"/admin/tasks/say/{name}", body)
    assert cli(name, "say/parrot", "--option", "giant").code == 2
    assert cli(name, "say/", *more).code in (1, 2)


@pytest.mark.parametrize("command", [("status",), ("explain", "say")])
def test_a_server_that_never_answers_is_given_up(
    server: Stub, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    async def never(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    server.answer = never
    monkeypatch.setattr("taskrouter.cli.remote.READ_S", 0.1)
    result = cli(*command)
    assert result.code == 1
    assert result.err.startswith(f"taskrouter: {server.url} has said nothing for 0.1 s")


@pytest.mark.parametrize("answer", [{}, {"status": 7}, {**STATUS, "devices": 7}, {**STATUS, "devices": {"cpu": {}}}])
def test_a_status_that_can_not_be_read_is_one_line(server: Stub, cli: Cli, answer: Any) -> None:
    answering(server, {"status": answer, "models": MODELS})
    result = cli("status")
    assert result.code == 1
    assert "can't be read" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("url", ["here", "ftp://here", "http://user:secret@here"])
def test_what_is_no_address_is_wrong(cli: Cli, url: str) -> None:
    result = cli("status", "--url", url)
    assert result.code == 2
    assert "secret" not in result.err


def test_keys_are_no_arguments(cli: Cli) -> None:
    assert cli("status", "--admin-key", "x").code == 2
