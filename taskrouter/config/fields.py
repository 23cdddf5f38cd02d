"""The types of the values in models.yaml. Each says what it expected where it refuses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from taskrouter.config.fill import EnvText
from taskrouter.config.frozen import FrozenDict, freeze
from taskrouter.config.sizes import EXAMPLE, LARGEST, SIZE_PATTERN, parse_size
from taskrouter.types import GIB

T = TypeVar("T")

NAME_PATTERN = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"
ENV_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
URL_PATTERN = r"^https?://[^\s/]+\S*$"
DEVICE_PATTERN = r"^(cpu|cuda:[0-9]{1,3})$"
CALL_PATTERN = r"^(GET|POST|PUT) /\S*$"

PATTERNS = {
    NAME_PATTERN: "text that isn't empty, in one line",
    ENV_PATTERN: "the name of an environment variable",
    URL_PATTERN: "a full URL, https://…",
    DEVICE_PATTERN: "a device: cpu, cuda:0, cuda:1, …",
    CALL_PATTERN: "a method and a path, such as POST /sleep",
}
"""What each pattern means to a person."""


def unexpected(expected: str) -> PydanticCustomError:
    """The error that says what was expected; who shows it adds what was found."""
    return PydanticCustomError("expected", "expected {expected}", {"expected": expected})


def _number(value: Any) -> Any:
    """A number that came as text from the environment; anything else as it is."""
    if isinstance(value, EnvText):
        for convert in (int, float):
            try:
                return convert(value)
            except ValueError:
                continue
    return value


def _flag(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.strip().lower(), value) if isinstance(value, EnvText) else value


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _gib(value: Any) -> float:
    value = _number(value)
    if isinstance(value, str):
        try:
            return parse_size(value) / GIB
        except ValueError:
            raise unexpected("a number of GiB, or a size such as 22GiB") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST / GIB:
        raise unexpected("a number of GiB, 0 or more")
    return float(value)


def _size(value: Any) -> int:
    value = _number(value)
    if value == 0 and not isinstance(value, bool) and isinstance(value, (int, float)):
        return 0
    if not isinstance(value, str):
        raise unexpected(EXAMPLE)
    try:
        return parse_size(value)
    except ValueError as error:
        raise unexpected(str(error)) from None


def _size_or_auto(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    return _size(value)


def _size_text(value: Any) -> str:
    """A size kept as it was written; 0 would mean that no model may be loaded."""
    if value != "auto" and _size(value) <= 0:
        raise unexpected("auto, or a size above 0")
    return str(value)


def _seconds_or_auto(value: Any) -> float | str:
    value = _number(value)
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 10**9:
        raise unexpected("auto, or a number of seconds")
    return float(value)


def _tokens_or_auto(value: Any) -> int | str:
    value = _number(value)
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise unexpected("auto, or a whole number of tokens, 1 or more")
    return value


def _devices(value: Any) -> int | tuple[str, ...]:
    expected = "how many GPUs (1 or more), or a list such as [cuda:1] or [cpu]"
    value = _number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 1024:
            raise unexpected(expected)
        return value
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise unexpected(expected)
    if not all(_is_device(name) for name in names):
        raise unexpected(expected)
    if len(set(names)) < len(names) or ("cpu" in names and len(names) > 1):
        raise unexpected("each device once, and cpu alone")
    return tuple(str(name) for name in names)


def _is_device(name: str) -> bool:
    kind, _, index = name.partition(":")
    return name == "cpu" or (kind == "cuda" and index.isascii() and index.isdecimal() and len(index) <= 3)


_SIZE_SCHEMA: dict[str, Any] = {"anyOf": [{"const": 0}, {"type": "string", "pattern": SIZE_PATTERN}]}
_AUTO: dict[str, Any] = {"const": "auto"}

Text = Annotated[str, Field(pattern=NAME_PATTERN, max_length=4096)]
EnvName = Annotated[str, Field(pattern=ENV_PATTERN)]
Url = Annotated[str, Field(pattern=URL_PATTERN, max_length=4096)]
Device = Annotated[str, Field(pattern=DEVICE_PATTERN)]
HttpCall = Annotated[str, Field(pattern=CALL_PATTERN, max_length=4096)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Seconds = Annotated[Real, Field(ge=0, le=10**9)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_to_tuple)]
Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_to_tuple)]
Table = Annotated[dict[Text, T], AfterValidator(FrozenDict)]
Free = Annotated[dict[str, Any], AfterValidator(freeze)]

Gib = Annotated[
    float, PlainValidator(_gib),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": SIZE_PATTERN}]}),
]  # fmt: skip
Size = Annotated[int, PlainValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
SizeOrAuto = Annotated[
    int | Literal["auto"], PlainValidator(_size_or_auto), WithJsonSchema({"anyOf": [_AUTO, *_SIZE_SCHEMA["anyOf"]]})
]
SizeText = Annotated[
    str, PlainValidator(_size_text), WithJsonSchema({"anyOf": [_AUTO, {"type": "string", "pattern": SIZE_PATTERN}]})
]
SecondsOrAuto = Annotated[
    float | Literal["auto"], PlainValidator(_seconds_or_auto),
    WithJsonSchema({"anyOf": [_AUTO, {"type": "number", "minimum": 0}]}),
]  # fmt: skip
TokensOrAuto = Annotated[
    int | Literal["auto"], PlainValidator(_tokens_or_auto),
    WithJsonSchema({"anyOf": [_AUTO, {"type": "integer", "minimum": 1}]}),
]  # fmt: skip
Devices = Annotated[
    int | tuple[str, ...], PlainValidator(_devices),
    WithJsonSchema({"anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": DEVICE_PATTERN},
        {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": DEVICE_PATTERN}},
    ]}),
]  # fmt: skip
