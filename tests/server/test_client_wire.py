"""The client, by the wire format alone: what it sends, and what it makes of answers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from aiohttp import web

from taskrouter import connect, errors
from taskrouter.backends.base import Medium
from taskrouter.client import Client
from taskrouter.media import load_audio, load_image, load_video
from taskrouter.verbs import (
    Box,
    ChatAnswer,
    Detection,
    Embeddings,
    GenerateAnswer,
    Label,
    Passed,
    Routed,
    Segment,
    Transcript,
    Usage,
    Why,
)

from .wire_stub import BOX, DEPTHS, HEADERS, MASK, Stub, run

pytestmark = pytest.mark.usefixtures("no_keys")
USAGE = Usage(3, 1)
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
SAMPLES = np.random.default_rng(0).random(800).astype(np.float32)


def test_answers_are_the_librarys_own(server: Stub) -> None:
    async def ask(client: Client) -> Any:
        model = client.handle("t")
        assert client.handle("t").option is None
        found = [
            await model.chat("hello"), await model.generate("go"), await model.embed(["a", "b"]),
            await model.transcribe(b"RIFF"), await model.classify(b"x"), await model.detect(b"x"),
            await model.segment(b"x"), await model.track(b"x"), await model.depth(b"x"),
        ]  # fmt: skip
        assert model.option == "best"
        return found

    chat, text, vectors, said, labels, objects, regions, tracks, depth = run(server, ask)
    assert chat == ChatAnswer("hi", "tool_calls", USAGE, ({"id": "1"},), "so")
    assert text == GenerateAnswer("on", "length", USAGE)
    assert vectors == Embeddings(((0.5, -1.0), (1.0, 0.25)), USAGE)
    assert said == Transcript("a b", "en", 2.5, (Segment(0.0, 1.5, "a"),), USAGE)
    assert labels == (Label("cat", 0.75), Label("dog", 0.25))
    box = Box(**BOX)
    assert objects == (Detection("cat", 0.75, box),)
    assert [(each.label, each.score, each.box) for each in regions] == [("cat", 0.5, box), (None, None, box)]
    assert regions[0].mask.dtype == np.bool_
    assert np.array_equal(regions[0].mask, MASK)
    assert regions[1].mask.shape == (0, 7)
    assert (tracks[0].id, tracks[0].label, tracks[0].sightings[0][:4]) == (3, "cat", (0, 0.0, box, 0.5))
    assert tracks[0].sightings[0].mask is None
    assert np.array_equal(tracks[0].sightings[1].mask, MASK)
    assert (depth.unit, depth.values.dtype) == ("m", np.float32)
    assert np.array_equal(depth.values, DEPTHS)
    depth.values[0, 0] = 1  # it is the caller's own


def test_arguments_are_sent_by_their_names_and_defaults_are_left_out(server: Stub) -> None:
    async def ask(client: Client) -> None:
        model = client.handle("a b", option="x?", timeout=2.5)
        await model.chat("hello", max_tokens=5, stop="end", extra={"top_k": 3})
        await model.segment(b"x", points=[(1, 2), [(3, 4, False)]], boxes=[(0, 0, 1, 1)], threshold=0.25)
        await client.handle("t").classify("https://example.invalid/cat.png", top_k=2)

    run(server, ask, api_key="the-key", admin_key="not-for-tasks")
    chat, segment, classify = server.seen
    assert (chat["method"], chat["path"]) == ("POST", "/v1/tasks/a%20b/x%3F")
    assert chat["headers"]["Authorization"] == "Bearer the-key"
    assert float(chat["headers"]["x-taskrouter-timeout"]) == 2.5
    assert chat["json"] == {
        "verb": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "stop": ["end"],
        "extra": {"top_k": 3},
    }  # fmt: skip
    assert segment["json"] == {
        "verb": "segment", "points": [[[1, 2, True]], [[3, 4, False]]], "boxes": [[0, 0, 1, 1]], "threshold": 0.25,
    }  # fmt: skip
    assert segment["files"] == {"image": b"x"}
    assert classify["json"] == {"verb": "classify", "input": "https://example.invalid/cat.png", "top_k": 2}
    assert "x-taskrouter-timeout" not in classify["headers"]


def _sources(folder: Path) -> dict[str, Any]:
    file = folder / "it.bin"
    file.write_bytes(b"bytes of a file")
    return {
        "path": file, "text": str(file), "bytes": b"bytes of a file", "file object": io.BytesIO(b"bytes of a file"),
        "data URL": "data:text/plain,bytes%20of%20a%20file",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "file object", "data URL"])
def test_files_of_this_machine_are_read_here(server: Stub, tmp_path: Path, kind: str) -> None:
    source = _sources(tmp_path)[kind]
    run(server, lambda client: client.handle("t").track(source))
    assert server.seen[0]["files"] == {"video": b"bytes of a file"}
    assert str(tmp_path) not in json.dumps(server.seen[0], default=repr)


def test_what_is_no_file_becomes_one_that_loses_nothing(server: Stub) -> None:
    async def ask(client: Client) -> None:
        model = client.handle("t")
        await model.detect(PIXELS)
        await model.detect(PIL.Image.fromarray(PIXELS))
        await model.transcribe(SAMPLES, sampling_rate=8000)
        await model.classify(SAMPLES, sampling_rate=8000)
        await model.track([PIXELS, PIXELS[::-1]], fps=4)

    run(server, ask)
    array, picture, speech, sound, video = (next(iter(each["files"].values())) for each in server.seen)
    assert np.array_equal(np.asarray(load_image(array)), PIXELS)
    assert array == picture
    assert np.array_equal(load_audio(speech, sampling_rate=8000), SAMPLES)
    assert speech == sound
    clip = load_video(video, fps=4)
    assert clip.times_s == (0.0, 0.25)
    assert [np.array_equal(np.asarray(each), PIXELS[:: 1 - 2 * place]) for place, each in enumerate(clip.frames)] == [
        True, True,
    ]  # fmt: skip
    assert [each["json"].get("sampling_rate") for each in server.seen] == [None] * 5


def test_pictures_in_a_conversation_and_among_texts_go_inside(server: Stub, tmp_path: Path) -> None:
    PIL.Image.fromarray(PIXELS).save(tmp_path / "a.png")

    async def ask(client: Client) -> None:
        part = {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}}
        await client.handle("t").chat([{"role": "user", "content": [part]}])
        await client.handle("t").embed(["a cat", PIXELS, tmp_path / "a.png"])

    run(server, ask)
    url = server.seen[0]["json"]["messages"][0]["content"][0]["image_url"]["url"]
    first, *pictures = server.seen[1]["json"]["inputs"]
    assert first == "a cat"
    for each in (url, *(part["image_url"]["url"] for part in pictures)):
        assert np.array_equal(np.asarray(load_image(each)), PIXELS)


def test_a_body_of_many_megabytes_is_sent_without_a_warning(server: Stub) -> None:
    async def ask(client: Client) -> None:
        await client.handle("t").chat("x" * (5 << 20))
        await client.handle("t").detect(b"y" * (5 << 20))

    run(server, ask)
    assert len(server.seen[0]["json"]["messages"][0]["content"]) == 5 << 20
    assert server.seen[1]["files"] == {"image": b"y" * (5 << 20)}


@pytest.mark.parametrize(
    "bad",
    [
        lambda model: model.detect("/nowhere/at/all.png"),
        lambda model: model.detect(None),
        lambda model: model.track(7),
        lambda model: model.transcribe(SAMPLES),
        lambda model: model.chat("x", extra={"top_k": object()}),
        lambda model: model.chat("x", extra={"top_k": float("nan")}),
        lambda model: model.chat("x", max_tokens=0),
        lambda model: model.segment(b"x", points=[("a", 1)]),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(server: Stub, bad: Any) -> None:
    with pytest.raises(errors.BadInput):
        run(server, lambda client: bad(client.handle("t")))
    assert server.seen == []


def test_what_a_models_own_server_is_asked_goes_as_it_is(server: Stub) -> None:
    async def ask(client: Client) -> Any:
        model = client.handle("t")
        await model.request("/v1/models")
        return await model.request("/v1/rerank", {"query": "a", "documents": [], "n": None})

    assert run(server, ask) == {"scores": [0.5, None]}
    assert [each["json"] for each in server.seen] == [
        {"verb": "request", "path": "/v1/models"},
        {"verb": "request", "path": "/v1/rerank", "body": {"query": "a", "documents": [], "n": None}},
    ]
    with pytest.raises(errors.BadInput, match="begin with one /"):
        run(server, lambda client: client.handle("t").request("http://127.0.0.1/", {}))
    assert len(server.seen) == 2


def test_events_of_a_models_own_server_may_be_any_json(server: Stub) -> None:
    said: list[Any] = [{"a": 1}, [1, "x"], "text", None, {"error": None}, {"error": {}}, 0]

    async def answer(request: web.Request) -> web.StreamResponse:
        assert await request.json() == {"verb": "request", "stream": True, "path": "/v1/x", "body": {"n": 1}}
        text = "".join(f"data: {json.dumps(each)}\n\n" for each in said)
        return web.Response(text=f": waiting\n\n{text}data: [DONE]\n\n", content_type="text/event-stream")

    async def ask(client: Client) -> Any:
        return [each async for each in client.handle("t").stream_request("/v1/x", {"n": 1})]

    server.answer = answer
    assert run(server, ask) == said


@dataclass
class Weigh:
    """What a plug-in's verb is asked, and no plug-in that is installed here."""

    picture: Medium
    others: tuple[Medium, ...] = ()
    when: date = date(2026, 1, 2)
    note: str | None = None
    limits: Any = None


def test_a_plug_ins_request_is_taken_apart_and_its_media_are_read_here(server: Stub, tmp_path: Path) -> None:
    path = tmp_path / "it.bin"
    path.write_bytes(b"a file")

    async def ask(client: Client) -> None:
        model = client.handle("t")
        mapping = {"picture": path, "note": str(path), "others": [b"1", io.BytesIO(b"2")]}
        assert await model.ask("weigh", Weigh(str(path), (b"one", PIXELS))) == {"grams": 3}
        assert await model.ask("weigh", mapping) == {"grams": 3}
        assert await model.ask("weigh", Weigh("https://example.invalid/a.png", note="x")) == {"grams": 3}

    run(server, ask)
    typed, mapped, remote = server.seen
    assert typed["json"] == {"verb": "weigh", "when": "2026-01-02", "note": None}
    first, (one, pixels) = typed["files"]["picture"], typed["files"]["others"]
    assert (first, one) == (b"a file", b"one")
    assert np.array_equal(np.asarray(load_image(pixels)), PIXELS)
    assert mapped["json"] == {"verb": "weigh", "note": str(path)}
    assert mapped["files"] == {"picture": b"a file", "others": [b"1", b"2"]}
    assert remote["json"] == {
        "verb": "weigh", "when": "2026-01-02", "note": "x", "picture": "https://example.invalid/a.png", "others": [],
    }  # fmt: skip


@dataclass
class Handed:
    """Holds what no JSON can."""

    over: Any


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: None,
        lambda: 7,
        lambda: Weigh("/nowhere/at/all.png"),
        lambda: Weigh(SAMPLES),
        lambda: Handed(object()),
        lambda: {"note": object()},
        lambda: {1: 2},
        lambda: {"verb": "chat"},
    ],
)
def test_what_can_not_be_sent_to_a_plug_in_is_refused_before_anything_is(server: Stub, request_of: Any) -> None:
    with pytest.raises(errors.BadInput):
        run(server, lambda client: client.handle("t").ask("weigh", request_of()))
    with pytest.raises(errors.BadInput, match="has a method of its own"):
        run(server, lambda client: client.handle("t").ask("chat", request_of()))
    assert server.seen == []


def test_options_that_were_passed_over_are_told(server: Stub) -> None:
    async def answer(request: web.Request) -> web.Response:
        headers = {**HEADERS, "x-taskrouter-reason": "near: cold; far: rate_limit"}
        return web.json_response({"result": {"text": "x", "finish_reason": "stop"}}, headers=headers)

    server.answer = answer
    said = run(server, lambda client: client.handle("t").generate("x"))
    passed = (Passed("near", Why.COLD, ""), Passed("far", Why.RATE_LIMIT, ""))
    assert said == GenerateAnswer("x", routed=Routed("best", passed))


# --- the admin API, and the client itself -----------------------------------------------------------------------------


def test_the_admin_key_goes_to_the_admin_api_only(server: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKROUTER_API_KEY", "api-key-of-the-environment")
    monkeypatch.setenv("TASKROUTER_ADMIN_KEY", "admin-key-of-the-environment")

    async def ask(client: Client) -> None:
        assert "environment" not in repr(client) + repr(client.handle("t")) + repr(vars(client))
        assert await client.tasks() == {"a": ("x",), "b": ()}
        assert await client.explain("a/b") == "because"
        await client.load_model("a", option="x", timeout=3)
        await client.unload_model("a", force=True)
        await client.remove_files("a", dry_run=True)
        await client.remove_files("a", option="x", force=True)
        await client.set_selected_model("a", "x", persist=True)
        await client.pin_model("a")
        await client.pin_model("a", False, option="x")
        await client.clear_cooldown("a")
        await client.evict_lru_model()
        await client.reload()
        await client.drain()
        await client.operation("7")
        for get in (client.status, client.models, client.spend):
            await get()

    run(server, ask)
    keys = {each["path"].split("/")[1]: each["headers"]["Authorization"] for each in server.seen}
    assert keys == {"v1": "Bearer api-key-of-the-environment", "admin": "Bearer admin-key-of-the-environment"}
    assert [(each["method"], each["path"], each["json"]) for each in server.seen] == [
        ("GET", "/v1/models", None),
        ("GET", "/admin/tasks/a%2Fb/explain", None),
        ("POST", "/admin/tasks/a/load", {"option": "x", "wait": True, "timeout_s": 3}),
        ("POST", "/admin/tasks/a/unload", {"force": True}),
        ("POST", "/admin/tasks/a/remove", {"force": False, "dry_run": True}),
        ("POST", "/admin/tasks/a/remove", {"force": True, "dry_run": False, "option": "x"}),
        ("POST", "/admin/tasks/a/select", {"option": "x", "persist": True}),
        ("POST", "/admin/tasks/a/pin", {"pinned": True}),
        ("POST", "/admin/tasks/a/pin", {"pinned": False, "option": "x"}),
        ("POST", "/admin/tasks/a/cooldown/clear", {}),
        ("POST", "/admin/evict", {}),
        ("POST", "/admin/reload", {}),
        ("POST", "/admin/drain", {"draining": True}),
        ("GET", "/admin/operations/7", None),
        ("GET", "/admin/status", None),
        ("GET", "/admin/models", None),
        ("GET", "/admin/spend", None),
    ]


@pytest.mark.parametrize("admin", [None, "an-admin-key"])
def test_get_model_loads_where_it_may(server: Stub, admin: str | None) -> None:
    model = run(server, lambda client: client.get_model("t", timeout=4), admin_key=admin)
    assert repr(model) == f"<RemoteModel t at {server.url}>"
    loads = ("POST", "/admin/tasks/t/load", {"wait": True, "timeout_s": 4})
    looks = ("GET", "/v1/models/t", None)
    assert [(each["method"], each["path"], each["json"]) for each in server.seen] == [loads if admin else looks]


def test_an_external_api_has_nothing_to_load(server: Stub) -> None:
    async def external(request: web.Request) -> web.Response:
        error = {"message": "t/far is an external API: there is no model to load", "type": "t", "code": "bad_input"}
        return web.json_response({"error": error}, status=400)

    server.answer = external
    assert run(server, lambda client: client.get_model("t"), admin_key="an-admin-key").task == "t"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8700", "ftp://here", "http://", "http://a:b@here", "http://here?key=1", "http://here:0",
     "http://here:99999", "http://he re", "http://here\n", "http://here#x", "http://a..b"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(errors.BadInput):
        connect(url)


def test_nonsense_is_refused_at_once() -> None:
    bad: tuple[dict[str, Any], ...] = ({"timeout_s": -1}, {"api_key": "a\nb"}, {"admin_key": "ä"})
    for how in bad:
        with pytest.raises(errors.BadInput):
            connect("http://here", **how)
    client = connect("http://here")
    for name in ("", ".", "..", None):
        with pytest.raises(errors.BadInput):
            client.handle(name)  # type: ignore[arg-type]
    with pytest.raises(errors.BadInput):
        client.handle("t", timeout=float("inf"))


def test_making_a_client_imports_nothing_heavy() -> None:
    program = (
        "import sys; from taskrouter import connect; connect('http://here'); "
        "print([name for name in ('aiohttp', 'starlette', 'torch', 'numpy', 'PIL', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
