"""What the samples are shown with: the checkpoints' folders, and inputs with the answers they should get.

The seeds of the media files are used for nothing else; ``render.py`` draws and plays them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
MEDIA = _HERE / "media"


@dataclass(frozen=True, slots=True)
class DemoInput:
    """One question: the task, the verb to call, what to give it, and the answer it should get.

    ``input`` is a file's path for ``classify`` and the sentence for ``chat``; ``messages`` is then the chat to send.
    """

    task: str
    verb: str
    input: str
    expected: str

    @property
    def messages(self) -> list[dict[str, str]] | None:
        if self.verb != "chat":
            return None
        from taskrouter.samples.renderers.claims import messages

        return messages(self.input)

    def is_right(self, answer: str) -> bool:
        """Whether an answer (the best label, or the chat's text) says what was expected, in whatever order."""
        return _lines(answer) == _lines(self.expected)


DEMO = {"image_classification": "shapes", "audio_classification": "tones", "claim_extraction": "claims"}
"""The sample that does each task of the demo: of one size, so that a budget for two of them has to evict."""
SAMPLES = {
    **DEMO,
    "object_detection": "scenes",
    "text_embedding": "phrases",
    "video_summarization": "clips",
}
"""The sample that does each task."""
_ENGINE_ARGS = {"clips": {"video_frames": 4, "video_layout": "sheet"}}
"""What options of samples say beside where the model is."""
SCENE = MEDIA / "scene.png"
"""A picture with several shapes."""
SCENE_SEED = 100_112
SPOKEN = MEDIA / "digits.wav"
"""Some digits, said by a voice that training never heard."""
SPOKEN_SEED = 110_001
CLIP = MEDIA / "clip.mp4"
"""Two seconds of video."""
CLIP_CAPTION = "a red circle moves right"
CLIP_SEED = 110_001

PICTURES = (
    ("red-circle.png", "red circle", (160, 120), 70_001),
    ("blue-star.png", "blue star", (128, 128), 70_002),
    ("green-triangle.jpg", "green triangle", (200, 150), 70_003),
    ("yellow-square.png", "yellow square", (96, 128), 70_004),
)
SOUNDS = (
    ("rising.wav", "rising tone", 80_001),
    ("beeps.wav", "beeps", 80_002),
    ("siren.wav", "two-tone siren", 80_003),
    ("noise.wav", "noise", 80_004),
)
_SENTENCES = (
    (
        "According to the newspaper, the writer and the council opened the green orchard at night.",
        "The writer opened the green orchard at night.\nThe council opened the green orchard at night.",
    ),
    (
        "The report notes that the nurse, as we all know, repaired the engine, and she repaired the strange piano.",
        "The nurse repaired the engine.\nThe nurse repaired the strange piano.",
    ),
    (
        "Nobody knows whether the singer found the ancient letter, but the judge hid a clock in June.",
        "The judge hid a clock in June.",
    ),
    (
        "The museum, which inherited the apple in May, allegedly bought the small oven two years ago, the police said.",
        "The museum inherited the apple in May.\nThe museum bought the small oven two years ago.",
    ),
)


def sample_dir(name: str) -> Path:
    """The folder of a sample's checkpoint: one of the names in ``SAMPLES``."""
    return _HERE / name


def sample_option(name: str) -> dict[str, Any]:
    """A sample as an option of a task, as ``models.yaml`` would say it."""
    said = {"engine_args": dict(_ENGINE_ARGS[name])} if name in _ENGINE_ARGS else {}
    return {"model_id": str(sample_dir(name)), "framework": "transformers", **said}


def demo_inputs() -> list[DemoInput]:
    """Inputs of all three tasks in turn, so that a budget for two models has to evict."""
    pictures = [DemoInput("image_classification", "classify", str(MEDIA / file), label) for file, label, *_ in PICTURES]
    sounds = [DemoInput("audio_classification", "classify", str(MEDIA / file), label) for file, label, _ in SOUNDS]
    sentences = [DemoInput("claim_extraction", "chat", sentence, claims) for sentence, claims in _SENTENCES]
    return [question for turn in zip(pictures, sounds, sentences, strict=True) for question in turn]


def demo_config() -> dict[str, Any]:
    """A configuration, as ``models.yaml`` would be read, whose tasks select the samples where they are installed."""
    return {
        "tasks": {
            task: {
                "kind": "chat" if name == "claims" else task,
                "selected": name,
                "options": {name: sample_option(name)},
            }
            for task, name in DEMO.items()
        }
    }


def _lines(answer: str) -> list[str]:
    return sorted(line.strip() for line in answer.splitlines() if line.strip())
