"""Calls to tasks with several options, or an external one: routing decides, this performs and tells it how it ended."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import dataclass, is_dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from taskrouter import errors, telemetry
from taskrouter.config import ModelConfig, TaskConfig
from taskrouter.demands import demands_of, kinds_of, surely_longer
from taskrouter.manager.externals import Externals, to_midnight
from taskrouter.manager.faults import fault_of, refusal
from taskrouter.manager.residents import Operation, Resident
from taskrouter.manager.streams import Channel
from taskrouter.manager.turns import Turns
from taskrouter.residency import State
from taskrouter.residency.events import Acquire
from taskrouter.routing import Candidate, Decision, Refused, Request, Routing, Try, Wait
from taskrouter.types import ModelKey, TicketId
from taskrouter.verbs import Passed, Routed, Why

if TYPE_CHECKING:
    from taskrouter.manager.configured import Configured
    from taskrouter.manager.performing import Performer
    from taskrouter.manager.targets import Target

UNABLE = (errors.UnsupportedVerb, errors.UnsupportedInput)
KEPT = 32
"""Requests of each task whose way is remembered."""
MAX_RETRIES = 2
"""How often an external option is asked again where the file doesn't say."""


@dataclass(frozen=True, slots=True)
class Taken:
    """An option that a request was given: what answers, its ticket (``None``: external), and how it came to this."""

    resident: Resident
    ticket: TicketId | None
    target: Target
    routed: Routed
    turns: Turns | None = None
    """What bounds the calls to an external option, of which one was taken, at ``since`` (loop time)."""
    since: float = 0.0

    def release(self, performer: Performer) -> None:
        """End the lease, or the turn, where there is one."""
        if self.ticket is not None:
            performer.release(self.ticket)
        if self.turns is not None:
            self.turns.release(performer.time() - self.since)


@dataclass(frozen=True, slots=True)
class Found:
    """What ``get_model`` found for its caller, while this was selected; it counts until then (loop time)."""

    selected: str
    routed: Routed
    until: float


def order_of(task: TaskConfig) -> tuple[str, ...]:
    """The options a request is tried with. One that was a fallback may have been selected meanwhile."""
    return tuple(dict.fromkeys((task.selected, *task.fallback)))


class Router:
    """One manager's routing, performed."""

    def __init__(self, manager: Configured, performer: Performer, externals: Externals) -> None:
        self._manager = manager
        self._performer = performer
        self.externals = externals
        self.routing = Routing()
        self.latest: dict[str, deque[tuple[datetime, Routed | str]]] = {}
        """How the latest requests of each task ended, the newest first; of errors the words, as they hold all else."""
        self._warming: set[ModelKey] = set()
        self._targets: dict[tuple[str, str], Target] = {}
        self._cannot: dict[str, frozenset[str]] = {}
        """What local options have refused, though nobody knew before: they aren't loaded once more to refuse it."""

    async def run(
        self,
        task: TaskConfig,
        verb: str | None,
        request: Any,
        work: Callable[[Taken], Awaitable[Any]],
        *,
        timeout: float | None = None,
        priority: int | None = None,
        claim: bool = False,
        first: Found | None = None,
        inside: Taken | None = None,
        holding: frozenset[TicketId] = frozenset(),
    ) -> Any:
        """Find an option, do ``work`` with it, and go on to the next where routing says so.

        ``first``: what was found for this caller a moment ago; what it waited for in vain isn't waited for once more.
        ``inside``: the caller holds this already, and asks that option only.
        ``work`` owns the ticket from when it is called. Raises what the only option raised, or ``NoOptionLeft``.
        """
        performer, routing, arrival = self._performer, self.routing, self._performer.time()
        bound = task.max_wait_s if task.max_wait_s is not None else self._manager.inference_config.max_wait_s
        way = Request(arrival + (bound if timeout is None else timeout), task.when_cold, asks=verb is not None)
        if first is not None and first.selected == task.selected:
            way.failed.update(self._waited_in_vain(task, first))
        raised: dict[str, Exception] = {}
        held = taken = inside
        try:
            while True:
                now = performer.time()
                if self.externals.ending:
                    raise errors.ManagerClosed(f"{task.task_name} wasn't asked: the manager was shut down")
                candidates = [
                    self._candidate(task, name, verb, request, now, raised, held=held) for name in order_of(task)
                ]
                decision = routing.decide(way, candidates, now=now)
                if held is not None and held is not inside and not _is_of(decision, held):
                    held.release(performer)
                    held = None
                match decision:
                    case Wait(until):
                        await self.externals.nap(until)
                    case Refused(passed, cold):
                        raise self._refused(task, passed, raised, cold=cold)
                    case Try() as tried:
                        if tried.warm:
                            self._warm(task, arrival)
                        begun: float | None = None
                        try:
                            if held is None:
                                taken = await self._take(
                                    task, tried, way, arrival, priority, claim, holding, verb, request
                                )
                                if taken.since > now:
                                    # While it waited for its turn a limit, a budget or a breaker may have closed.
                                    held = taken
                                    routing.put_back(way)
                                    continue
                            else:
                                taken = held
                            taken, held = replace(taken, routed=Routed(taken.target.option, way.passed)), inside
                            begun = performer.time()
                            answer = await work(taken)
                        except errors.TaskRouterError as error:
                            # The deadline bounds waiting and loading: what a call took is not its.
                            way.deadline += performer.time() - begun if begun is not None else 0.0
                            raised[tried.candidate.option] = error
                            self._learn(task, tried.candidate, request, error)
                            if not self._failed(way, error):
                                self._told(task, way, str(error))
                                raise
                            continue
                        if verb is None:
                            routing.left(way)  # nothing was asked: that says nothing of the option's health
                        else:
                            routing.answered(way, now=performer.time())
                            self._told(task, way, taken.routed)
                        telemetry.annotate_current(
                            taken.target.attributes, passed=[str(each) for each in way.passed] or None
                        )
                        return answer
        except BaseException as error:
            if isinstance(error, errors.NoOptionLeft):
                self._told(task, way, str(error))
            if performer.recorder is not None and taken is None and not task.get_selected_config().is_external:
                kept = task.priority if priority is None else priority
                performer.recorder.unanswered(arrival, task.task_name, task.selected, kept, error)
            raise
        finally:
            routing.left(way)
            if held is not None and held is not inside:
                held.release(performer)

    def _learn(self, task: TaskConfig, candidate: Candidate, request: Any, error: errors.TaskRouterError) -> None:
        """Remember what a local model can't take. What a provider's can is known, or depends on a medium's form."""
        if not isinstance(error, errors.UnsupportedInput) or isinstance(error, errors.ContextTooLong):
            return
        kinds = demands_of(request) - {"extra", "automatic tools"}
        if len(kinds) == 1 and not task.options[candidate.option].is_external:
            self._cannot[candidate.name] = self._cannot.get(candidate.name, frozenset()) | kinds

    def _told(self, task: TaskConfig, way: Request, ended: Routed | str) -> None:
        """Remember how a request ended, and say on its caller's span who was passed over."""
        self.latest.setdefault(task.task_name, deque(maxlen=KEPT)).appendleft((datetime.now(UTC), ended))
        if isinstance(ended, str):
            passed = [str(each) for each in (*way.passed, *way.failed.values())]
            telemetry.annotate_current(passed=list(dict.fromkeys(passed)) or None)

    def _waited_in_vain(self, task: TaskConfig, first: Found) -> dict[str, Passed]:
        """What needn't be waited for again: it wasn't ready in time, and isn't now."""
        found = {}
        for each in first.routed.passed:
            config = task.options.get(each.option)
            if each.why is not Why.NOT_READY or config is None or config.is_external:
                continue
            if self._performer.core.status(self._target(task, each.option).key).state is not State.READY:
                found[f"{task.task_name}/{each.option}"] = each
        return found

    def configure(self, changed: Iterable[str], tasks: Container[str]) -> None:
        """Another file: forget what is known of changed options (``task/option``), and of tasks that went."""
        self._targets.clear()
        for whole in changed:
            self._cannot.pop(whole, None)
            self.routing.forget(whole, None)
        for task in [task for task in self.latest if task not in tasks]:
            del self.latest[task]

    def forget(self, task: TaskConfig) -> None:
        """Take the selected option for healthy."""
        config = task.get_selected_config()
        account = self.externals.account(task.task_name, task.selected) if config.is_external else None
        self.routing.forget(f"{task.task_name}/{task.selected}", account)

    def _failed(self, way: Request, error: errors.TaskRouterError) -> bool:
        fault, why = fault_of(error)
        return self.routing.failed(
            way, fault, str(error), now=self._performer.time(), why=why, retry_after_s=error.retry_after_s,
            jitter=random.random(),
        )  # fmt: skip

    async def _take(
        self,
        task: TaskConfig,
        tried: Try,
        way: Request,
        arrival: float,
        priority: int | None,
        claim: bool,
        holding: frozenset[TicketId],
        verb: str | None,
        request: Any,
    ) -> Taken:
        option = tried.candidate.option
        target = self._target(task, option)
        routed = Routed(option, way.passed)
        if task.options[option].is_external:
            outside = self.externals.resident(task.task_name, option)
            turns = None if claim else self.externals.turns(task.task_name, option)
            if self._performer.pipelines is not None:
                self._performer.pipelines.asked(task.task_name)
            if turns is not None:
                await turns.take(tried.ready_by)
            return Taken(outside, None, target, routed, turns, self._performer.time() if turns is not None else 0.0)
        performer = self._performer
        event = Acquire(
            next(performer.ids), target.key, tried.ready_by, target.priority if priority is None else priority,
            claim, arrival, holding,
        )  # fmt: skip
        resident = await performer.acquire(event, task=target.task, option=option, verb=verb, request=request)
        return Taken(resident, event.ticket, target, routed)

    # --- how the options are now -----

    def _target(self, task: TaskConfig, option: str) -> Target:
        """What an option of a task is; made once, as it doesn't change. Raises what bars it."""
        known = self._targets.get((task.task_name, option))
        if known is None:
            known = self._targets[task.task_name, option] = self._manager.target(task.task_name, option)
        return known

    def _candidate(
        self,
        task: TaskConfig,
        name: str,
        verb: str | None,
        request: Any,
        now: float,
        raised: dict[str, Exception],
        *,
        held: Taken | None,
    ) -> Candidate:
        config = task.options[name]
        whole = f"{task.task_name}/{name}"
        try:
            target = self._target(task, name)
            if verb is not None:
                target.check(verb, self._performer, request)
        except errors.TaskRouterError as error:
            why = Why.UNABLE if isinstance(error, UNABLE) else Why.UNAVAILABLE
            raised.setdefault(name, error)
            return Candidate(whole, name, barred=Passed(name, why, str(error)))
        barred = _too_long(name, config, request)
        if config.is_external:
            provider = config.provider or ""
            spent = self.externals.over_budget(provider)
            if spent is not None:
                text = f"the {spent:g} dollars a day for {provider} are spent (providers.{provider}.daily_budget_usd)"
                barred = Passed(name, Why.BUDGET, text, to_midnight())
            if barred is None and verb is not None:
                barred = self._unable(task, name, config, verb, request)
            retries = config.max_retries if config.max_retries is not None else MAX_RETRIES
            turns = self.externals.turns(task.task_name, name)
            mine = held is not None and held.target.option == name
            start_s = 0.0 if turns is None or mine else turns.expected_s
            settings = self.externals.catalog.providers.get(provider)
            per_minute = settings.requests_per_minute if settings is not None else None
            account = self.externals.account(task.task_name, name)
            return Candidate(whole, name, provider, True, start_s, barred, retries, per_minute, account)
        refused = sorted(demands_of(request) & self._cannot.get(whole, frozenset()))
        if refused:
            barred = Passed(name, Why.UNABLE, f"it refused {refused[0]} before")
        status = self._performer.core.status(target.key)
        until = status.cooldown_until
        if until is not None and until > now:
            barred = Passed(name, Why.COOLDOWN, f"{status.label} failed to load repeatedly", until - now)
        start_s = self._performer.core.expected_start(target.key, now=now)
        return Candidate(whole, name, None, status.state is State.READY, start_s, barred)

    def _unable(self, task: TaskConfig, name: str, config: ModelConfig, verb: str, request: Any) -> Passed | None:
        """What a provider's own model is known not to take; another server behind its API says so itself."""
        if config.api_endpoint is not None:
            return None
        takes = self._manager.provider(config.provider or "").takes(config.model_id)
        if verb not in takes.verbs:
            return Passed(name, Why.UNABLE, f"{config.provider} can't {verb} with {config.model_id}")
        kinds = kinds_of(getattr(request, "messages", ()))
        sampled = {"video"} if "image" in takes.kinds else set()
        missing = sorted(kinds - takes.kinds - sampled)
        return Passed(name, Why.UNABLE, f"{config.model_id} takes no {missing[0]}") if missing else None

    # --- while the selected one is cold -----

    def _warm(self, task: TaskConfig, arrival: float) -> None:
        """Load the selected option for those who come later."""
        target = self._target(task, task.selected)
        if target.key not in self._warming:
            self._warming.add(target.key)
            self._performer.spawn(self._load(target), name=f"load meanwhile {target.key}")

    async def _load(self, target: Target) -> None:
        performer, now = self._performer, self._performer.time()
        event = Acquire(next(performer.ids), target.key, now + target.max_wait_s, target.priority, True, now)
        try:
            await performer.acquire(event, task=target.task, option=target.option)
            performer.release(event.ticket)
        except errors.TaskRouterError:
            pass  # logged where it failed; the next request that finds it cold tries again
        finally:
            self._warming.discard(target.key)

    def _refused(
        self, task: TaskConfig, passed: tuple[Passed, ...], raised: dict[str, Exception], *, cold: bool
    ) -> Exception:
        if cold:
            self._warm(task, self._performer.time())
            first = passed[0]
            return errors.Cold(
                f"{task.task_name}/{first.option} is {first.text}, and when_cold: fail is written; it loads meanwhile",
                retry_after_s=first.retry_after_s,
            )
        return refusal(task.task_name, passed, raised)

    async def first_piece(self, taken: Taken, channel: Channel, operation: Operation) -> None:
        """Wait until an answer in pieces has begun; what breaks later speaks against the option all the same."""
        await channel.begun()
        channel.routed = taken.routed
        name = f"{taken.target.task}/{taken.target.option}"

        def ended(result: asyncio.Future[Any]) -> None:
            error = None if result.cancelled() else result.exception()
            if isinstance(error, (errors.ProviderFailed, errors.ModelDied)):
                config = self._manager.tasks[taken.target.task].options[taken.target.option]
                account = None
                if config.is_external:
                    account = self.externals.account(taken.target.task, taken.target.option)
                fault, _ = fault_of(error)
                self.routing.broke(
                    name, account, fault, str(error), now=self._performer.time(),
                    retry_after_s=error.retry_after_s,
                )  # fmt: skip

        operation.result.add_done_callback(ended)


def _is_of(decision: Decision, held: Taken) -> bool:
    return isinstance(decision, Try) and decision.candidate.option == held.target.option


def with_route(answer: Any, routed: Routed) -> Any:
    """The answer, saying which option gave it, where its type has room for that."""
    if is_dataclass(answer) and not isinstance(answer, type) and hasattr(answer, "routed"):
        return replace(answer, routed=routed)
    return answer


def _too_long(name: str, config: ModelConfig, request: Any) -> Passed | None:
    if not isinstance(config.max_context, int):
        return None
    least = surely_longer(request, config.max_context)
    if least is None:
        return None
    return Passed(name, Why.UNABLE, f"the request has at least {least} tokens, its max_context is {config.max_context}")
