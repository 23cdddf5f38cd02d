"""Messages between a model's process and ours: what arrives is what was sent, and nothing is left of it."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image
import pytest

from taskrouter.backends.hf.isolated.line import Line
from taskrouter.backends.hf.isolated.wire import INLINE, OUT_OF_BAND, Garbled, Message, pack, receive, send
from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.limits import MediaLimits

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A socket pair; every descriptor that was opened meanwhile has been closed."""
    fds = len(os.listdir("/proc/self/fd"))
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield here, there
    here.close()
    there.close()
    assert len(os.listdir("/proc/self/fd")) == fds


def across(ends: Ends, body: Any, limits: MediaLimits | None = None) -> Any:
    send(ends[0], pack(Message("call", 7, body), limits))
    got = receive(ends[1])
    assert got is not None
    assert (got.what, got.number) == ("call", 7)
    return got.body


@pytest.mark.parametrize("size", [0, 1, INLINE - 100, INLINE, INLINE + 1, OUT_OF_BAND - 1, OUT_OF_BAND, 3 << 20])
def test_bytes_and_arrays_of_every_size_arrive_as_they_were(ends: Ends, size: int) -> None:
    data = os.urandom(size)
    array = np.frombuffer(data, np.uint8).copy()
    text, whole, cut = across(ends, (data, array, array[::2]))
    assert text == data
    assert np.array_equal(whole, array)
    assert np.array_equal(cut, array[::2])
    whole += 1  # a model may work in place


def test_a_large_array_is_not_copied_into_a_pickle_and_a_small_message_takes_no_memory(ends: Ends) -> None:
    assert pack(Message("call", 1, "hello")).memory is None
    packed = pack(Message("call", 1, np.zeros(8 << 20, np.uint8)))
    assert packed.memory is not None
    assert len(packed.datagram) < 200
    assert os.readlink(f"/proc/self/fd/{packed.memory}").startswith("/memfd:"), "what has a name can be left behind"
    assert os.fstat(packed.memory).st_size < (8 << 20) + 1000
    packed.close()


def test_more_arrays_than_a_datagram_could_list_arrive(ends: Ends) -> None:
    arrays = [np.full(OUT_OF_BAND, number % 256, np.uint8) for number in range(300)]
    got = across(ends, arrays)
    assert all(np.array_equal(one, other) for one, other in zip(got, arrays, strict=True))


def test_pictures_file_objects_and_views_arrive_as_something_that_reads_the_same(ends: Ends, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    picture = PIL.Image.effect_noise((300, 200), 80).convert("RGB")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture.save(file, exif=exif)
    limits = MediaLimits()
    opened = across(ends, PIL.Image.open(file), limits)
    assert np.array_equal(np.asarray(opened), np.asarray(picture))
    assert opened.getexif()[0x0112] == 6
    with file.open("rb") as source, file.open("rb") as begun:
        begun.seek(8)
        assert across(ends, source, limits).read() == file.read_bytes()
        assert across(ends, begun, limits).read(100) == file.read_bytes()[8:108]
    assert across(ends, io.StringIO("text"), limits).read() == "text"
    assert across(ends, memoryview(b"abc"), limits) == b"abc"
    assert across(ends, MappingProxyType({"a": 1}), limits) == {"a": 1}


def test_what_is_over_a_limit_or_damaged_is_refused_before_it_is_sent(ends: Ends, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    PIL.Image.effect_noise((300, 200), 80).save(file)
    with PIL.Image.open(file) as lazy, pytest.raises(MediaTooLarge, match="300 × 200"):
        pack(Message("call", 1, lazy), MediaLimits(max_pixels=1000))
    cut = io.BytesIO(file.read_bytes()[:2000])
    with PIL.Image.open(cut) as lazy, pytest.raises(BadInput, match="damaged image"):
        pack(Message("call", 1, lazy), MediaLimits())
    endless = (tmp_path / "zeros").open("wb+")
    endless.truncate(1 << 30)
    with endless:  # one byte more than the limit is enough for the reader to know
        assert len(across(ends, endless, MediaLimits(max_bytes=1000)).read()) == 1001
    with pytest.raises(BadInput, match=r"can't be read from BufferedRandom: .*closed file"):
        pack(Message("call", 1, endless), MediaLimits())


class Secretive:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_body_that_makes_no_sense_costs_its_own_call_only(ends: Ends) -> None:
    garbled = across(ends, Secretive())
    assert isinstance(garbled, Garbled)
    assert isinstance(garbled.error, ValueError)
    assert across(ends, "next") == "next"


def test_a_socket_that_is_hung_up_ends_the_reading(ends: Ends) -> None:
    ends[0].shutdown(socket.SHUT_RDWR)
    assert receive(ends[1]) is None


async def two_lines(ends: Ends, work: Any) -> None:
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Message | None] = asyncio.Queue()
    here = Line("there", ends[0], loop, lambda _: None, lambda: None)
    there = Line("here", ends[1], loop, heard.put_nowait, lambda: heard.put_nowait(None))
    try:
        await work(here, heard)
    finally:
        here.close()
        there.close()
        here.close()
        await asyncio.to_thread(here.join)
        await asyncio.to_thread(there.join)


def test_what_was_sent_first_comes_first_whatever_its_size(ends: Ends) -> None:
    async def work(here: Line, heard: asyncio.Queue[Message | None]) -> None:
        for number in range(40):
            here.send(Message("piece", number, np.zeros(number % 3 << 18, np.uint8)))
        got = [await heard.get() for _ in range(40)]
        assert [message.number for message in got if message is not None] == list(range(40))

    asyncio.run(two_lines(ends, work))


def test_an_answer_that_can_not_be_sent_is_the_failure_of_its_call(ends: Ends) -> None:
    async def work(here: Line, heard: asyncio.Queue[Message | None]) -> None:
        here.send(Message("answer", 3, threading.Lock()))
        got = await heard.get()
        assert got is not None
        assert (got.what, got.number) == ("failed", 3)
        assert "can't be sent from its process: TypeError" in str(got.body[0])

    asyncio.run(two_lines(ends, work))


def test_who_hangs_up_is_heard_and_what_was_not_sent_is_given_back(ends: Ends) -> None:
    async def work(here: Line, heard: asyncio.Queue[Message | None]) -> None:
        here.close()
        here.send(pack(Message("call", 1, np.zeros(1 << 20, np.uint8))))
        assert await heard.get() is None

    asyncio.run(two_lines(ends, work))
