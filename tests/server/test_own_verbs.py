"""Verbs of a plug-in's own over HTTP: its types made of JSON and files, what it answers made JSON, and all refusals."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx2
import pytest
from jsonschema import Draft202012Validator

from taskrouter import connect, errors
from taskrouter.backends.base import Call
from taskrouter.backends.registry import Registry
from taskrouter.http.forms import Upload

from .scales import Bare, ScalesBackend, Weigh
from .serving import API_KEY, Served, keys, serving, written
from .task_server import curl, fake, one, refused, task_client

MAX_BYTES = 200 << 10
TEXT = {"base64": base64.b64encode(b"12345").decode()}
ASKED = {"unit": "g", "threshold": "", "how": "fast"}
SCALES = {"framework": "scales", "model_id": "s", "vram_gb": 0.1}
TASKS: dict[str, Any] = {
    "scale": one(None, SCALES),
    "find": one("detection", {**SCALES, "model_id": "of a kind"}),
    "plain": one(None, fake()),
    "routed": {"selected": "fakes", "fallback": ["scales"], "options": {"fakes": fake(slots=9), "scales": SCALES}},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "media").mkdir()
    (folder / "media" / "in.png").write_bytes(b"1234567")
    (folder / "secret.png").write_bytes(b"a secret")
    media = {"max_bytes": f"{MAX_BYTES >> 10}KiB", "roots": ["media"], "remote": True, "max_seconds": 7}
    backend = ScalesBackend()
    with serving(written(folder, TASKS, media=media), keys(), backends={"scales": backend}) as server:
        server.facts |= {"folder": folder, "scales": backend}
        yield server


@pytest.fixture
def asked(served: Served) -> list[Any]:
    """The requests that have reached the plug-in in this test."""
    requests: list[Any] = served.facts["scales"].requests
    requests.clear()
    return requests


def test_its_arguments_are_json_and_its_answer_too(client: httpx2.Client, served: Served, asked: list[Any]) -> None:
    body = {"verb": "weigh", "picture": TEXT, "unit": "oz", "least": 2, "day": "2026-02-03", "threshold": "0.5"}
    answer = client.post("scale", json=body)
    assert answer.status_code == 200, answer.text
    told = {"unit": "oz", "threshold": "0.5", "how": "fast"}
    assert answer.json() == {
        "task": "scale", "option": "it", "verb": "weigh",
        "result": {"sizes": [5], "asked": told, "day": "2026-02-03"},
    }  # fmt: skip
    assert answer.headers["x-taskrouter-option"] == "it"
    (request,) = asked
    assert (request.picture, request.day) == (b"12345", date(2026, 2, 3))
    assert request.limits == served.manager.media_limits
    with urlopen(f"{served.url}/openapi.json", timeout=30) as told_of:
        schemas = {"components": json.load(told_of)["components"]}
    Draft202012Validator({**schemas, "$ref": "#/components/schemas/TaskAnswer"}).validate(answer.json())
    Draft202012Validator({**schemas, "$ref": "#/components/schemas/TaskCall"}).validate(body)


def test_media_are_read_before_the_plug_in_sees_them(client: httpx2.Client, served: Served) -> None:
    path = str(served.facts["folder"] / "media" / "in.png")
    for picture, size in ((path, 7), (TEXT, 5), ("data:;base64,AAAA", 3)):
        answer = client.post("scale", json={"verb": "weigh", "picture": picture, "others": [path, TEXT]})
        assert answer.json()["result"]["sizes"] == [size, 7, 5], answer.text
    said = client.post("scale", json={"verb": "compare", "pictures": [path, TEXT], "up-to": 1}).json()
    assert said["result"] == [7, 5]


def test_a_form_holds_files_and_fields(served: Served, asked: list[Any], tmp_path: Path) -> None:
    for name, size in (("one", 11), ("two", 100_000), ("three", 3)):
        (tmp_path / name).write_bytes(b"x" * size)
    files = (f"picture=@{tmp_path / 'one'}", f"others=@{tmp_path / 'two'}", f"others=@{tmp_path / 'three'}")
    # threshold is a text here, though verbs of ours have a number of that name; how is no JSON, least is.
    status, said = curl(
        served, "scale", "verb=weigh", *files, "threshold=0.5", "how=exact", "least=3", "unit=oz", 'day="2026-02-03"'
    )
    assert status == 200, said
    told = {"unit": "oz", "threshold": "0.5", "how": "exact"}
    assert said["result"] == {"sizes": [11, 100_000, 3], "asked": told, "day": "2026-02-03"}
    assert isinstance(asked[0].picture, Upload)
    rest = json.dumps({"verb": "weigh", "picture": TEXT})
    status, said = curl(served, "scale", f"others=@{tmp_path / 'one'}", f"request={rest}")
    assert (status, said["result"]["sizes"]) == (200, [5, 11]), said
    status, said = curl(served, "scale", f"picture=@{tmp_path / 'one'}")
    assert (status, said["verb"]) == (200, "weigh"), "no other verb of the model takes such an argument"


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"verb": "weigh"}, "weigh needs picture"),
        ({"verb": "weigh", "picture": TEXT, "sauce": 1}, "weigh takes no 'sauce'; it takes picture, others, unit"),
        ({"verb": "weigh", "picture": TEXT, "limits": {"roots": None}}, "weigh takes no 'limits'"),
        ({"verb": "weigh", "picture": TEXT, "stream": True}, "weigh takes no 'stream'"),
        ({"verb": "weigh", "picture": TEXT, "least": -1}, "least: "),
        ({"verb": "weigh", "picture": TEXT, "least": "many"}, "least: "),
        ({"verb": "weigh", "picture": TEXT, "unit": "stone"}, "unit: "),
        ({"verb": "weigh", "picture": TEXT, "day": "never"}, "day: "),
        ({"verb": "weigh", "picture": TEXT, "threshold": "impossible"}, "there is no such threshold"),
        ({"verb": "weigh", "picture": 7}, "picture: it must be a data: URL"),
        ({"verb": "weigh", "picture": {"base64": "?"}}, "picture: it is no valid base64"),
        ({"verb": "weigh", "picture": [TEXT]}, "picture: it must be"),
        ({"verb": "weigh", "picture": {"path": "/etc/passwd"}}, "picture: it must be"),
        ({"verb": "weigh", "picture": "/etc/passwd"}, "outside the folders"),
        ({"verb": "weigh", "picture": TEXT, "others": [TEXT, "../secret.png"]}, "outside the folders"),
        ({"verb": "weigh", "picture": "file:///etc/passwd"}, "is a URL"),
        ({"verb": "weigh", "picture": "http://127.0.0.1:1/x"}, "isn't a public address"),
        ({"verb": "weigh", "picture": "data:,"}, "is empty"),
        ({"verb": "compare", "pictures": [TEXT]}, "pictures: "),
        ({"verb": "compare", "pictures": [TEXT, TEXT], "upto": 3}, "compare takes no 'upto'; it takes pictures, up-to"),
        ({"verb": ["weigh"]}, "verb is"),
        ({"nothing": 1}, "name the verb, one of "),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(
    client: httpx2.Client, served: Served, asked: list[Any], body: Any, match: str
) -> None:
    answer = client.post("scale", json=body)
    text = refused(answer, 400)
    assert match in text
    assert str(served.facts["folder"]) not in text
    assert answer.json()["error"]["code"] == "bad_input"
    assert asked == []


def test_what_is_wrong_with_a_form_is_said(served: Served, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "none").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    it = f"picture=@{tmp_path / 'x'}"
    wrong = [
        ((it, f"threshold=@{tmp_path / 'x'}"), 400, "'threshold' came as a file; files are taken as others, picture"),
        ((it, it), 400, "picture: it must be"),
        ((it, "how=fast", "how=exact"), 400, "'how' twice"),
        ((it, 'request={"picture": "x"}'), 400, "'picture' twice"),
        ((f"picture=@{tmp_path / 'none'}",), 400, "the file in picture is empty"),
        ((f"picture=@{tmp_path / 'large'}",), 413, "204,800 are taken"),
        ((it, "sauce=1"), 400, "weigh takes no 'sauce'"),
    ]
    for fields, status, match in wrong:
        found, said = curl(served, "scale", "verb=weigh", *fields)
        assert (found, match in said["error"]["message"]) == (status, True), said
    assert asked == []


def test_a_large_medium_in_json_is_refused(client: httpx2.Client, asked: list[Any]) -> None:
    large = {"base64": base64.b64encode(b"x" * (MAX_BYTES + 10)).decode()}
    assert "media.max_bytes" in refused(client.post("scale", json={"verb": "weigh", "picture": large}), 413)
    assert asked == []


def test_what_the_plug_in_itself_refuses_is_told_in_its_words(client: httpx2.Client) -> None:
    answer = client.post("scale", json={"verb": "weigh", "picture": TEXT, "least": 6})
    assert "it weighs less than 6" in refused(answer, 400)


@pytest.mark.parametrize(
    ("task", "verb", "match"),
    [
        ("scale", "hum", 'calls = {"hum": Call(Request, Answer)}'),  # it can, and doesn't declare it
        ("scale", "sing", "can't sing; it can be asked to"),  # the other way round
        ("scale", "frobnicate", "must be one of chat"),
        ("plain", "weigh", "must be one of chat"),
        ("find", "weigh", "a task of kind detection has no verb of a plug-in's own"),
        ("scale", "stream_weigh", "must be one of chat"),
    ],
)
def test_verbs_that_are_not_there_are_refused(client: httpx2.Client, task: str, verb: str, match: str) -> None:
    answer = client.post(task, json={"verb": verb})
    assert match in refused(answer, 400)
    assert answer.json()["error"]["code"] == "unsupported_verb"


def test_no_second_name_brings_a_medium_past_the_server(client: httpx2.Client, asked: list[Any]) -> None:
    for body in ({"picture": "/etc/passwd"}, {"picture": "/etc/passwd", "image": TEXT}):
        assert "loosen takes no 'picture'" in refused(client.post("scale", json={"verb": "loosen", **body}), 400)
    assert "outside the folders" in refused(client.post("scale", json={"verb": "loosen", "image": "/etc/passwd"}), 400)
    assert asked == []
    assert client.post("scale", json={"verb": "loosen", "image": TEXT, "sauce": "hot"}).status_code == 200
    assert (asked[0].picture, asked[0].model_extra) == (b"12345", {"sauce": "hot"})


def test_what_was_declared_wrongly_is_the_plug_ins_fault(client: httpx2.Client, asked: list[Any]) -> None:
    answer = client.post("scale", json={"verb": "hold", "handle": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "broken_backend")
    answer = client.post("scale", json={"verb": "nest", "parts": [{"picture": "/etc/passwd"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "broken_backend")
    assert asked == []
    answer = client.post("scale", json={"verb": "lie"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "call_failed")


def test_an_option_that_stands_in_is_asked_too(client: httpx2.Client) -> None:
    answer = client.post("routed", json={"verb": "weigh", "picture": TEXT})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["option"], answer.headers["x-taskrouter-reason"]) == ("scales", "fakes: unable")
    assert client.post("routed/fakes", json={"verb": "weigh", "picture": TEXT}).status_code == 400


def test_a_client_is_answered_json_where_no_plug_in_is_installed(served: Served, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"1" * 300)

    async def main() -> None:
        async with connect(served.url, api_key=API_KEY) as client:
            model = client.handle("scale")
            # A path of the client's machine, which the server couldn't read.
            said = await model.ask("weigh", Weigh(tmp_path / "mine.png", (b"22",), least=1))
            assert said == {"sizes": [300, 2], "asked": ASKED, "day": None}
            assert await model.ask("compare", {"pictures": [b"1", b"22"], "up-to": 3}) == [1, 2]
            assert model.option == "it"
            async with client.lease("scale") as held:
                assert (await held.ask("weigh", Weigh(b"4444")))["sizes"] == [4]
                with pytest.raises(errors.UnsupportedVerb):
                    await held.ask("hum", Bare())
            for kind, verb, request in (
                (errors.UnsupportedVerb, "hum", Bare()),
                (errors.UnsupportedVerb, "sing", Bare()),
                (errors.BadInput, "weigh", Weigh(b"1", least=5)),
                (errors.BadInput, "weigh", {"sauce": 1}),
                (errors.MediaTooLarge, "weigh", Weigh(b"1" * (MAX_BYTES + 1))),
                (errors.CallFailed, "lie", Bare()),
                (errors.BrokenBackend, "hold", {"handle": 1}),
            ):
                with pytest.raises(errors.TaskRouterError) as caught:
                    await model.ask(verb, request)
                assert type(caught.value) is kind, caught.value

    asyncio.run(asyncio.wait_for(main(), 60))
    with connect(served.url, api_key=API_KEY).blocking() as blocking:
        assert blocking.handle("scale").ask("weigh", Weigh(b"333"))["sizes"] == [3]


@pytest.mark.parametrize(
    ("calls", "match"),
    [
        ({"weigh": Weigh}, "must be a Call for each verb"),
        ([Call(Weigh, int)], "must be a Call for each verb"),
        ({"stream_chat": Call(Weigh, int)}, "stream_chat is a verb of taskrouter's"),
        ({"request": Call(Weigh, int)}, "request is a verb of taskrouter's"),
    ],
)
def test_a_backend_that_declares_nonsense_is_none(calls: Any, match: str) -> None:
    class Wrong(ScalesBackend):
        pass

    Wrong.calls = calls
    with pytest.raises(errors.BrokenBackend, match=match):
        Registry().register("wrong", Wrong())


@pytest.fixture
def client(served: Served) -> Iterator[httpx2.Client]:
    with task_client(served) as found:
        yield found
