"""What ``model`` names: a task, ``task/option``, or ``default``."""

from __future__ import annotations

from typing import Any, NamedTuple

from taskrouter.errors import BadInput, UnknownTask
from taskrouter.http.failing import Refused
from taskrouter.http.keys import Caller
from taskrouter.http.strict_json import kind_of
from taskrouter.manager import ModelManager
from taskrouter.manager.targets import Target

_LONGEST = 256


class Named(NamedTuple):
    """A task, and the only option that is to answer, if one was named."""

    task: str
    option: str | None

    def __str__(self) -> str:
        return self.task if self.option is None else f"{self.task}/{self.option}"


def named(manager: ModelManager, caller: Caller, model: Any) -> tuple[Named, Target]:
    """Who is named, and what that means now.

    Raises ``BadInput``, ``UnknownTask``, ``UnknownOption``, and ``Refused`` for a task this caller may not ask.
    A task that isn't there and one that a caller may not ask are told apart only for who may ask all.
    """
    if not isinstance(model, str) or not model:
        wrong = "missing" if model is None else "empty" if model == "" else kind_of(model)
        raise BadInput(f"model is {wrong}; it must name a task, as GET /v1/models lists them")
    if len(model) > _LONGEST:
        raise BadInput(f"model has {len(model):,} letters; it must name a task, as GET /v1/models lists them")
    task, option = model, None
    if "/" in model and model not in manager.tasks:
        task, _, option = model.partition("/")
    try:
        found = manager.target(task, option or None)
    except UnknownTask:
        if caller.tasks is not None:
            raise _not_allowed(model) from None
        if task == "default":
            raise UnknownTask("'default' is no task's name here: no default_task is set in models.yaml") from None
        raise UnknownTask(f"there is no task {task!r}; GET /v1/models lists them") from None
    if not caller.may_ask(found.task):
        raise _not_allowed(model)
    return Named(found.task, option or None), found


def _not_allowed(model: str) -> Refused:
    return Refused(403, f"this key may not ask {model!r}", code="task_not_allowed")
