"""The format of models.yaml: the one source of what is read, what is refused, and the JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from taskrouter.config.fields import (
    Devices,
    EnvName,
    Flag,
    Free,
    Gib,
    HttpCall,
    Real,
    Seconds,
    SecondsOrAuto,
    Size,
    SizeOrAuto,
    SizeText,
    Table,
    Text,
    Texts,
    TokensOrAuto,
    Url,
    Whole,
    Words,
)
from taskrouter.verbs import KINDS

Count = Annotated[Whole, Field(ge=1, le=10**9)]

HANG_TIMEOUT_S = 60.0
"""How long an engine may be silent, in seconds, where the file doesn't say."""


class Section(BaseModel):
    """A mapping of the file: closed, frozen, and strict about types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Price(Section):
    """What an external option costs, in US dollars per million tokens."""

    input_per_mtok: Annotated[Real, Field(ge=0, description="Dollars per million tokens read.")] = 0.0
    output_per_mtok: Annotated[Real, Field(ge=0, description="Dollars per million tokens written.")] = 0.0


class SleepCalls(Section):
    """What tells a command's server to sleep and to wake: a method and a path each, sent with its API key."""

    sleep: HttpCall = Field(description="Once it is answered, its weights are in host RAM.")
    wake: HttpCall = Field(description="Once it is answered, it serves again.")


class OptionFields(Section):
    """One way to do a task."""

    model_id: Text = Field(description="Hub id, local path, or the provider's model name.")
    framework: Text = Field(
        description="transformers (alias pytorch), vllm, sglang, command, external_api, fake, or a plug-in's name."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of a hub model.")
    quantization: Text | None = Field(None, description="4bit, 8bit, awq, gptq, fp8, …: checked against the framework.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = Field(None, description="Type of the weights.")
    vram_gb: Gib = Field(0.0, description="Declared need in GiB; optional when it can be estimated or was measured.")
    ram_gb: Gib = Field(0.0, description="Host RAM in GiB while loaded or asleep.")
    speed: Text = Field("medium", description="Free text shown to people.")
    description: str = Field("", description="Free text shown to people.")
    fps: Annotated[Whole, Field(ge=0)] | None = Field(None, description="Frames per second, shown to people.")
    max_context: TokensOrAuto | None = Field(None, description="Tokens, or auto: the most that fits.")
    devices: Devices = Field(1, description="GPUs it spans (tensor parallel), or a list such as [cuda:1].")
    max_concurrency: Count | None = Field(None, description="Operations it runs at one time.")
    keep_alive_s: Seconds | None = Field(None, description="Unload after idling so long; default: stay.")
    pinned: Flag = Field(False, description="Never evicted.")
    sleep: Literal["auto", "discard", "never"] = Field(
        "auto", description="May wait in host RAM instead of being unloaded; discard: without its weights (vLLM)."
    )
    isolation: Literal["in_process", "process"] = Field("in_process", description="transformers: where it lives.")
    trust_remote_code: Flag = Field(False, description="Run code that comes with the model.")
    engine_args: Free = Field(default_factory=dict, description="Arguments handed to the framework as they are.")
    command: Words = Field(
        (), description="command: the server to run; {port}, {model_id}, {device}, {api_key} are filled."
    )
    health: Annotated[str, Field(pattern=r"^/\S*$")] | None = Field(None, description="command: answers when ready.")
    sleep_calls: SleepCalls | None = Field(None, description="command: calls that put its model to sleep and wake it.")
    env: Table[str] = Field(default_factory=dict, description="Engines: variables of its environment.")
    provider: Text | None = Field(None, description="external_api: anthropic, openai, google, or a plug-in's name.")
    api_endpoint: Url | None = Field(None, description="external_api: full URL.")
    requires_api_key: Flag = Field(False, description="external_api: it needs a key, from the environment.")
    api_key_env: EnvName | None = Field(None, description="external_api: the environment variable that holds the key.")
    price: Price | None = Field(None, description="external_api: what it costs.")
    timeout_s: Seconds | None = Field(None, description="external_api: bound on one request.")
    max_retries: Annotated[Whole, Field(ge=0, le=100)] | None = Field(None, description="external_api: more tries.")


class TaskFields(Section):
    """A named job, the options that could do it, and the one that is selected."""

    kind: Literal[KINDS] | None = Field(None, description="What it can be asked; without it, what its model can do.")  # type: ignore[valid-type]
    selected: Text = Field(description="The option that is tried first.")
    fallback: Texts = Field((), description="Options tried in order when the selected one can't serve in time.")
    max_wait_s: Seconds | None = Field(None, description="Bound on queue and load; default inference.max_wait_s.")
    priority: Annotated[Whole, Field(ge=-1000, le=1000)] = Field(0, description="Higher is served, and kept, first.")
    when_cold: Literal["wait", "fallback", "fail"] = Field("wait", description="What a request does meanwhile.")
    options: Annotated[Table[OptionFields], Field(min_length=1)] = Field(description="The ways to do it, by name.")


class InferenceFields(Section):
    """Settings for all models."""

    max_memory_per_model: SizeText = Field("auto", description="auto, or a size: a larger option is refused.")
    offload_threshold: Annotated[Real, Field(gt=0, le=1)] = Field(0.85, description="Fraction of each device to fill.")
    warmup_on_startup: Flag = Field(True, description="Load the selected models that fit at start.")
    default_batch_size: Count = Field(1, description="Pieces of one long input that a call works on at a time.")
    max_batch_size: Count = Field(8, description="Most calls of one model that are worked on together.")
    max_wait_s: Seconds = Field(120.0, description="Bound on queue and load.")


class DeviceBudget(Section):
    """The budget of one device."""

    budget: Size | None = Field(None, description="Replaces total × offload_threshold.")
    reserve: Size = Field(0, description="Bytes kept free.")


class MemoryConfig(Section):
    """How the memory of the devices is shared out."""

    policy: Literal["lru", "cost_aware"] = Field("lru", description="Who is evicted when room is needed.")
    devices: Table[DeviceBudget] = Field(default_factory=dict, description="Budgets, by device.")
    max_models: Annotated[Whole, Field(ge=0)] = Field(0, description="Most models resident; 0: no limit but bytes.")
    host_budget: SizeOrAuto = Field(32 << 30, description="RAM for sleeping models: a size, auto, or 0 for none.")
    share: Flag = Field(False, description="Another process may use the same GPU; needs explicit budgets.")
    claim_s: Seconds = Field(5.0, description="How long what get_model returned is protected before its first call.")
    lease_warn_s: Seconds = Field(300.0, description="A lease held longer is reported.")
    stream_idle_s: Seconds = Field(120.0, description="A stream nobody reads for so long ends.")
    min_residency_s: SecondsOrAuto = Field("auto", description="Protection of a model just loaded.")


class EngineConfig(Section):
    """An engine that runs as a child process."""

    python: Text | None = Field(None, description="Its own interpreter.")
    start_timeout_s: Seconds = Field(600.0, description="Bound on its start.")
    hang_timeout_s: Seconds = Field(HANG_TIMEOUT_S, description="Silent for so long, it counts as hung.")


class ProviderConfig(Section):
    """An external provider."""

    api_key_env: EnvName | None = Field(None, description="The environment variable that holds the key.")
    daily_budget_usd: Annotated[Real, Field(ge=0)] | None = Field(None, description="Most dollars a day (UTC).")
    requests_per_minute: Count | None = Field(None, description="Most requests sent to it in any minute.")
    max_connections: Count = Field(100, description="Most connections to it at one time.")
    connect_timeout_s: Seconds = Field(5.0, description="Bound on connecting to it.")


class ServerConfig(Section):
    """The HTTP server."""

    host: Text = Field("127.0.0.1", description="Address it listens on.")
    port: Annotated[Whole, Field(ge=0, le=65535)] = Field(8700, description="Port it listens on; 0: any free one.")
    api_keys_env: EnvName = Field("TASKROUTER_API_KEYS", description="Environment variable with the callers' keys.")
    api_keys_file: Text | None = Field(None, description="File with callers' keys and what each may ask.")
    admin_key_env: EnvName = Field("TASKROUTER_ADMIN_KEY", description="Environment variable with the admin key.")


class MediaConfig(Section):
    """What media may be read, from where, and how large."""

    remote: Flag = Field(False, description="May media be fetched from http(s) URLs.")
    allowed_hosts: Texts = Field((), description="The only hosts media may be fetched from; none: any public one.")
    roots: Texts = Field((".",), description="Folders media may be read from, relative to the file's folder.")
    max_bytes: Size = Field(512 << 20, description="Largest input.")
    max_pixels: Count = Field(40_000_000, description="Largest image, in pixels.")
    max_seconds: Annotated[Real, Field(gt=0)] = Field(3600.0, description="Longest audio or video.")
    max_frames: Count = Field(1024, description="Most pictures of one video, or of one conversation.")


class TelemetryConfig(Section):
    """What is traced, and where it goes."""

    service_name: Text = Field("taskrouter", description="Name of this service in traces.")
    otlp_endpoint: Url | None = Field(None, description="Where traces and metrics are sent, over OTLP/HTTP.")
    capture_content: Flag = Field(False, description="Record what was asked and answered.")
    record_trace: Text | None = Field(None, description="File that records requests, to be replayed by simulate.")


class FileFields(Section):
    """models.yaml: the tasks, the options that could do them, and the machine they share."""

    tasks: Annotated[Table[TaskFields], Field(min_length=1)] = Field(description="The tasks, by name.")
    default_task: Text | None = Field(None, description="What `default` means as a task or model name.")
    inference: InferenceFields = Field(default_factory=lambda: InferenceFields.model_validate({}))
    memory: MemoryConfig = Field(default_factory=lambda: MemoryConfig.model_validate({}))
    pipelines: Table[Annotated[Texts, Field(min_length=1)]] = Field(
        default_factory=dict, description="Tasks that follow each other, by the pipeline's name."
    )
    engines: Table[EngineConfig] = Field(default_factory=dict, description="Engines, by framework.")
    providers: Table[ProviderConfig] = Field(default_factory=dict, description="External providers, by name.")
    server: ServerConfig = Field(default_factory=lambda: ServerConfig.model_validate({}))
    media: MediaConfig = Field(default_factory=lambda: MediaConfig.model_validate({}))
    telemetry: TelemetryConfig = Field(default_factory=lambda: TelemetryConfig.model_validate({}))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of models.yaml, for editors and CI."""
    fields = FileFields.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "taskrouter models.yaml"}
    schema = {**head, **{name: value for name, value in fields.items() if name not in head}}
    properties = schema["properties"]
    properties["models"] = {**properties["tasks"], "description": "Another name of `tasks`."}
    schema["required"] = [name for name in schema.get("required", []) if name != "tasks"]
    schema["oneOf"] = [{"required": ["tasks"]}, {"required": ["models"]}]
    memory = schema["$defs"]["MemoryConfig"]["properties"]["devices"]
    memory["propertyNames"] = {"pattern": r"^(cpu|cuda:[0-9]{1,3})$"}
    for section in [schema, *schema["$defs"].values()]:
        section["properties"] = {name: _or_variable(field) for name, field in section["properties"].items()}
    return schema


def _or_variable(field: dict[str, Any]) -> dict[str, Any]:
    """A number, flag or word of the file may also be written ``${VAR}``."""
    branches = field.get("anyOf", [field])
    takes_any_text = any(b.get("type") == "string" and "enum" not in b and "pattern" not in b for b in branches)
    closed = any(b.get("type") in {"integer", "number", "boolean", "string"} or "const" in b for b in branches)
    if takes_any_text or not closed:
        return field
    described: dict[str, Any] = {name: field[name] for name in ("title", "description", "default") if name in field}
    plain = {name: value for name, value in field.items() if name not in described}
    variable = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"}
    return {**described, "anyOf": [*plain.get("anyOf", [plain]), variable]}
