"""What the samples are shown with: the checkpoints' folders, and inputs with the answers they should get.

The seeds of the media files are used for nothing else; ``render.py`` draws and plays them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
MEDIA = _HERE / "media"


@dataclass(frozen=True, slots=True)
class DemoInput:
    """One question: the task, the verb to call, what to give it, and the answer it should get.

    ``input`` is a file's path, or the sentence for a ``chat`` about one; ``messages`` is the chat to send.
    """

    task: str
    verb: str
    input: str
    expected: str
    is_file: bool = True

    @property
    def messages(self) -> list[dict[str, Any]] | None:
        if self.verb != "chat":
            return None
        if self.is_file:
            seen = {"type": "video_url", "video_url": {"url": self.input}}
            return [{"role": "user", "content": [seen, {"type": "text", "text": "Describe the clip."}]}]
        from taskrouter.samples.renderers.claims import messages

        return list(messages(self.input))

    def is_right(self, answer: str) -> bool:
        """Whether an answer (the best label, or the chat's text) says what was expected, in whatever order."""
        return _lines(answer) == _lines(self.expected)


DEMO = {"image_classification": "shapes", "audio_classification": "tones", "claim_extraction": "claims"}
"""The sample that does each task of the demo: of one size, so that a budget for two of them has to evict."""
REPORT = {"audio_transcription": "digits", "object_detection": "scenes", "video_summarization": "clips"}
"""The sample that does each task of the report on a video, in the order of its pipeline."""
KINDS = {
    "claim_extraction": "chat",
    "audio_transcription": "transcription",
    "object_detection": "detection",
    "video_summarization": "chat",
}
"""The kinds of tasks that are called otherwise."""
VIDEO = MEDIA / "report.mp4"
"""A shape that moves while somebody says the digits of ``SPOKEN``."""
VIDEO_SEED = 130_011
VIDEO_ANSWERS = {
    "audio_transcription": "four six nine eight seven",
    "object_detection": "triangle",
    "video_summarization": "a blue triangle moves down",
}
SAMPLES = {
    **DEMO,
    "object_detection": "scenes",
    "audio_transcription": "digits",
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
    sentences = [
        DemoInput("claim_extraction", "chat", sentence, claims, is_file=False) for sentence, claims in _SENTENCES
    ]
    return [question for turn in zip(pictures, sounds, sentences, strict=True) for question in turn]


def report_inputs() -> list[DemoInput]:
    """One video, asked of all three tasks of the report."""
    verbs = {"audio_transcription": "transcribe", "object_detection": "detect", "video_summarization": "chat"}
    return [DemoInput(task, verb, str(VIDEO), VIDEO_ANSWERS[task]) for task, verb in verbs.items()]


def demo_config() -> dict[str, Any]:
    """A configuration, as ``models.yaml`` would be read, whose tasks select the samples where they are installed."""
    return {"tasks": _tasks(DEMO)}


def report_config() -> dict[str, Any]:
    """The same for the report on a video, its tasks in a pipeline."""
    return {"tasks": _tasks(REPORT), "pipelines": {"video_report": list(REPORT)}}


def _tasks(samples: Mapping[str, str]) -> dict[str, Any]:
    return {
        task: {
            "kind": KINDS.get(task, task),
            "selected": name,
            "options": {name: sample_option(name)},
        }
        for task, name in samples.items()
    }


def _lines(answer: str) -> list[str]:
    return sorted(line.strip() for line in answer.splitlines() if line.strip())
