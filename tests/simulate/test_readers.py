"""Traces from lines: our own JSONL, two public CSVs, and every way in which a line can be broken."""

from __future__ import annotations

import json

import pytest

from taskrouter.errors import BadInput
from taskrouter.simulate import Broken, Reading, Request, Rule, Told, read_trace, rule
from taskrouter.simulate.readers import KEPT

HOW = Reading(frozenset({"a", "b"}), hold_s=0.25)


def lines(*records: object) -> list[str]:
    return [json.dumps(record) + "\n" for record in records]


def csv(*rules: str, tokens_per_s: float = 50.0) -> Reading:
    return Reading(frozenset({"a", "b"}), [rule(text) for text in rules], tokens_per_s=tokens_per_s)


def test_requests_are_sorted_and_the_first_comes_at_zero() -> None:
    trace = read_trace(
        ["\n", *lines({"at": 12, "task": "b", "priority": 2}, {"at": 10.5, "task": "a", "hold_s": 3}), "  \n"], HOW
    )
    assert trace.requests == (Request(0.0, "a", 3.0), Request(1.5, "b", 0.25, 2))
    assert (trace.origin, trace.broken, trace.told) == (10.5, (), ())


def test_decisions_that_were_recorded_keep_their_own_clock() -> None:
    told = {"at": 7, "decided": {"text": "a went", "tasks": ["a", "b"]}}
    trace = read_trace(lines({"at": 5, "task": "a"}, told, {"at": 8, "decided": {"text": "x"}}), HOW)
    assert trace.told == (Told(7.0, ("a", "b"), "a went"), Told(8.0, (), "x"))


def test_a_trace_without_requests_begins_at_zero() -> None:
    assert read_trace(lines({"at": 5, "decided": {"text": "x"}}), HOW).origin == 0.0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "maximum recursion"),
        ("[]", "it is no JSON object"),
        ('{"task": "a"}', "at is no number"),
        ('{"at": true, "task": "a"}', "at is no number"),
        ('{"at": NaN, "task": "a"}', "at is no number"),
        ('{"at": 1e999, "task": "a"}', "at is no number"),
        ('{"at": "1", "task": "a"}', "at is no number"),
        ('{"at": 1e308, "task": "a"}', "at is beyond 1e+12"),
        ('{"at": 1, "task": "a", "hold_s": 1e300}', "hold_s is beyond 1e+12"),
        ('{"at": 1}', "it names no task"),
        ('{"at": 1, "task": ["a"]}', "it names no task"),
        ('{"at": 1, "task": "c"}', "there is no task 'c'"),
        ('{"at": 1, "task": "a", "hold_s": -1}', "hold_s is below 0"),
        ('{"at": 1, "task": "a", "hold_s": null}', "hold_s is no number"),
        ('{"at": 1, "task": "a", "priority": 1.5}', "priority is no whole number"),
        ('{"at": 1, "task": "a", "priority": true}', "priority is no whole number"),
        ('{"at": 1, "task": "a", "priority": 1001}', "priority is no whole number from -1000 to 1000"),
        ('{"at": 1, "task": "a", "priority": 1%s}' % ("0" * 400), "priority is no whole number"),
        ('{"at": 1%s, "task": "a"}' % ("0" * 400), "too large"),
        ('{"at": 1, "decided": {"text": "x", "tasks": 5}}', "decided.tasks is no list of tasks"),
        ('{"at": 1, "decided": {"text": "x", "tasks": "claims"}}', "decided.tasks is no list of tasks"),
        ('{"at": 1, "decided": "x"}', "decided has no text"),
        ('{"at": 1, "decided": {}}', "decided has no text"),
    ],
)
def test_a_broken_line_is_told_by_its_number_and_the_others_count(line: str, why: str) -> None:
    trace = read_trace([*lines({"at": 1, "task": "a"}), line + "\n", *lines({"at": 2, "task": "b"})], HOW)
    assert len(trace.requests) == 2
    assert trace.broken_lines == 1
    assert trace.broken[0].line == 2
    assert why in trace.broken[0].why


def test_of_many_broken_lines_the_first_are_told() -> None:
    trace = read_trace(["{x\n"] * (KEPT + 5), HOW)
    assert len(trace.broken) == KEPT
    assert trace.broken_lines == KEPT + 5
    assert trace.broken[0] == Broken(1, "it is no JSON")


@pytest.mark.parametrize("text", [[], ["", "\n", "   \n"]])
def test_an_empty_trace_is_said_to_be_empty(text: list[str]) -> None:
    with pytest.raises(BadInput, match="empty"):
        read_trace(text, HOW)


# --- CSVs -------------------------------------------------------------------------------------------------------------

AZURE = [
    "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n",
    "2023-11-16 18:15:46.6805900,374,44\n",
    "\n",
    "2023-11-16T18:15:50,8000,100\n",
]
BURST = [
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
    "5,ChatGPT,472,18,490,Conversation log\n",
    "45.5,GPT-4,1087,230,1317,API log\n",
]


def test_the_columns_of_azures_traces_become_requests() -> None:
    trace = read_trace(AZURE, csv("ContextTokens>4000:b", "*:a"))
    assert [(request.task, request.hold_s) for request in trace.requests] == [("a", 44 / 50), ("b", 2.0)]
    assert trace.requests[1].at == pytest.approx(3.31941, abs=1e-5)
    assert trace.origin == pytest.approx(1700158546.68059)


def test_the_columns_of_burstgpt_become_requests() -> None:
    trace = read_trace(BURST, csv("Model=GPT-4:b", "Model=ChatGPT:a", tokens_per_s=10))
    assert trace.requests == (Request(0.0, "a", 1.8), Request(40.5, "b", 23.0))
    assert trace.origin == 5.0


def test_a_row_that_no_rule_fits_is_broken() -> None:
    trace = read_trace(BURST, csv("Model=GPT-4:b"))
    assert trace.broken == (Broken(2, "no --map rule fits it"),)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("x,1,2", "could not convert"),
        ("inf,1,2", "is no time"),
        ("2023-13-01 00:00:00,1,2", "is no time"),
        ("2023-02-30 00:00:00,1,2", "is no time"),
        ("2023-02-03 24:00:00,1,2", "is no time"),
        ("2023-02-03 23:60:00,1,2", "is no time"),
        ("1,1,nan", "no count of tokens"),
        ("1,1,1e300", "no count of tokens"),
        ("1e300,1,2", "is no time"),
        ("1,1,-2", "no count of tokens"),
        ("1,x,2", "could not convert"),
        ("1,2", "it has 2 columns, the header 3"),
        ("2023-02-03 23:59:61,1,2", "is no time"),
        ('1,"2,3', "unexpected end"),
    ],
)
def test_a_broken_row_is_told_by_its_number(row: str, why: str) -> None:
    trace = read_trace([AZURE[0], "7,1,50\n", row + "\n"], csv("ContextTokens>=5:b", "*:a"))
    assert trace.requests == (Request(0.0, "a", 1.0),)
    assert trace.broken[0].line == 3
    assert why in trace.broken[0].why


def test_a_byte_order_mark_before_the_first_line_is_none_of_it() -> None:
    assert len(read_trace(["\ufeff" + line for line in lines({"at": 1, "task": "a"})], HOW).requests) == 1


def test_decisions_of_several_processes_in_one_file_are_in_the_order_of_their_time() -> None:
    told = [{"at": at, "decided": {"text": str(at), "tasks": ["a"]}} for at in (3, 1, 2)]
    assert [each.text for each in read_trace(lines(*told), HOW).told] == ["1", "2", "3"]


def test_rules_for_csvs_mean_nothing_to_json() -> None:
    with pytest.raises(BadInput, match="--map is for CSVs"):
        read_trace(lines({"at": 1, "task": "a"}), Reading(frozenset("ab"), [rule("*:a")]))


@pytest.mark.parametrize("line", ["x" * 200_000, "TIMESTAMP,TIMESTAMP,GeneratedTokens"])
def test_a_first_line_that_is_no_header_is_refused(line: str) -> None:
    with pytest.raises(BadInput, match=r"neither JSON nor a CSV's header|names 'TIMESTAMP' twice"):
        read_trace([line + "\n"], csv("*:a"))


@pytest.mark.parametrize(
    ("header", "rules", "match"),
    [
        ("time,tokens\n", ("*:a",), "neither JSONL nor a CSV"),
        ("TIMESTAMP,ContextTokens\n", ("*:a",), "neither JSONL nor a CSV"),
        (AZURE[0], (), "--map '\\*:TASK'"),
        (AZURE[0], ("Model=x:a",), "names the column 'Model'; the trace has TIMESTAMP"),
        (AZURE[0], ("*:c",), "names the task 'c'; there are a, b"),
    ],
)
def test_a_csv_that_can_not_be_mapped_is_refused(header: str, rules: tuple[str, ...], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        read_trace([header], csv(*rules))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("Model=GPT-4:b", Rule("b", "Model", "=", "GPT-4")),
        ("Request tokens >= 1000 : a", Rule("a", "Request tokens", ">=", "1000")),
        ("*:a", Rule("a")),
        ("Model=a:b:c", Rule("c", "Model", "=", "a:b")),
        ("x<1:a", Rule("a", "x", "<", "1")),
    ],
)
def test_a_rule_names_a_column_a_value_and_a_task(text: str, made: Rule) -> None:
    assert rule(text) == made


@pytest.mark.parametrize("text", ["", "a", ":a", "Model:a", "x>many:a", "=1:a", "*:"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--map"):
        rule(text)


def test_a_rule_about_a_column_that_a_row_lacks_says_so() -> None:
    with pytest.raises(ValueError, match="no column 'x'"):
        Rule("a", "x").fits({"y": "1"})
