"""Concurrent calls of one Transformers model: worked on together against one by one, and what a lone call pays.

A language model of random weights (80 million parameters in float32) and the samples; eight callers, each of whom asks
again as soon as it is answered.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.measure import Row, show
from taskrouter.manager.manager import ModelManager
from taskrouter.samples.manifest import MEDIA, sample_dir

CALLERS, CALLS, ROUNDS = 8, 3, 3
FILE = """
tasks:
  write: {{kind: generation, selected: m, options: {{m: {{model_id: {llama}, framework: transformers}}}}}}
  see: {{kind: image_classification, selected: m, options: {{m: {{model_id: {shapes}, framework: transformers}}}}}}
  find: {{kind: detection, selected: m, options: {{m: {{model_id: {scenes}, framework: transformers}}}}}}
inference: {{max_batch_size: {most}}}
media: {{roots: [{media}]}}
"""


def llama(folder: Path) -> Path:
    """A Llama with a word-level tokenizer; its answers are noise, at the price of real ones."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16_000, hidden_size=640, intermediate_size=1792, num_hidden_layers=12, num_attention_heads=10,
        num_key_value_heads=5, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{place}": place for place in range(16_000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0").save_pretrained(folder)
    return folder


Ask = Callable[[Any, int], Awaitable[Any]]

ASKED: dict[str, tuple[str, Ask]] = {
    "generate, 32 tokens after prompts of 16 to 128": (
        "write", lambda model, n: model.generate(" ".join(f"w{n + k}" for k in range(16 * (1 + n % 8))), max_tokens=32)
    ),
    "classify, sample shapes": ("see", lambda model, _: model.classify(MEDIA / "red-circle.png")),
    "detect, sample scenes": ("find", lambda model, _: model.detect(MEDIA / "scene.png")),
}  # fmt: skip


async def crowd(model: Any, ask: Ask) -> tuple[float, float]:
    """Seconds for a call when eight ask all the time: in all divided by calls, and of the slowest one."""
    slowest = 0.0

    async def caller(number: int) -> None:
        nonlocal slowest
        for turn in range(CALLS):
            start = time.perf_counter()
            await ask(model, number + turn)
            slowest = max(slowest, time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return (time.perf_counter() - start) / (CALLERS * CALLS), slowest


async def alone(model: Any, ask: Ask) -> float:
    start = time.perf_counter()
    for number in range(4):
        await ask(model, number)
    return (time.perf_counter() - start) / 4


async def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        where = {"llama": llama(Path(folder) / "llama"), **{name: sample_dir(name) for name in ("shapes", "scenes")}}
        files = {most: Path(folder) / f"{most}.yaml" for most in (1, 8)}
        for most, file in files.items():
            file.write_text(FILE.format(most=most, media=MEDIA, **where), encoding="utf-8")
        async with ModelManager(files[1]) as one_by_one, ModelManager(files[8]) as together:
            for what, (task, ask) in ASKED.items():
                models = [await manager.load_model(task) for manager in (one_by_one, together)]
                best = [[float("inf")] * 3, [float("inf")] * 3]
                for _ in range(ROUNDS):
                    for place, model in enumerate(models):
                        figures = (*await crowd(model, ask), await alone(model, ask))
                        best[place] = [min(pair) for pair in zip(best[place], figures, strict=True)]
                (base, base_slow, base_alone), (each, slow, lone) = best
                name = "one by one"
                rows += [
                    Row(f"{what}: a call, 8 callers", each * 1e3, "ms", name, base * 1e3, "< 1 ×"),
                    Row("  the slowest of them", slow * 1e3, "ms", name, base_slow * 1e3, "reported"),
                    Row("  a call alone", lone * 1e3, "ms", name, base_alone * 1e3, "1 ×"),
                ]
    show("calls worked on together", rows)
