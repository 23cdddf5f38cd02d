"""What callers from outside may have an engine's server do: the paths of each engine, and every way round them."""

from __future__ import annotations

from typing import Any

import pytest

from taskrouter.backends.engines.adapter import Adapter
from taskrouter.backends.engines.backend import EngineBackend
from taskrouter.backends.engines.command import CommandAdapter, CommandBackend
from taskrouter.backends.engines.outside import check_body, check_passed, is_open
from taskrouter.backends.engines.sglang import SglangAdapter
from taskrouter.backends.engines.vllm import VllmAdapter
from taskrouter.errors import BadInput

from .command_lines import request

ADAPTERS: tuple[Adapter, ...] = (VllmAdapter(), SglangAdapter(), CommandAdapter())
SLEEPS = {"sleep": "POST /v1/rest?deep=1", "wake": "POST /v1/wake/"}
URL = "data:image/png;base64,AAAA"
SCHEMA = {"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {"image": {"const": "a"}}}
MP3 = "//uQRAAAAWMSLwUIYAAsYkXgoQwAEaYLWfkWgAI0wWs/ItAAAA=="
"""Its first two bytes are all ones."""


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.framework)
def test_what_only_computes_is_open_and_no_control_is(adapter: Adapter) -> None:
    it = request(adapter.framework, sleep_calls=SLEEPS)
    backend = EngineBackend(adapter)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/v1/rerank"):
        assert backend.infers(it, path), path
    controls = adapter.controls(it)
    assert len(controls) >= 2
    for path in (*controls, "/", "/metrics", "/health", "/v1", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert not backend.infers(it, path), path


def test_vllm_opens_what_it_scores_with_and_keeps_its_own_shut() -> None:
    vllm = EngineBackend(VllmAdapter())
    for path in ("/score", "/v1/score", "/rerank", "/v2/rerank", "/pooling", "/classify", "/v2/embed"):
        assert vllm.infers(request("vllm"), path), path
    for path in (
        "/v1/models",
        "/v1/responses",
        "/invocations",
        "/start_profile",
        "/scale_elastic_ep",
        "/tokenizer_info",
    ):
        assert not vllm.infers(request("vllm"), path), path


def test_sglang_opens_no_path_that_reads_files_or_changes_anything() -> None:
    sglang = EngineBackend(SglangAdapter())
    for path in ("/generate", "/encode", "/flush_cache", "/update_weights_from_disk", "/v1/loads", "/open_session",
                 "/load_lora_adapter", "/configure_logging", "/set_internal_state", "/invocations"):  # fmt: skip
        assert not sglang.infers(request("sglang"), path), path


def test_a_command_opens_no_path_that_loads_a_model_or_keeps_anything() -> None:
    command = CommandBackend()
    for path in (
        "/v1/models", "/v1/model/load", "/v1/model/unload", "/v1/internal/model/load", "/v1/internal/stop-generation",
        "/v1/lora/load", "/v1/download", "/v1/files", "/v1/fine_tuning/jobs", "/v1/responses", "/v1/anything", "/admin",
    ):  # fmt: skip
        assert not command.infers(request("command"), path), path


def test_what_a_command_sleeps_by_is_shut_however_it_is_written() -> None:
    command = CommandBackend()
    it = request("command", sleep_calls={"sleep": "POST /V1/Rerank?deep=1", "wake": "POST /v1/score/"})
    # With or without the slash at its end, and in capitals: to some servers it is the same.
    for path in ("/v1/rerank", "/v1/score"):
        assert not command.infers(it, path)
        assert command.infers(request("command"), path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../sleep", "/v1/x/../../sleep", "/v1/./rest", "/v1/..", "/v1/.", "/v1/...", "/v1/.hidden", "/v1/x.",
        "/v1/%2e%2e/sleep", "/v1/%2E%2E%2Fsleep", "/v1/..%2fsleep", "/v1/%252e%252e/sleep", "/v1/rest%00",
        "/v1/rest?x", "/v1/x?path=/sleep", "/v1/x#/sleep", "/v1/rest;a=b", "/v1/rest/", "/v1//rest", "//v1/x",
        "/v1/", "/v1\\..\\sleep", "/v1/x\\..\\rest", "/v1/x y", "/v1/x\n", "/v1/x\r\nHost: y", "/v1/\u2025/sleep",
        "/v1/\uff0e\uff0e/sleep", "/v1/re\u200bst", "/v1/*", "/v1/{x}", "/v1/~x", "/v1/@x", "/v1/x:y",
        "http://127.0.0.1/v1/x", "v1/x", "", "/V1/x", "/v1x/y", "/v1/load_lora_adapter",
        "/v1/rest", "/TOKENIZE", "/tokenize/",
    ],
)  # fmt: skip
def test_there_is_no_way_round(path: str) -> None:
    assert not is_open(path, {"/v1/x", "/v1/rest", "/tokenize"}, {"/v1/rest", "/sleep"})


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"model": "other"}, "leave model out"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
            "url",
        ),
        ({"messages": [{"content": [{"image_url": "https://x/y"}]}]}, "image_url"),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]}, "url"),
        ({"messages": [{"content": [{"type": "video_url", "video_url": {"url": " file:///etc/x"}}]}]}, "url"),
        ({"messages": [{"content": [{"type": "file", "file": {"file_data": "//host/x"}}]}]}, "file_data"),
        ({"documents": [{"content": [{"type": "new", "source": {"uri": "gopher://x"}}]}]}, "uri"),
        ({"input": [{"text": "a", "image": "x.png"}]}, "image"),
        ({"images": ["ab.jpg"]}, "images"),
        ({"image_data": [[URL, "photo.png"]]}, "image_data"),
        ({"audio_data": "/home/x"}, "audio_data"),
        ({"deep": {"tools": [{"image": "x"}]}}, "image"),
        ({"callback": "http://169.254.169.254/latest"}, "callback"),
        ({"messages": [{"content": [{"input_audio": {"data": "http://x/y.mp3", "format": "mp3"}}]}]}, "data"),
        ({"messages": [{"content": [{"input_audio": {"data": "file:/etc/x", "format": "mp3"}}]}]}, "data"),
        ({"messages": [{"content": [{"input_audio": {"data": "/a/b.mp3", "format": "mp3"}}]}]}, "data"),
        ({"other": {"data": MP3}}, "data"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://169.254.169.254/"}]}, "server_url"),
        ({"tools": [{"type": "function", "function": {"name": "f", "at": "https://x"}}]}, "at"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "at": "http://x"}}}, "at"),
        ({"structured_outputs": {"at": "http://x"}}, "at"),
        ({"functions": [{"image": "/etc/passwd"}]}, "image"),
        ({"parameters": {"at": "http://x"}}, "at"),
    ],
)
def test_bodies_with_something_to_fetch_or_to_read_are_refused(body: Any, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        check_body(body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_body_may_only_repeat_whether_it_is_streamed(stream: bool) -> None:
    check_body({"stream": stream}, stream=stream)
    wrong: list[Any] = [not stream, None, 1, 0, "true"]
    for value in wrong:
        with pytest.raises(BadInput, match="stream"):
            check_body({"stream": value}, stream=stream)
    check_body({"stream_options": {"include_usage": True}}, stream=True)
    with pytest.raises(BadInput, match="stream"):
        check_body({"stream_options": {"include_usage": True}})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": "https://example.com is what?", "documents": ["http://a.b", {"text": "file: a drawer"}], "top_n": 1},
        {"prompt": "//comment", "tokens": [1, 2], "return_token_strs": True, "nothing": None},
        {"messages": [{"role": "user", "content": "http://x"}, {"role": "tool", "content": [{"type": "text",
                                                                                            "text": "http://x"}]}]},
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": URL, "detail": "low"}}]}]},
        {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}]},
        {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": MP3, "format": "mp3"}}]}]},
        {"tools": [{"function": {"description": "http://x: a", "parameters": SCHEMA}}]},
        {"functions": [{"name": "f", "parameters": SCHEMA}], "guided_json": SCHEMA, "json_schema": SCHEMA},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA, "regex": "//.*", "choice": ["http://a", "http://b"]}},
        {"text_1": "http://a", "text_2": ["http://b"], "input": ["http://c"], "texts": ["http://d"]},
    ],
)  # fmt: skip
def test_bodies_that_hold_all_they_need_are_taken(body: Any) -> None:
    check_body(body)


def test_what_is_passed_on_is_looked_at_but_for_labels() -> None:
    call = {"function": {"name": "open", "arguments": {"url": "https://x"}}}
    said = {"role": "assistant", "content": "http://x", "tool_calls": [call]}
    quoted = {"role": "assistant", "content": None, "annotations": [{"url_citation": {"url": "https://x"}}]}
    check_passed(
        {"model": "a://b", "user": "https://x/me", "metadata": {"url": "http://x"}, "messages": [said, quoted]}
    )
    for body in (
        {"input": "a", "messages": [{"content": [{"image_url": {"url": "http://x"}}]}]},
        {"messages": [{"role": "user", "content": {"image_url": "http://x"}}]},
        {"messages": [{"role": "user", "content": "a", "images": ["/etc/passwd"]}]},
        {"prompt": "a", "video_url": "http://x"},
    ):
        with pytest.raises(BadInput, match="nothing is fetched"):
            check_passed({"model": "a", **body})
