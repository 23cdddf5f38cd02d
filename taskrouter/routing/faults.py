"""What a try can end in, and the rule for each: elsewhere, again, neither; and what it says of the option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from taskrouter.verbs import Why


class Fault(Enum):
    """What a try ended in, told apart by what it says of the option."""

    BAD_REQUEST = "bad_request"
    UNABLE = "unable"
    AUTH = "auth"
    QUOTA = "quota"
    BUDGET = "budget"
    OVERLOAD = "overload"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BROKE_OFF = "broke_off"
    BROKEN = "broken"
    NO_KEY = "no_key"
    NOT_READY = "not_ready"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Rule:
    """``elsewhere``: the next option may be asked. ``again``: so may this one. ``counts``: it speaks against the
    option; ``trips``: so much that its breaker opens at once. ``limits``: the provider takes nothing for a while."""

    why: Why
    elsewhere: bool = True
    again: bool = False
    counts: bool = False
    trips: bool = False
    limits: bool = False


RULES: Mapping[Fault, Rule] = {
    Fault.BAD_REQUEST: Rule(Why.FAILED, elsewhere=False),
    Fault.UNABLE: Rule(Why.UNABLE),
    Fault.AUTH: Rule(Why.AUTH, counts=True, trips=True),
    Fault.QUOTA: Rule(Why.RATE_LIMIT, again=True, limits=True),
    Fault.BUDGET: Rule(Why.BUDGET),
    Fault.OVERLOAD: Rule(Why.OVERLOADED, again=True, counts=True),
    Fault.TIMEOUT: Rule(Why.TIMEOUT, counts=True),
    Fault.CONNECTION: Rule(Why.CONNECTION, again=True, counts=True),
    Fault.BROKE_OFF: Rule(Why.CONNECTION, counts=True),
    Fault.BROKEN: Rule(Why.FAILED, counts=True),
    Fault.NO_KEY: Rule(Why.AUTH),
    Fault.NOT_READY: Rule(Why.NOT_READY),
    Fault.FINAL: Rule(Why.FAILED, elsewhere=False),
}
"""A bad request is bad everywhere; a call that broke in mid-answer (``FINAL``) can't be taken back."""
