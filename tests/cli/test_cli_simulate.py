"""``taskrouter simulate`` and ``why``: a file rehearsed, and what is wrong with a trace told by its line."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from .stage import Cli, write

FILE = """
tasks:
  a: {selected: a, options: {a: {model_id: a, framework: fake, vram_gb: 8}}}
  b: {selected: b, options: {b: {model_id: b, framework: fake, vram_gb: 8}}}
  c: {selected: c, options: {c: {model_id: c, framework: fake, engine_args: {bytes: 3GiB}}}}
  huge: {selected: huge, options: {huge: {model_id: huge, framework: fake, vram_gb: 80}}}
  there: {selected: away, options: {away: {model_id: m, framework: external_api, provider: anthropic}}}
inference: {warmup_on_startup: false, offload_threshold: 1.0}
pipelines: {p: [a, b, there]}
"""
CARD = ("--device", "12GiB")


def trace(folder: Path, *records: object, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in records))
    return path


def asks(*tasks: str, gap: float = 100.0) -> list[dict[str, object]]:
    return [{"at": number * gap, "task": task, "hold_s": 1.0} for number, task in enumerate(tasks)]


def test_waits_loads_and_evictions_are_what_can_be_computed_by_hand(tmp_path: Path, cli: Cli) -> None:
    file = write(tmp_path, FILE)
    found = cli(
        "simulate", str(file), "--trace", str(trace(tmp_path, *asks("a", "c", "b", "huge", "there"))), *CARD, "--json"
    )
    assert found.code == 0, found.err
    (report,) = found.data["reports"]
    by_task = {each["task"]: each for each in report["tasks"]}
    # A load takes 2 s per GiB: the fake backend needs no time to start.
    assert by_task["a"]["wait_s"]["p50"] == pytest.approx(16)
    assert by_task["c"]["wait_s"]["p50"] == pytest.approx(6)
    assert by_task["b"]["wait_s"]["p50"] == pytest.approx(0)  # it was loaded ahead, as the pipeline says
    assert by_task["a"]["evictions"] == 0
    assert by_task["huge"]["refused"] == {"too_large": 1}
    assert by_task["there"]["external"] == 1
    assert report["total"]["load_s"] == pytest.approx(16 + 16 + 6)
    (device,) = (each for each in report["devices"] if each["device"] == "cuda:0")
    assert device["budget_bytes"] == 12 << 30
    assert found.data["assumed"]


def test_a_table_for_people_compares_policies(tmp_path: Path, cli: Cli) -> None:
    file = write(tmp_path, FILE)
    found = cli(
        "simulate", str(file), "--synthetic", "zipf:1.1", "--requests", "300", *CARD, "--compare", "lru,cost_aware"
    )
    assert found.code == 0, found.err
    assert "policy lru" in found.out
    assert "policy cost_aware" in found.out
    assert "× lru" in found.out
    assert "assumed: a request uses its model for 0.5 s on average (--hold)" in found.out


def test_the_same_words_make_the_same_figures(tmp_path: Path, cli: Cli) -> None:
    file = write(tmp_path, FILE)
    words = ("simulate", str(file), "--synthetic", "burst:1.1", "--requests", "200", *CARD, "--json")
    assert cli(*words).data == cli(*words).data
    assert cli(*words).data != cli(*words, "--seed", "1").data


def test_broken_lines_are_told_and_skipped_only_when_asked(tmp_path: Path, cli: Cli) -> None:
    file = write(tmp_path, FILE)
    path = trace(tmp_path, *asks("a"), "{oops\n", {"at": 5, "task": "nobody"}, *["x\n"] * 30)
    found = cli("simulate", str(file), "--trace", str(path), *CARD)
    assert found.code == 2
    assert f"{path}:2: it is no JSON" in found.err
    assert f"{path}:3: there is no task 'nobody'" in found.err
    assert "and 12 more lines" in found.err
    assert "32 lines can't be used; mend them, or --skip-broken" in found.err
    skipped = cli("simulate", str(file), "--trace", str(path), *CARD, "--skip-broken", "--json")
    assert skipped.code == 0
    assert skipped.data["reports"][0]["total"]["requests"] == 1
    assert f"{path}:2: it is no JSON" in skipped.err


def test_a_public_csv_is_mapped_to_tasks(tmp_path: Path, cli: Cli) -> None:
    file = write(tmp_path, FILE)
    path = trace(
        tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n", "2023-11-16 18:15:46.6805900,374,44\n",
        "2023-11-16 18:16:50.9951690,8000,50\n",
    )  # fmt: skip
    found = cli(
        "simulate", str(file), "--trace", str(path), "--map", "ContextTokens>4000:b", "--map", "*:a", *CARD, "--json"
    )
    assert found.code == 0, found.err
    assert {t["task"]: t["requests"] for t in found.data["reports"][0]["tasks"] if t["requests"]} == {"a": 1, "b": 1}
    assert any("its written tokens at 50 a second" in line for line in found.data["assumed"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "give either --trace FILE or --synthetic KIND"),
        (("--synthetic", "zipf", "--trace", "x"), "give either"),
        (("--synthetic", "waves"), "there is no 'waves'; there are zipf"),
        (("--synthetic", "zipf:often"), "the skew is a number"),
        (("--synthetic", "cycle", "--policy", "mru"), "there is no policy 'mru'; there are lru, cost_aware"),
        (("--synthetic", "cycle", "--compare", "lru,"), "there is no policy ''"),
        (("--synthetic", "cycle", "--policy", "lru", "--compare", "lru,lru"), "give either --policy or --compare"),
        (("--synthetic", "cycle", "--policy", ""), "there is no policy ''"),
        (("--synthetic", "cycle", "--compare", "lru,lru"), "lru stands there twice"),
        (("--synthetic", "cycle", "--requests", "1000000000000"), "--requests"),
        (("--synthetic", "cycle", "--map", "*:a"), "--map is for --trace"),
        (("--synthetic", "cycle", "--skip-broken"), "--skip-broken is for --trace"),
        (("--synthetic", "cycle", "--tokens-per-s", "5"), "--tokens-per-s is for --trace"),
        (("--trace", "x", "--requests", "5"), "--requests is for --synthetic"),
        (("--trace", "x", "--map", "ContextTokens>nan:a"), "no number to compare"),
        (("--synthetic", "cycle", "--plot", "/proc/x.png"), "--plot /proc/x.png can't be written"),
        (("--synthetic", "cycle", "--hold", "inf"), "--hold"),
        (("--synthetic", "cycle", "--rate", "nan"), "--rate"),
        (("--synthetic", "cycle", "--device", "many"), "--device many"),
        (("--synthetic", "cycle", "--plot", "x.jpeg"), "--plot x.jpeg: write a name that ends in .png"),
        (("--synthetic", "cycle", "--plot", "no/x.png"), "there is no folder"),
        (("--trace", "nowhere.jsonl"), "nowhere.jsonl can't be read: No such file"),
        (("--trace", "."), "can't be read"),
    ],
)
def test_what_can_not_be_done_is_refused_in_one_line(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = cli("simulate", str(write(tmp_path, FILE)), *CARD, *words)
    assert found.code == 2
    assert match in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00\xff\xfe" * 50, b"{" * (3 << 20)])
def test_a_trace_that_is_none_is_refused(tmp_path: Path, cli: Cli, content: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    found = cli("simulate", str(write(tmp_path, FILE)), *CARD, "--trace", str(path))
    assert found.code == 2
    assert "Traceback" not in found.err


def test_a_trace_of_nothing_but_broken_lines_holds_no_request(tmp_path: Path, cli: Cli) -> None:
    path = trace(tmp_path, "{\n")
    found = cli("simulate", str(write(tmp_path, FILE)), *CARD, "--trace", str(path), "--skip-broken")
    assert (found.code, "holds no request" in found.err) == (2, True)


def test_a_pipeline_that_names_an_unknown_task_is_a_problem_of_the_file(tmp_path: Path, cli: Cli) -> None:
    file = write(tmp_path, FILE.replace("[a, b, there]", "[a, nobody]"))
    found = cli("simulate", str(file), "--synthetic", "cycle", *CARD)
    assert found.code == 2
    assert "nobody" in found.err


def test_a_file_without_local_models_has_nothing_to_rehearse(tmp_path: Path, cli: Cli) -> None:
    text = "tasks: {t: {selected: m, options: {m: {model_id: m, framework: external_api, provider: anthropic}}}}"
    found = cli("simulate", str(write(tmp_path, text)), "--synthetic", "cycle", *CARD)
    assert (found.code, "there is nothing to rehearse" in found.err) == (2, True)


def test_an_option_for_a_device_that_is_not_there_is_refused_in_the_rehearsal(tmp_path: Path, cli: Cli) -> None:
    text = FILE.replace("model_id: b, framework: fake,", "model_id: b, framework: fake, devices: [cuda:7],")
    path = trace(tmp_path, *asks("b", "a"))
    found = cli("simulate", str(write(tmp_path, text)), "--trace", str(path), *CARD, "--json")
    by_task = {each["task"]: each for each in found.data["reports"][0]["tasks"]}
    assert by_task["b"]["refused"] == {"unavailable": 1}


def test_models_whose_need_is_not_known_are_named(tmp_path: Path, cli: Cli) -> None:
    text = FILE.replace("model_id: b, framework: fake, vram_gb: 8", "model_id: nobody/b, framework: transformers")
    found = cli("simulate", str(write(tmp_path, text)), "--synthetic", "cycle", "--requests", "5", *CARD, "--json")
    assert any("write vram_gb): b/b" in line for line in found.data["assumed"])


@pytest.mark.slow
def test_it_is_drawn_whole(tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.png"
    words = ("--synthetic", "storm", "--requests", "200", "--compare", "lru,cost_aware", "--plot", str(picture))
    found = cli("simulate", str(write(tmp_path, FILE)), *CARD, *words)
    assert found.code == 0, found.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.glob("*.*")} == {"models.yaml", "out.png"}


# --- why --------------------------------------------------------------------------------------------------------------


def test_why_tells_the_decisions_of_a_rehearsal(tmp_path: Path, cli: Cli) -> None:
    file, path = write(tmp_path, FILE), trace(tmp_path, *asks("a", "c", "b", "a", "huge"))
    found = cli("why", "a", str(file), "--trace", str(path), *CARD)
    assert found.code == 0, found.err
    assert "a got 8.0 GiB on cuda:0, where 12.0 GiB were free: there was room" in found.out
    assert "these are those of a rehearsal" in found.err
    refused = cli("why", "huge", str(file), "--trace", str(path), *CARD, "--json")
    assert refused.data["rehearsed"] is True
    assert "huge was refused: huge needs 80.0 GiB" in refused.data["decisions"][-1]["text"]


def test_why_tells_what_was_recorded_where_a_trace_holds_that(tmp_path: Path, cli: Cli) -> None:
    told = [{"at": n, "decided": {"text": f"a went, {n}", "tasks": ["a"]}} for n in range(5)]
    path = trace(tmp_path, *asks("a"), *told)
    found = cli("why", "a", str(write(tmp_path, FILE)), "--trace", str(path), *CARD, "--last", "2")
    assert found.out.splitlines() == ["       3.000 s  a went, 3", "       4.000 s  a went, 4"]
    assert "the last 2 of 5" in found.err
    other = cli("why", "b", str(write(tmp_path, FILE)), "--trace", str(path), *CARD)
    assert other.out == "nothing was decided for b\n"


def test_why_of_an_unknown_task_names_the_nearest(tmp_path: Path, cli: Cli) -> None:
    found = cli("why", "hug", str(write(tmp_path, FILE)), "--synthetic", "cycle", *CARD)
    assert (found.code, "did you mean 'huge'?" in found.err) == (2, True)


def test_a_recorded_time_is_told_as_a_date(tmp_path: Path, cli: Cli) -> None:
    told = {"decided": {"text": "a got 1 GiB", "tasks": ["a"]}}
    path = trace(tmp_path, {"at": 1795711331.068, **told}, {"at": 12.5, **told})
    found = cli("why", "a", str(write(tmp_path, FILE)), *CARD, "--trace", str(path))
    other, recorded = found.out.splitlines()
    when, text = recorded.split("  ")
    assert (datetime.fromisoformat(when).timestamp(), text) == (1795711331.068, "a got 1 GiB")
    assert other == "      12.500 s  a got 1 GiB"
