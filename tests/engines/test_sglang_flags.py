"""Options as SGLang's command lines, to the word; and the same command lines under SGLang's own parser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.engines import sglang_flags
from taskrouter.backends.engines.interpreter import PARSERS
from taskrouter.backends.engines.launch import Checkpoint, Launch
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

ALWAYS = (
    "--served-model-name m --host 127.0.0.1 --port 4321 --log-level-http warning --sleep-on-idle --skip-server-warmup"
)
ENV = {
    "CUDA_VISIBLE_DEVICES": "GPU-11111111-aaaa",
    "DO_NOT_TRACK": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "4321",
    "NCCL_SOCKET_IFNAME": "lo",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1",
    "TASKROUTER_API_KEY": "secret-key",
}
TWO = {"CUDA_VISIBLE_DEVICES": "GPU-11111111-aaaa,GPU-22222222-bbbb", "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"}
CPU = {"CUDA_VISIBLE_DEVICES": "", "SGLANG_USE_CPU_ENGINE": "1"}

# Weights and cache of (24 − 2.8 to work in − 0.6 context − 1 graphs) = 19.6 GiB, less the request table, of 78.4 free.
LINES = [
    # (5.6 GiB − 128 tokens) ÷ (128 KiB of cache + 2,048 × 4 bytes of table) a token, in steps of 512.
    Line("nothing said", "--context-length 43008 --mem-fraction-static 0.2458"),
    Line("as much context as fits", "--context-length 43008 --mem-fraction-static 0.2458", {"max_context": "auto"}),
    Line(
        "everything said",
        "--dtype bfloat16 --quantization awq --max-running-requests 32 --trust-remote-code --context-length 8192 "
        "--mem-fraction-static 0.2499 --disable-radix-cache",
        {"dtype": "bf16", "quantization": "awq", "max_concurrency": 32, "trust_remote_code": True,
         "max_context": 8192, "engine_args": {"disable_radix_cache": True}},
    ),
    Line("all its context fits", "--mem-fraction-static 0.2827", checkpoint=SMALL),
    # Half the weights each: (24 − 1.4 − 1.1 − 1) GiB, less the table, of the (60 − 1.1) free on the fuller GPU.
    Line(
        "two GPUs",
        "--quantization gptq --tp-size 2 --context-length 4096 --mem-fraction-static 0.3475",
        {"devices": 2, "quantization": "gptq", "max_context": 4096},
        (FIRST, SECOND),
        env=TWO,
    ),
    Line(
        "4 bits while loading",
        "--quantization bitsandbytes --load-format bitsandbytes --context-length 4096 --mem-fraction-static 0.2496",
        {"quantization": "4bit", "max_context": 4096},
    ),
    Line(
        "engine_args of every kind",
        "--quantization fp8 --context-length 4096 --mem-fraction-static 0.2496 --kv-cache-dtype fp8_e5m2 "
        "--load-format runai_streamer --no-dcp-replicate-q-proj --tool-call-parser qwen25 --cuda-graph-bs-decode 1 2 4 "
        '--default-chat-template-kwargs {"enable_thinking":false} --random-seed=-1',
        {"quantization": "fp8", "max_context": 4096,
         "engine_args": {"kv-cache-dtype": "fp8_e5m2", "load_format": "runai_streamer",
                         "dcp_replicate_q_proj": False, "tool-call-parser": "qwen25",
                         "cuda-graph-bs-decode": [1, 2, 4],
                         "default_chat_template_kwargs": {"enable_thinking": False}, "random_seed": -1}},
    ),
    Line(
        "an embedding model",
        "--mem-fraction-static 0.2827 --is-embedding",
        {"engine_args": {"is_embedding": True}},
        checkpoint=SMALL,
    ),
    # (6 − 1 − 0.2 − 2) GiB less 2,048 × 256 × 4 bytes, in tokens of 16 KiB.
    Line(
        "the CPU",
        "--dtype float32 --device cpu --attention-backend torch_native --context-length 256 "
        "--mem-fraction-static 0.9000 --max-total-tokens 183372",
        {"dtype": "float32", "max_context": 256},
        (RAM,),
        SMALL,
        CPU,
    ),
    Line(
        "the CPU, and nothing known of the cache",
        "--device cpu --mem-fraction-static 0.1698 --attention-backend intel_amx",
        {"max_context": "auto", "engine_args": {"attention_backend": "intel_amx"}},
        (RAM,),
        Checkpoint("/models/odd", GIB),
        CPU,
    ),
]  # fmt: skip


def launch(line: Line) -> Launch:
    concurrency = line.keys.get("max_concurrency")
    asked = request("sglang", **line.keys)
    return sglang_flags.launch(
        asked, line.checkpoint, start(*line.places), python="/venv/bin/python", max_concurrency=concurrency
    )


@pytest.mark.parametrize("line", LINES, ids=str)
def test_an_option_is_this_command_line(line: Line) -> None:
    made = launch(line)
    sleeps = ["--enable-memory-saver", "--enable-weights-cpu-backup"] if line.places[0].on_gpu else []
    always = ["--model-path", line.checkpoint.folder, *ALWAYS.split(), *sleeps]
    assert made.argv[:2] == ("/venv/bin/python", "-u")
    assert Path(made.argv[2]) == PARSERS / "sglang_start.py"
    assert [tight(word) for word in own_words(made)] == [*always, *line.expected.split()]
    assert made.env == {**ENV, **line.env}


def test_the_key_is_in_no_command_line() -> None:
    assert not any("secret-key" in word for line in LINES for word in launch(line).argv)


def test_an_option_that_never_sleeps_is_not_started_for_it() -> None:
    made = sglang_flags.launch(request("sglang", sleep="never"), SMALL, start(FIRST), python="python")
    assert not {"--enable-memory-saver", "--enable-weights-cpu-backup"} & set(made.argv)


def test_what_is_switched_on_can_be_left_off() -> None:
    args = {"sleep_on_idle": False, "skip-server-warmup": True}
    made = sglang_flags.launch(request("sglang", engine_args=args), SMALL, start(FIRST), python="python")
    assert "--sleep-on-idle" not in made.argv
    assert "--no-sleep-on-idle" not in made.argv
    assert made.argv.count("--skip-server-warmup") == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"quantization": "8bit"}, "m: quantization 8bit: SGLang .* write fp8"),
        ({"dtype": "float64"}, "m: dtype 'float64' is not one of auto, float32"),
        ({"max_context": 200_000}, "m: max_context is 200000, but org/seven was built for at most 131072 tokens"),
        ({"engine_args": {"host": "0.0.0.0"}}, "engine_args.host is what taskrouter writes itself; leave it out"),
        ({"engine_args": {"tp": 2}}, "engine_args.tp is .* itself; write devices beside model_id"),
        ({"engine_args": {"nccl-port": 1}}, "itself; leave it out: engines listen on loopback"),
        ({"engine_args": {"mem_fraction_static": 0.9}}, "itself; declare vram_gb instead"),
        ({"engine_args": {"enable-memory-saver": True}}, "itself; write sleep: auto .* or sleep: never"),
        ({"engine_args": {"no_enable_weights_cpu_backup": True}}, "itself; write sleep: auto .* or sleep: never"),
        ({"engine_args": {"tokenizer-worker-num": 2}}, "SGLang asks nobody for the API key"),
    ],
)
def test_what_it_can_not_do_is_refused_with_what_it_can(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(PreflightFailed, match=said):
        sglang_flags.launch(request("sglang", **keys), SEVEN_B, start(FIRST), python="python")


def test_4_bits_while_loading_want_a_gpu() -> None:
    with pytest.raises(PreflightFailed, match=r"quantization 4bit: .* on GPUs only; take a quantized checkpoint"):
        sglang_flags.launch(request("sglang", quantization="4bit"), SMALL, start(RAM), python="python")


def test_it_needs_a_table_of_its_requests_too() -> None:
    on_gpu = sglang_flags.need(request("sglang", max_context=1024), SEVEN_B, on_gpu=True, max_concurrency=None)
    table = 2048 * 1024 * 4
    assert on_gpu == 14 * GIB + int(2.8 * GIB) + int(0.6 * GIB) + GIB + (1024 + 128) * 128 * 1024 + table
    told = sglang_flags.need(request("sglang", max_context=1024), SEVEN_B, on_gpu=True, max_concurrency=8)
    assert on_gpu - told == table - 8 * 1024 * 4


def test_a_grant_of_just_what_it_needs_gives_the_usual_context() -> None:
    asked = request("sglang", max_context="auto")
    granted = sglang_flags.need(asked, SEVEN_B, on_gpu=True, max_concurrency=4)
    made = sglang_flags.launch(
        asked, SEVEN_B, start(replace(FIRST, granted=granted)), python="python", max_concurrency=4
    )
    assert made.argv[made.argv.index("--context-length") + 1] == "8192"


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_its_own_parser_takes_every_line(engine_python: Callable[[str], str]) -> None:
    answers = parse(engine_python("sglang"), "sglang", [own_words(launch(line)) for line in LINES])
    assert {line.name: answer["error"] for line, answer in zip(LINES, answers, strict=True) if not answer["ok"]} == {}


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_its_own_parser_refuses_with_what_was_meant(engine_python: Callable[[str], str]) -> None:
    wrong = {
        "unrecognized arguments: --disable-radix-cach (did you mean --disable-radix-cache?)": ["--disable-radix-cach"],
        "unrecognized arguments: --tensor-parallel 2 (did you mean": ["--tensor-parallel", "2"],
        "(did you mean bfloat16?)": ["--dtype", "bfloat1"],
        "(did you mean awq?)": ["--quantization", "awqq"],
        "(did you mean safetensors?)": ["--load-format", "safetensor"],
        "argument --max-running-requests: invalid": ["--max-running-requests", "many"],
        "(--disable-radix-cache can only be switched on: leave it out)": ["--no-disable-radix-cache"],
    }
    lines = [["--model-path", "/models/seven", *line] for line in wrong.values()]
    for said, answer in zip(wrong, parse(engine_python("sglang"), "sglang", lines), strict=True):
        assert not answer["ok"]
        assert said in answer["error"]


@pytest.mark.slow
@pytest.mark.xdist_group("engines")
def test_its_parser_script_runs_alone(engine_python: Callable[[str], str]) -> None:
    for words, ok in ((["--model-path", "m"], True), (["--model-pat", "m"], False)):
        ran = subprocess.run(
            [engine_python("sglang"), str(PARSERS / "sglang.py")],
            input=json.dumps(words), capture_output=True, text=True, check=True, timeout=100, cwd="/",
        )  # fmt: skip
        assert json.loads(ran.stdout.splitlines()[-1])["ok"] is ok
