"""How often a sample is right on data it never saw: ``python -m taskrouter.samples.evaluate NAME [--folder DIR]``.

The checkpoint is loaded by the Auto classes and asked as any other model is. A claims answer or a caption counts only
when all of it is right, letter by letter; scenes are measured by average precision, digits by word error (which needs
espeak-ng, ``pip install espeakng-loader``), phrases by retrieval at 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskrouter.samples.manifest import sample_dir
from taskrouter.samples.precision import average_precision, look
from taskrouter.samples.renderers import claims, clips, shapes, tones
from taskrouter.samples.retrieval import held_out, missed
from taskrouter.samples.word_error import heard, word_error
from taskrouter.samples.word_error import held_out as spoken

HELD_OUT_SEED = 90_000
"""Far from any seed a sample is trained or demonstrated with."""

_BATCH = 50

Mistake = tuple[str, str]
"""What was expected, and what was answered."""


def mistakes(name: str, count: int, *, folder: Path | None = None, seed: int = HELD_OUT_SEED) -> list[Mistake]:
    """Ask the sample ``count`` held-out questions and return those it got wrong."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        pairs = list(_ASK[name](rng, count, folder or sample_dir(name)))
    return [(expected, answered) for expected, answered in pairs if expected != answered]


def _ask_shapes(rng: np.random.Generator, count: int, folder: Path) -> Iterator[Mistake]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    for size in _batches(count):
        expected = [str(label) for label in rng.choice(shapes.LABELS, size)]
        pictures = [shapes.render(rng, label) for label in expected]
        best = model(**processor(pictures, return_tensors="pt")).logits.argmax(-1)
        yield from zip(expected, _named(model, best), strict=True)


def _ask_tones(rng: np.random.Generator, count: int, folder: Path) -> Iterator[Mistake]:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    for size in _batches(count):
        expected = [str(label) for label in rng.choice(tones.LABELS, size)]
        sounds = [tones.render(rng, label) for label in expected]
        inputs = extractor(sounds, sampling_rate=tones.RATE, padding=True, return_tensors="pt")
        yield from zip(expected, _named(model, model(**inputs).logits.argmax(-1)), strict=True)


def _ask_claims(rng: np.random.Generator, count: int, folder: Path) -> Iterator[Mistake]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    for size in _batches(count):
        examples = [claims.render(rng, "held-out") for _ in range(size)]
        chats = [claims.messages(example.sentence) for example in examples]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        yield from zip([example.answer for example in examples], answers, strict=True)


FILES = 5
"""Of so many clips one is a real file, which is decoded again."""


def _ask_clips(rng: np.random.Generator, count: int, folder: Path) -> Iterator[Mistake]:
    """Sheets as drawn, and every fifth of frames that a codec has worn and that were found in its file again."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    for size in _batches(count):
        shots = [clips.render(rng, size=_CLIP_SIZES[number % len(_CLIP_SIZES)]) for number in range(size)]
        sheets = [
            clips.filmed_sheet(rng, shot) if number % FILES == 0 else clips.sheet(rng, shot)
            for number, shot in enumerate(shots)
        ]
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": sheet}, {"type": "text", "text": clips.PROMPT}]}]
            for sheet in sheets
        ]
        inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, padding=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers = processor.batch_decode(tokens, skip_special_tokens=True)
        yield from zip([shot.caption for shot in shots], answers, strict=True)


_CLIP_SIZES = ((96, 96), (160, 120), (256, 144), (120, 160), (192, 144), (64, 64), (128, 96))
"""Of the pictures; every one has its turn among the files."""

_ASK: Mapping[str, Callable[[np.random.Generator, int, Path], Iterator[Mistake]]] = {
    "shapes": _ask_shapes,
    "tones": _ask_tones,
    "claims": _ask_claims,
    "clips": _ask_clips,
}


def _scenes(count: int, folder: Path) -> str:
    seen = look(count, folder, seed=HELD_OUT_SEED)
    figures = ", ".join(f"AP{int(100 * least)} {average_precision(*seen, least):.3f}" for least in (0.5, 0.75))
    return f"{figures} on {count:,} held-out pictures"


def _digits(count: int, folder: Path) -> str:
    utterances = spoken(count, seed=HELD_OUT_SEED)
    wrong = word_error([each.text for each in utterances], heard([each.sound for each in utterances], folder))
    return f"word error {wrong:.2%} in {count:,} utterances of voices it never heard"


def _phrases(count: int, folder: Path) -> str:
    wrong = missed(held_out(count, seed=HELD_OUT_SEED), folder)
    return f"retrieval@1 {1 - len(wrong) / count:.3f} among {count:,} held-out sentences"


_MEASURED: Mapping[str, Callable[[int, Path], str]] = {
    "scenes": _scenes,
    "digits": _digits,
    "phrases": _phrases,
}
"""Where no answer is right or wrong alone."""


def _batches(count: int) -> Iterator[int]:
    for start in range(0, count, _BATCH):
        yield min(_BATCH, count - start)


def _named(model: Any, indices: Any) -> list[str]:
    return [str(model.config.id2label[int(index)]) for index in indices]


def main(arguments: list[str] | None = None) -> int:
    """Print the accuracy of one sample and some of its mistakes."""
    parser = argparse.ArgumentParser(prog="python -m taskrouter.samples.evaluate", description=__doc__)
    parser.add_argument("sample", choices=sorted([*_ASK, *_MEASURED]))
    parser.add_argument("--folder", type=Path, help="a checkpoint elsewhere (default: the one in the package)")
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args(arguments)
    if options.sample in _MEASURED:
        figure = _MEASURED[options.sample](options.count, options.folder or sample_dir(options.sample))
        sys.stdout.write(f"{options.sample}: {figure}\n")
        return 0
    wrong = mistakes(options.sample, options.count, folder=options.folder)
    right = 1 - len(wrong) / options.count
    sys.stdout.write(f"{options.sample}: {right:.2%} of {options.count:,} held-out inputs right\n")
    for expected, answered in wrong[:10]:
        sys.stdout.write(f"  expected {expected!r}\n  answered {answered!r}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
