"""Small models that ship with the package, so that everything works offline at once, and what they are shown.

``shapes`` names the coloured shape in a picture, ``tones`` the pattern in a sound, ``claims`` writes out what a
sentence of a template language claims, ``scenes`` finds every shape in a picture, ``clips`` says what moves in a video.
``digits`` writes down spoken digits, ``phrases`` puts sentences that claim the same near each other.
``recipes.py`` says how each is built, ``train.py`` makes it, ``evaluate.py`` measures it.
"""

from __future__ import annotations

from taskrouter.samples.manifest import DEMO, SAMPLES, DemoInput, demo_config, demo_inputs, sample_dir

__all__ = ["DEMO", "SAMPLES", "DemoInput", "demo_config", "demo_inputs", "sample_dir"]
