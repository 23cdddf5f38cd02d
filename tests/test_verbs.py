"""Kinds and verbs hang together."""

from __future__ import annotations

import pytest

from taskrouter.errors import UnsupportedInput
from taskrouter.verbs import (
    KINDS,
    PASS_THROUGH,
    STREAMING_VERBS,
    VERBS_OF_KIND,
    EmbedRequest,
    Passed,
    Picture,
    Usage,
    Why,
)


def test_every_kind_can_be_asked_something_and_what_streams_is_a_verb_of_some_kind() -> None:
    assert all(VERBS_OF_KIND[kind] for kind in KINDS)
    assert set().union(*VERBS_OF_KIND.values(), PASS_THROUGH) >= STREAMING_VERBS


def test_the_tokens_of_a_call_are_those_read_and_those_written() -> None:
    assert Usage(prompt_tokens=7, completion_tokens=5).total_tokens == 12


def test_an_option_that_was_passed_over_says_why_in_a_line() -> None:
    assert str(Passed("near", Why.COLD, "not loaded")) == "near: cold (not loaded)"


def test_what_embeds_texts_only_is_given_texts_or_an_error() -> None:
    assert EmbedRequest(("one", "two")).texts("bert") == ["one", "two"]
    with pytest.raises(UnsupportedInput, match="bert embeds texts only"):
        EmbedRequest(("one", Picture(b""))).texts("bert")
