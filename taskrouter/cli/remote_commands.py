"""The commands over a running server: their arguments and their help. Keys come from the environment only."""

from __future__ import annotations

from typing import Annotated

import typer

from taskrouter.cli.exits import EPILOG, guarded
from taskrouter.cli.flags import Json

remote = typer.Typer()

_Url = Annotated[
    str,
    typer.Option("--url", envvar="TASKROUTER_URL", metavar="URL", help="The server; its key: TASKROUTER_ADMIN_KEY."),
]
_HERE = "http://127.0.0.1:8700"
_Task = Annotated[str, typer.Argument(help="A task of the server.")]
_TaskOrOption = Annotated[str, typer.Argument(metavar="TASK[/OPTION]", help="A task of the server.")]
_Option = Annotated[str | None, typer.Option("--option", help="Another option of the task than the selected one.")]


@remote.command(epilog=EPILOG)
@guarded
def status(url: _Url = _HERE, as_json: Json = False) -> int:
    """Show what a running server holds: its options and their states, its devices, and who waits.

    Exit code 1: there is no server, or requests wait past their bound.
    """
    from taskrouter.cli.remote import status as show

    return show(url, as_json=as_json)


@remote.command(epilog=EPILOG)
@guarded
def load(
    task: _TaskOrOption,
    option: _Option = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait for the model to be ready; default max_wait_s.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is ready, or at once.")] = True,
    url: _Url = _HERE,
    as_json: Json = False,
) -> int:
    """Load a task's model in a running server. Exit code 1: it could not be loaded, or there is no server."""
    from taskrouter.cli.remote import load as ask

    return ask(url, task, option, timeout, wait=wait, as_json=as_json)


@remote.command(epilog=EPILOG)
@guarded
def unload(
    task: _TaskOrOption,
    option: _Option = None,
    force: Annotated[bool, typer.Option("--force", help="Calls at work are told to stop, not waited for.")] = False,
    url: _Url = _HERE,
    as_json: Json = False,
) -> int:
    """Unload a task's model in a running server, once its calls have ended."""
    from taskrouter.cli.remote import unload as ask

    return ask(url, task, option, force=force, as_json=as_json)


@remote.command(epilog=EPILOG)
@guarded
def remove(
    task: _TaskOrOption,
    option: _Option = None,
    force: Annotated[bool, typer.Option("--force", help="Unload it first, its calls stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    url: _Url = _HERE,
    as_json: Json = False,
) -> int:
    """Delete the files of a task's model from a running server's Hugging Face cache.

    Exit code 1: nothing was deleted as the model is loaded or others need its files, or not all of it could be.
    """
    from taskrouter.cli.remote import remove as ask

    return ask(url, task, option, force=force, dry_run=dry_run, as_json=as_json)


@remote.command(epilog=EPILOG)
@guarded
def select(
    task: _Task,
    option: Annotated[str, typer.Argument(help="The option of it to select.")],
    persist: Annotated[bool, typer.Option("--persist", help="Write it to the server's models.yaml, too.")] = False,
    url: _Url = _HERE,
    as_json: Json = False,
) -> int:
    """Select another option of a task in a running server; what fails leaves the selection as it was."""
    from taskrouter.cli.remote import select as ask

    return ask(url, task, option, persist=persist, as_json=as_json)


@remote.command(epilog=EPILOG)
@guarded
def pin(
    task: _TaskOrOption,
    option: _Option = None,
    off: Annotated[bool, typer.Option("--off", help="Unpin it.")] = False,
    url: _Url = _HERE,
    as_json: Json = False,
) -> int:
    """Keep a task's model from being evicted in a running server, until it is unpinned or the server ends."""
    from taskrouter.cli.remote import pin as ask

    return ask(url, task, option, off=off, as_json=as_json)


@remote.command(epilog=EPILOG)
@guarded
def explain(task: _Task, url: _Url = _HERE, as_json: Json = False) -> int:
    """Tell how a task's latest requests were answered in a running server, and what was decided for its models."""
    from taskrouter.cli.remote import explain as ask

    return ask(url, task, as_json=as_json)
