"""Whatever the bytes: a catalog or a ``ConfigError``, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskrouter.config import Catalog, Frameworks, model_request, parse_catalog
from taskrouter.errors import ConfigError
from taskrouter.verbs import KINDS

FRAMEWORKS = Frameworks(known=frozenset({"fake", "transformers"}))
SAMPLE = Path(__file__).with_name("test_config_sample.yaml").read_bytes()
LINES = SAMPLE.splitlines(keepends=True)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(data: bytes) -> Catalog | None:
    refused = True
    try:
        catalog = parse_catalog(data, file="m.yaml", base_dir="/nowhere", frameworks=FRAMEWORKS, environ={"HOME": "h"})
    except ConfigError as error:
        said = [problem.message for problem in error.problems]
    else:
        said = [str(problem) for problem in catalog.warnings]
        refused = False
    assert all(said)
    if refused:
        assert said
        return None
    for task in catalog.tasks.values():
        for option in task.options:
            model_request(task, option, catalog=catalog)
    return catalog


TOKENS = st.sampled_from(
    ["off", "no", "null", ".nan", "-1", "1e999", "0x_", "0b", "1:30", "2026-99-99", "[]", "{}", "[[a]]", "{a: {b: c}}",
     "''", "<<", "*x", "&x y", "!!int x", "!!float", "!x", "${HOME}", "${", "${X:-", "|", ">", "? ", "- ", "\t", "%",
     "'", '"', "\u2028", "9" * 40, "1_000", "=", "~", "!!null x", "!!bool x", "\u00e9",
     "!!timestamp x", "@", "\U0001f600", "!<tag:yaml.org,2002:int> _"],
)  # fmt: skip


@QUICK
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    read(data)


@QUICK
@given(st.text(max_size=300))
def test_random_text(text: str) -> None:
    read(text.encode("utf-8", "surrogatepass"))


@QUICK
@given(st.lists(TOKENS | st.sampled_from([": ", ", ", "\n", "\n  ", "tasks", "a"]), max_size=40))
def test_random_tokens(tokens: list[str]) -> None:
    read("".join(tokens).encode())


@QUICK
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for index, byte in flips:
        data[index] = byte
    read(bytes(data))


@QUICK
@given(
    st.lists(
        st.tuples(st.sampled_from(["drop", "double", "swap", "cut"]), st.integers(0, len(LINES) - 1)),
        min_size=1,
        max_size=5,
    )
)
def test_shuffled_lines(edits: list[tuple[str, int]]) -> None:
    lines = list(LINES)
    for edit, index in edits:
        index %= max(1, len(lines))
        if not lines:
            break
        if edit == "drop":
            del lines[index]
        elif edit == "double":
            lines.insert(index, lines[index])
        elif edit == "swap":
            lines[index], lines[0] = lines[0], lines[index]
        else:
            lines[index] = lines[index][: len(lines[index]) // 2]
    read(b"".join(lines))


@QUICK
@given(st.lists(st.tuples(st.integers(0, len(LINES) - 1), TOKENS | st.text(max_size=8)), min_size=1, max_size=5))
def test_swapped_values(edits: list[tuple[int, str]]) -> None:
    lines = list(LINES)
    for index, token in edits:
        key, colon, _ = lines[index].partition(b":")
        if colon:
            lines[index] = key + b": " + token.encode("utf-8", "surrogatepass") + b"\n"
    read(b"".join(lines))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@QUICK
@given(st.data())
def test_any_value_in_any_place(data: st.DataObject) -> None:
    document: Any = yaml.safe_load(SAMPLE)
    here = document
    while True:
        key = data.draw(st.sampled_from(sorted(here)))
        if not (isinstance(here[key], dict) and here[key]) or data.draw(st.booleans()):
            here[key] = data.draw(JSON)
            break
        here = here[key]
    read(yaml.safe_dump(document, allow_unicode=data.draw(st.booleans())).encode("utf-8", "surrogatepass"))


NAMES = st.from_regex(r"[a-z][a-z0-9._-]{0,12}", fullmatch=True).filter(lambda s: s not in {"default"})
OPTIONS = st.fixed_dictionaries(
    {"model_id": NAMES, "framework": st.sampled_from(["fake", "transformers", "pytorch"])},
    optional={
        "vram_gb": st.floats(0, 1000) | st.integers(0, 1000) | st.integers(0, 999).map("{}MiB".format),
        "fps": st.integers(0, 1000),
        "max_context": st.just("auto") | st.integers(1, 1 << 20),
        "devices": st.integers(1, 8) | st.lists(st.integers(0, 7).map("cuda:{}".format), min_size=1, unique=True),
        "max_concurrency": st.integers(1, 100),
        "keep_alive_s": st.floats(0, 1e6),
        "pinned": st.booleans(),
        "dtype": st.sampled_from(["auto", "float32", "float16", "bfloat16"]),
        "engine_args": st.dictionaries(st.sampled_from(["load_s", "call_s", "fail"]), st.integers(0, 9) | NAMES),
    },
)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        options = draw(st.dictionaries(NAMES, OPTIONS, min_size=1, max_size=4))
        selected = draw(st.sampled_from(sorted(options)))
        tasks[name] = {"selected": selected, "options": options, "priority": draw(st.integers(-9, 9)),
                       "fallback": [option for option in options if option != selected],
                       "kind": draw(st.sampled_from(KINDS))}  # fmt: skip
    return {
        draw(st.sampled_from(["tasks", "models"])): tasks,
        "default_task": draw(st.sampled_from(sorted(tasks))),
        "inference": {"offload_threshold": draw(st.floats(0.01, 1.0))},
        "memory": {"devices": {"cuda:0": {"budget": "22GiB"}}, "share": draw(st.booleans())},
        "pipelines": {"p": list(tasks)},
    }


@QUICK
@given(files(), st.booleans())
def test_valid_files_load(document: dict[str, Any], flow: bool) -> None:
    catalog = read(yaml.safe_dump(document, default_flow_style=flow, sort_keys=False).encode())
    assert catalog is not None
    tasks = document.get("tasks") or document["models"]
    assert list(catalog.tasks) == list(tasks)
    assert {name: list(task.options) for name, task in catalog.tasks.items()} == {
        n: list(t["options"]) for n, t in tasks.items()
    }
    assert catalog.raw == document
