"""Texts that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, ContextTooLong, UnsupportedInput
from taskrouter.types import CPU
from taskrouter.verbs import GenerateRequest, Usage

from .checkpoints import CHARGES, CONTEXT, request

pytestmark = pytest.mark.anyio


async def test_a_text_goes_on_as_by_transformers_own_pipeline(backend: TransformersBackend, chat_folder: Path) -> None:
    import transformers

    model = await backend.load(request(chat_folder), (CPU,), CHARGES)

    async def go_on(prompt: str, **how: Any) -> Any:
        return await model.call("generate", GenerateRequest(prompt, **how))

    answer = await go_on("w1 w2 w3", max_tokens=5)
    assert (answer.usage, answer.finish_reason) == (Usage(3, 5), "length")
    write = transformers.pipeline("text-generation", model=str(chat_folder))
    theirs = write("w1 w2 w3", max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert answer.text.split() == theirs.split()
    assert (await go_on("w1 w2 w3", max_tokens=5, stop=(answer.text.split()[0],))).text == ""
    drawn = [await go_on("w1", max_tokens=8, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert await backend.unload(model, timeout_s=5) == {}


async def test_what_cannot_go_on_is_refused(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    for wanted, kind, said in (
        (GenerateRequest("  "), BadInput, "comes to no tokens"),
        (GenerateRequest("w1", temperature=-1), BadInput, "temperature wants a number at least 0"),
        (GenerateRequest("w1", extra={"best_of": 2}), UnsupportedInput, "extra has best_of"),
        (GenerateRequest("w1 " * CONTEXT), ContextTooLong, f"the model's context is {CONTEXT}"),
    ):
        with pytest.raises(kind, match=said):
            await model.call("generate", wanted)
    await backend.unload(model, timeout_s=5)
