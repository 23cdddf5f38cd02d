"""``taskrouter status|load|unload|remove|select|pin|explain``: what people ask of a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from taskrouter.cli.exits import Exit
from taskrouter.cli.printing import amount, console, print_json, waiting
from taskrouter.client import Client, connect
from taskrouter.client.client import ADMIN_KEY
from taskrouter.errors import BadInput, ServerRefused, ServerUnreachable, UnknownTask

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


READ_S = 10.0
"""How long the server may be silent where it only tells what it knows."""
QUICK_S = 60.0
"""How long where it changes something, and has nothing to wait for; what waits for a model is ended by a person."""


def _asked(url: str, ask: Callable[[Client], Awaitable[T]], what: str, silent_s: float | None) -> T:
    async def main() -> T:
        async with connect(url, timeout_s=silent_s) as client:
            return await ask(client)

    with waiting(what):
        try:
            return asyncio.run(main())
        except ServerRefused as error:
            if error.code != "no_admin_key":
                raise
            text = f"{url} wants its admin key, and none was sent: set {ADMIN_KEY} here to the server's"
            raise ServerRefused(text, status=error.status, code=error.code) from error


def _asked_of(
    url: str, task: str, option: str | None, ask: Callable[[Client, str, str | None], Awaitable[T]], what: str,
    silent_s: float | None,
) -> tuple[T, str, str | None]:  # fmt: skip
    """Ask of a task and an option of it; what was answered, and whose names these are.

    ``task/option`` names both, where the server has no task of that whole name.
    """
    try:
        return _asked(url, lambda client: ask(client, task, option), what, silent_s), task, option
    except (UnknownTask, ServerRefused) as error:
        of, slash, named = task.partition("/")
        nothing_there = isinstance(error, UnknownTask) or error.status == 404
        if not (nothing_there and of and slash and named):
            raise
        if option is not None and option != named:
            raise BadInput(f"{task} names the option {named!r}, and another one is given: {option!r}") from error
    return _asked(url, lambda client: ask(client, of, named), what, silent_s), of, named


def status(url: str, *, as_json: bool) -> int:
    """Print what the server holds. Raises ``ServerUnreachable``, ``ServerRefused``."""

    async def both(client: Client) -> tuple[dict[str, Any], list[Any]]:
        return await client.status(), (await client.models())["models"]

    try:
        seen, options = _asked(url, both, "asking the server", READ_S)
        healthy = bool(seen["healthy"])
        if as_json:
            print_json({"ok": healthy, "url": url, "status": seen, "models": options})
        else:
            _print(url, seen, options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ServerUnreachable(
            f"{url} answered with what can't be read ({error}): is it a taskrouter of the same version?"
        ) from error
    return Exit.OK if healthy else Exit.NO


def load(url: str, task: str, option: str | None, timeout: float | None, *, wait: bool, as_json: bool) -> int:
    """Load a model. Raises what loading raises."""
    done, task, option = _asked_of(
        url, task, option, lambda client, task, option: client.load_model(
            task, option=option, wait=wait, timeout=timeout
        ), f"loading {task}", None,
    )  # fmt: skip
    if wait:
        return _told(done, f"{_name(done, task, option)} is ready{_seconds(done)}", as_json=as_json)
    return _told(done, f"{task} loads (operation {done.get('operation')})", as_json=as_json)


def unload(url: str, task: str, option: str | None, *, force: bool, as_json: bool) -> int:
    """Unload a model."""
    done, task, option = _asked_of(
        url, task, option, lambda client, task, option: client.unload_model(task, force=force, option=option),
        f"unloading {task}", None,
    )  # fmt: skip
    how = "was not loaded" if done.get("unloaded") is False else "is unloaded"
    return _told(done, f"{_name(done, task, option)} {how}", as_json=as_json)


def remove(url: str, task: str, option: str | None, *, force: bool, dry_run: bool, as_json: bool) -> int:
    """Delete a model's files. Raises ``FilesKept`` and its kin, ``RemovalFailed``."""
    done, task, option = _asked_of(
        url, task, option, lambda client, task, option: client.remove_files(
            task, option=option, force=force, dry_run=dry_run
        ), f"deleting the files of {task}", None,
    )  # fmt: skip
    return _told(done, _removed(done, task, option), as_json=as_json)


def _removed(done: Mapping[str, Any], task: str, option: str | None) -> str:
    would, repo, revisions = done.get("dry_run"), done.get("repo"), done.get("revisions") or ()
    first = "" if not done.get("unloaded") else "would unload it, and " if would else "unloaded it, and "
    name = _name(done, task, option)
    if not done.get("bytes"):
        return f"{name}: {first}there is nothing of {repo} in the Hugging Face cache to delete"
    many = f"{len(revisions)} revision{'' if len(revisions) == 1 else 's'}"
    return f"{name}: {first}{'would delete' if would else 'deleted'} {many} of {repo}, {amount(done['bytes'])}"


def select(url: str, task: str, option: str, *, persist: bool, as_json: bool) -> int:
    """Select an option."""
    done = _asked(
        url, lambda client: client.set_selected_model(task, option, persist=persist), f"selecting {option}", None
    )  # fmt: skip
    text = f"{task} selects {option}" + (", and so does the server's file" if persist else "")
    return _told(done, text, as_json=as_json)


def pin(url: str, task: str, option: str | None, *, off: bool, as_json: bool) -> int:
    """Pin a model, or unpin it."""
    done, task, option = _asked_of(
        url, task, option, lambda client, task, option: client.pin_model(task, not off, option=option),
        "asking the server", QUICK_S,
    )  # fmt: skip
    return _told(done, f"{_name(done, task, option)} is {'no longer ' if off else ''}pinned", as_json=as_json)


def explain(url: str, task: str, *, as_json: bool) -> int:
    """Print what was decided."""
    text = _asked(url, lambda client: client.explain(task), "asking the server", READ_S)
    return _told({"task": task, "text": text}, text, as_json=as_json)


def _told(data: Mapping[str, Any], text: str, *, as_json: bool) -> int:
    if as_json:
        print_json({"ok": True, **data})
    else:
        print(text)
    return Exit.OK


def _name(done: Mapping[str, Any], task: str, option: str | None) -> str:
    found = done.get("option") or option
    return f"{task}/{found}" if found else task


def _seconds(done: Mapping[str, Any]) -> str:
    seconds = done.get("seconds")
    return f" ({seconds:.1f} s)" if isinstance(seconds, (int, float)) else ""


def _print(url: str, seen: Mapping[str, Any], options: list[Any]) -> None:
    out = console()
    out.print(_options(options))
    print()
    out.print(_devices(seen["devices"]))
    print()
    state = "ready" if seen["healthy"] else "unhealthy: requests wait past their bound"
    state = "draining" if seen.get("draining") else state
    waits = (
        f"{seen['waiting']} waiting, the oldest for {seen['oldest_wait_s']:.1f} s"
        if seen["waiting"]
        else "nobody waits"
    )
    print(f"{url} is {state}; {waits}")


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column in ("need", "held", "leases", "waiting", "models", "others", "free", "budget")
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _options(options: list[Any]) -> Table:
    table = _table("task", "option", "state", "need", "held", "leases", "waiting", "fit")
    before = None
    for each in options:
        name = f"{each['option']} *" if each["selected"] else each["option"]
        state = f"{each['state']}, pinned" if each.get("pinned") else each["state"]
        task, before = "" if each["task"] == before else each["task"], each["task"]
        table.add_row(
            task, name, state, _bytes(each.get("need_bytes")), _bytes(each.get("charged_bytes")),
            _count(each.get("leases")), _count(each.get("waiting")), str(each.get("fit_text") or each.get("fit") or ""),
        )  # fmt: skip
    return table


def _devices(devices: Mapping[str, Any]) -> Table:
    """Devices with bytes; what is kept like one (a number of models) has none to show."""
    table = _table("device", "models", "others", "free", "budget")
    for name, books in devices.items():
        if name == "cpu" or name.startswith("cuda:"):
            others = books["foreign"] + books["overhead"] + books["residue"]
            table.add_row(
                name, *(amount(each) for each in (books["charged"], others, books["free"], books["capacity"]))
            )
    return table


def _bytes(number: Any) -> str:
    return amount(number) if isinstance(number, int) and number else ""


def _count(number: Any) -> str:
    return str(number) if number else ""
