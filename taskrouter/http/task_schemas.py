"""What the task API takes and answers, as JSON schemas: for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from taskrouter.http.task_bodies import CALLS

Schema = dict[str, Any]

REF = "#/components/schemas/"
STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}


def ref(name: str) -> Schema:
    """A schema of the document's own."""
    return {"$ref": REF + name}


def maybe(schema: Schema) -> Schema:
    """It, or nothing."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Schema) -> Schema:
    """A list of them."""
    return {"type": "array", "items": schema}


def record(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = (), **more: Any) -> Schema:
    """An object with these fields."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, **more}


def _base64(of: str) -> Schema:
    return {"type": "string", "contentEncoding": "base64", "description": of}


_TALK = {
    "text": STRING, "finish_reason": STRING, "tool_calls": listed({"type": "object"}), "reasoning": maybe(STRING),
}  # fmt: skip

RESULTS: Mapping[str, Schema] = {
    "Label": record({"label": STRING, "score": NUMBER}),
    "Box": record({"left": NUMBER, "top": NUMBER, "right": NUMBER, "bottom": NUMBER}),
    "Detection": record({"label": STRING, "score": NUMBER, "box": ref("Box")}),
    "Mask": record({"height": WHOLE, "width": WHOLE, "png": _base64("A PNG file of one bit a pixel; 1: part of it.")}),
    "Region": record({"label": maybe(STRING), "score": maybe(NUMBER), "box": ref("Box"), "mask": ref("Mask")}),
    "Sighting": record(
        {"frame": WHOLE, "time_s": NUMBER, "box": ref("Box"), "score": NUMBER, "mask": maybe(ref("Mask"))}
    ),
    "Track": record({"id": WHOLE, "label": STRING, "sightings": listed(ref("Sighting"))}),
    "Depth": record(
        {
            "unit": {"enum": ["m", "relative"]},
            "values": record(
                {
                    "shape": {"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2},
                    "dtype": {"const": "float32"},
                    "data": _base64("Little-endian float32, row by row."),
                }
            ),
        }
    ),
    "Segment": record({"start_s": NUMBER, "end_s": NUMBER, "text": STRING}),
    "Transcript": record(
        {"text": STRING, "language": maybe(STRING), "duration_s": maybe(NUMBER), "segments": listed(ref("Segment"))}
    ),
    "Embeddings": record({"vectors": listed(listed(NUMBER))}),
    "ChatAnswer": record(_TALK),
    "ChatChunk": record({**_TALK, "finish_reason": maybe(STRING), "usage": maybe(ref("Usage"))}),
    "GenerateAnswer": record({"text": STRING, "finish_reason": STRING}),
    "Usage": record({"prompt_tokens": WHOLE, "completion_tokens": WHOLE}),
}

_RESULT_OF: Mapping[str, Schema] = {
    "chat": ref("ChatAnswer"), "generate": ref("GenerateAnswer"), "embed": ref("Embeddings"),
    "transcribe": ref("Transcript"), "classify": listed(ref("Label")), "detect": listed(ref("Detection")),
    "segment": listed(ref("Region")), "track": listed(ref("Track")), "depth": ref("Depth"),
    "request": {"description": "The JSON that the model's own server answered."},
}  # fmt: skip


def _answer(verb: str) -> Schema:
    fields = {"task": STRING, "option": STRING, "verb": {"const": verb}, "result": _RESULT_OF[verb],
              "usage": ref("Usage")}  # fmt: skip
    return record(fields, optional=("usage",))


_OWN_VERB: Schema = {"type": "string", "minLength": 1, "not": {"enum": list(CALLS)}}
"""A verb of a plug-in's own. Which there are is said by what is installed, and by no document that everybody reads."""
_OWN: Mapping[str, Schema] = {
    "OwnCall": record(
        {"verb": _OWN_VERB}, additionalProperties=True,
        description="A verb of a plug-in's own, with the arguments that it declares; media are sent as everywhere.",
    ),
    "OwnAnswer": record(
        {"task": STRING, "option": STRING, "verb": _OWN_VERB, "result": {"description": "What the plug-in declares."}}
    ),
}  # fmt: skip


def _form() -> Schema:
    file: Schema = {"type": "string", "format": "binary"}
    as_json: Schema = {"type": "string", "contentMediaType": "application/json"}
    fields: dict[str, Schema] = {
        **dict.fromkeys(("image", "audio", "video", "input"), file),
        "inputs": listed(file),
        **dict.fromkeys(("verb", "prompt", "language"), STRING),
        **dict.fromkeys(("threshold", "fps"), NUMBER),
        **dict.fromkeys(("top_k", "sampling_rate"), WHOLE),
        **dict.fromkeys(("labels", "points", "boxes"), as_json),
        "messages": {**STRING, "description": "A text, or a JSON list of messages."},
        "request": {**as_json, "description": "A JSON object of whatever has no field of its own."},
    }
    said = "Media as files, or as texts: data: URLs, paths, URLs. Other fields are arguments of a plug-in's own verb."
    return record(fields, optional=tuple(fields), description=said, additionalProperties=True)


def task_schemas() -> dict[str, Schema]:
    """All of them, by name."""
    _, calls = models_json_schema([(each, "validation") for each in CALLS.values()], ref_template=REF + "{model}")
    names = [each.__name__ for each in CALLS.values()]
    return {
        **RESULTS,
        **calls["$defs"],
        **_OWN,
        "TaskCall": {"anyOf": [ref(name) for name in (*names, "OwnCall")]},
        "TaskForm": _form(),
        "TaskAnswer": {"oneOf": [*(_answer(verb) for verb in CALLS), ref("OwnAnswer")]},
    }
