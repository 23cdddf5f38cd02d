"""Reading the file: what is refused before anything is built, YAML's traps, environment variables."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest
import yaml

from taskrouter.config import Catalog, Frameworks, load_catalog, parse_catalog
from taskrouter.errors import ConfigError, ConfigNotFound, Problem

FRAMEWORKS = Frameworks(known=frozenset({"fake", "transformers"}))
OPTION = "{model_id: m, framework: fake}"


def parse(text: str | bytes, **environ: str) -> Catalog:
    data = text if isinstance(text, bytes) else textwrap.dedent(text).encode()
    return parse_catalog(data, file="models.yaml", base_dir=".", frameworks=FRAMEWORKS, environ=environ)


def problems(text: str | bytes, **environ: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, **environ)
    return caught.value.problems


def only(text: str | bytes, **environ: str) -> Problem:
    found = problems(text, **environ)
    assert len(found) == 1, found
    return found[0]


def task(extra: str = "", option: str = "") -> str:
    return f"tasks: {{a: {{selected: f, {extra} options: {{f: {{model_id: m, framework: fake, {option}}}}}}}}}\n"


# --- files that are none ----------------------------------------------------------------------------------------------


def test_missing_file_is_config_not_found_and_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigNotFound, match="no such file") as caught:
        load_catalog(tmp_path / "models.yaml", frameworks=FRAMEWORKS)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, ValueError)


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a folder"):
        load_catalog(tmp_path, frameworks=FRAMEWORKS)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_file_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_catalog(name, frameworks=FRAMEWORKS)


def test_file_is_read_with_its_folder_as_base(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(task())
    catalog = load_catalog(str(path), frameworks=FRAMEWORKS)
    assert catalog.path == str(path)
    assert catalog.base_dir == str(tmp_path)
    assert catalog.media_roots == (str(tmp_path.resolve()),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"  \n\n", "the file is empty"),
        (b"# nothing\n", "empty but for comments"),
        (b"---\n", "empty but for comments"),
        (b"null\n", "empty but for comments"),
        (b"tasks: {}\n\0", "NUL bytes"),
        ("tasks: {}".encode("utf-16"), "NUL bytes"),
        (b"x" * ((1 << 20) + 1), "over 1024 KiB"),
        (b"- a\n", "no mapping"),
        (b"hello\n", "no mapping"),
        (b"a: 1\n---\nb: 1\n", "second YAML document"),
        (b"a: *nowhere\n", "alias"),
        (b"a: &a [*a]\n", "contains itself"),
        (b"a: [1, 2\n", "not YAML"),
        (b"a: \x07\n", "not YAML"),
        (b"[" * 1000, "nested deeper"),
        (b"\n".join(b" " * n + b"a:" for n in range(100)), "nested deeper"),
        (b"a: [" + b"1," * 60_000 + b"]\n", "more than 50,000 values"),
        (b"a: &a 1\nb: [" + b"*a," * 300 + b"]\n", "more than 200 aliases"),
    ],
)
def test_what_is_no_configuration_is_refused_with_a_reason(data: bytes, message: str) -> None:
    assert message in only(data).message


def test_bytes_that_are_not_utf8_are_found_at_their_place() -> None:
    problem = only(b"tasks:\n  a\xff: 1\n")
    assert (problem.line, problem.column) == (2, 4)
    assert "UTF-8" in problem.message


def test_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert list(parse(b"\xef\xbb\xbf" + task().encode()).tasks) == ["a"]


def test_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "absurdly large" in only("\n".join(lines)).message


def test_chain_of_nested_aliases_is_refused_before_python_runs_out_of_stack() -> None:
    lines = ["a0: &a0 " + "[" * 20 + "]" * 20]
    lines += [f"a{n}: &a{n} {'[' * 20}*a{n - 1}{']' * 20}" for n in range(1, 150)]
    assert "absurdly large" in only("\n".join(reversed(lines[:1])) + "\n" + "\n".join(lines[1:])).message


@pytest.mark.slow
@pytest.mark.parametrize("libyaml", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        b"? " * (1 << 19),
        b"k: v\n" * (1 << 17),
        b"'" + b"a\n" * (1 << 18) + b"'",
        b":" * (1 << 18),
        b"&a b\n" * (1 << 15),
    ],
)
def test_garbage_takes_no_time(data: bytes, libyaml: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not libyaml:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    start = time.process_time()
    problems(data)
    assert time.process_time() - start < 10


def test_many_problems_are_cut_off() -> None:
    options = "".join(f"      o{n}: {{model_id: m, framework: fake, bad{n}: 1}}\n" for n in range(1000))
    found = problems("tasks:\n  a:\n    selected: o0\n    options:\n" + options)
    assert len(found) == 201
    assert "there are more" in found[-1].message


# --- YAML's traps -----------------------------------------------------------------------------------------------------


def test_duplicate_key_is_found_at_any_depth() -> None:
    found = problems(
        """\
        tasks:
          a:
            selected: f
            selected: g
            options:
              f: {model_id: m, framework: fake, engine_args: {x: {y: 1, y: 2}}}
              f: {model_id: m, framework: fake}
        """
    )
    assert [(p.line, p.column, p.path) for p in found] == [
        (4, 5, "tasks.a.selected"),
        (6, 65, "tasks.a.options.f.engine_args.x.y"),
        (7, 7, "tasks.a.options.f"),
    ]
    assert "first in line 3" in found[0].message


@pytest.mark.parametrize("word", ["off", "no", "yes", "On"])
@pytest.mark.parametrize("key", ["sleep", "quantization", "model_id"])
def test_yaml_boolean_where_a_word_is_expected_is_explained(word: str, key: str) -> None:
    found = problems(
        f"tasks:\n  a:\n    selected: f\n    options:\n      f:\n        framework: fake\n        {key}: {word}\n"
    )
    problem = next(p for p in found if p.path.endswith(key))
    assert (problem.line, problem.column) == (7, 11 + len(key))
    assert f'write "{word}"' in problem.hint


def test_yaml_boolean_as_a_name_is_explained() -> None:
    found = problems("tasks: {off: {}}\n")
    assert any("off without quotes is a boolean" in p.message for p in found)


def test_yes_is_a_flag() -> None:
    assert parse(task(option="pinned: yes")).tasks["a"].options["f"].pinned is True


@pytest.mark.parametrize("key", ["1", "2.5", "null", "~"])
def test_key_that_is_no_text_is_refused(key: str) -> None:
    assert any("the key is no text" in p.message for p in problems(f"tasks: {{{key}: {{}}}}\n"))


def test_key_that_is_a_collection_is_refused() -> None:
    assert any("a key must be text" in p.message for p in problems("? [a, b]\n: 1\n"))


@pytest.mark.parametrize("tag", ["!!python/object:os.system", "!env", "!!binary", "!!set"])
@pytest.mark.parametrize("value", ["x", "[x]", "{x: 1}"])
def test_tags_are_refused(tag: str, value: str) -> None:
    found = problems(task(option=f"engine_args: {{a: {tag} {value}}}"))
    assert "is not allowed" in found[0].message
    assert found[0].path == "tasks.a.options.f.engine_args.a"


def test_plain_tags_are_read() -> None:
    option = (
        parse(task(option="revision: !!str 123, engine_args: !!map {a: !!seq [!!int 1], b: ! x}"))
        .tasks["a"]
        .options["f"]
    )
    assert option.revision == "123"
    assert option.engine_args == {"a": (1,), "b": "x"}


def test_bad_plain_tag_is_refused() -> None:
    assert "can't be read as int" in problems(task(option="fps: !!int x"))[0].message


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_that_are_none_are_refused_everywhere(value: str) -> None:
    assert only(task(option=f"engine_args: {{x: {value}}}")).message == "expected a finite number"


def test_absurd_number_is_refused() -> None:
    assert "absurdly large" in only(task(option="engine_args: {x: 99999999999999999999}")).message
    assert problems(task(option="engine_args: {x: " + "9" * 5000 + "}"))


def test_control_characters_are_refused() -> None:
    assert "control character" in only(task(option='description: "a\\0b"')).message


def test_dates_and_times_stay_text() -> None:
    option = parse(task(option="revision: 2026-01-01, engine_args: {x: 1:30}")).tasks["a"].options["f"]
    assert option.revision == "2026-01-01"
    assert option.engine_args["x"] == "1:30"


def test_merge_key_fills_what_is_not_written() -> None:
    catalog = parse(
        """\
        tasks:
          a:
            selected: f
            options:
              f: &base {model_id: m, framework: fake, vram_gb: 2}
              g: {<<: *base, vram_gb: 3}
              h: {<<: [*base, {speed: fast}], model_id: n}
        """
    )
    options = catalog.tasks["a"].options
    assert (options["g"].model_id, options["g"].vram_gb) == ("m", 3)
    assert (options["h"].model_id, options["h"].vram_gb, options["h"].speed) == ("n", 2, "fast")


def test_merge_of_something_else_is_refused() -> None:
    assert "merges mappings only" in only(task(option="<<: 3")).message


# --- environment variables --------------------------------------------------------------------------------------------


def test_variables_are_filled_also_where_a_number_or_flag_is_expected() -> None:
    option = parse(
        task(option='revision: "r-${REV}", vram_gb: "${GB:-2}", ram_gb: "${RAM}", pinned: "${PIN}", fps: "${FPS}", '
                    'keep_alive_s: "${KEEP}", devices: "${DEVICES}", max_context: "${CONTEXT}"'),
        REV="1", RAM="1.5GiB", PIN="true", FPS="7", KEEP="0.5", DEVICES="2", CONTEXT="512",
    ).tasks["a"].options["f"]  # fmt: skip
    assert (option.revision, option.vram_gb, option.ram_gb, option.pinned, option.fps) == ("r-1", 2.0, 1.5, True, 7)
    assert (option.keep_alive_s, option.devices, option.max_context) == (0.5, 2, 512)


def test_filled_text_that_is_no_number_is_refused() -> None:
    assert "expected a whole number, got 'x'" in only(task(option='fps: "${FPS}"'), FPS="x").message


def test_missing_variable_is_named() -> None:
    problem = only(task(option='revision: "${NOT_THERE}"'))
    assert problem.path == "tasks.a.options.f.revision"
    assert "NOT_THERE is not set" in problem.message


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${1A}", "${A:+b}", "${A-b}"])
def test_variable_that_cannot_be_read_is_refused(text: str) -> None:
    assert "can't be read" in only(task(option=f'revision: "{text}"'), A="1").message


def test_empty_variable_takes_its_default() -> None:
    assert parse(task(option='description: "${A:-b}${C:-}"'), A="").tasks["a"].options["f"].description == "b"


def test_unquoted_variable_in_braces_gets_the_hint() -> None:
    assert "in quotes" in only("tasks: {a: {selected: ${A}}}\n").hint


def test_raw_holds_the_file_as_written_with_variables_filled() -> None:
    raw = parse('models: {a: {selected: "${S}", options: {f: ' + OPTION + "}}}\n", S="f").raw
    assert raw == {"models": {"a": {"selected": "f", "options": {"f": {"model_id": "m", "framework": "fake"}}}}}
    assert type(raw["models"]["a"]["selected"]) is str
