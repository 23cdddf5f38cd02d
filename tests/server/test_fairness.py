"""Keys that wait for one model take turns: another's long queue delays nobody by its length."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from taskrouter.backends.fake import FakeBackend

from .clients import CHAT, Raw, chat, status_of
from .holding import resume, task
from .serving import keys, serving, written
from .test_streams import seen

MANY, FEW = "the-key-of-very-many", "the-key-of-very-few"


@pytest.mark.slow
def test_a_key_with_one_request_waits_for_one_turn_of_a_key_with_many(tmp_path: Path) -> None:
    script = {"bytes": "1GiB", "call_s": 0.02, "slots": 1}
    option = {"framework": "fake", "model_id": "m", "vram_gb": 1, "engine_args": script}
    file = written(tmp_path, {"say": {"selected": "it", "options": {"it": option}}})
    order: list[str] = []

    async def main(url: str) -> None:
        async with aiohttp.ClientSession(url) as session:

            async def ask(key: str) -> None:
                async with session.post(CHAT, json=chat(), headers={"authorization": f"Bearer {key}"}) as response:
                    assert response.status == 200
                    await response.read()
                    order.append(key)

            await ask(FEW)  # it is loaded
            many = [asyncio.ensure_future(ask(MANY)) for _ in range(30)]
            await asyncio.to_thread(seen, lambda: served.manager.statistics().waiting >= 20)
            few = [asyncio.ensure_future(ask(FEW)) for _ in range(2)]
            await asyncio.gather(*many, *few)

    with serving(file, keys({"TASKROUTER_API_KEYS": f"many={MANY},few={FEW}"})) as served:
        asyncio.run(main(served.url))
    places = [place for place, key in enumerate(order) if key == FEW]
    assert len(order) == 33
    # By then at most ten were answered, and two at work or granted; of the rest each of the two waits for a few.
    assert places[1] < 16, places
    assert places[2] < 20, places


def test_a_key_of_the_least_priority_may_have_several_under_way(tmp_path: Path) -> None:
    known = tmp_path / "keys.yaml"
    known.write_text(json.dumps([{"name": "least", "key": FEW, "priority": -1000}]))
    file = written(tmp_path, {"say": task("slug", hang="call", slots=2)})
    asking = {"authorization": f"Bearer {FEW}"}
    with serving(file, keys(file=known), fake=FakeBackend()) as served, Raw(served.url) as one, Raw(served.url) as two:
        one.ask(CHAT, chat(), asking)
        two.ask(CHAT, chat(), asking)
        assert served.backend is not None
        seen(lambda: served.backend is not None and len(served.backend.labels("call-start")) == 2)
        resume(served, "slug")
        assert [status_of(each.until(b"}}")) for each in (one, two)] == [200, 200]
