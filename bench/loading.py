"""Loading a model of 1 GB: against bare ``from_pretrained``, and what it does to the event loop and to calls on others.

The checkpoint is made on the spot (random weights, bfloat16 on disk) and loaded as float32, so that every page is read
and copied: a load that only maps the file would measure nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import tempfile
import time
from pathlib import Path

from bench.measure import Row, show
from taskrouter.manager import ModelManager

ROUNDS = 9
QUIET_CALLS = 300
TICK_S = 0.001

FILE = """
tasks:
  big: {{selected: a, options: {{a: {{model_id: {big}, framework: transformers, dtype: float32}}}}}}
  hot:
    selected: a
    options: {{a: {{model_id: hot, framework: fake, vram_gb: 0.001, engine_args: {{bytes: 1MiB}}}}}}
inference: {{warmup_on_startup: false}}
"""


def make_checkpoint(folder: Path) -> None:
    """A Llama of 268 M random parameters (0.5 GB in bfloat16, 1.07 GB in float32), with a tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=15,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "hello": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    fast.save_pretrained(folder)


def settle() -> None:
    """Give freed memory back, so that neither side loads into pages that the other has touched."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def bare(folder: Path) -> float:
    """Seconds of bare ``from_pretrained``."""
    import torch
    from transformers import AutoModelForCausalLM

    settle()
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seconds = time.perf_counter() - start
    del model
    return seconds


async def longest_gap(during: asyncio.Event) -> float:
    """The longest time the loop did not come round, in seconds, until told to stop."""
    longest, last = 0.0, time.perf_counter()
    while not during.is_set():
        await asyncio.sleep(TICK_S)
        now = time.perf_counter()
        longest, last = max(longest, now - last - TICK_S), now
    return longest


def p99(samples: list[float]) -> float:
    return sorted(samples)[max(int(len(samples) * 0.99) - 1, 0)]


async def calls(manager: ModelManager, stop: asyncio.Event, least: int) -> list[float]:
    hot = await manager.get_model("hot")
    taken: list[float] = []
    while not stop.is_set() or len(taken) < least:
        start = time.perf_counter()
        await hot.chat("x")
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(0.001)
    return taken


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "big"
        make_checkpoint(folder)
        path = Path(name) / "models.yaml"
        path.write_text(FILE.format(big=folder), encoding="utf-8")
        loads, bares, gaps, busy = [], [], [], []
        async with ModelManager(path) as manager:
            # The first load imports torch's and transformers' lazy parts; both sides find them imported.
            await manager.load_model("big")
            await manager.unload_model("big")
            bare(folder)
            done = asyncio.Event()
            done.set()
            quiet = await calls(manager, done, QUIET_CALLS)
            for _ in range(ROUNDS):
                bares.append(bare(folder))
                settle()
                start = time.perf_counter()
                await manager.load_model("big")
                loads.append(time.perf_counter() - start)
                await manager.unload_model("big")
            for _ in range(ROUNDS):
                stop = asyncio.Event()
                gap, hot = asyncio.create_task(longest_gap(stop)), asyncio.create_task(calls(manager, stop, 1))
                await asyncio.sleep(0.01)
                await manager.load_model("big")
                stop.set()
                gaps.append(await gap)
                busy += await hot
                await manager.unload_model("big")
    base = min(bares)
    show(
        "loading 1.07 GB (float32 from bfloat16) under Transformers",
        [
            Row(
                "load_model",
                min(loads),
                "s",
                "bare from_pretrained",
                base,
                f"≤ 1.05 × + 30 ms: {base * 1.05 + 0.03:.3f} s",
            ),
            Row("longest gap of the event loop", max(gaps) * 1e3, "ms", "", None, "≤ 50 ms (goal)"),
            Row("p99 of calls to a resident model", p99(busy) * 1e3, "ms", "no load", p99(quiet) * 1e3, "reported"),
        ],
    )
