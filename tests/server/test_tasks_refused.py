"""What the task API refuses: nonsense, what is too large, and what may not be read. Always with what is wrong."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from .reading import ReadingBackend
from .serving import Served
from .task_server import MAX_BYTES, connected, curl, head_of, refused, task_server

UNENDED = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\nx'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with task_server(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.mark.parametrize(
    ("task", "body", "match"),
    [
        ("find", "{", "no JSON"),
        ("find", "[]", "an object is wanted"),
        ("find", '{"image": "a", "image": "b"}', "'image' twice"),
        ("find", '{"image": "a", "sauce": 1, "salt": 2}', "detect takes no 'sauce'"),
        ("find", "{}", "detect needs image"),
        ("find", '{"image": 3}', "image: it must be a data: URL"),
        ("find", '{"image": {"base64": "?"}}', "image: it is no valid base64"),
        ("find", '{"image": "a", "threshold": "0.5"}', "threshold: Input should be a valid number"),
        ("find", '{"image": "a", "threshold": true}', "threshold: "),
        ("find", '{"image": "a", "labels": ["a", 3]}', "labels.1: "),
        ("find", '{"image": "a", "verb": "chat", "messages": "x"}', "chat takes no 'image'"),
        ("find", '{"verb": "chat", "messages": "x"}', "of kind detection, which can't chat"),
        ("find", '{"image": "a", "stream": true}', "detect takes no 'stream'"),
        ("look", '{"input": "a", "top_k": 0}', "top_k: "),
        ("look", '{"input": "a", "top_k": 1.5}', "top_k: "),
        ("cut", '{"image": "a", "points": [[1]]}', "a point is x and y"),
        ("cut", '{"image": "a", "boxes": [[1, 2, 3]]}', "boxes.0: "),
        ("follow", '{"video": "a", "fps": 0}', "fps: "),
        ("say", '{"messages": []}', "messages is empty"),
        ("say", '{"messages": [{"role": "user", "content": 5}]}', "content must be a text"),
        ("say", '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "content must be a text"),
        ("say", '{"messages": "a", "stop": 3}', "stop: "),
        ("say", '{"messages": "a", "max_tokens": 1e3}', "max_tokens: "),
        ("vectors", '{"inputs": []}', "it is empty"),
        ("vectors", '{"inputs": [3]}', "inputs: it must be"),
        ("say", '{"messages": ' + "[" * 500 + "]" * 500 + "}", "nested more than 100"),
        ("say", '{"messages": ' + "[" * 100_000 + "}", "no JSON"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(client: httpx2.Client, task: str, body: str, match: str) -> None:
    answer = client.post(task, content=body, headers={"content-type": "application/json"})
    said = refused(answer, 400)
    assert match in said
    assert len(said) < 2100


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (("image=x", "image=y"), "'image' twice"),
        (("image=x", 'request={"image": "y"}'), "'image' twice"),
        (("image=x", "request={}", "request={}", "request={"), "is no JSON"),
        (("image=x", "threshold=much"), "threshold (anything but a text is JSON in a form) is no JSON"),
        (("image=x", "threshold=true"), "threshold: "),
        (("image=x", "labels=cup"), "is no JSON"),
        (("image=x", "threshold=@/etc/hostname"), "'threshold' came as a file"),
        (("image=x", "sauce=1"), "takes no 'sauce'"),
        (("image=",), "image: it must be"),
        (tuple(f"f{place}=1" for place in range(70)), "Too many fields"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(served: Served, fields: tuple[str, ...], match: str) -> None:
    status, said = curl(served, "find", *fields)
    assert status == 400, said
    assert match in said["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "body", "status", "match"),
    [
        ("text/plain", b"x", 415, "'text/plain'"),
        ("", b"x", 415, "says nothing"),
        ("application/x-www-form-urlencoded", b"image=x", 415, "curl with --json in place of -d"),
        ("multipart/form-data", b"x", 400, "boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, b"x", 400, "can't be read"),
        ("multipart/form-data; boundary=b", b"no form", 400, "can't be read"),
        ("multipart/form-data; boundary=b", b"", 400, "cut short"),
        ("multipart/form-data; boundary=b", UNENDED, 400, "cut short"),
        ("multipart/form-data; boundary=b", b"--b\r\nx: y\r\n\r\nx\r\n--b--\r\n", 400, "name"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 10_000, 400, "can't be read"),
    ],
)  # fmt: skip
def test_bodies_of_other_sorts_are_refused(
    client: httpx2.Client, kind: str, body: bytes, status: int, match: str
) -> None:
    answer = client.post("find", content=body, headers={"content-type": kind})
    assert match in refused(answer, status)


def test_large_files_are_refused(served: Served, backend: ReadingBackend, tmp_path: Path) -> None:
    (tmp_path / "fits").write_bytes(b"x" * MAX_BYTES)
    (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "huge").write_bytes(b"x" * (2 * MAX_BYTES + (1 << 20)))
    assert curl(served, "find", f"image=@{tmp_path / 'fits'}")[0] == 200
    status, said = curl(served, "find", f"image=@{tmp_path / 'large'}")
    assert (status, said["error"]["code"]) == (413, "media_too_large")
    assert curl(served, "find", f"image=@{tmp_path / 'huge'}")[0] == 413
    chunked = ("-H", "transfer-encoding: chunked")
    assert curl(served, "find", f"image=@{tmp_path / 'huge'}", more=chunked)[0] == 413
    assert curl(served, "find", f"image=<{tmp_path / 'huge'}")[0] == 413
    text = tmp_path / "text"
    text.write_bytes(b"x" * ((1 << 20) + 1))
    assert curl(served, "find", f"image=<{text}")[0] == 413
    assert [len(each) for each in backend.read] == [MAX_BYTES]


def test_a_large_body_in_json_is_refused(client: httpx2.Client) -> None:
    large = base64.b64encode(b"x" * (MAX_BYTES + 10)).decode()
    assert "media.max_bytes" in refused(client.post("find", json={"image": {"base64": large}}), 413)
    assert "media.max_bytes" in refused(client.post("find", json={"image": f"data:;base64,{large}"}), 413)
    refused(client.post("find", json={"image": "x" * (MAX_BYTES * 2 + (1 << 20))}), 413)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_body_of_a_gigabyte_is_refused_before_it_comes(served: Served, kind: str) -> None:
    with connected(served) as connection:
        connection.sendall(head_of("find", kind, 1 << 30))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("http://127.0.0.1:1/x.png", "isn't a public address"),
        ("http://169.254.169.254/latest/meta-data", "isn't a public address"),
        ("http://[::1]/x", "isn't a public address"),
        ("http://localhost/x", "isn't a public address"),
        ("file:///etc/passwd", "is a URL"),
        ("/etc/passwd", "outside the folders"),
        ("../secret.png", "outside the folders"),
        ("a\0b", "is no path"),
    ],
)
def test_what_may_not_be_read_is_not(
    client: httpx2.Client, served: Served, backend: ReadingBackend, source: str, match: str
) -> None:
    text = refused(client.post("find", json={"image": source}), 400)
    assert match in text
    assert str(served.facts["folder"]) not in text
    assert backend.read == []
    status, said = curl(served, "find", f"image={source}") if "\0" not in source else (400, None)
    assert (status, said and said["error"]["message"]) == (400, said and text)


def test_who_may_not_ask_is_told_before_the_body_is_read(client: httpx2.Client) -> None:
    assert "there is no task 'nobody'" in refused(client.post("nobody", content=b"?"), 404)
    assert "no option" in refused(client.post("find/nobody", content=b"?"), 404)
    assert "API key" in refused(client.post("find", headers={"authorization": ""}), 401)
    assert refused(client.get("find"), 405)
    assert "letters" in refused(client.post("x" * 300), 400)


def test_a_name_of_a_megabyte_is_refused(client: httpx2.Client, served: Served) -> None:
    name = "x" * (1 << 20)
    answer = client.post(f"{served.url}/v1/chat/completions", json={"model": name, "messages": []})
    assert "has 1,048,576 letters" in refused(answer, 400)
    with connected(served) as connection:
        connection.sendall(f"POST /v1/tasks/{name} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
        assert connection.recv(1000).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
    answer = client.post("find", json={"image": "x", name: 1})
    assert len(refused(answer, 400)) < 2100
