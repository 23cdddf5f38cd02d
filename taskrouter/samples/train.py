"""Train a sample from scratch: ``python -m taskrouter.samples.train NAME [--out DIR] [--seed N]``.

Every step sees freshly rendered data. One thread, so that a seed gives the same checkpoint whatever the machine's
number of cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from taskrouter.samples.recipes import RECIPES, Recipe

_WARM_UP = 0.05
_CLIP = 1.0


def train(
    recipe: Recipe, *, seed: int = 1, steps: int | None = None, report: Callable[[int, float], None] | None = None
) -> tuple[Any, Any, list[float]]:
    """Return the trained model, its processor, and the loss of every step.

    ``report`` is called after each step with its number and its loss.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    steps = steps or recipe.steps
    model, processor = recipe.build()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    warm_up = max(2, int(steps * _WARM_UP))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps + 1, pct_start=warm_up / (steps + 1), cycle_momentum=False
    )
    losses: list[float] = []
    for step in range(steps):
        loss = recipe.loss(model, recipe.batch(rng, recipe.batch_size, processor))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if report:
            report(step, losses[-1])
    return recipe.kept(model).eval(), processor, losses


def save(recipe: Recipe, model: Any, processor: Any, folder: Path) -> None:
    """Write a checkpoint that the Auto classes load."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if recipe.finish:
        recipe.finish(folder)


def main(arguments: list[str] | None = None) -> int:
    """Train one sample, save it, and say how long it took."""
    parser = argparse.ArgumentParser(prog="python -m taskrouter.samples.train", description=__doc__)
    parser.add_argument("sample", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, help="folder for the checkpoint (default: the one in the package)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="fewer steps, for a quick look")
    options = parser.parse_args(arguments)
    folder = options.out or Path(__file__).parent / options.sample
    recent: list[float] = []

    def report(step: int, loss: float) -> None:
        recent.append(loss)
        if step % 50 == 49:
            took = time.monotonic() - started
            sys.stdout.write(f"step {step + 1:5}  loss {np.mean(recent[-50:]):.4f}  {took:6.0f} s\n")
            sys.stdout.flush()

    started = time.monotonic()
    recipe = RECIPES[options.sample]
    model, processor, _ = train(recipe, seed=options.seed, steps=options.steps, report=report)
    save(recipe, model, processor, folder)
    sys.stdout.write(f"{options.sample}: {model.num_parameters():,} parameters in {folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
