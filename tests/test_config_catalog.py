"""The catalog: the seeds' objects, frozen; a model's identity; the JSON Schema."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import taskrouter.config
from taskrouter.config import (
    Catalog,
    Frameworks,
    InferenceConfig,
    ModelConfig,
    TaskConfig,
    json_schema,
    load_catalog,
    model_request,
    parse_catalog,
)
from taskrouter.errors import ConfigError, UnknownOption
from taskrouter.types import GIB
from taskrouter.verbs import KINDS

FRAMEWORKS = Frameworks(known=frozenset({"fake", "transformers"}))
SAMPLE = Path(__file__).with_name("test_config_sample.yaml")
ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("TASKROUTER_SHARED", ROOT.parent / "shared"))
OPTION = {"model_id": "m", "framework": "fake"}


def parse(text: str, base_dir: str = ".", frameworks: Frameworks = FRAMEWORKS) -> Catalog:
    return parse_catalog(text.encode(), file="models.yaml", base_dir=base_dir, frameworks=frameworks, environ={})


# --- the seeds' objects -----------------------------------------------------------------------------------------------


def test_model_config_has_the_defaults_of_the_format() -> None:
    model = ModelConfig(OPTION)
    assert (model.vram_gb, model.vram_bytes, model.speed, model.description) == (0, 0, "medium", "")
    assert (model.quantization, model.fps, model.provider, model.api_endpoint) == (None, None, None, None)
    assert (model.requires_api_key, model.trust_remote_code, model.pinned) == (False, False, False)
    assert (model.devices, model.isolation, model.sleep, model.is_external) == (1, "in_process", "auto", False)


def test_vram_is_in_gib() -> None:
    model = ModelConfig({**OPTION, "vram_gb": 3.5, "ram_gb": "512MiB"})
    assert (model.vram_bytes, model.ram_bytes) == (int(3.5 * GIB), GIB // 2)


def test_task_config_is_made_from_a_name_and_a_dict() -> None:
    task = TaskConfig(
        "detect", {"selected": "b", "kind": "detection", "options": {"a": OPTION, "b": {**OPTION, "model_id": "n"}}}
    )
    assert (task.task_name, task.selected, list(task.options)) == ("detect", "b", ["a", "b"])
    assert task.get_selected_config().model_id == "n"
    assert isinstance(task.get_selected_config(), ModelConfig)


def test_selecting_another_option_makes_a_copy() -> None:
    task = TaskConfig("t", {"selected": "a", "options": {"a": OPTION, "b": OPTION}})
    assert task.with_selected("b").selected == "b"
    assert isinstance(task.with_selected("b"), TaskConfig)
    assert task.selected == "a"
    with pytest.raises(UnknownOption, match="has no option 'c': it has a, b"):
        task.with_selected("c")


def test_inference_config_keeps_the_text_of_its_limit() -> None:
    config = InferenceConfig({"max_memory_per_model": "2GiB"})
    assert (config.max_memory_per_model, config.max_bytes_per_model) == ("2GiB", 2 * GIB)
    default = InferenceConfig({})
    assert (default.max_memory_per_model, default.max_bytes_per_model) == ("auto", None)
    assert (default.offload_threshold, default.warmup_on_startup) == (0.85, True)
    assert (default.default_batch_size, default.max_batch_size, default.max_wait_s) == (1, 8, 120)


@pytest.mark.parametrize(
    "data",
    [{}, {"selected": "a"}, {"selected": "b", "options": {"a": OPTION}},
     {"selected": "a", "options": {"a": {"model_id": "m"}}},
     {"selected": "a", "options": {"a": {**OPTION, "engine_args": {"api-key": "x"}}}}, {1: 2}, 3, None],
)  # fmt: skip
def test_bad_dict_is_a_config_error_and_a_value_error(data: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskConfig("t", data)
    assert isinstance(caught.value, ValueError)
    assert caught.value.problems[0].file == "task 't'"


def test_dict_that_contains_itself_is_a_config_error() -> None:
    loop: dict[str, Any] = {**OPTION}
    loop["engine_args"] = loop
    with pytest.raises(ConfigError, match="contains itself"):
        ModelConfig(loop)


def test_dict_with_endless_problems_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="there are more"):
        ModelConfig({f"k{n}": n for n in range(500)})


def test_catalog_is_frozen() -> None:
    catalog = load_catalog(SAMPLE, frameworks=FRAMEWORKS, environ={})
    task = catalog.tasks["video_summarization"]
    option = task.get_selected_config()
    changes: list[Any] = [
        lambda: setattr(catalog, "path", "x"),
        lambda: setattr(task, "selected", "x"),
        lambda: setattr(option, "vram_gb", 1),
        lambda: setattr(catalog.memory, "policy", "x"),
        lambda: catalog.tasks.__setitem__("x", task),  # type: ignore[index]
        lambda: task.options.pop("claude"),
        lambda: option.engine_args["limit-mm-per-prompt"].update(image=1),
        lambda: catalog.memory.devices.clear(),
    ]
    for change in changes:
        with pytest.raises((ValueError, TypeError, AttributeError)):
            change()


def test_catalog_can_be_pickled_and_copied() -> None:
    catalog = load_catalog(SAMPLE, frameworks=FRAMEWORKS, environ={})
    for other in (pickle.loads(pickle.dumps(catalog)), copy.deepcopy(catalog), copy.copy(catalog)):
        assert other == catalog
        assert other.tasks["object_detection"].task_name == "object_detection"
    args = catalog.tasks["video_summarization"].get_selected_config().engine_args
    assert copy.copy(args) is args
    assert hash(args) == hash(pickle.loads(pickle.dumps(args)))
    assert json.loads(json.dumps(args)) == {"limit-mm-per-prompt": {"image": 8, "video": 1}}


def test_repr_shows_no_arguments() -> None:
    option = ModelConfig({**OPTION, "engine_args": {"x": "quiet"}, "vram_gb": 2})
    task = TaskConfig(
        "t", {"selected": "a", "kind": "chat", "options": {"a": {**OPTION, "engine_args": {"x": "quiet"}}}}
    )
    assert repr(option) == str(option) == "<ModelConfig m fake - 2.0 GiB>"
    assert repr(task) == str(task) == "<TaskConfig t chat: a of 1>"
    assert "quiet" not in repr(
        parse("tasks: {a: {selected: f, options: {f: {model_id: m, framework: fake, engine_args: {x: quiet}}}}}")
    )


def test_every_key_of_the_sample_arrives() -> None:
    catalog = load_catalog(SAMPLE, frameworks=FRAMEWORKS, environ={})
    task = catalog.tasks["video_summarization"]
    assert (task.kind, task.fallback, task.max_wait_s) == ("chat", ("qwen2.5-vl-3b", "claude"), 60)
    assert catalog.default_task == "video_summarization"
    assert catalog.memory.devices["cuda:0"].budget == 22 * GIB
    assert catalog.memory.devices["cuda:0"].reserve == GIB
    assert catalog.memory.devices["cpu"].budget == 8 * GIB
    assert catalog.memory.min_residency_s == "auto"
    assert catalog.inference.max_bytes_per_model == 40 * GIB
    assert catalog.pipelines["video_report"] == ("object_detection", "video_summarization")
    assert catalog.engines["vllm"].python == ".venvs/vllm/bin/python"
    assert catalog.providers["anthropic"].daily_budget_usd == 20
    assert catalog.server.port == 8700
    assert catalog.media.max_bytes == 512 << 20
    assert catalog.telemetry.service_name == "taskrouter"
    price = task.options["claude"].price
    assert price is not None
    assert price.output_per_mtok == 15
    assert repr(catalog) == f"<Catalog {SAMPLE}: 2 tasks, {len(catalog.warnings)} warnings>"


@pytest.mark.skipif(not (SHARED / "data/fovea-models.yaml").exists(), reason="the shared data isn't here")
def test_configuration_nobody_here_wrote_loads_unchanged_with_warnings() -> None:
    catalog = load_catalog(SHARED / "data/fovea-models.yaml", frameworks=FRAMEWORKS, environ={})
    assert len(catalog.tasks) == 9
    reasons = {u.reason for u in catalog.unavailable}
    for name in ("whisper", "faster_whisper", "pyannote", "assemblyai", "deepgram", "revai", "gladia", "aws", "azure"):
        assert any(repr(name) in reason and "docs/plug-ins.md" in reason for reason in reasons)
    assert {u.task for u in catalog.unavailable if u.selected} == {
        "video_summarization", "ontology_augmentation", "audio_transcription", "speaker_diarization",
    }  # fmt: skip
    one, two = (catalog.tasks[name] for name in ("claim_extraction", "claim_synthesis"))
    assert model_request(one, "qwen-2-5-7b", catalog=catalog) == model_request(two, "qwen-2-5-7b", catalog=catalog)
    assert "models" in catalog.raw


# --- identity ---------------------------------------------------------------------------------------------------------


def key_of(option: str, *, base_dir: str = ".", rest: str = "", frameworks: Frameworks = FRAMEWORKS) -> str:
    catalog = parse(f"tasks: {{a: {{selected: f, options: {{f: {option}}}}}}}\n{rest}", base_dir, frameworks)
    return model_request(catalog.tasks["a"], "f", catalog=catalog).key


BASE = "{model_id: org/name-7b, framework: transformers}"


def test_key_is_readable_and_does_not_hang_on_names() -> None:
    catalog = parse(
        f"tasks: {{a: {{selected: f, options: {{f: {BASE}}}}}, b: {{selected: g, options: {{g: {BASE}}}}}}}"
    )
    one = model_request(catalog.tasks["a"], "f", catalog=catalog)
    two = model_request(catalog.tasks["b"], "g", catalog=catalog)
    assert one.key == two.key
    assert one.key.startswith("name-7b#")
    assert (one.label, two.label) == ("f", "g")


@pytest.mark.parametrize(
    "extra",
    ["revision: x", "quantization: 4bit", "dtype: float16", "max_context: 512", "max_context: auto", "devices: 2",
     "devices: [cuda:1]", "devices: cpu", "isolation: process", "trust_remote_code: true", "engine_args: {a: 1}",
     "command: [x]", "health: /h", "sleep_calls: {sleep: POST /s, wake: POST /w}"],
)  # fmt: skip
def test_everything_that_reaches_load_is_part_of_the_identity(extra: str) -> None:
    assert key_of(BASE[:-1] + f", {extra}}}") != key_of(BASE)


@pytest.mark.parametrize(
    "extra", ["vram_gb: 3", "pinned: true", "speed: x", "description: x", "max_concurrency: 2", "keep_alive_s: 3"]
)
def test_nothing_else_is(extra: str) -> None:
    assert key_of(BASE[:-1] + f", {extra}}}") == key_of(BASE)


def test_identity_counts_framework_after_its_alias_and_engine_arguments_in_any_order() -> None:
    assert key_of("{model_id: org/name-7b, framework: pytorch}") == key_of(BASE)
    assert key_of("{model_id: org/name-7b, framework: fake}") != key_of(BASE)
    one, two = "engine_args: {a: 1, b: {c: 1, d: 2}}", "engine_args: {b: {d: 2, c: 1}, a: 1}"
    assert key_of(BASE[:-1] + f", {one}}}") == key_of(BASE[:-1] + f", {two}}}")


def test_interpreter_of_the_engine_is_part_of_the_identity() -> None:
    option = "{model_id: m, framework: vllm}"
    keys = {key_of(option, rest=rest) for rest in ("", "engines: {vllm: {python: a}}", "engines: {vllm: {python: b}}")}
    assert len(keys) == 3
    assert key_of(option, rest="engines: {sglang: {python: a}, vllm: {start_timeout_s: 3}}") == key_of(option)


def test_two_providers_with_one_model_name_are_two_models() -> None:
    keys = {key_of(f"{{model_id: m, framework: external_api, provider: {p}}}") for p in ("openai", "google")}
    assert len(keys) == 2


def test_model_id_beside_the_file_becomes_an_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    catalog = parse(
        "tasks: {a: {selected: f, options: {"
        "f: {model_id: models, framework: fake}, g: {model_id: ./models, framework: fake},"
        "h: {model_id: org/models, framework: fake}, i: {model_id: ../gone, framework: fake}}}}",
        str(tmp_path),
    )
    ids = {name: model_request(catalog.tasks["a"], name, catalog=catalog).model_id for name in "fghi"}
    assert ids["f"] == ids["g"] == str((tmp_path / "models").resolve())
    assert ids["h"] == "org/models"
    assert ids["i"] == str((tmp_path.parent / "gone").resolve())
    keys = {model_request(catalog.tasks["a"], name, catalog=catalog).key for name in "fg"}
    assert len(keys) == 1


def test_request_carries_plain_values_a_backend_may_change() -> None:
    catalog = parse(
        "tasks: {a: {selected: f, options: {f: "
        "{model_id: ///, framework: fake, devices: [cuda:1], engine_args: {a: [1]}}}}}",
        "/base",
    )
    request = model_request(catalog.tasks["a"], "f", catalog=catalog)
    assert (request.devices, request.engine_args, request.base_dir) == (("cuda:1",), {"a": [1]}, "/base")
    assert type(request.engine_args) is dict
    assert request.key.startswith("model#")


def test_request_for_no_option_is_an_unknown_option() -> None:
    catalog = load_catalog(SAMPLE, frameworks=FRAMEWORKS, environ={})
    with pytest.raises(UnknownOption, match="'object_detection' has no option 'x'"):
        model_request(catalog.tasks["object_detection"], "x", catalog=catalog)


# --- the JSON Schema --------------------------------------------------------------------------------------------------


def valid(data: Any) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(data)


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    json.dumps(json_schema())


@pytest.mark.parametrize(
    "path", [SAMPLE, ROOT / "models.yaml", SHARED / "data/fovea-models.yaml"], ids=["sample", "root", "shared"]
)
def test_schema_accepts_files_that_load(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} isn't here")
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema(), jsonschema.Draft202012Validator)
    load_catalog(path, frameworks=FRAMEWORKS, environ={})


def test_sample_has_every_key_of_the_format() -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*(keys(item) for item in value.values()))
        return set()

    schema = json_schema()
    known = {key for section in [schema, *schema["$defs"].values()] for key in section["properties"]} - {"models"}
    assert known <= keys(yaml.safe_load(SAMPLE.read_text()))


def test_schema_rejects_unknown_keys_in_every_section() -> None:
    def sections(value: Any, free: bool = False) -> list[dict[str, Any]]:
        found = []
        if isinstance(value, dict):
            named = {"tasks", "options", "pipelines", "engines", "providers"}
            if not free:
                found.append(value)
            for key, item in value.items():
                if key not in {"engine_args", "devices"}:
                    found += sections(item, free=key in named)
        return found

    data = yaml.safe_load(SAMPLE.read_text())
    assert valid(data)
    for section in sections(data):
        section["unknown_key"] = 1
        assert not valid(data), section
        del section["unknown_key"]
    assert valid(data)


@pytest.mark.slow
def test_schema_knows_kinds_aliases_and_variables() -> None:
    body: dict[str, Any] = {"selected": "f", "options": {"f": dict(OPTION)}}
    assert valid({"tasks": {"a": body}})
    assert valid({"models": {"a": body}})
    assert not valid({"models": {"a": body}, "tasks": {"a": body}})
    assert not valid({})
    for kind in KINDS:
        assert valid({"tasks": {"a": {**body, "kind": kind}}})
    assert not valid({"tasks": {"a": {**body, "kind": "x"}}})
    assert valid({"tasks": {"a": {**body, "kind": "${KIND}", "max_wait_s": "${WAIT:-3}"}}})
    assert not valid({"tasks": {"a": {**body, "max_wait_s": "3"}}})
    for devices, right in ((2, True), ("cpu", True), (["cuda:0"], True), (0, False), ([], False), (["gpu"], False)):
        assert valid({"tasks": {"a": {"selected": "f", "options": {"f": {**OPTION, "devices": devices}}}}}) is right
    assert not valid({"tasks": {"a": body}, "memory": {"devices": {"gpu": {}}}})


def test_every_key_is_described() -> None:
    schema = json_schema()
    for name, section in schema["$defs"].items():
        for key, field in section["properties"].items():
            assert field.get("description"), f"{name}.{key}"


# --- the room ---------------------------------------------------------------------------------------------------------


def test_public_names_are_found_and_others_are_not() -> None:
    for name in dir(taskrouter.config):
        assert getattr(taskrouter.config, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(taskrouter.config, "nothing")  # noqa: B009 - mypy knows that it isn't there


def test_importing_the_room_imports_nothing_heavy() -> None:
    code = (
        "import sys, taskrouter.config; assert 'pydantic' not in sys.modules; "
        "from taskrouter.config import load_catalog, model_request; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL', 'av', 'asyncio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
