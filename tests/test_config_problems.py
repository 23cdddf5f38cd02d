"""What is wrong in a file: found in one pass, each with its place, its path, and what was expected."""

from __future__ import annotations

import textwrap

import pytest

from taskrouter.config import Catalog, Frameworks, model_request, parse_catalog
from taskrouter.config.not_yet import NOT_YET
from taskrouter.config.secrets import looks_secret
from taskrouter.errors import ConfigError, Problem

FRAMEWORKS = Frameworks(known=frozenset({"fake", "transformers"}))


def parse(text: str, **environ: str) -> Catalog:
    data = textwrap.dedent(text).encode()
    return parse_catalog(data, file="models.yaml", base_dir=".", frameworks=FRAMEWORKS, environ=environ)


def problems(text: str, **environ: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, **environ)
    return caught.value.problems


def only(text: str, **environ: str) -> Problem:
    found = problems(text, **environ)
    assert len(found) == 1, found
    return found[0]


def task(extra: str = "", option: str = "", more: str = "", rest: str = "") -> str:
    options = f"f: {{model_id: m, framework: fake, {option}}}, {more}"
    return f"tasks: {{a: {{selected: f, {extra} options: {{{options}}}}}}}\n{rest}\n"


def test_all_problems_are_found_in_one_pass_each_at_its_place() -> None:
    found = problems(
        """\
        models:
          detect:
            kind: detektion
            selected: derf
            fallback: [detr, dter]
            options:
              detr:
                framework: transfomers
                vram_gb: -2
                vram: 3
          empty: {selected: x, options: {}}
        default_task: detekt
        pipelines: {p: [detect, nothing]}
        memori: {}
        """
    )
    assert [(p.line, p.column, p.path) for p in found] == [
        (3, 11, "models.detect.kind"),
        (4, 15, "models.detect.selected"),
        (5, 22, "models.detect.fallback.1"),
        (7, 7, "models.detect.options.detr.model_id"),
        (8, 20, "models.detect.options.detr.framework"),
        (9, 18, "models.detect.options.detr.vram_gb"),
        (10, 9, "models.detect.options.detr.vram"),
        (11, 24, "models.empty.options"),
        (12, 15, "default_task"),
        (13, 25, "pipelines.p.1"),
        (14, 1, "memori"),
    ]
    assert [p.hint for p in found][:2] == ["did you mean 'detection'?", "did you mean 'detr'?"]
    assert found[4].hint == "did you mean 'transformers'?"
    assert found[6].hint == "did you mean 'vram_gb'?"
    assert found[8].hint == "did you mean 'detect'?"
    assert found[10].hint == "did you mean 'memory'?"
    assert all(p.file == "models.yaml" for p in found)


def test_error_reads_as_one_line_per_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(task(option="vrm_gb: 3"))
    assert str(caught.value) == ("models.yaml:1:71: tasks.a.options.f.vrm_gb: unknown key (did you mean 'vram_gb'?)")


def test_unknown_key_without_a_near_one_lists_what_there_is() -> None:
    assert only(task(rest="memory: {zzzzzz: 1}")).hint.startswith("expected one of: policy, devices")


@pytest.mark.parametrize(
    ("option", "key", "said"),
    [
        ("vram_gb: -1", "vram_gb", "a number of GiB, 0 or more, got -1"),
        ("vram_gb: lots", "vram_gb", "a number of GiB, or a size such as 22GiB, got 'lots'"),
        ("vram_gb: true", "vram_gb", "0 or more, got true"),
        ("vram_gb: [1]", "vram_gb", "0 or more, got a list"),
        ("vram_gb: 1.0e+300", "vram_gb", "0 or more"),
        ("fps: 1.5", "fps", "expected a whole number, got 1.5"),
        ("fps: fast", "fps", "expected a whole number, got 'fast'"),
        ("speed: 3", "speed", "expected text, got 3"),
        ("speed: ''", "speed", "text that isn't empty"),
        ("description: {a: 1}", "description", "expected text, got a mapping"),
        ("max_context: 0", "max_context", "a whole number of tokens"),
        ("max_context: most", "max_context", "a whole number of tokens"),
        ("devices: 0", "devices", "how many GPUs"),
        ("devices: []", "devices", "how many GPUs"),
        ("devices: [1]", "devices", "how many GPUs"),
        ("devices: gpu", "devices", "how many GPUs"),
        ("devices: [cuda:0, cuda:0]", "devices", "each device once"),
        ("devices: [cpu, cuda:0]", "devices", "cpu alone"),
        ("max_concurrency: 0", "max_concurrency", "a number of 1 or more"),
        ("keep_alive_s: -1", "keep_alive_s", "a number of 0 or more"),
        ("pinned: 1", "pinned", "expected true or false, got 1"),
        ("isolation: thread", "isolation", "'in_process' or 'process'"),
        ("dtype: bf16", "dtype", "'bfloat16'"),
        ("engine_args: [a]", "engine_args", "expected a mapping"),
        ("quantization: 4-bit", "quantization", "unknown quantization '4-bit'"),
        ("api_endpoint: example.org", "api_endpoint", "a full URL"),
        ("health: x", "health", "a path such as /health"),
        ("sleep_calls: POST /sleep", "sleep_calls", "expected a mapping"),
        ("sleep_calls: {sleep: POST /s}", "sleep_calls.wake", "required and missing"),
        ("sleep_calls: {sleep: /s, wake: POST /w}", "sleep_calls.sleep", "a method and a path, such as POST /sleep"),
        ("sleep_calls: {sleep: POST /s, wake: POST http://x/w}", "sleep_calls.wake", "a method and a path"),
        ("api_key_env: not-a-name", "api_key_env", "the name of an environment variable"),
        ("price: {input_per_mtok: -1}", "price.input_per_mtok", "a number of 0 or more"),
        ("command: run", "command", "expected a list, got 'run'"),
        ("revision: 123", "revision", "expected text, got 123"),
    ],
)
def test_bad_value_says_what_was_expected(option: str, key: str, said: str) -> None:
    problem = only(task(option=option))
    assert problem.path == f"tasks.a.options.f.{key}"
    assert said in problem.message


@pytest.mark.parametrize(
    ("rest", "path", "said"),
    [
        ("memory: {devices: {cuda:0: {budget: 22}}}", "memory.devices.cuda:0.budget", "a size with its unit"),
        ("memory: {devices: {cuda:0: {budget: 0}}}", "memory.devices.cuda:0.budget", "leaves nothing"),
        ("memory: {devices: {cpu: {budget: 1GiB, reserve: 2GiB}}}", "memory.devices.cpu.budget", "leaves nothing"),
        ("memory: {devices: {gpu0: {}}}", "memory.devices.gpu0", "no device"),
        ("memory: {devices: 3}", "memory.devices", "a mapping"),
        ("memory: {share: true}", "memory.share", "explicit budget"),
        ("memory: {share: true, devices: {cuda:0: {reserve: 1GiB}}}", "memory.share", "explicit budget"),
        ("memory: {host_budget: 32}", "memory.host_budget", "a size with its unit"),
        ("memory: {host_budget: 32ZB}", "memory.host_budget", "a size with its unit"),
        ("memory: {min_residency_s: soon}", "memory.min_residency_s", "auto, or a number of seconds"),
        ("memory: {policy: lfu}", "memory.policy", "'lru' or 'cost_aware'"),
        ("memory: {max_models: -1}", "memory.max_models", "0 or more"),
        ("inference: {offload_threshold: 0}", "inference.offload_threshold", "above 0"),
        ("inference: {offload_threshold: 1.01}", "inference.offload_threshold", "1 or less"),
        ("inference: {max_memory_per_model: 0}", "inference.max_memory_per_model", "auto, or a size above 0"),
        ("inference: {max_memory_per_model: big}", "inference.max_memory_per_model", "a size with its unit"),
        ("inference: {default_batch_size: 9}", "inference.default_batch_size", "over max_batch_size 8"),
        ("inference: {max_batch_size: 0}", "inference.max_batch_size", "1 or more"),
        ("server: {port: 99999}", "server.port", "65535 or less"),
        ("media: {max_bytes: -3GiB}", "media.max_bytes", "a size with its unit"),
        ("media: {max_seconds: 0}", "media.max_seconds", "above 0"),
        ("telemetry: {otlp_endpoint: localhost}", "telemetry.otlp_endpoint", "a full URL"),
        ("pipelines: {p: []}", "pipelines.p", "at least one entry"),
        ("engines: {vlm: {}}", "engines.vlm", "unknown framework"),
        ("providers: {antropic: {}}", "providers.antropic", "unknown provider"),
        ("providers: {openai: {daily_budget_usd: -1}}", "providers.openai.daily_budget_usd", "0 or more"),
        ("default_task: b", "default_task", "no task 'b'"),
        ("media:", "media", "nothing (null)"),
        ("models: {}", "models", "two names of one key"),
    ],
)  # fmt: skip
def test_bad_section_says_what_was_expected(rest: str, path: str, said: str) -> None:
    found = {p.path: p.message for p in problems(task(rest=rest))}
    assert said in found[path]


@pytest.mark.parametrize("value", ["[]", "{a: 1}", "[[a]]", "1", "null", "true"])
@pytest.mark.parametrize("key", ["selected", "fallback", "options", "kind", "when_cold", "priority"])
def test_wrong_type_hides_no_other_problem(key: str, value: str) -> None:
    found = problems(f"tasks: {{a: {{{key}: {value}, nonsense: 1}}}}\ndefault_task: b\n")
    assert {"tasks.a.nonsense", "default_task"} <= {p.path for p in found}


def test_unknown_key_of_an_optional_section_finds_its_nearest() -> None:
    assert only(task(option="price: {input_per_mtk: 1}")).hint == "did you mean 'input_per_mtok'?"


def test_auto_and_seconds_are_read_where_both_may_stand() -> None:
    memory = parse(task(rest="memory: {host_budget: auto, min_residency_s: 3}")).memory
    assert (memory.host_budget, memory.min_residency_s) == ("auto", 3.0)


def test_missing_tasks_are_missed() -> None:
    assert only("memory: {}\n").path == "tasks"


@pytest.mark.parametrize(
    ("option", "key", "said"),
    [
        ("{framework: external_api, model_id: m}", "provider", "needs a provider"),
        ("{framework: external_api, model_id: m, provider: opnai}", "provider", "unknown provider"),
        ("{framework: command, model_id: m}", "command", "needs the command"),
        ("{framework: Transformers, model_id: m}", "framework", "unknown framework 'Transformers'"),
        ("{model_id: m}", "framework", "required and missing"),
    ],
)
def test_keys_that_go_together(option: str, key: str, said: str) -> None:
    problem = only(task(more=f"g: {option}"))
    assert problem.path == f"tasks.a.options.g.{key}"
    assert said in problem.message


def test_option_over_the_limit_for_one_model_is_refused() -> None:
    rest = "inference: {max_memory_per_model: 2GiB}"
    parse(task(option="vram_gb: 2", rest=rest))
    assert (
        "2.5 GiB is more than inference.max_memory_per_model (2.0 GiB)"
        in only(task(option="vram_gb: 2.5", rest=rest)).message
    )
    assert only(task(option="vram_gb: 2500MB", rest=rest)).path == "tasks.a.options.f.vram_gb"


def test_fallback_names_each_option_once_and_not_the_selected_one() -> None:
    found = problems(task(extra="fallback: [f, g, g],", more="g: {model_id: n, framework: fake}"))
    assert [p.path for p in found] == ["tasks.a.fallback.0", "tasks.a.fallback.2"]
    assert "needs a fallback list" in only(task(extra="when_cold: fallback,")).message


def test_task_called_default_beside_another_default_is_refused() -> None:
    body = "{selected: f, options: {f: {model_id: m, framework: fake}}}"
    assert only(f"tasks: {{default: {body}, b: {body}}}\ndefault_task: b\n").path == "tasks.default"
    parse(f"tasks: {{default: {body}, b: {body}}}\ndefault_task: default\n")


# --- secrets ----------------------------------------------------------------------------------------------------------

SECRETS = [
    "sk-ant-" + "api03-" + "Ab1" * 8,
    "sk-" + "a1" * 12,
    "AIza" + "Sy0" * 12,
    "hf_" + "Ab3" * 10,
    "ghp_" + "x9Y" * 10,
    "xoxb-" + "1234567890-abc",
    "AKIA" + "ABCDEFGH12345678",
    "Bearer " + "abcdef123456",
    "https://user:pass@example.org/v1",
    "https://example.org/v1?key=abcdefgh12",
    "-----BEGIN RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "key", ["model_id", "description", "revision", "api_endpoint", "engine_args", "fps", "selected"]
)
def test_secret_in_the_file_is_refused_and_never_shown(secret: str, key: str) -> None:
    value = f'{{deep: ["{secret}"]}}' if key == "engine_args" else f'"{secret}"'
    text = f"tasks: {{a: {{selected: f, options: {{f: {{framework: fake, {key}: {value}}}}}}}}}\n"
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert secret not in str(caught.value)
    assert "looks like a secret" in str(caught.value)


def test_secret_as_a_key_or_a_name_that_names_nothing_is_not_shown() -> None:
    secret = SECRETS[1]
    with pytest.raises(ConfigError) as caught:
        parse(f"tasks: {{a: {{selected: {secret}, {secret}: 1, options: {{{secret}x: 3}}}}}}\n")
    assert secret not in str(caught.value)


def test_secret_from_the_environment_is_refused_too() -> None:
    problem = only(task(option='engine_args: {api-key: "${KEY}"}'), KEY="letmein")
    assert "looks like a secret" in problem.message
    assert "api_key_env" in problem.hint
    assert "letmein" not in str(problem)


@pytest.mark.parametrize(
    "args",
    ["{password: hunter2}", "{api_key: x}", "{apiKey: x}", "{hf-token: a8f7c6d5e4b3a2918070f0e0}",
     "{l: [--api-key, x]}", "{l: [--api-key=x]}", "{l: ['--token', a8f7c6d5e4b3a2918070f0e0]}"],
)  # fmt: skip
def test_value_under_a_name_that_promises_a_secret_is_refused(args: str) -> None:
    assert "looks like a secret" in only(task(option=f"engine_args: {args}")).message


@pytest.mark.parametrize(
    "args",
    ["{max_tokens: many, key: value, pad_token: <pad>}", "{api_key_env: NAME, api_key: none, password: ''}",
     "{l: [--api-key, --verbose], m: [--key, 3], n: [-k=v]}", "{monkey: Qwen2.5-VL-7B-Instruct-AWQ-2026}"],
)  # fmt: skip
def test_what_only_sounds_like_a_secret_is_read(args: str) -> None:
    parse(task(option=f"engine_args: {args}"))


@pytest.mark.parametrize(
    "word", ["sk-learn-something-nice", "disk-1234567890abcdefghij", "hf_model", "Qwen/Qwen2.5-VL-7B"]
)
def test_model_names_are_no_secrets(word: str) -> None:
    assert not looks_secret(word, name="model_id")


def test_syntax_error_does_not_quote_the_line_it_stands_on() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"tasks: {{a: '{SECRETS[0]}\n")
    assert SECRETS[0] not in str(caught.value)
    assert caught.value.__cause__ is None


# --- warnings ---------------------------------------------------------------------------------------------------------


def warned(text: str) -> dict[str, str]:
    return {p.path: str(p) for p in parse(text).warnings}


def test_plain_file_has_no_warnings() -> None:
    assert warned(task()) == {}


@pytest.mark.parametrize("framework", ["vllm", "sglang"])
def test_right_framework_that_is_not_here_is_a_warning_and_marked(framework: str) -> None:
    catalog = parse(task(more=f"g: {{model_id: n, framework: {framework}}}"))
    assert [(u.task, u.option, u.selected) for u in catalog.unavailable] == [("a", "g", False)]
    assert framework in catalog.why_unavailable("a", "g")
    assert catalog.why_unavailable("a", "f") == ""
    assert [p.path for p in catalog.warnings] == ["tasks.a.options.g.framework"]


def test_selected_option_that_is_not_here_says_so() -> None:
    catalog = parse("tasks: {a: {selected: f, options: {f: {model_id: m, framework: vllm}}}}\n")
    assert catalog.unavailable[0].selected
    assert "calls to this task will fail" in catalog.warnings[0].hint


@pytest.mark.parametrize("framework", ["whisper", "faster_whisper", "pyannote"])
def test_framework_nobody_knows_names_the_plug_in_point(framework: str) -> None:
    assert "taskrouter.backends" in parse(task(more=f"g: {{model_id: n, framework: {framework}}}")).warnings[0].message


@pytest.mark.parametrize("provider", ["assemblyai", "deepgram", "revai", "gladia", "aws", "azure"])
def test_provider_nobody_knows_names_the_plug_in_point(provider: str) -> None:
    catalog = parse(task(more=f"g: {{model_id: n, framework: external_api, provider: {provider}}}"))
    assert "taskrouter.providers" in catalog.warnings[0].message


def test_installed_provider_is_available() -> None:
    here = Frameworks(known=frozenset({"external_api"}), providers=frozenset({"anthropic"}))
    assert here.unavailable("external_api", "anthropic") == ""
    assert "openai" in here.unavailable("external_api", "openai")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (task(rest="telemetry: {capture_content: true}"), "telemetry.capture_content"),
    ],
)
def test_key_that_nothing_acts_on_yet_is_a_warning(text: str, path: str) -> None:
    assert "nothing acts on this key yet" in " ".join(str(p) for p in parse(text).warnings if p.path == path)
    pattern = path.replace("tasks.a", "tasks.*").replace("options.f", "options.*").replace("vllm", "*")
    assert pattern in NOT_YET


def test_default_written_out_is_no_warning() -> None:
    rest = "memory: {policy: lru, host_budget: 32GiB}\nserver: {port: 8700}\nmedia: {remote: false}\npipelines: {}"
    assert warned(task(extra="fallback: [], when_cold: wait,", option="sleep: auto, price: null", rest=rest)) == {}


def test_key_its_framework_has_no_use_for_is_a_warning() -> None:
    more = "g: {model_id: n, framework: external_api, provider: openai, vram_gb: 3, pinned: true}"
    found = warned(task(option="provider: openai", more=more))
    assert "means nothing to framework fake" in found["tasks.a.options.f.provider"]
    assert "means nothing to framework external_api" in found["tasks.a.options.g.vram_gb"]
    assert "tasks.a.options.g.pinned" in found


@pytest.mark.parametrize(
    ("option", "idle"),
    [
        ("framework: vllm, isolation: process", {"isolation"}),
        ("framework: transformers, isolation: process", set()),
        ("framework: transformers, isolation: process, env: {A: b}", set()),
        ("framework: transformers, env: {A: b}", {"env"}),
    ],
)
def test_isolation_is_for_transformers_and_gives_env_somewhere_to_go(option: str, idle: set[str]) -> None:
    found = warned(task(more=f"g: {{model_id: n, {option}}}"))
    said = {path.removeprefix("tasks.a.options.g.") for path, text in found.items() if "means nothing" in text}
    assert said == idle


@pytest.mark.parametrize(("framework", "idle"), [("fake", True), ("sglang", True), ("vllm", False)])
def test_only_vllm_can_drop_its_weights_asleep(framework: str, *, idle: bool) -> None:
    found = warned(task(more=f"g: {{model_id: n, framework: {framework}, sleep: discard}}"))
    said = found.get("tasks.a.options.g.sleep", "")
    assert (f"framework {framework} can't drop its weights: discard is as auto to it" in said) is idle
    catalog = parse(task(more=f"g: {{model_id: n, framework: {framework}, sleep: discard}}"))
    assert model_request(catalog.tasks["a"], "g", catalog=catalog).sleep == ("auto" if idle else "discard")


def test_a_budget_that_an_option_without_a_price_spends_unseen_is_a_warning() -> None:
    more = "g: {model_id: n, framework: external_api, provider: openai}"
    budget = "providers: {openai: {daily_budget_usd: 5}}"
    found = warned(task(more=more, rest=budget))
    assert "calls to a/g don't count: they have no price" in found["providers.openai.daily_budget_usd"]
    priced = "g: {model_id: n, framework: external_api, provider: openai, price: {input_per_mtok: 1}}"
    assert "providers.openai.daily_budget_usd" not in warned(task(more=priced, rest=budget))
