"""Faults seeded by hand: each is the core with one piece of its text changed.

``grow`` compiles the patched sources into fresh modules, so that the real core is never touched. A patch whose text
isn't found exactly once in the core fails loudly: then the core has changed, and the fault must be seeded anew.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import cast

import taskrouter.residency

from .account import CoreFactory

SHARED = {"__init__", "actions", "books", "events"}
"""Modules whose classes the harnesses compare by identity: they stay as they are."""

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: in the core's text, ``old`` becomes ``new``. ``caught_by`` names the harnesses that must notice.

    ``also`` are further changes without which the core would only trip over the first.
    """

    name: str
    old: str
    new: str
    caught_by: str
    also: tuple[tuple[str, str], ...] = ()


def sources() -> dict[str, str]:
    folder = Path(taskrouter.residency.__file__).parent
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.py")) if path.stem not in SHARED}


def grow(mutant: Mutant) -> CoreFactory:
    """The core with this fault."""
    texts = sources()
    for old, new in ((mutant.old, mutant.new), *mutant.also):
        found = [name for name, text in texts.items() for _ in range(text.count(old))]
        if len(found) != 1:
            raise LookupError(
                f"mutant {mutant.name!r}: its text is found {len(found)} times in the core {found}: {old!r}"
            )
        texts[found[0]] = texts[found[0]].replace(old, new)
    return compiled(texts)


def compiled(texts: dict[str, str]) -> CoreFactory:
    """These sources as modules of their own, which import each other; the ``Residency`` among them."""
    package = f"residency_mutant_{next(_numbers)}"
    modules: dict[str, ModuleType] = {}

    def load(name: str) -> None:
        if name in modules:
            return
        for other in needs(texts[name]) & texts.keys():
            load(other)
        text = texts[name]
        for other in texts:
            text = text.replace(f"from taskrouter.residency.{other} import", f"from {package}_{other} import")
            text = text.replace(f"from taskrouter.residency import {other}\n", f"import {package}_{other} as {other}\n")
        module = modules[name] = ModuleType(f"{package}_{name}")
        sys.modules[module.__name__] = module
        exec(compile(text, f"<{module.__name__}>", "exec"), module.__dict__)

    try:
        for name in texts:
            load(name)
    finally:
        for module in modules.values():
            sys.modules.pop(module.__name__, None)
    return cast(CoreFactory, modules["core"].Residency)


def needs(text: str) -> set[str]:
    """Modules of the core that this source imports when it runs (those for type checkers only are indented)."""
    return set(re.findall(r"^from taskrouter\.residency(?:\.| import )(\w+)", text, re.MULTILINE))


MUTANTS = [
    Mutant(
        "one release ends every lease of the model",
        "        since = model.leases.pop(event.ticket, None)\n",
        "        since = model.leases.pop(event.ticket, None)\n"
        "        if since is not None:\n            self._end_leases(model)\n",
        "cases days traffic",
    ),
    Mutant(
        "evicts under a claim",
        "        if model.claims:\n            until",
        "        if False:\n            until",
        "cases days",
    ),
    Mutant(
        "ignores what an older ticket reserved",
        "model not in reserved.models and model.key not in held",
        "model.key not in held",
        "cases",
    ),
    Mutant(
        "counts twice what an older ticket reserved",
        "            for device, amount in victim.charges.items():\n                self.bytes",
        "            for device, amount in [*victim.charges.items()] * 2:\n                self.bytes",
        "cases",
    ),
    Mutant(
        "sleeps through the instant a plan waits for",
        "        if self._plans.wake <= now:\n",
        "        if False:\n",
        "cases days traffic",
    ),
    Mutant(
        "knows of no pin that was set while it ran",
        "            self._plans.some_stay = self._plans.some_stay or event.pinned\n",
        "",
        "cases days",
    ),
    Mutant("never drains", "        if drain_at > now:\n", "        if True:\n", "cases traffic"),
    Mutant("drains at once", "        if drain_at > now:\n", "        if False:\n", "cases days traffic"),
    Mutant(
        "never lifts a drain",
        "            if victim.state is State.DRAINING:\n                victim.drain_for = None",
        "            if victim.state is None:\n                victim.drain_for = None",
        "cases days",
    ),
    Mutant(
        "frees when the unload is asked for, not when it is seen",
        "why)\n        self._out.append(Unload(model.key, model.generation, dict(model.charges), why))\n",
        "why)\n        self._out.append(Unload(model.key, model.generation, dict(model.charges), why))\n"
        "        self._freed(model, {}, now)\n",
        "cases days traffic",
    ),
    Mutant(
        "loads twice",
        "        model.made_room = want.evicted\n",
        "        model.made_room = want.evicted\n"
        "        self._out.append(Load(model.key, model.generation, model.devices, {}, Reason.REQUEST, None))\n",
        "cases days traffic",
    ),
    Mutant(
        "unloads a draining model under its leases",
        "        if not any(victim.leases for victim in plan.victims):\n",
        "        if True:\n",
        "cases days traffic",
    ),
    Mutant(
        "evicts more than it needs",
        "plan.victims = drop_unneeded(chosen, lacking)",
        "plan.victims = chosen",
        "cases days",
    ),
    Mutant(
        "charges nothing when a load starts",
        "        for device, amount in want.need.items():\n            self._accounts[device].charged += amount\n",
        "",
        "cases days traffic",
    ),
    Mutant(
        "ignores pins",
        "for model in models if not model.spec.pinned)",
        "for model in models)",
        "cases days",
        also=((" and not any(victim.spec.pinned for victim in want.victims)", ""),),
    ),
    Mutant("believes events of an earlier life", "model.generation != generation or ", "", "days"),
    Mutant("forgets a ticket's deadline", "        self._timer(event.deadline, ticket)\n", "", "cases days traffic"),
    Mutant(
        "grants a lease more than there are slots",
        "(model.slots is None or len(model.leases) < model.slots):\n            granted",
        "(model.slots is None or len(model.leases) <= model.slots):\n            granted",
        "cases days",
    ),
    Mutant(
        "protects nothing that was just loaded",
        "model.loaded_at + min(model.brought_s, settings.residency_cap_s),\n"
        "                model.idle_since + 0.2 * model.brought_s,",
        "-inf, -inf",
        "cases days traffic",
    ),
    Mutant(
        "evicts before the preflight has passed",
        "        if want.phase is Phase.PREFLIGHT:\n            reserved",
        "        if False:\n            reserved",
        "cases days",
    ),
    Mutant(
        "lets two loads of a serial group run at once",
        "        if holder is not None and holder is not want.model:\n",
        "        if False:\n",
        "cases days",
    ),
    Mutant(
        "starts beside an exclusive load",
        "            if exclusive or (other.state is State.LOADING",
        "            if False and (other.state is State.LOADING",
        "days",
    ),
    Mutant(
        "keeps the bytes of a load that failed",
        "            self._accounts[device].charged -= amount\n        for device, amount in residue",
        "            pass\n        for device, amount in residue",
        "cases days traffic",
    ),
    Mutant(
        "never asks to be woken",
        "            self._out.append(WakeAt(wake))\n",
        "            pass\n",
        "cases days traffic",
    ),
    Mutant(
        "takes the youngest ticket first",
        "nsmallest(PASS_LIMIT, open_wants, key=self._order)",
        "nsmallest(PASS_LIMIT, open_wants, key=self._order)[::-1]",
        "cases days",
    ),
    Mutant(
        "starts a load into host memory that others took",
        "free < 0 for device in want.need):",
        "free < 0 for device in want.devices):",
        "cases",
    ),
    Mutant(
        "loads nothing back after a failed load",
        "        self._restore.update((victim.key, victim) for victim in evicted if not victim.removed)\n",
        "        pass\n",
        "cases",
    ),
    Mutant(
        "unloads a retired model under its leases",
        "gone = model.state in (State.DRAINING, State.HOST) and not model.leases",
        "gone = model.state in (State.DRAINING, State.HOST)",
        "cases days",
    ),
    Mutant(
        "charges no RAM for who sleeps",
        "        for device, amount in model.charges.items():\n            self._accounts[device].charged += amount\n"
        "        model.devices = devices\n",
        "        model.devices = devices\n",
        "days",
    ),
    Mutant(
        "forgets what a sleeper leaves on its device",
        "in event.residue.items() if amount > 0 and device in self._accounts}",
        "in event.residue.items() if False}",
        "days",
    ),
    Mutant(
        "puts to sleep where no RAM is left",
        "        chosen = take(sleepers, missing)\n        if missing:\n            return None\n",
        "        chosen = take(sleepers, missing)\n",
        "days",
    ),
    Mutant(
        "tries for ever to put to sleep who can't",
        "        model.sleep_failures += 1\n        model.expect_back()\n        self._strip(model)\n",
        "        model.expect_back()\n        self._strip(model)\n",
        "cases",
    ),
    Mutant(
        "tries for ever to wake who can't",
        "        model.sleep_failures += 1\n        self._unload(model",
        "        self._unload(model",
        "cases",
    ),
    Mutant(
        "loads ahead what can't be called off",
        "            if not model.spec.traits.cancellable:\n                continue  # Whoever",
        "            if False:\n                continue  # Whoever",
        "cases",
    ),
    Mutant(
        "wakes ahead, which can't be called off",
        "model.want is not None or model.state is not State.DISK:",
        "model.want is not None or model.state not in (State.DISK, State.HOST):",
        "cases",
    ),
    Mutant(
        "makes room ahead for what is needed later",
        "            return -inf if rank > self.rank(wanted) else inf\n",
        "            return -inf\n",
        "days",
    ),
    Mutant(
        "lets what is needed soon outweigh priority",
        "        if victim.spec.priority > wanted.spec.priority:\n            return inf\n        rank = ",
        "        rank = ",
        "days",
    ),
    Mutant(
        "forgets who was removed, and what it left behind with it",
        "            and not model.residue\n",
        "",
        "cases",
    ),
    Mutant(
        "lets go who is named again before it has gone",
        "        if model.retiring and not model.cancelling:\n            model.retiring = False\n",
        "        if False:\n            model.retiring = False\n",
        "cases days",
    ),
    Mutant(
        "loads back what is no longer configured",
        "            model.removed = True\n            self._restore.pop(model.key, None)\n",
        "            model.removed = True\n",
        "cases",
    ),
    Mutant(
        "keeps a plan that no longer fits its device",
        "        self._replan(lambda want: any(n > self._accounts[device].lasting for device, n in want.need.items()),"
        " now)\n",
        "",
        "cases days",
    ),
    Mutant(
        "grants what is no longer configured while it still loads",
        "        if model.removed:\n            self._refuse((event.ticket,), messages.removed(model))\n"
        "            return\n",
        "",
        "days",
    ),
    Mutant(
        "counts none of the models that are there already",
        "                    model.charges[MODEL_SLOTS] = 1\n",
        "                    pass\n",
        "cases days",
    ),
    Mutant(
        "lets go of the slots that were found when the file is read again",
        "        self.count_slots()\n        if not (self.learned",
        "        self.slots = spec.slots if spec.slots is not None else spec.traits.slots\n"
        "        if not (self.learned",
        "cases",
    ),
]
