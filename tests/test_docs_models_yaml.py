"""docs/models-yaml.md has every key of the schema, with its default, and marks just those that nothing acts on yet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from taskrouter import ConfigError, ModelManager
from taskrouter.backends.registry import Registry
from taskrouter.config import schema
from taskrouter.config.identity import model_request
from taskrouter.config.not_yet import NOT_YET
from taskrouter.config.tree import MAX_ALIASES, MAX_BYTES, MAX_DEPTH, MAX_NODES
from taskrouter.types import ModelRequest
from taskrouter.verbs import KINDS
from tests.pages import blocks, page, quoted

TEXT = page("models-yaml.md")
OPTION = {"model_id": "m", "framework": "fake"}
NEEDED: Mapping[type, dict[str, Any]] = {
    schema.OptionFields: OPTION,
    schema.TaskFields: {"selected": "o", "options": {"o": OPTION}},
    schema.FileFields: {"tasks": {"t": {"selected": "o", "options": {"o": OPTION}}}},
}
"""What a section can't be without."""


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Every key below a section: its path (``*``: any name), the section it stands in, its name."""
    for name, field in section.model_fields.items():
        yield prefix + name, section, name
        table, inner = _section_of(field.annotation)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.{'*.' if table else ''}")


def _section_of(annotation: Any) -> tuple[bool, type[BaseModel] | None]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return False, annotation
    table = "dict" in str(annotation)
    for part in get_args(annotation):
        _, inner = _section_of(part)
        if inner is not None:
            return table, inner
    return False, None


def shown() -> dict[str, tuple[str, ...]]:
    """The rows of the page's tables by the whole path of their key."""
    found = {}
    for prefix, table in re.findall(r"^Prefix: (\S+)\n\n\| key .*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE):
        start = "" if prefix == "none." else prefix.strip("`") + "."
        for line in table.strip().split("\n"):
            row = tuple(cell.strip() for cell in line.strip("|").split("|"))
            found[start + quoted(row[0])[0]] = row
    return found


def _written(section: type[BaseModel], name: str) -> str:
    return str(section.model_fields[name].annotation)


SCHEMA = {path: (section, name) for path, section, name in keys(schema.FileFields)}


def test_every_key_of_the_schema_is_on_the_page_and_every_key_of_the_page_in_the_schema() -> None:
    assert len(SCHEMA) > 80
    assert shown().keys() == SCHEMA.keys()


def test_the_marks_are_those_of_the_table_of_what_nothing_acts_on_yet() -> None:
    assert {path for path, row in shown().items() if "**not yet**" in row[0]} == set(NOT_YET)


@pytest.mark.parametrize("path", SCHEMA)
def test_the_default_of_a_key_is_the_one_on_the_page(path: str) -> None:
    section, name = SCHEMA[path]
    field, says = section.model_fields[name], shown()[path][2]
    if field.is_required():
        assert says == "required"
    elif says == "none":
        assert field.default is None
    elif says == "":
        assert _section_of(field.annotation)[1] is not None
    else:
        (text,) = quoted(says)
        written = section.model_validate({**NEEDED.get(section, {}), name: yaml.safe_load(text)})
        assert getattr(written, name) == field.get_default(call_default_factory=True)


@pytest.mark.parametrize("path", [path for path in SCHEMA if "Literal[" in _written(*SCHEMA[path])])
def test_the_words_a_key_takes_are_those_on_the_page(path: str) -> None:
    section, name = SCHEMA[path]
    words = set(re.findall(r"'([^']+)'", " ".join(re.findall(r"Literal\[(.*?)\]", _written(section, name)))))
    assert words <= set(quoted(shown()[path][1]))


def test_the_kinds_and_the_keys_of_a_models_identity_are_all_there() -> None:
    assert quoted(shown()["tasks.*.kind"][1]) == list(KINDS)
    said = re.search(r"The same model is: (.*?)\. Names", TEXT, re.DOTALL)
    assert said is not None
    assert set(quoted(said[1])) == set(ModelRequest.__dataclass_fields__) - {
        "key",
        "label",
        "base_dir",
        "hang_timeout_s",
        "sleep",
        "batch",
        "pieces",
    }


def test_the_problems_shown_are_those_that_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.yaml").write_text(blocks(TEXT, "yaml problems")[0])
    with pytest.raises(ConfigError) as caught:
        ModelManager("models.yaml")
    assert [str(problem) for problem in caught.value.problems] == blocks(TEXT, "text")[0].splitlines()


def test_variables_are_filled_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(blocks(TEXT, "yaml filled")[0])
    task = ModelManager(tmp_path / "models.yaml", environ={"PARROT_GB": "2.5"}).tasks["say"]
    assert (task.max_wait_s, task.options["parrot"].vram_gb) == (30, 2.5)
    with pytest.raises(ConfigError, match="PARROT_GB is not set"):
        ModelManager(tmp_path / "models.yaml", environ={})


def test_options_that_are_one_model_are_joined_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(blocks(TEXT, "yaml shared")[0])
    manager = ModelManager(tmp_path / "models.yaml")
    catalog = manager.catalog
    one, other = (model_request(task, task.selected, catalog=catalog).key for task in catalog.tasks.values())
    assert one == other
    (model,) = manager.statistics().models.values()
    assert (model.pinned, model.need_bytes) == (True, 9 << 30)


def test_yamls_traps_are_as_the_page_says(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    start = "tasks: {t: {selected: o, options: {o: {model_id: m, framework: fake, %s}}}}"
    for text in ("1:30", "2026-01-01"):
        file.write_text(start % f"speed: {text}")
        assert ModelManager(file).tasks["t"].options["o"].speed == text
    for trap, says in {
        "speed: a, speed: b": "stands twice",
        "pinned: 'on'": "expected true or false",
        "speed: !!python/name:os.system x": "not allowed",
        "engine_args: {api_key: sk-abcdefghijk1234567890}": "looks like a secret",
    }.items():
        file.write_text(start % trap)
        with pytest.raises(ConfigError, match=says) as caught:
            ModelManager(file)
        assert "sk-abc" not in str(caught.value)


def test_the_limits_and_variables_named_in_the_rules_are_those_of_the_code() -> None:
    assert MAX_BYTES == 1 << 20
    key_envs = [Registry().provider(name).key_env for name in ("anthropic", "openai", "google")]
    assert f"deeper than {MAX_DEPTH} levels, with more than {MAX_ALIASES} aliases or {MAX_NODES:,} values" in TEXT
    assert f"({', '.join(f'`{name}`' for name in key_envs)})" in TEXT.replace("\n", " ")
