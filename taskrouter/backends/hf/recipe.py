"""How a sentence-transformers checkpoint makes one vector of a text: ``modules.json`` and what it names.

Without such a recipe it can't be known: the mean of all tokens, the first or the last of an encoder are all vectors,
and only one is what the model was trained for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskrouter.errors import CheckpointMissing, PreflightFailed
from taskrouter.memory.checkpoint import read_json, read_json_objects

RECIPE = "modules.json"

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
_READS_TEXT = frozenset({"Transformer"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which tokens make the vector (``mean``, ``cls`` or ``lasttoken``), and whether its length is made 1.

    ``prompt`` goes before each text, ``lower``: which is made lower case; ``longest`` is the most tokens of one.
    """

    pooling: str
    normalized: bool
    prompt: str = ""
    lower: bool = False
    longest: int | None = None

    def prepared(self, text: str) -> str:
        """The text as the model was trained to read it."""
        return self.prompt + (text.lower() if self.lower else text)


def read_recipe(label: str, folder: Path) -> Recipe:
    """Read ``modules.json``. Raises ``PreflightFailed`` for a step that isn't known here."""
    pooling, normalized = None, False
    for module in read_json_objects(folder / RECIPE):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            config = folder / str(module.get("path", "")) / "config.json"
            if not config.is_file():
                raise CheckpointMissing(f"{label}: its {RECIPE} names {config}, which isn't there. Fetch all of it.")
            pooling = _pooling(read_json(config))
        elif kind == "Normalize":
            normalized = True
        elif kind not in _READS_TEXT:
            raise PreflightFailed(
                f"{label}: its {RECIPE} has a step {kind!r}, which isn't known here: only a transformer, pooling and "
                "normalizing are. Choose another model, or serve it by vLLM or a command."
            )
    if pooling is None:
        raise PreflightFailed(
            f"{label}: its {RECIPE} doesn't say which one of mean, cls or lasttoken makes a vector of its tokens. "
            "Choose another model, or serve it by vLLM or a command."
        )
    reading = _maybe(folder / "sentence_bert_config.json")
    longest = reading.get("max_seq_length")
    return Recipe(
        pooling,
        normalized,
        _prompt(label, _maybe(folder / "config_sentence_transformers.json")),
        bool(reading.get("do_lower_case")),
        longest if isinstance(longest, int) else None,
    )


def _prompt(label: str, told: Mapping[str, Any]) -> str:
    """What goes before a text where nobody says what it is for."""
    name = told.get("default_prompt_name")
    prompts = told.get("prompts")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise PreflightFailed(f"{label}: its default prompt {name!r} isn't among its prompts. Fetch the model anew.")
    return str(prompts[name])


def _maybe(file: Path) -> Mapping[str, Any]:
    return read_json(file) if file.is_file() else {}


def _pooling(config: Mapping[str, Any]) -> str | None:
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else [name for key, name in _MODES.items() if config.get(key)]
    known = [mode for mode in modes if mode in _MODES.values()]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value and key not in _MODES]
    return known[0] if len(known) == 1 and not others else None
