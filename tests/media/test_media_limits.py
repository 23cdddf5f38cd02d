"""The guard in front of images and sounds: paths, URLs, sizes and folders."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from taskrouter.errors import BadInput, MediaTooLarge, MissingDependency
from taskrouter.media import MediaLimits, load_audio, load_image
from taskrouter.media.limits import opened


def png(path: Path) -> Path:
    Image.new("RGB", (4, 4), "red").save(path, "PNG")
    return path


def test_importing_the_room_loads_no_decoder() -> None:
    program = "import sys, taskrouter.media; print({'PIL', 'av', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("module", "read"), [("PIL.Image", load_image), ("av", lambda source: load_audio(source, sampling_rate=16_000))]
)
def test_a_missing_decoder_names_the_extra_that_brings_it(
    module: str, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"needs {module}.*taskrouter\[transformers\]"):
        read(b"data")


@pytest.mark.parametrize("read", [load_image, lambda source: load_audio(source, sampling_rate=16_000)])
def test_bad_sources_are_refused_alike_for_images_and_audio(read: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "missing.png", "isn't there"),
        (tmp_path, "is a folder"),
        (empty, "is empty"),
        (tmp_path / "pipe", "no regular file"),
        ("/dev/zero", "no regular file"),
        (tmp_path / "loop", "can't be"),
        ("a\0b", "no path"),
        ("", "no path"),
        (b"path.png", "give a"),
        (b"", "is empty"),
        (io.BytesIO(), "is empty"),
        (io.StringIO("text"), "binary mode"),
        ("https://example.com/a.png?key=secret", "only local files"),
        ("file:///etc/passwd", "only local files"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,***", "base64"),
        ("data:image/png;base64,", "is empty"),
        (None, "NoneType"),
        (17, "int"),
    ]
    for source, words in cases:
        with pytest.raises(BadInput, match=words) as caught:
            read(source)
        assert "secret" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    path.chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        load_image(path)


def test_a_closed_file_is_bad_input(tmp_path: Path) -> None:
    file = png(tmp_path / "a.png").open("rb")
    file.close()
    with pytest.raises(BadInput, match="closed file"):
        load_image(file)


def test_the_byte_limit_is_exact_for_every_source(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    data = path.read_bytes()
    url = "data:image/png," + "".join(f"%{byte:02x}" for byte in data)
    exact, below = MediaLimits(max_bytes=len(data)), MediaLimits(max_bytes=len(data) - 1)
    for make in (lambda: path, lambda: data, lambda: io.BytesIO(data)):
        assert load_image(make(), exact).size == (4, 4)
        with pytest.raises(MediaTooLarge, match="max_bytes"):
            load_image(make(), below)
    assert load_image(url).size == (4, 4)
    with pytest.raises(MediaTooLarge):
        load_image(url, below)


def test_no_more_is_read_from_an_endless_file_than_the_limit() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size >= 0
            self.given += size
            return b"\0" * size

    source = Endless()
    with pytest.raises(MediaTooLarge):
        load_image(source, MediaLimits(max_bytes=1000))
    assert source.given == 1001


def test_paths_must_lie_under_the_roots_once_links_are_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"
    for folder in (inside, outside):
        folder.mkdir()
        png(folder / "a.png")
    (inside / "link.png").symlink_to(outside / "a.png")
    limits = MediaLimits(roots=(str(inside),))
    assert load_image(inside / "a.png", limits).size == (4, 4)
    for path in (
        outside / "a.png",
        inside / "link.png",
        inside / ".." / "inside-not" / "a.png",
        outside / "missing.png",
    ):
        with pytest.raises(BadInput, match=r"media\.roots"):
            load_image(path, limits)
    with pytest.raises(BadInput, match=r"media\.roots allows"):
        load_image(inside / "a.png", MediaLimits(roots=()))


def test_a_root_that_is_a_link_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    real.mkdir()
    png(real / "a.png")
    (tmp_path / "link").symlink_to(real)
    assert load_image(tmp_path / "link" / "a.png", MediaLimits(roots=(str(tmp_path / "link"),))).size == (4, 4)
    monkeypatch.chdir(real)
    assert load_image("a.png", MediaLimits(roots=(".",))).size == (4, 4)


def test_roots_say_nothing_about_bytes_that_were_given(tmp_path: Path) -> None:
    data = png(tmp_path / "a.png").read_bytes()
    assert load_image(data, MediaLimits(roots=())).size == (4, 4)


def test_a_file_object_is_read_from_where_it_stands_and_stays_open() -> None:
    source = io.BytesIO(b"skip" + b"rest")
    source.seek(4)
    with opened(source, MediaLimits(), what="image") as file:
        assert (file.file.read(), file.size) == (b"rest", 4)
    assert not source.closed
