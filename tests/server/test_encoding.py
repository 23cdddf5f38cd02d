"""Answers as JSON: nothing is lost on the way that the library's types hold."""

from __future__ import annotations

import base64
import inspect
import io
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from taskrouter.errors import BadInput, UnsupportedVerb
from taskrouter.http.encoding import chunk_of, encoded, is_large, mask_of, usage_of
from taskrouter.http.strict_json import DEEPEST, strict, strict_object
from taskrouter.http.task_bodies import CALLS
from taskrouter.http.task_input import Can, checked
from taskrouter.manager.asking import Verbs
from taskrouter.verbs import (
    VERBS_OF_KIND,
    Box,
    ChatAnswer,
    ChatChunk,
    Depth,
    Detection,
    Embeddings,
    GenerateAnswer,
    Label,
    Region,
    Segment,
    Sighting,
    Track,
    Transcript,
    Usage,
)

BOX = Box(1, 2, 3.5, 4)
BOX_SENT = {"left": 1.0, "top": 2.0, "right": 3.5, "bottom": 4.0}


def sent(answer: Any) -> Any:
    return orjson.loads(orjson.dumps(encoded(answer)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 8), (5, 9), (64, 33), (2, 1000)])
def test_a_mask_is_a_png_of_one_bit_that_others_read(height: int, width: int) -> None:
    mask = np.random.default_rng(height * width).random((height, width)) < 0.4
    said = mask_of(mask)
    picture = Image.open(io.BytesIO(base64.b64decode(said["png"])))
    assert picture.mode == "1"
    assert (said["height"], said["width"]) == (height, width) == (picture.height, picture.width)
    assert np.array_equal(np.asarray(picture), mask)


def test_a_mask_of_no_pixels_has_no_file() -> None:
    assert mask_of(np.zeros((0, 7), np.bool_)) == {"height": 0, "width": 7, "png": ""}


def test_depth_is_the_arrays_own_bytes() -> None:
    values = np.arange(6, dtype=">f4").reshape(2, 3).T
    said = sent(Depth(values, "m"))
    assert said["unit"] == "m"
    assert said["values"]["shape"] == [3, 2]
    assert said["values"]["dtype"] == "float32"
    read = np.frombuffer(base64.b64decode(said["values"]["data"]), "<f4").reshape(3, 2)
    assert np.array_equal(read, values)


def test_answers_keep_the_names_of_the_library() -> None:
    mask = np.ones((1, 1), np.bool_)
    assert sent((Label("cat", 0.5),)) == [{"label": "cat", "score": 0.5}]
    assert sent((Detection("cat", 0.9, BOX),)) == [{"label": "cat", "score": 0.9, "box": BOX_SENT}]
    region = {"label": None, "score": None, "box": BOX_SENT, "mask": mask_of(mask)}
    assert sent((Region(None, None, BOX, mask),)) == [region]
    seen = (Sighting(0, 0.0, BOX, 0.7), Sighting(3, 0.3, BOX, 0.8, mask))
    assert sent((Track(4, "cat", seen),)) == [
        {
            "id": 4,
            "label": "cat",
            "sightings": [
                {"frame": 0, "time_s": 0.0, "box": BOX_SENT, "score": 0.7, "mask": None},
                {"frame": 3, "time_s": 0.3, "box": BOX_SENT, "score": 0.8, "mask": mask_of(mask)},
            ],
        }
    ]
    segments = [{"start_s": 0.0, "end_s": 1.5, "text": "hi"}]
    assert sent(Transcript("hi", "en", 1.5, (Segment(0.0, 1.5, "hi"),))) == {
        "text": "hi", "language": "en", "duration_s": 1.5, "segments": segments,
    }  # fmt: skip
    assert sent(Embeddings(((0.5, 1.0),))) == {"vectors": [[0.5, 1.0]]}
    assert sent(GenerateAnswer("on", "length")) == {"text": "on", "finish_reason": "length"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert sent(ChatAnswer("", "tool_calls", None, (call,), "hm")) == {
        "text": "", "finish_reason": "tool_calls", "tool_calls": [call], "reasoning": "hm",
    }  # fmt: skip
    assert chunk_of(ChatChunk("a", "stop", Usage(1, 2))) == {
        "text": "a", "finish_reason": "stop", "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        "tool_calls": [], "reasoning": None,
    }  # fmt: skip
    assert usage_of(ChatAnswer("a", usage=Usage(1, 2))) == {"prompt_tokens": 1, "completion_tokens": 2}
    assert usage_of((Label("cat", 1.0),)) is None
    with pytest.raises(TypeError, match="int is no answer"):
        encoded(3)


def test_what_takes_long_to_write_is_known_beforehand() -> None:
    mask = np.ones((1, 1), np.bool_)
    assert is_large((Region("cat", 1.0, BOX, mask),))
    assert is_large((Track(1, "cat", ()),))
    assert is_large(Depth(np.zeros((1, 1), np.float32), "m"))
    assert is_large(Embeddings(((0.0,) * 1000,) * 11))
    assert not is_large(Embeddings(((0.0,) * 1000,)))
    assert not is_large((Label("cat", 1.0),))
    assert not is_large(())


def test_every_verb_is_taken_with_the_arguments_it_has_in_the_library() -> None:
    assert set(CALLS) == frozenset({"request"}).union(*VERBS_OF_KIND.values()) - {"stream_chat"}
    for verb, call in CALLS.items():
        parameters = dict(inspect.signature(getattr(Verbs, verb)).parameters)
        parameters.pop("self")
        fields = {name: field for name, field in call.model_fields.items() if name not in ("verb", "stream")}
        assert set(parameters) == set(fields), verb
        for name, field in fields.items():
            assert field.is_required() == (parameters[name].default is inspect.Parameter.empty), (verb, name)
            default = field.get_default(call_default_factory=True)
            if not field.is_required() and default not in (None, []):
                assert default == parameters[name].default, (verb, name)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has 'c' twice"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested more than 100 levels"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": NaN}', "no JSON"),
        (b'"\\ud800"', "no JSON"),
        (b'"\xff"', "no JSON"),
        (b"", "no JSON"),
    ],
)
def test_json_that_could_mean_several_things_is_refused(text: bytes, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        strict(text)


def test_json_that_means_one_thing_is_read() -> None:
    assert strict(b"[" * DEEPEST + b"]" * DEEPEST)
    assert strict_object(b'{"a": 12345678901234567890123, "b": {"a": 1}}') == {
        "a": 1.2345678901234568e22,
        "b": {"a": 1},
    }
    digits = b"1" * 200_000
    with pytest.raises(BadInput):
        strict(digits)
    with pytest.raises(BadInput, match="is a list; an object is wanted"):
        strict_object(b"[]")


@pytest.mark.parametrize(
    ("given", "kind", "verbs", "verb"),
    [
        ({"prompt": "x"}, "generation", None, "generate"),
        ({"messages": "x"}, "chat", None, "chat"),
        ({"prompt": "x"}, None, None, "generate"),
        ({"messages": "x"}, None, {"chat", "stream_chat", "generate"}, "chat"),
        ({"image": "x"}, None, {"detect"}, "detect"),
        ({"image": "x", "boxes": []}, None, None, "segment"),
        ({"image": "x", "verb": "depth"}, None, None, "depth"),
        ({"input": "x", "verb": None}, None, None, "classify"),
    ],
)
def test_the_verb_is_the_kinds_or_the_one_that_is_left(given: Any, kind: Any, verbs: Any, verb: str) -> None:
    assert checked(given, (), Can(kind, verbs)).verb == verb


@pytest.mark.parametrize(
    ("given", "verbs", "match"),
    [
        ({"image": "x"}, None, "name the verb, one of detect, segment, depth$"),
        ({"image": "x"}, {"detect", "depth"}, "name the verb, one of detect, depth$"),
        ({"nonsense": 1}, {"detect", "depth"}, "name the verb, one of detect, depth$"),
        ({"verb": "stream_chat"}, None, '"stream": true'),
        ({"verb": ["chat"]}, None, "verb is"),
        ({"verb": "stream_request"}, None, '"verb": "request" with "stream": true'),
        ({"verb": "diarize"}, None, r'must be one of chat.*calls = {"diarize": Call\(Request, Answer\)}'),
        ({"path": "/tokenize"}, None, "name the verb"),
    ],
)
def test_a_verb_that_is_not_clear_is_asked_for(given: Any, verbs: Any, match: str) -> None:
    with pytest.raises((BadInput, UnsupportedVerb), match=match):
        checked(given, (), Can(None, verbs))
