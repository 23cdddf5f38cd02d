"""``chat`` on a resident model against bare ``generate`` on the same tokens: what leases, threads and text cost.

Two random Llamas that never end by themselves. A token of the small one takes half a millisecond, which no model of
use does: the worst case. One of the other, of 80 M parameters, takes what small models in use take.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from bench.measure import Row, in_turns, show
from taskrouter.manager import ModelManager

WORDS = 4_000
TOKENS = 96
MESSAGES = [{"role": "user", "content": " ".join(f"w{place}" for place in range(40))}]
MODELS = {"80 M parameters": (640, 12, 7), "0.6 M parameters, the worst case": (64, 2, 31)}
"""Width, layers, and rounds of measuring."""


def make_checkpoint(folder: Path, width: int, layers: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=1024,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{place}": place for place in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    fast.save_pretrained(folder)


async def measured(manager: ModelManager, folder: Path, task: str, rounds: int) -> list[float]:
    """Seconds of ``chat`` and of bare ``generate``, then the processor's seconds of each."""
    import torch
    from transformers import AutoTokenizer

    model = await manager.get_model(task)
    async with manager.lease(task) as lease:
        module = lease.raw
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    busy = {"chat": float("inf"), "generate": float("inf")}

    async def ours() -> float:
        start, worked = time.perf_counter(), time.process_time()
        answer = await model.chat(MESSAGES, max_tokens=TOKENS)
        seconds = time.perf_counter() - start
        busy["chat"] = min(busy["chat"], time.process_time() - worked)
        assert answer.usage.completion_tokens == TOKENS
        return seconds

    async def bare() -> float:
        start, worked = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            module.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
        seconds = time.perf_counter() - start
        busy["generate"] = min(busy["generate"], time.process_time() - worked)
        return seconds

    await ours(), await bare()
    return [*await in_turns(ours, bare, rounds=rounds), *busy.values()]


async def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number, (what, (width, layers, rounds)) in enumerate(MODELS.items()):
            folder, path = Path(name) / f"made{number}", Path(name) / f"models{number}.yaml"
            make_checkpoint(folder, width, layers)
            option = {"model_id": str(folder), "framework": "transformers"}
            path.write_text(json.dumps({"tasks": {"t": {"selected": "a", "options": {"a": option}}}}), encoding="utf-8")
            async with ModelManager(path) as manager:
                mine, base, mine_busy, base_busy = await measured(manager, folder, "t", rounds)
            target = "reported" if number else "≤ 1.02 ×"
            rows += [
                Row(f"chat, {TOKENS} tokens, {what}", mine * 1e3, "ms", "bare generate", base * 1e3, target),
                Row("the same, seconds of the processor", mine_busy * 1e3, "ms", "bare", base_busy * 1e3, ""),
            ]
    show("an answer of a resident model", rows)
