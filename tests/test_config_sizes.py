"""Sizes in models.yaml, with their units."""

from __future__ import annotations

import pytest

from taskrouter.config import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("22GiB", 22 << 30),
        ("512MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("10 kb", 10_000),
        ("7B", 7),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "22", "GiB", "-1GiB", "22G", "1e3GB", "1..5GB", "٣GB", "9999999TiB", "9" * 400 + "GB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)
