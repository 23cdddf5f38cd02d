"""Options as vLLM's command lines, to the word; and the same command lines under vLLM's own parser."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.engines import vllm_flags
from taskrouter.backends.engines.interpreter import PARSERS
from taskrouter.backends.engines.launch import Checkpoint, Launch
from taskrouter.backends.engines.sglang import SglangAdapter
from taskrouter.backends.engines.vllm import VllmAdapter
from taskrouter.errors import PreflightFailed
from taskrouter.types import GIB
from tests.engines.command_lines import (
    FIRST,
    RAM,
    SECOND,
    SEVEN_B,
    SMALL,
    Line,
    own_words,
    parse,
    request,
    start,
    tight,
)

ALWAYS = "--served-model-name m --host 127.0.0.1 --port 4321 --disable-uvicorn-access-log"
ENV = {
    "CUDA_VISIBLE_DEVICES": "GPU-11111111-aaaa",
    "DO_NOT_TRACK": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NCCL_SOCKET_IFNAME": "lo",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "VLLM_API_KEY": "secret-key",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}
TWO = {"CUDA_VISIBLE_DEVICES": "GPU-11111111-aaaa,GPU-22222222-bbbb"}
NONE = {"CUDA_VISIBLE_DEVICES": ""}

# 24 GiB of 80, less 0.6 for the CUDA context (and 0.5 for NCCL's buffers): 0.2925 (0.28625).
LINES = [
    Line("nothing said", "--max-model-len auto --gpu-memory-utilization 0.2925"),
    Line(
        "everything said",
        "--dtype bfloat16 --quantization awq --max-num-seqs 32 --trust-remote-code --max-model-len 8192 "
        "--gpu-memory-utilization 0.2925 --enforce-eager",
        {"dtype": "bf16", "quantization": "awq", "max_concurrency": 32, "trust_remote_code": True,
         "max_context": 8192, "engine_args": {"enforce_eager": True}},
    ),
    # (24 − 14 − 2.8 of working memory − 1.6) GiB, less 256 tokens, are 45,619 tokens of 128 KiB.
    Line("as much context as fits", "--max-model-len 45568 --gpu-memory-utilization 0.2925", {"max_context": "auto"}),
    Line(
        "all its context fits",
        "--max-model-len auto --gpu-memory-utilization 0.2925",
        {"max_context": "auto"},
        checkpoint=SMALL,
    ),
    Line(
        "two GPUs",
        "--quantization gptq --tensor-parallel-size 2 --max-model-len 4096 --gpu-memory-utilization 0.2862",
        {"devices": 2, "quantization": "gptq", "max_context": 4096},
        (FIRST, SECOND),
        env=TWO,
    ),
    Line(
        "two GPUs of unlike grants and sizes",
        "--tensor-parallel-size 2 --max-model-len 4096 --gpu-memory-utilization 0.2862",
        {"devices": ("cuda:0", "cuda:1"), "max_context": 4096},
        (FIRST, replace(SECOND, total=40 * GIB)),
        env=TWO,
    ),
    Line(
        "fp8 of every kind",
        "--quantization fp8 --max-model-len 4096 --gpu-memory-utilization 0.2925 --kv-cache-dtype fp8 "
        "--load-format runai_streamer",
        {"quantization": "fp8", "max_context": 4096,
         "engine_args": {"kv-cache-dtype": "fp8", "load_format": "runai_streamer"}},
    ),
    Line(
        "engine_args of every kind",
        "--quantization compressed-tensors --max-model-len 4096 --gpu-memory-utilization 0.2925 "
        "--no-enable-prefix-caching --enable-auto-tool-choice --tool-call-parser hermes "
        '--limit-mm-per-prompt {"image":8,"video":1} --allowed-media-domains a.example b.example '
        "--max-num-batched-tokens 2k --compilation-config.mode 0 --seed=-1",
        {"quantization": "compressed-tensors", "max_context": 4096,
         "engine_args": {"enable_prefix_caching": False, "enable-auto-tool-choice": True,
                         "tool-call-parser": "hermes", "limit_mm_per_prompt": {"image": 8, "video": 1},
                         "allowed-media-domains": ["a.example", "b.example"], "max_num_batched_tokens": "2k",
                         "compilation_config.mode": 0, "seed": -1}},
    ),
    Line(
        "an embedding model",
        "--max-model-len auto --gpu-memory-utilization 0.2925 --runner pooling --convert embed",
        {"engine_args": {"runner": "pooling", "convert": "embed"}},
        checkpoint=SMALL,
    ),
    Line(
        "more context than it was built for",
        '--max-model-len 8192 --gpu-memory-utilization 0.2925 --hf-overrides {"rope_parameters":{"factor":2}}',
        {"max_context": 8192, "engine_args": {"hf-overrides": {"rope_parameters": {"factor": 2}}}},
        checkpoint=SMALL,
    ),
    # (6 − 1 − 0.2 − 2) GiB for the cache.
    Line(
        "the CPU",
        "--dtype float32 --max-model-len 256 --kv-cache-memory-bytes 3006477108 --enforce-eager",
        {"dtype": "float32", "max_context": 256, "engine_args": {"enforce-eager": True}},
        (RAM,),
        SMALL,
        NONE,
    ),
    Line(
        "the CPU, and nothing known of the cache",
        "--max-model-len auto --kv-cache-memory-bytes 3006477108",
        {"max_context": "auto"},
        (RAM,),
        Checkpoint("/models/odd", GIB),
        NONE,
    ),
]  # fmt: skip
LINES = [replace(line, expected=line.expected.replace("", "")) for line in LINES]


def words(line: Line) -> list[str]:
    return own_words(launch(line))


def launch(line: Line) -> Launch:
    concurrency = line.keys.get("max_concurrency")
    asked = request("vllm", **line.keys)
    return vllm_flags.launch(
        asked, line.checkpoint, start(*line.places), python="/venv/bin/python", max_concurrency=concurrency
    )


@pytest.mark.parametrize("line", LINES, ids=str)
def test_an_option_is_this_command_line(line: Line) -> None:
    made = launch(line)
    sleeps = line.places[0].on_gpu
    always = ["--model", line.checkpoint.folder, *ALWAYS.split(), *["--enable-sleep-mode"] * sleeps]
    assert made.argv[:2] == ("/venv/bin/python", "-u")
    assert Path(made.argv[2]) == PARSERS / "vllm_start.py"
    assert [tight(word) for word in words(line)] == [*always, *line.expected.split()]
    assert made.env == {**ENV, **({"VLLM_SERVER_DEV_MODE": "1"} if sleeps else {}), **line.env}


def test_an_option_that_never_sleeps_is_not_started_for_it() -> None:
    made = vllm_flags.launch(request("vllm", sleep="never"), SMALL, start(FIRST), python="python")
    assert "--enable-sleep-mode" not in made.argv
    assert "VLLM_SERVER_DEV_MODE" not in made.env


def test_who_drops_its_weights_asleep_is_started_to_sleep_and_keeps_none() -> None:
    made = vllm_flags.launch(request("vllm", sleep="discard"), SMALL, start(FIRST), python="python")
    assert "--enable-sleep-mode" in made.argv
    assert [VllmAdapter().traits(request("vllm", sleep=how)).keeps_weights for how in ("auto", "discard")] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("keys", "why"),
    [({}, None), ({"sleep": "never"}, "sleep: never"), ({"devices": ("cpu",)}, "on the cpu"), ({"devices": 2}, None)],
)
def test_who_can_sleep_and_why_not(keys: dict[str, Any], why: str | None) -> None:
    for adapter, name in ((VllmAdapter(), "vllm"), (SglangAdapter(), "sglang")):
        said = adapter.why_awake(request(name, **keys))
        assert said is None if why is None else why in str(said)
        assert adapter.traits(request(name, **keys)).can_sleep is (why is None)


def test_the_key_is_in_no_command_line() -> None:
    assert not any("secret-key" in word for line in LINES for word in words(line))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"quantization": "4bit"}, "m: quantization 4bit: vLLM doesn't quantize to 4 bits .* awq, gptq"),
        ({"quantization": "8bit"}, "m: quantization 8bit: .* write fp8"),
        ({"dtype": "float64"}, "m: dtype 'float64' is not one of auto, float32"),
        ({"max_context": 200_000}, "m: max_context is 200000, but org/seven was built for at most 131072 tokens"),
        ({"max_context": 0}, "m: max_context wants a number of tokens or auto, not 0"),
        ({"max_context": "most"}, "m: max_context wants a number of tokens or auto, not 'most'"),
        ({"engine_args": {"port": 1}}, "m: engine_args.port is what taskrouter writes itself; leave it out"),
        ({"engine_args": {"tensor_parallel_size": 2}}, "tensor_parallel_size is .* itself; write devices beside"),
        ({"engine_args": {"--gpu-memory-utilization": 1}}, "itself; declare vram_gb instead"),
        ({"engine_args": {"no-trust-remote-code": True}}, "itself; write trust_remote_code"),
        ({"engine_args": {"enable_sleep_mode": True}}, r"itself; write sleep: auto \(the default\) or sleep: never"),
        ({"engine_args": {"config": "x.yaml"}}, "itself; write its flags in engine_args instead"),
        ({"engine_args": {"enforce-eager": None}}, "m: engine_args.enforce-eager has no value; write true"),
    ],
)
def test_what_it_can_not_do_is_refused_with_what_it_can(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(PreflightFailed, match=said):
        vllm_flags.launch(request("vllm", **keys), SEVEN_B, start(FIRST), python="python")


def test_a_gguf_file_is_sent_elsewhere() -> None:
    file = replace(SEVEN_B, folder="/models/seven.gguf")
    with pytest.raises(PreflightFailed, match=r"vLLM doesn't read GGUF files .* framework: command"):
        vllm_flags.launch(request("vllm"), file, start(FIRST), python="python")


def test_it_needs_weights_room_to_work_in_itself_and_one_requests_cache() -> None:
    beside = int(0.6 * GIB) + GIB
    assert vllm_flags.need(request("vllm", max_context=1024), SEVEN_B, on_gpu=True, max_concurrency=None) == (
        14 * GIB + int(2.8 * GIB) + beside + (1024 + 256) * 128 * 1024
    )
    usual = vllm_flags.need(request("vllm"), SEVEN_B, on_gpu=True, max_concurrency=64)
    assert usual == 14 * GIB + int(2.8 * GIB) + beside + (8192 + 256) * 128 * 1024
    on_two = vllm_flags.need(request("vllm", devices=2), SEVEN_B, on_gpu=True, max_concurrency=None)
    assert on_two == 7 * GIB + int(1.4 * GIB) + beside + GIB // 2 + (8192 + 256) * 64 * 1024
    on_cpu = vllm_flags.need(request("vllm"), SMALL, on_gpu=False, max_concurrency=None)
    assert on_cpu == GIB + int(0.2 * GIB) + 2 * GIB + (4096 + 256) * 16 * 1024


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_its_own_parser_takes_every_line(engine_python: Callable[[str], str]) -> None:
    answers = parse(engine_python("vllm"), "vllm", [words(line) for line in LINES])
    assert {line.name: answer["error"] for line, answer in zip(LINES, answers, strict=True) if not answer["ok"]} == {}


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_its_own_parser_refuses_with_what_was_meant(engine_python: Callable[[str], str]) -> None:
    wrong = {
        "unrecognized arguments: --enforce-eagre (did you mean --enforce-eager?)": ["--enforce-eagre"],
        "unrecognized arguments: --tensor-parallel (did you mean": ["--tensor-parallel", "2"],
        "(did you mean bfloat16?)": ["--dtype", "bfloat1"],
        "--quantization: invalid choice: 'awqq'": ["--quantization", "awqq"],
        "--load-format: invalid choice: 'safetensor'": ["--load-format", "safetensor"],
        "'yes' belongs to no flag": ["--enforce-eager", "yes"],
        "argument --max-num-seqs: invalid": ["--max-num-seqs", "many"],
        "--enable-auto-tool-choice requires --tool-call-parser": ["--enable-auto-tool-choice"],
    }
    answers = parse(engine_python("vllm"), "vllm", [["--model", "/models/seven", *line] for line in wrong.values()])
    for said, answer in zip(wrong, answers, strict=True):
        assert not answer["ok"]
        assert said in answer["error"]
    assert answers[3]["error"].endswith("(did you mean awq?)")


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_its_parser_script_runs_alone(engine_python: Callable[[str], str]) -> None:
    for words, ok in ((["--model", "m"], True), (["--modle", "m"], False)):
        ran = subprocess.run(
            [engine_python("vllm"), str(PARSERS / "vllm.py")],
            input=json.dumps(words), capture_output=True, text=True, check=True, timeout=100, cwd="/",
            env={**os.environ, "HF_HUB_OFFLINE": "0"},  # offline it looks the model up, and there is none here
        )  # fmt: skip
        assert json.loads(ran.stdout.splitlines()[-1])["ok"] is ok


@pytest.mark.parametrize(
    ("arguments", "lacking"),
    [
        ({}, {"automatic tools"}), ({"enable-auto-tool-choice": True}, {"automatic tools"}),
        ({"enable_auto_tool_choice": True, "tool-call-parser": "hermes"}, set()),
        ({"limit-mm-per-prompt": {"image": 0, "video": 1}}, {"automatic tools", "image"}),
        ({"limit_mm_per_prompt": 3}, {"automatic tools"}),
    ],
)  # fmt: skip
def test_what_its_arguments_leave_out_is_known(arguments: dict[str, Any], lacking: set[str]) -> None:
    assert VllmAdapter().lacks(request("vllm", engine_args=arguments)).keys() == lacking
