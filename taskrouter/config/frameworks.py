"""Which framework and provider names are right, and which can be used here: all handed in from above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

EXTERNAL = "external_api"
COMMAND = "command"
KEEP_WEIGHTS = frozenset({"transformers", "pytorch", "fake", "sglang", COMMAND})
"""Those that can't drop their weights asleep: ``sleep: discard`` is ``auto`` to them."""
TOLD_CONCURRENCY = frozenset({"vllm", "sglang"})
"""Engines that are started for a number of concurrent requests: it is part of what the model is."""
FROM_HUB = frozenset({"transformers", "vllm", "sglang"})
"""Those whose ``model_id`` is a folder or a model of the hub, found in this process's Hugging Face cache."""
BACKENDS_GROUP = "taskrouter.backends"
PROVIDERS_GROUP = "taskrouter.providers"

PLUG_INS_PAGE = "docs/plug-ins.md"
INSTEAD = {
    "whisper": "write framework: transformers, which runs Whisper checkpoints such as openai/whisper-large-v3",
    "faster_whisper": "write framework: transformers and the checkpoint it was converted from, such as "
    "openai/whisper-large-v3",
}
"""Frameworks that files name and that have no backend here, where another runs the same models."""

_MOST_CHOICES = 500


@dataclass(frozen=True)
class Frameworks:
    """The names of frameworks and providers.

    known, providers
        What can be used in this installation: the names of the entry points.
    aliases
        Other names of frameworks.
    planned, planned_providers
        Names that are right, whether or not they can be used here.
    """

    known: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=lambda: {"pytorch": "transformers"})
    planned: frozenset[str] = frozenset({"transformers", "vllm", "sglang", COMMAND, EXTERNAL})
    providers: frozenset[str] = frozenset()
    planned_providers: frozenset[str] = frozenset({"anthropic", "openai", "google"})

    def resolve(self, name: str) -> str:
        """The framework's own name, where ``name`` is an alias."""
        return self.aliases.get(name, name)

    @property
    def names(self) -> frozenset[str]:
        """Every framework name that is right."""
        return self.known | self.planned | frozenset(self.aliases)

    @property
    def provider_names(self) -> frozenset[str]:
        """Every provider name that is right."""
        return self.providers | self.planned_providers

    def unavailable(self, framework: str, provider: str | None) -> str:
        """Why an option can't be used in this installation; empty where it can."""
        name = self.resolve(framework)
        if name == EXTERNAL and provider is not None and provider not in self.providers:
            if provider not in self.planned_providers:
                return f"no plug-in for the provider {provider!r} is installed; {bring(provider, PROVIDERS_GROUP)}"
            return f"the provider {provider!r} can't be used in this installation: its plug-in isn't there"
        if name in self.known or name == EXTERNAL:
            return ""
        if name not in self.planned:
            instead = INSTEAD.get(name)
            return (
                f"no plug-in for the framework {name!r} is installed; {f'{instead}, or ' if instead else ''}"
                f"{bring(name, BACKENDS_GROUP)}"
            )
        return f"the framework {name!r} can't be used in this installation yet"


def bring(name: str, group: str) -> str:
    """What to do for a framework or a provider to be known here."""
    return (
        f"pip install a package that brings it, or write one ({PLUG_INS_PAGE}): {name} in the entry-point group {group}"
    )


def nearest(word: str, choices: frozenset[str] | set[str] | list[str], *, cutoff: float = 0.6) -> str | None:
    """The choice spelt most like ``word``, if any is near; capitals don't count."""
    by_lower = {choice.lower(): choice for choice in sorted(choices)[:_MOST_CHOICES]}
    found = get_close_matches(word.lower()[:200], list(by_lower), n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def misspelt(word: str, choices: frozenset[str]) -> str | None:
    """The right spelling, where ``word`` is none of ``choices`` and so near to one that it must be meant."""
    return None if word in choices else nearest(word, choices, cutoff=0.8)
