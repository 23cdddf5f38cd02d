"""Which option of a task answers a request: the selected one, then its fallbacks, in order. Pure: ``now`` is handed in.

1. An option is passed over while it can't serve: it can't be used or can't fit, is cooling down, its breaker is open,
   its provider's limit or budget is spent, it can't do what is asked, or it would start after the deadline.
2. The first that is left is tried. What it fails with has a rule (``RULES``): try elsewhere, try it again, neither; and
   whether it speaks against the option (its breaker), or its whole provider (a rate limit).
3. When nothing else is left, an option whose failure allows it is tried again, after its ``Retry-After`` or a growing,
   jittered pause, up to ``max_retries`` times and never past the deadline.
4. A written limit of requests a minute is kept before it is met: who can only be served by such a provider books its
   next free instant and waits for it, where that comes before the deadline.
5. When all are passed over, the request is refused with every reason.

A **breaker** opens after ``CONSECUTIVE`` failures in a row, or where half of at least ``LEAST`` calls within
``WINDOW_S`` failed. Open, it admits nobody for ``OPEN_S`` seconds, doubled with each failed probe; then one request at
a time is the probe: an answer closes it, and a caller who leaves hands the probe on. So no breaker stays open that
nobody may probe.

Every ``Try`` is followed by exactly one of ``answered``, ``failed`` or ``left``; all state of health is in ``Routing``.
"""

from taskrouter.routing.breaker import CONSECUTIVE, LEAST, LONGEST_OPEN_S, OPEN_S, WINDOW_S, Breaker
from taskrouter.routing.decisions import PAUSE_S, Candidate, Decision, Refused, Request, Routing, Try, Wait
from taskrouter.routing.faults import RULES, Fault, Rule
from taskrouter.routing.pace import LATE_S, Pace

__all__ = [
    "CONSECUTIVE",
    "LATE_S",
    "LEAST",
    "LONGEST_OPEN_S",
    "OPEN_S",
    "PAUSE_S",
    "RULES",
    "WINDOW_S",
    "Breaker",
    "Candidate",
    "Decision",
    "Fault",
    "Pace",
    "Refused",
    "Request",
    "Routing",
    "Rule",
    "Try",
    "Wait",
]
