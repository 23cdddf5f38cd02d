"""The task API over a real socket: JSON by httpx, forms by curl."""

from __future__ import annotations

import base64
import json
import pickle
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.datastructures import UploadFile

from taskrouter.http import tasks
from taskrouter.http.encoding import encoded, mask_of
from taskrouter.http.forms import Upload

from .reading import ReadingBackend
from .serving import Served
from .task_server import ASKED, CUP_BOX, PICTURE, URL, connected, curl, head_of, refused, task_server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with task_server(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.mark.parametrize("task", ASKED)
def test_every_kind_answers_json(client: httpx2.Client, backend: ReadingBackend, task: str) -> None:
    verb, arguments, result = ASKED[task]
    answer = client.post(task, json=arguments)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["task"], said["option"], said["verb"]) == (task, "it", verb)
    if task == "cut":
        mask = np.zeros((2, 3), np.bool_)
        mask[0:, 1:] = True
        result = [{"label": "cup", "score": 0.75, "box": CUP_BOX, "mask": mask_of(mask)}]
    assert said["result"] == result
    assert ("usage" in said) is (task in ("say", "write"))
    assert backend.read == ([] if task in ("say", "write") else [PICTURE])
    assert answer.headers["x-taskrouter-option"] == "it"
    assert answer.headers["x-taskrouter-reason"] == "selected"
    assert float(answer.headers["x-taskrouter-waited"]) < 30
    named = client.post(f"{task}/it", json={**arguments, "verb": verb})
    assert (named.json()["result"], named.headers["x-taskrouter-reason"]) == (result, "named")


@pytest.mark.parametrize(("task", "aside"), [("cut", True), ("follow", True), ("far", True), ("find", False)])
def test_large_answers_are_written_beside_the_loop(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, task: str, aside: bool
) -> None:
    threads: list[str] = []

    def noting(result: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encoded(result)

    monkeypatch.setattr(tasks, "encoded", noting)
    assert client.post(task, json=ASKED[task][1]).status_code == 200
    assert [name != "server" for name in threads] == [aside]


def test_usage_is_told(client: httpx2.Client) -> None:
    assert client.post("say", json={"messages": "a b c"}).json()["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }


def test_texts_and_pictures_become_vectors(client: httpx2.Client, backend: ReadingBackend) -> None:
    part = {"type": "image_url", "image_url": {"url": URL}}
    inputs = ["a", {"base64": base64.b64encode(b"two").decode()}, part, {"type": "text", "text": "b"}]
    said = client.post("vectors", json={"inputs": inputs}).json()
    assert [len(each) for each in said["result"]["vectors"]] == [8] * 4
    assert backend.read == [b"two", PICTURE]
    assert client.post("vectors", json={"inputs": "a"}).json()["result"]["vectors"] == said["result"]["vectors"][:1]


@pytest.mark.parametrize("task", [each for each in ASKED if each not in ("say", "write")])
def test_every_kind_takes_a_form(
    served: Served, client: httpx2.Client, backend: ReadingBackend, tmp_path: Path, task: str
) -> None:
    verb, arguments, _ = ASKED[task]
    name = next(name for name, value in arguments.items() if value == URL)
    file = tmp_path / "a file"
    file.write_bytes(PICTURE)
    others = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in arguments.items()
        if key != name
    ]
    status, said = curl(served, task, f"{name}=@{file}", *others)
    assert status == 200, said
    assert backend.read == [PICTURE]
    assert said == client.post(task, json=arguments).json()
    assert said["verb"] == verb


def test_a_form_may_hold_the_rest_as_json(served: Served, backend: ReadingBackend, tmp_path: Path) -> None:
    status, said = curl(served, "say", 'request={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}')
    assert (status, said["result"]["text"]) == (200, "say/it:")
    status, said = curl(served, "say", 'messages=[{"role": "user", "content": "hi"}]', "max_tokens=1", 'stop=["x"]')
    assert (status, said["result"]["text"]) == (200, "say/it:")
    (tmp_path / "rest.json").write_text('{"threshold": 0.8}')
    (tmp_path / "x").write_bytes(b"abc")
    status, said = curl(served, "find", f"request=@{tmp_path / 'rest.json'}", f"image=@{tmp_path / 'x'}")
    assert (status, said["result"], backend.read) == (200, [], [b"abc"])


def test_several_files_of_one_name_are_inputs(served: Served, backend: ReadingBackend, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one")
    (tmp_path / "y").write_bytes(b"y" * 290_000)  # one that waits on disk
    status, said = curl(served, "vectors", f"inputs=@{tmp_path / 'x'}", "inputs=a text", f"inputs=@{tmp_path / 'y'}")
    assert status == 200, said
    assert len(said["result"]["vectors"]) == 3
    assert backend.read == [b"one", b"y" * 290_000]


def test_media_are_named_by_path_or_sent_as_base64(
    client: httpx2.Client, backend: ReadingBackend, served: Served
) -> None:
    path = str(served.facts["folder"] / "media" / "in.png")
    assert client.post("find", json={"image": path}).status_code == 200
    assert client.post("find", json={"image": {"base64": base64.b64encode(b"x").decode()}}).status_code == 200
    assert backend.read == [PICTURE, b"x"]


@pytest.mark.parametrize("name", ["../../../../tmp/evil", "/etc/passwd", "..\\\\evil", "a\x07b", "con", "x" * 3000])
def test_a_files_name_is_used_for_nothing(served: Served, backend: ReadingBackend, tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"what is in it")
    before = sorted(served.facts["folder"].rglob("*"))
    status, _ = curl(served, "find", f'image=@{tmp_path / "x"};filename="{name}"')
    assert status == 200
    assert backend.read == [b"what is in it"]
    assert sorted(served.facts["folder"].rglob("*")) == before


def test_without_a_kind_the_arguments_say_what_is_asked(client: httpx2.Client) -> None:
    assert client.post("free", json={"prompt": "x"}).json()["verb"] == "generate"
    assert client.post("free", json={"video": URL}).json()["verb"] == "track"
    assert client.post("only", json={"verb": "depth", "image": URL}).json()["verb"] == "depth"
    assert client.post("only", json={"image": URL}).json()["verb"] == "depth"
    assert "one of detect, segment, depth" in refused(client.post("free", json={"image": URL}), 400)
    assert client.post("free", json={"image": URL, "verb": "segment"}).json()["verb"] == "segment"


def test_an_option_that_stands_in_is_named(client: httpx2.Client) -> None:
    answer = client.post("second", json={"image": URL})
    assert answer.json()["option"] == answer.headers["x-taskrouter-option"] == "works"
    assert answer.headers["x-taskrouter-reason"].startswith("broken: ")


def test_a_chat_comes_in_pieces(client: httpx2.Client) -> None:
    with client.stream("POST", "say", json={"messages": "hello there", "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-taskrouter-option"] == "it"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(each["text"] for each in pieces) == "say/it: hello there"
    assert all(each.keys() == {"text", "finish_reason", "usage", "tool_calls", "reasoning"} for each in pieces)
    assert [each["finish_reason"] for each in pieces] == [None, None, None, "stop"]
    assert pieces[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3}


@pytest.mark.parametrize("form", [False, True])
def test_a_client_that_leaves_takes_its_call_along(served: Served, backend: ReadingBackend, form: bool) -> None:
    backend.happened.clear()
    if form:
        kind, body = "multipart/form-data; boundary=b", (
            b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\nx\r\n--b--\r\n')  # fmt: skip
    else:
        kind, body = "application/json", b'{"image": "data:,x"}'
    with connected(served) as connection:
        connection.sendall(head_of("stuck", kind, len(body)) + body)
        assert backend.happened["call-start", "hangs"].wait(20)
        assert not backend.happened["call-cancelled", "hangs"].is_set()
    assert backend.happened["call-cancelled", "hangs"].wait(20)


def test_a_client_that_leaves_in_mid_upload_leaves_nothing(served: Served, client: httpx2.Client) -> None:
    with connected(served) as connection:
        begun = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n' + b"x" * 280_000
        connection.sendall(head_of("find", "multipart/form-data; boundary=b", 300_000) + begun)
    assert client.post("find", json={"image": URL}).status_code == 200


def test_a_file_reaches_a_model_in_another_process_as_its_bytes() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"what is in it")
        upload = Upload(UploadFile(file, size=13, filename="../x.wav"), "audio", frozenset({"wav"}))
        assert (upload.name, upload.size, upload.read(4), upload.read()) == ("audio.wav", 13, b"what", b"what is in it")
        assert pickle.loads(pickle.dumps(upload)) == b"what is in it"
