"""What each route of the server is, in words and schemas: the OpenAPI document's substance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskrouter.http.task_schemas import NUMBER, STRING, WHOLE, Schema, listed, maybe, record, ref

JSON, EVENTS, FORM, TEXT = "application/json", "text/event-stream", "multipart/form-data", "text/plain"

ANY = (500,)
KEYED = (401, 403, 429, *ANY)
NAMED = (400, 404, *KEYED)
ASKING = (*NAMED, 408, 409, 413, 422, 424, 501, 502, 503, 504, 507)
"""What can keep a task from answering."""
ADMIN = (400, 401, 403, 413, 503, *ANY)
CHANGING = (*ADMIN, 404, 409, 424, 501, 502, 504, 507)

FLAG: Schema = {"type": "boolean"}
OPEN: Schema = {"type": "object"}
SENT: Schema = {"description": "Server-sent events; the data of each is JSON, but for [DONE] at the end."}


@dataclass(frozen=True, slots=True)
class Described:
    """One method of one path. ``answers``: what each good status has, by content type; ``refusals``: the others.

    ``key``: whose is wanted (``caller``, ``admin``, ``either``), or ``None``. ``asks``: a task answers. ``inside``:
    what it may be asked inside of, a ``lease`` or a ``pipeline``.
    """

    summary: str
    tag: str
    answers: Mapping[int, Mapping[str, Schema]]
    refusals: tuple[int, ...] = ANY
    body: Mapping[str, Schema] = field(default_factory=dict)
    body_required: bool = True
    query: Mapping[str, Schema] = field(default_factory=dict)
    key: str | None = "caller"
    asks: bool = False
    inside: tuple[str, ...] = ()
    style: str | None = "openai"
    """In whose shape it refuses; ``None``: in that of the client."""


def _json(schema: Schema = OPEN) -> Mapping[int, Mapping[str, Schema]]:
    return {200: {JSON: schema}}


def _streamed(schema: Schema) -> Mapping[int, Mapping[str, Schema]]:
    return {200: {JSON: schema, EVENTS: SENT}}


def _of(kind: str, **properties: Schema) -> Schema:
    return record({"object": {"const": kind}, **properties})


MODEL: Schema = {"type": "string", "description": "A task, task/option, or default."}
_SAMPLING = {
    "max_tokens": maybe(WHOLE), "temperature": maybe(NUMBER), "top_p": maybe(NUMBER), "seed": maybe(WHOLE),
    "stop": {"anyOf": [STRING, listed(STRING), {"type": "null"}]}, "stream": maybe(FLAG),
}  # fmt: skip


def _body(*optional: str, **properties: Schema) -> Mapping[str, Schema]:
    return {JSON: record(properties, optional=optional)}


_CHAT = _body(*_SAMPLING, model=MODEL, messages=listed(OPEN), **_SAMPLING)
_CHUNKS: Schema = {
    "description": "Server-sent events, then [DONE]: of a chat a ChatChunk each, of a request what the server said."
}
_LASTS: Schema = {
    "description": "Server-sent events: one with the id of what lasts now, then comments; what ends it is an error."
}
_HEARD = record(
    {"file": {"type": "string", "format": "binary"}, "model": MODEL, "language": STRING, "prompt": STRING,
     "response_format": STRING},
    optional=("language", "prompt", "response_format"),
)  # fmt: skip
_READY = record({"ready": FLAG, "why": STRING, "waiting": WHOLE, "oldest_wait_s": NUMBER})
_MODEL = _of("model", id=STRING, created=WHOLE, owned_by=STRING)
_MODEL_AT_ANTHROPIC = record({"type": {"const": "model"}, "id": STRING, "display_name": STRING, "created_at": STRING})
_LISTED_AT_ANTHROPIC = record(
    {"data": listed(_MODEL_AT_ANTHROPIC), "has_more": FLAG, "first_id": maybe(STRING), "last_id": maybe(STRING)}
)
_OPTION = {"option": maybe(STRING)}
_REMOVED = record(
    {"task": STRING, "option": STRING, "repo": STRING, "revisions": listed(STRING), "kept": listed(STRING),
     "bytes": WHOLE, "unloaded": listed(STRING), "dry_run": FLAG}
)  # fmt: skip


def _admin(summary: str, *, answers: Mapping[int, Mapping[str, Schema]] | None = None,
           body: Mapping[str, Schema] | None = None, **more: Any) -> Described:  # fmt: skip
    refusals = ADMIN if body is None else CHANGING
    return Described(
        summary, "admin", answers or _json(), more.pop("refusals", refusals), body or {},
        body_required=more.pop("body_required", False), key="admin", **more,
    )  # fmt: skip


DESCRIBED: Mapping[tuple[str, str], Described] = {
    ("POST", "/v1/chat/completions"): Described(
        "Answer a conversation (OpenAI)", "openai", _streamed(_of("chat.completion", choices=listed(OPEN))), ASKING,
        _CHAT, asks=True,
    ),
    ("POST", "/v1/completions"): Described(
        "Go on with a text (OpenAI)", "openai", _streamed(_of("text_completion", choices=listed(OPEN))), ASKING,
        _body(*_SAMPLING, model=MODEL, prompt={"anyOf": [STRING, listed(STRING)]}, **_SAMPLING), asks=True,
    ),
    ("POST", "/v1/embeddings"): Described(
        "Turn texts into vectors (OpenAI)", "openai", _json(_of("list", data=listed(OPEN))), ASKING,
        _body("encoding_format", model=MODEL, input={"anyOf": [STRING, listed(STRING)]},
              encoding_format={"enum": ["float", "base64"]}),
        asks=True,
    ),
    ("POST", "/v1/audio/transcriptions"): Described(
        "Write down what is said (OpenAI)", "openai",
        {200: {JSON: record({"text": STRING}), TEXT: STRING, "text/vtt": STRING}},
        (*ASKING, 415),
        {FORM: _HEARD}, asks=True,
    ),
    ("POST", "/v1/messages"): Described(
        "Answer a conversation (Anthropic)", "anthropic", _streamed(OPEN), ASKING,
        _body("system", "stream", model=MODEL, messages=listed(OPEN), max_tokens=WHOLE,
              system={"anyOf": [STRING, listed(OPEN)]}, stream=FLAG),
        asks=True, style="anthropic",
    ),
    ("POST", "/v1/messages/count_tokens"): Described(
        "Count the tokens of a conversation (Anthropic)", "anthropic", _json(), ASKING,
        _body("system", model=MODEL, messages=listed(OPEN), system={"anyOf": [STRING, listed(OPEN)]}),
        asks=True, style="anthropic",
    ),
    ("GET", "/v1/models"): Described(
        "The tasks and their options (OpenAI; Anthropic for who sends its version)", "openai",
        _json({"anyOf": [_of("list", data=listed(_MODEL)), _LISTED_AT_ANTHROPIC]}), KEYED, style=None,
    ),
    ("GET", "/v1/models/{}"): Described(
        "One of them", "openai", _json({"anyOf": [_MODEL, _MODEL_AT_ANTHROPIC]}), NAMED, style=None
    ),
    ("POST", "/v1/tasks/{}"): Described(
        "Ask a task what it can do", "tasks", {200: {JSON: ref("TaskAnswer"), EVENTS: _CHUNKS}}, (*ASKING, 415),
        {JSON: ref("TaskCall"), FORM: ref("TaskForm")}, asks=True, inside=("lease", "pipeline"),
    ),
    ("POST", "/v1/leases"): Described(
        "Hold a task's model, for as long as the connection stays open", "tasks", {200: {EVENTS: _LASTS}}, ASKING,
        _body("option", task=MODEL, **_OPTION), asks=True, inside=("pipeline",),
    ),
    ("POST", "/v1/pipelines"): Described(
        "Say which tasks are coming, for as long as the connection stays open", "tasks", {200: {EVENTS: _LASTS}},
        (*NAMED, 413, 501, 503), _body(tasks=listed(STRING)), inside=("pipeline",),
    ),
    ("GET", "/health"): Described(
        "The process answers", "health", _json(record({"status": {"const": "ok"}})), key=None
    ),
    ("GET", "/ready"): Described(
        "Whether requests are answered in time", "health", {200: {JSON: _READY}, 503: {JSON: _READY}}, key=None
    ),
    ("GET", "/openapi.json"): Described("This document", "health", _json(), key=None),
    ("GET", "/metrics"): Described(
        "Figures for Prometheus", "health", {200: {TEXT: STRING, "application/openmetrics-text": STRING}}, KEYED,
        key="either",
    ),
    ("GET", "/admin/status"): _admin("What is loaded, who waits, what memory there is"),
    ("GET", "/admin/models"): _admin("Every option: its state, its need, its fit"),
    ("GET", "/admin/spend"): _admin(
        "What calls to external providers cost", query={"days": WHOLE, "by": STRING}, refusals=ADMIN
    ),
    ("GET", "/admin/events"): _admin("What happens, as it happens", answers={200: {EVENTS: SENT}}),
    ("GET", "/admin/operations/{}"): _admin("How a load is getting on", refusals=(*ADMIN, 404)),
    ("GET", "/admin/tasks/{}/explain"): _admin("Why a task is where it is", refusals=(*ADMIN, 404)),
    ("POST", "/admin/tasks/{}/load"): _admin(
        "Load a task's model", answers={200: {JSON: OPEN}, 202: {JSON: OPEN}},
        body=_body("option", "wait", "timeout_s", **_OPTION, wait=FLAG, timeout_s=maybe(NUMBER)),
    ),
    ("POST", "/admin/tasks/{}/unload"): _admin(
        "Unload a task's model", body=_body("option", "force", **_OPTION, force=FLAG)
    ),
    ("POST", "/admin/tasks/{}/remove"): _admin(
        "Delete a model's files from the Hugging Face cache", answers=_json(_REMOVED),
        body=_body("option", "force", "dry_run", **_OPTION, force=FLAG, dry_run=FLAG),
    ),
    ("POST", "/admin/tasks/{}/select"): _admin(
        "Select another option", body=_body("persist", option=STRING, persist=FLAG), body_required=True
    ),
    ("POST", "/admin/tasks/{}/pin"): _admin(
        "Pin a model, or unpin it", body=_body("option", pinned=FLAG, **_OPTION), body_required=True
    ),
    ("POST", "/admin/tasks/{}/cooldown/clear"): _admin("Let a model that failed be tried again", body=_body()),
    ("POST", "/admin/evict"): _admin("Unload the idle model used longest ago", body=_body()),
    ("POST", "/admin/reload"): _admin("Read models.yaml again", body=_body()),
    ("POST", "/admin/drain"): _admin(
        "Refuse new work, or take it again", body=_body(draining=FLAG), body_required=True
    ),
}  # fmt: skip
