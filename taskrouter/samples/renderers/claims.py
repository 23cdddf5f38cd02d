"""Sentences for the claims sample: a template language in which the claims a sentence makes are known exactly.

A sentence states one to three facts and dresses them up: attributions ("Experts say that"), hedges ("probably"),
asides, shared subjects and predicates, relative clauses, pronouns, and clauses that are mentioned but not claimed
("Nobody knows whether …"). Its claims are the bare facts, one a line, each with its own subject.

Every eighth pair of subject and verb is kept out of training: a held-out sentence is built of such pairs alone. All is
drawn from the generator that is passed in, so a seed is a data set.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from taskrouter.samples.renderers.lexicon import (
    ADJECTIVES,
    ADJUNCTS,
    ASIDES,
    BODIES,
    DESCRIPTIONS,
    GROUPS,
    HEDGES,
    OBJECTS,
    PEOPLE,
    PREFIXES,
    SUFFIXES,
    SYLLABLES,
    UNCLAIMED,
    VERBS,
)

Split = Literal["train", "held-out"]

PROMPT = "extract the claims from this sentence: "
OTHER_PROMPTS = ("Extract the claims from this sentence: ", "Extract the claims: ", "What does this sentence claim? ")

_INVENTED = 0.08
"""So many subjects are names made up on the spot: they can only be copied, never guessed."""


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence and what it claims."""

    sentence: str
    claims: tuple[str, ...]

    @property
    def answer(self) -> str:
        return "\n".join(self.claims)


@dataclass(frozen=True, slots=True)
class _Fact:
    """Who did what. ``aside`` and ``hedge`` are dressing and no part of the claim."""

    subject: str
    verb: str
    object: str
    adjunct: str = ""
    aside: str = ""
    hedge: str = ""

    @property
    def claim(self) -> str:
        return _sentence(f"{self.subject} {self.verb} {self.object}{self.adjunct}")

    @property
    def predicate(self) -> str:
        return f"{self.hedge}{self.verb} {self.object}{self.adjunct}"

    @property
    def clause(self) -> str:
        return f"{self.subject}{self.aside} {self.predicate}"


def messages(sentence: str) -> list[dict[str, str]]:
    """The chat that asks the model for the claims of ``sentence``."""
    return [{"role": "user", "content": PROMPT + sentence}]


def is_held_out(subject: str, verb: str) -> bool:
    """Whether this pair is kept out of training."""
    return zlib.crc32(f"{subject.split()[-1]} {verb}".encode()) % 8 == 0


def render(rng: np.random.Generator, split: Split = "train") -> Example:
    """Write one sentence, and the claims it makes."""
    return _Writer(rng, split).write()


class _Writer:
    """Draws the words of one sentence."""

    def __init__(self, rng: np.random.Generator, split: Split) -> None:
        self._rng = rng
        self._held_out = split == "held-out"

    def write(self) -> Example:
        patterns = (
            self._plain, self._shared_subject, self._three_verbs, self._shared_predicate, self._two_objects,
            self._two_clauses, self._pronoun, self._relative, self._unclaimed,
        )  # fmt: skip
        pattern = patterns[int(self._rng.integers(len(patterns)))]
        text, facts = pattern()
        if pattern != self._unclaimed:
            if self._sometimes(0.4):
                text = f"{self._pick(PREFIXES)} {text}"
            elif self._sometimes(0.25):
                text = f"{text}, {self._pick(SUFFIXES)}"
            text = _sentence(text)
        return Example(text, tuple(fact.claim for fact in facts))

    def _plain(self) -> tuple[str, list[_Fact]]:
        fact = self._fact()
        return fact.clause, [fact]

    def _shared_subject(self) -> tuple[str, list[_Fact]]:
        first = self._fact()
        second = self._fact(first.subject)
        return f"{first.clause} {self._pick(('and', 'and', 'but'))} {second.predicate}", [first, second]

    def _three_verbs(self) -> tuple[str, list[_Fact]]:
        first = self._fact()
        second, third = self._fact(first.subject), self._fact(first.subject)
        return f"{first.clause}, {second.predicate} and {third.predicate}", [first, second, third]

    def _shared_predicate(self) -> tuple[str, list[_Fact]]:
        first = self._fact()
        second = self._fact(verb=first.verb, like=first)
        return f"{first.subject} and {second.subject} {first.predicate}", [first, second]

    def _two_objects(self) -> tuple[str, list[_Fact]]:
        first = self._fact()
        second = _Fact(first.subject, first.verb, self._object(), first.adjunct)
        subject = f"{first.subject}{first.aside}"
        text = f"{subject} {first.hedge}{first.verb} {first.object} and {second.object}{first.adjunct}"
        return text, [first, second]

    def _two_clauses(self) -> tuple[str, list[_Fact]]:
        first, second = self._fact(), self._fact()
        return f"{first.clause}, {self._pick(('and', 'but', 'while'))} {second.clause}", [first, second]

    def _pronoun(self) -> tuple[str, list[_Fact]]:
        first = self._fact()
        second = self._fact(first.subject)
        noun = first.subject.split()[-1]
        pronoun = "they" if noun in GROUPS else "it" if noun in BODIES else self._pick(("he", "she"))
        link = self._pick((", and", ", but", ". Later", ", because"))
        return f"{first.clause}{link} {pronoun} {second.predicate}", [first, second]

    def _relative(self) -> tuple[str, list[_Fact]]:
        first = self._fact()
        second = self._fact(first.subject)
        who = "which" if first.subject.split()[-1] in BODIES else "who"
        return f"{first.subject}, {who} {first.predicate}, {second.predicate}", [first, second]

    def _unclaimed(self) -> tuple[str, list[_Fact]]:
        mentioned, claimed = self._fact(), self._fact()
        return self._pick(UNCLAIMED).format(mentioned.clause, claimed.clause), [claimed]

    def _fact(self, subject: str = "", *, verb: str = "", like: _Fact | None = None) -> _Fact:
        while True:
            who, did = subject or self._subject(), verb or self._pick(VERBS)
            if is_held_out(who, did) == self._held_out and not (like and like.subject == who):
                break
        if like:
            return _Fact(who, did, like.object, like.adjunct)
        adjunct = f" {self._pick(ADJUNCTS)}" if self._sometimes(0.35) else ""
        aside = f", {self._pick(ASIDES)}," if self._sometimes(0.15) else ""
        hedge = f"{self._pick(HEDGES)} " if self._sometimes(0.25) else ""
        return _Fact(who, did, self._object(), adjunct, aside, hedge)

    def _subject(self) -> str:
        if self._sometimes(_INVENTED):
            return "".join(self._pick(SYLLABLES) for _ in range(3)).capitalize()
        noun = self._pick(PEOPLE + BODIES + GROUPS)
        return noun if noun[0].isupper() else f"the {self._described(noun, DESCRIPTIONS, 0.2)}"

    def _object(self) -> str:
        words = self._described(self._pick(OBJECTS), ADJECTIVES, 0.35)
        if self._sometimes(0.5):
            return f"the {words}"
        return f"an {words}" if words[0] in "aeiou" else f"a {words}"

    def _described(self, noun: str, adjectives: tuple[str, ...], chance: float) -> str:
        return f"{self._pick(adjectives)} {noun}" if self._sometimes(chance) else noun

    def _pick(self, words: tuple[str, ...]) -> str:
        return words[int(self._rng.integers(len(words)))]

    def _sometimes(self, chance: float) -> bool:
        return bool(self._rng.random() < chance)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
