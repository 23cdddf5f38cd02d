"""What a checkpoint's files say of what it can see and hear.

Models say it in many words, so only one thing is concluded: a checkpoint in which no word of sight (or of sound)
stands anywhere has none. What is there may still be of a kind the engine doesn't serve: asking tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taskrouter.memory.checkpoint import read_json

SIGHT = re.compile(r"vision|visual|image|img|video|vit_|clip_|siglip|pixel|patch|mm_|multimodal|omni", re.IGNORECASE)
SOUND = re.compile(
    r"audio|speech|sound|voice|whisper|moonshine|piano|codec|asr|mel_|mm_|multimodal|omni", re.IGNORECASE
)
FILMS = re.compile(r"video|mm_|multimodal|omni", re.IGNORECASE)
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def lacks(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The kinds of content the model surely can't take, and why. Blocks: looks at the folder.

    Empty where nobody can tell: for a model that brings its own code, or a processor for it isn't said what.
    """
    if config.get("auto_map"):
        return {}
    words = list(_words(config))
    sees, hears = any(map(SIGHT.search, words)), any(map(SOUND.search, words))
    if not sees and not hears and any((folder / name).is_file() for name in PROCESSORS):
        return {}
    found: dict[str, str] = {}
    if not sees:
        found |= dict.fromkeys(("image", "video"), "nothing in its config.json sees")
    if not hears:
        found["audio"] = "nothing in its config.json hears"
    return found


def sees_pictures_only(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether it sees, and no word of videos stands anywhere: it would be shown some as pictures. Blocks."""
    if config.get("auto_map") or "image" in lacks(folder, config):
        return False
    words = list(_words(config))
    for name in PROCESSORS:
        if (folder / name).is_file():
            words += [name, *_words(read_json(folder / name))]
    return any(map(SIGHT.search, words)) and not any(map(FILMS.search, words))


def _words(values: Any) -> Iterator[str]:
    """All keys, and the texts behind the few that name classes."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield str(name)
            if name in ("model_type", "architectures"):
                yield from ([value] if isinstance(value, str) else map(str, value or ()))
            yield from _words(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _words(value)
