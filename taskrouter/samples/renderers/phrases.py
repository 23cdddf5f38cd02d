"""Pairs for the phrases sample: a sentence of the template language, and what it claims in other words.

Sentences come in families of near twins: each differs from the first in one detail (who, what, which, when), or has two
of its details the other way round. A sentence's own paraphrase says what it claims and nothing else: each claim turned
about ("The engine was mended by …", "It was the nurse that …"), with synonyms, in any order.

The pairs of subject and verb that the claims sample holds out are held out here too. All is drawn from the generator
that is passed in, so a seed is a data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from taskrouter.samples.renderers import claims
from taskrouter.samples.renderers.lexicon import (
    ADJECTIVES,
    ADJUNCTS,
    BODIES,
    DESCRIPTIONS,
    GROUPS,
    OBJECTS,
    PEOPLE,
    VERBS,
)
from taskrouter.samples.renderers.thesaurus import DONE, SYNONYMS, WHEN_AND_WHERE

_NAMES = tuple(word for word in PEOPLE if word.istitle())
_TRADES = tuple(word for word in PEOPLE if not word.istitle())
_DETAILS = (_NAMES, _TRADES, BODIES, GROUPS, VERBS, OBJECTS, (*ADJECTIVES, *DESCRIPTIONS), ADJUNCTS)
"""What can take each other's place."""

_SWAPPED = 0.35
"""So many twins have two of their details the other way round."""
_OTHER_WORD = 0.7
"""So often a word is replaced that another could stand for."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence, and the claims it makes in other words."""

    sentence: str
    paraphrase: str


def family(rng: np.random.Generator, count: int, split: claims.Split = "train") -> list[Pair]:
    """A sentence and ``count`` - 1 near twins of it, no two of which claim the same, each with its paraphrase."""
    while True:
        first = claims.render(rng, split)
        twins = {_same(first): first}
        for _ in range(6 * count):
            if len(twins) == count:
                return [Pair(twin.sentence, _paraphrase(rng, twin)) for twin in twins.values()]
            twin = _twin(rng, first, split)
            if twin is not None:
                twins.setdefault(_same(twin), twin)


def _same(example: claims.Example) -> tuple[str, ...]:
    return tuple(sorted(example.claims))


# --- twins ------------------------------------------------------------------------------------------------------------


def _twin(rng: np.random.Generator, example: claims.Example, split: claims.Split) -> claims.Example | None:
    """The sentence with one detail changed, or two swapped, if there are any to choose from."""
    words = _words(example.sentence)
    details = [(kind, there) for kind in _DETAILS if (there := _once(words, kind))]
    if not details:
        return None
    kind, there = details[int(rng.integers(len(details)))]
    one = there[int(rng.integers(len(there)))]
    others = [word for word in there if word != one] if rng.random() < _SWAPPED else []
    candidates = others or [word for word in kind if f" {word} " not in words]
    for place in rng.permutation(len(candidates)):
        other = candidates[int(place)]
        change = {one: other, other: one}
        twin = claims.Example(
            _changed(example.sentence, change), tuple(_changed(claim, change) for claim in example.claims)
        )
        if all(claims.is_held_out(*_parts(claim)[:2]) == (split == "held-out") for claim in twin.claims):
            return twin
    return None


def _once(words: str, kind: tuple[str, ...]) -> list[str]:
    """Those of a kind that occur, each once."""
    return [word for word in dict.fromkeys(kind) if words.count(f" {word} ") == 1]


def _words(sentence: str) -> str:
    """The words alone, each between blanks."""
    return f" {' '.join(re.findall('[A-Za-z]+', sentence))} "


def _changed(text: str, change: Mapping[str, str]) -> str:
    changed = re.sub(rf"\b({'|'.join(change)})\b", lambda found: change[found[1]], text)
    return _with_articles(changed)


def _with_articles(text: str) -> str:
    return re.sub(r"\b([Aa])n? (?=(\w))", lambda found: f"{found[1]}{'n' * (found[2] in 'aeiou')} ", text)


# --- paraphrases ------------------------------------------------------------------------------------------------------


def _paraphrase(rng: np.random.Generator, example: claims.Example) -> str:
    turned = [_turned(rng, claim) for claim in example.claims]
    return " ".join(turned[int(place)] for place in rng.permutation(len(turned)))


def _turned(rng: np.random.Generator, claim: str) -> str:
    """One claim in other words, turned about."""
    subject, verb, thing, when = _parts(claim)
    subject, thing = _other_words(rng, subject), _other_words(rng, thing)
    other = SYNONYMS.get(verb) if rng.random() < _OTHER_WORD else None
    did, done = other or verb, other or DONE[verb]
    when = WHEN_AND_WHERE.get(when, when) if rng.random() < _OTHER_WORD else when
    after, before = (f" {when}", f"{when}, ") if when else ("", "")
    forms = (
        f"{thing} was {done} by {subject}{after}",
        f"{before}{thing} was {done} by {subject}",
        f"it was {subject} that {did} {thing}{after}",
        f"it was {thing} that {subject} {did}{after}",
        f"{before}{subject} {did} {thing}",  # with nothing before it, this would be the claim itself
    )
    form = _with_articles(forms[int(rng.integers(len(forms) if when else len(forms) - 1))])
    return f"{form[0].upper()}{form[1:]}."


def _other_words(rng: np.random.Generator, text: str) -> str:
    return " ".join(SYNONYMS.get(word, word) if rng.random() < _OTHER_WORD else word for word in text.split())


def _parts(claim: str) -> tuple[str, str, str, str]:
    """Subject, verb, object, and when or where, of a bare claim."""
    words = claim.removesuffix(".").split()
    place = next(_verbs(words))
    subject, rest = " ".join(words[:place]), " ".join(words[place + 1 :])
    when = next((each for each in ADJUNCTS if rest.endswith(f" {each}")), "")
    subject = f"{subject[0].lower()}{subject[1:]}" if subject.startswith("The ") else subject
    return subject, words[place], rest.removesuffix(when).strip(), when


def _verbs(words: list[str]) -> Iterator[int]:
    return (place for place, word in enumerate(words) if word in VERBS)
