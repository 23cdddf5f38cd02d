"""What a plug-in's request may look like: its media are found wherever they may stand, and refused anywhere else."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, NamedTuple, NewType, TypedDict

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, JsonValue
from typing_extensions import TypeAliasType

from taskrouter.backends.base import Medium
from taskrouter.backends.calls import LIMITS, shape_of
from taskrouter.errors import BadInput, BrokenBackend

Pictures = TypeAliasType("Pictures", list[Medium])
Picture = NewType("Picture", Medium)  # type: ignore[valid-newtype]


@dataclass
class Part:
    image: Medium


class PartModel(BaseModel):
    image: Medium


class PartDict(TypedDict):
    image: Medium


class PartTuple(NamedTuple):
    image: Medium


@dataclass
class Tree:
    below: list[Tree] = field(default_factory=list)
    leaf: Medium = None


class Fine(BaseModel):
    bare: Medium
    maybe: Medium | None = None
    several: Annotated[list[Medium], Field(min_length=1)]
    few: tuple[Medium, ...] | None = None
    named: Pictures
    new: Picture
    aliased: Medium = Field(None, alias="image")
    rest: JsonValue = None
    texts: list[str] = Field(default_factory=list)


def test_media_are_found_by_themselves_and_in_lists() -> None:
    shape = shape_of(Fine)
    assert shape.media == {"bare", "maybe", "several", "few", "named", "new", "image"}
    assert shape.several == {"several", "few", "named"}
    assert shape.names["image"] == "aliased"
    assert shape.required == {"bare", "several", "named", "new"}


@pytest.mark.parametrize(
    "hint",
    [
        list[Part], Part, PartModel, PartDict, PartTuple, Tree, dict[str, Medium], list[list[Medium]],
        list[Part | None], list[Pictures], Annotated[list[PartModel], Field(min_length=1)],
        TypeAliasType("Parts", list[Part]),
        dict[str, list[Part]], Medium | Part, TypeAliasType("Unknown", list["Nobody"]),  # type: ignore[name-defined] # noqa: F821
    ],
)  # fmt: skip
def test_media_that_would_not_be_read_are_the_plug_ins_fault(hint: Any) -> None:
    class Model(BaseModel):
        given: Any = None

    Model.model_fields["given"].annotation = hint
    with pytest.raises(BrokenBackend, match=r"given a Medium|nobody knows what 'Nobody'"):
        shape_of(Model)


def test_what_is_taken_beside_the_fields_can_not_be_media() -> None:
    class Loose(BaseModel):
        model_config = ConfigDict(extra="allow")
        __pydantic_extra__: dict[str, Medium]

    @dataclass
    class Given:
        picture: Medium
        other: InitVar[Part]

    with pytest.raises(BrokenBackend):
        shape_of(Loose)
    with pytest.raises(BadInput, match="takes no 'other'"):
        shape_of(Given).check_names("v", ["other"])


class Open(BaseModel):
    """Hears its fields by more names than one, and takes any name beside."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    picture: Medium = Field(None, alias="image")
    second: Medium = Field(None, validation_alias=AliasChoices("two", AliasPath("deep", 0)))
    limits: Any = Field(None, alias="most")


def test_no_second_name_leads_to_a_medium_or_to_the_limits() -> None:
    shape = shape_of(Open)
    assert dict(shape.names) == {"image": "picture", "second": "second"}
    shape.check_names("v", ["image", "second", "sauce"])
    for name in ("picture", "two", "deep", "most", LIMITS):
        with pytest.raises(BadInput, match=f"v takes no '{name}'; it takes image, second"):
            shape.check_names("v", [name])


def test_two_fields_of_one_name_are_refused_where_one_is_a_medium() -> None:
    class Twice(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        picture: Medium = Field(None, alias="image")
        other: str = Field("", alias="picture")

    @dataclass
    class Crossed:
        picture: Annotated[Any, *Medium.__metadata__, Field(alias="unit")] = None
        unit: str = ""

    class Limited(BaseModel):
        limits: Any = None
        other: str = Field("", alias="limits")

    for kind in (Twice, Crossed, Limited):
        with pytest.raises(BrokenBackend, match="asked by the same name"):
            shape_of(kind)
