"""``taskrouter demo``: what it shows of models that come and go, with scripted models and with the real ones."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.registry import Registry
from taskrouter.cli import demo as demo_module
from taskrouter.cli.demo import Plan, choose_device, in_turns, room_for_two, show
from taskrouter.manager import Machine, StillMachine
from taskrouter.samples.manifest import REPORT, VIDEO_ANSWERS
from taskrouter.types import CPU, GIB, MIB

from .stage import Cli

TASKS = ("image_classification", "audio_classification", "claim_extraction")


@dataclass(frozen=True)
class Question:
    """A question to a scripted model, which answers its own name unless it is told what to say."""

    task: str
    verb: str = "classify"
    input: str = "a.png"
    expected: str = "yes"

    is_file: bool = True

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        return None

    def is_right(self, answer: str) -> bool:
        return answer == self.expected


def plan(*asked: str, **engine_args: Any) -> Plan:
    """Questions to models a, b and c, of 30, 20 and 10 MiB."""
    sizes = {"a": 30 * MIB, "b": 20 * MIB, "c": 10 * MIB}

    def option(name: str) -> dict[str, Any]:
        return {"model_id": name, "framework": "fake", "engine_args": {"bytes": sizes[name], "answer": "yes"}}

    tasks = {
        name: {"kind": "image_classification", "selected": name, "options": {name: option(name)}} for name in sizes
    }
    for name, value in engine_args.items():
        tasks["b"]["options"]["b"]["engine_args"][name] = value  # type: ignore[index]
    return Plan({"tasks": tasks}, [Question(name) for name in asked])


async def play(
    capsys: pytest.CaptureFixture[str], shown: Plan, *, as_json: bool = True, budget: str | None = None
) -> tuple[int, Any]:
    machine = StillMachine({CPU: GIB})
    code = await show(
        [shown], budget=budget, otlp=None, as_json=as_json, report=Path("unused"), registry=Registry(),
        machine=machine,
    )  # fmt: skip
    printed = capsys.readouterr().out
    return code, json.loads(printed) if as_json else printed


@pytest.mark.anyio
async def test_it_says_what_was_evicted_for_what_and_what_was_there_already(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = await play(capsys, plan("a", "b", "a", "c"))
    assert (code, data["ok"], data["right"], data["asked"]) == (0, True, 4, 4)
    assert data["budget_bytes"] == 55 * MIB, "the two largest, and half the smallest"
    assert (data["loads"], data["evictions"]) == (3, 1)
    first, second, again, last = data["inputs"]
    assert [item["option"] for item in first["loaded"]] == ["a"]
    assert first["loaded"][0]["bytes_measured"] == first["loaded"][0]["bytes_needed"] == 30 * MIB
    assert (second["resident"], again["resident"]) == (["a", "b"], ["b", "a"]), "least recently used first"
    assert (again["loaded"], again["evicted"]) == ([], [])
    (gone,) = last["evicted"]
    assert (gone["option"], gone["wanted"], gone["reason"], gone["bytes_freed"]) == ("b", "c", "room_needed", 20 * MIB)
    assert last["resident"] == ["a", "c"]


@pytest.mark.anyio
async def test_the_budget_table_comes_after_the_inputs_and_measured_needs_stand_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, data = await play(capsys, plan("a", "b"))
    budget = data["budget"]
    assert (budget["servable"], budget["all_resident"]) == (True, False)
    assert {item["option"]: item["source"] for item in budget["options"]} == {
        "a": "measured",
        "b": "measured",
        "c": "estimated",
    }
    (cpu,) = budget["devices"]
    assert (cpu["budget_bytes"], cpu["selected_bytes"]) == (55 * MIB, 60 * MIB)


@pytest.mark.anyio
async def test_people_read_why_each_model_came_and_went(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = await play(capsys, plan("a", "b", "b", "c"), as_json=False)
    assert code == 0
    assert "memory budget on cpu: 55.0 MiB" in said
    assert "evicted a from cpu, 30.0 MiB freed: room was needed for c, and it was the least recently used" in said
    assert "10.0 MiB needed, measured 10.0 MiB: it was asked for and not loaded" in said
    assert "b was loaded already" in said
    assert "[4/4] c: a.png" in said
    assert said.index("[4/4]") < said.index("by swapping on cpu") < said.index("4 of 4 right; 3 loads, 1 evictions")


@pytest.mark.anyio
async def test_a_wrong_answer_makes_the_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = await play(capsys, plan("a", "b", answer="no"))
    assert (code, data["ok"], data["right"]) == (1, False, 1)
    code, said = await play(capsys, plan("b", answer="no"), as_json=False)
    assert code == 1
    assert "WRONG, expected: yes" in said


@pytest.mark.anyio
async def test_a_model_that_fails_is_told_and_the_others_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = await play(capsys, plan("a", "b", "c", fail="error"))
    assert (code, data["right"], data["loads"]) == (1, 2, 2)
    failed = data["inputs"][1]
    assert failed["error"]["type"] == "LoadFailed"
    assert "scripted to fail" in failed["loaded"][0]["error"]
    _, said = await play(capsys, plan("b", fail="error"), as_json=False)
    assert "load of b on cpu failed: LoadFailed" in said
    assert "FAILED" in said


@pytest.mark.anyio
async def test_a_budget_of_ones_own_is_kept_to(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = await play(capsys, plan("a", "b", "c"), budget="60MiB")
    assert (code, data["evictions"]) == (0, 0)
    code, data = await play(capsys, plan("a", "b"), budget="25MiB")
    assert (code, data["right"]) == (1, 1)
    assert data["inputs"][0]["error"]["type"] == "InsufficientMemory"
    assert data["budget"]["never"] == ["a/a"]


@pytest.mark.parametrize(
    "sizes", [(30, 20, 10), (10, 10, 10), (34_791_536, 34_847_260, 34_920_000), (1000, 1, 1), (2, 2, 2)]
)
def test_the_budget_holds_any_two_and_not_all_three(sizes: tuple[int, int, int]) -> None:
    budget = room_for_two(sizes)
    assert sum(sorted(sizes)[1:]) <= budget < sum(sizes)


def test_the_turns_come_back_to_loaded_models_and_keep_every_question() -> None:
    asked = [Question(task, input=str(number)) for number in range(5) for task in "abc"]
    turns = in_turns(asked)
    assert sorted(turns, key=str) == sorted(asked, key=str)
    assert "".join(question.task for question in turns) == "abaccbbaaccb" + "abc"
    assert in_turns(asked[:2]) == asked[:2]


def test_a_gpu_that_torch_can_use_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    machine: Machine = StillMachine({"cuda:0": GIB})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(machine) == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(machine) == CPU
    assert "can't use it: the CPU is used instead" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    assert choose_device(machine) == CPU
    assert choose_device(StillMachine({CPU: GIB})) == CPU


@pytest.mark.parametrize("arguments", [("--budget", "big"), ("--otlp", "collector")])
def test_arguments_that_make_no_sense_are_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli("demo", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert arguments[1] in result.err


def test_the_command_shows_the_samples(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "sample_plans", lambda: [plan("a", "c")])
    monkeypatch.setattr(demo_module, "ThisMachine", lambda: StillMachine({CPU: GIB}))
    assert "2 of 2 right; 2 loads, 0 evictions" in cli("demo").out
    assert cli("demo", "--json").data["right"] == 2


@pytest.mark.slow
def test_a_collector_that_is_not_there_costs_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(demo_module, "sample_plans", lambda: [plan("a")])
    monkeypatch.setattr(demo_module, "ThisMachine", lambda: StillMachine({CPU: GIB}))
    result = cli("demo", "--otlp", "http://127.0.0.1:9", "--json")
    assert (result.code, result.data["right"]) == (0, 1)
    assert [record.message for record in caplog.records] == [
        "no traces: nothing takes them at http://127.0.0.1:9/v1/traces"
    ]


class Collector:
    """Takes OTLP/HTTP and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> Collector:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_collector_gets_one_trace_for_each_request_that_had_to_wait(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(demo_module, "sample_plans", lambda: [plan("a", "b", "c")])
    monkeypatch.setattr(demo_module, "ThisMachine", lambda: StillMachine({CPU: GIB}))
    with Collector() as collector:
        result = cli("demo", "--otlp", f"http://127.0.0.1:{collector.server.server_port}", "--json")
    assert (result.code, result.err, result.data["evictions"]) == (0, "", 1)
    (evict,) = [span for span in collector.spans if span.name == "evict_lru_model"]
    together = {span.name: span for span in collector.spans if span.trace_id == evict.trace_id}
    assert set(together) == {"get_model", "evict_lru_model", "unload_model", "load_model"}
    assert together["load_model"].parent_span_id == evict.parent_span_id == together["get_model"].span_id
    assert together["unload_model"].parent_span_id == evict.span_id


def test_the_demo_lets_go_of_everything_it_held(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[FakeBackend] = []

    def registry() -> Registry:
        found = Registry()
        made.append(FakeBackend())
        found.register("fake", made[-1])
        return found

    monkeypatch.setattr(demo_module, "sample_plans", lambda: [plan("a", "b", "c")])
    monkeypatch.setattr(demo_module, "ThisMachine", lambda: StillMachine({CPU: GIB}))
    monkeypatch.setattr(demo_module, "Registry", registry)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert cli("demo").code == 0
    (backend,) = made
    assert backend.in_use == {}
    assert len(backend.labels("load-end")) == len(backend.labels("freed")) == 3
    assert list(tmp_path.glob("taskrouter-demo-*")) == []


# --- the real ones ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_models_take_turns_offline_from_any_folder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "taskrouter", "demo", "--json"], capture_output=True, text=True, cwd=tmp_path, env=env,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["right"] == data["asked"] == 12
    report = data["video_report"]
    assert (report["ok"], report["right"], report["asked"]) == (True, 3, 3)
    assert [item["task"] for item in report["inputs"]] == list(REPORT)
    assert all(len(item["resident"]) <= 2 for item in report["inputs"])
    text, picture = (tmp_path / name for name in report["written"])
    assert all(answer.splitlines()[0] in text.read_text() for answer in VIDEO_ANSWERS.values())
    with PIL.Image.open(picture) as page:
        assert page.width >= 320
    assert {item["task"] for item in data["inputs"]} == set(TASKS)
    assert len({item["option"] for item in data["inputs"]}) == 3
    assert (data["loads"], data["evictions"]) == (7, 5)
    assert all(len(item["resident"]) <= 2 for item in data["inputs"])
    assert data["budget"]["servable"] is True
    assert data["budget"]["all_resident"] is False
    for before, item in itertools.pairwise(data["inputs"]):
        for gone in item["evicted"]:
            assert gone["option"] == before["resident"][0], "the least recently used, as it says"
            assert (gone["reason"], gone["wanted"]) == ("room_needed", item["option"])
            assert gone["bytes_freed"] > MIB
    assert done.stderr == ""
