"""What ships with the package: checkpoints, demo inputs, the root models.yaml, and the data they are rendered from."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from taskrouter.config import Frameworks, load_catalog
from taskrouter.media import load_audio, load_image, load_video
from taskrouter.samples import DEMO, SAMPLES, DemoInput, demo_config, demo_inputs, sample_dir
from taskrouter.samples.manifest import MEDIA, SPOKEN
from taskrouter.samples.render import render_media
from taskrouter.samples.renderers import claims, lexicon, shapes, tones

ROOT = Path(__file__).parents[1]
MB = 1_000_000
FRAMEWORKS = Frameworks(known=frozenset({"transformers", "fake"}))
LABELS = {"image_classification": shapes.LABELS, "audio_classification": tones.LABELS}


def test_importing_the_samples_loads_no_library() -> None:
    program = "import sys, taskrouter.samples as s; s.demo_inputs(); print({'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- the checkpoints --------------------------------------------------------------------------------------------------


def test_the_checkpoints_take_less_than_sixteen_megabytes_together() -> None:
    files = [file for name in SAMPLES.values() for file in sample_dir(name).rglob("*")]
    assert sum(file.stat().st_size for file in files) < 16 * MB


def test_the_checkpoints_of_the_demo_are_of_one_size_so_that_a_budget_can_hold_two_but_not_three() -> None:
    sizes = [(sample_dir(name) / "model.safetensors").stat().st_size for name in DEMO.values()]
    assert min(sizes) > 0.8 * MB
    assert max(sizes) < 1.2 * min(sizes)


@pytest.mark.parametrize("name", SAMPLES.values())
def test_a_checkpoint_holds_safetensors_and_no_other_weights(name: str) -> None:
    suffixes = {file.suffix for file in sample_dir(name).rglob("*") if file.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".jinja", ".md"}


def test_what_the_wheel_needs_is_not_ignored_by_git() -> None:
    # The build leaves out what git ignores.
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = [str(file) for file in (ROOT / "taskrouter" / "samples").rglob("*") if "__pycache__" not in file.parts]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout == ""


# --- the demo's inputs ------------------------------------------------------------------------------------------------


def test_every_task_has_at_least_three_inputs_in_turn() -> None:
    tasks = [question.task for question in demo_inputs()]
    assert tasks[:3] == list(DEMO)
    assert set(Counter(tasks)) == set(DEMO)
    assert min(Counter(tasks).values()) >= 3


@pytest.mark.parametrize("question", demo_inputs(), ids=lambda question: Path(question.input).name[:24])
def test_an_input_can_be_read_and_its_answer_exists(question: DemoInput) -> None:
    if question.task == "image_classification":
        assert min(load_image(question.input).size) >= shapes.SIDE
    elif question.task == "audio_classification":
        assert len(load_audio(question.input, sampling_rate=tones.RATE)) >= tones.SHORTEST_S * tones.RATE
    if question.verb == "classify":
        assert question.expected in LABELS[question.task]
        assert question.messages is None
    else:
        assert question.messages == [{"role": "user", "content": claims.PROMPT + question.input}]


def test_the_sentences_of_the_demo_make_claims_that_training_never_saw() -> None:
    sentences = [question for question in demo_inputs() if question.verb == "chat"]
    for question in sentences:
        for line in question.expected.splitlines():
            words = line.removesuffix(".").split()
            verb = next(word for word in words if word in lexicon.VERBS)
            assert claims.is_held_out(words[words.index(verb) - 1], verb), line


def test_an_answer_is_right_whatever_the_order_of_its_lines() -> None:
    question = DemoInput("claim_extraction", "chat", "…", "A did b.\nC did d.")
    assert question.is_right("C did d.\nA did b.\n")
    assert not question.is_right("A did b.")
    assert not question.is_right("A did b.\nC did d.\nC did d.")


def test_the_media_files_are_what_their_script_renders(tmp_path: Path) -> None:
    render_media(tmp_path)
    rendered = {file.name for file in MEDIA.iterdir()} - {SPOKEN.name}
    assert {file.name for file in tmp_path.iterdir()} == rendered
    for file in (MEDIA / name for name in rendered):
        fresh = tmp_path / file.name
        if file.suffix == ".wav":
            shipped, again = (load_audio(path, sampling_rate=tones.RATE) for path in (file, fresh))
            assert np.allclose(shipped, again, atol=1e-3)
        elif file.suffix == ".mp4":
            for one, other in zip(load_video(file).frames, load_video(fresh).frames, strict=True):
                assert np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean() < 4
        else:
            with Image.open(file) as one, Image.open(fresh) as other:
                # Codecs and resampling differ a little from one Pillow to the next.
                assert np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean() < 2


# --- the configurations -----------------------------------------------------------------------------------------------


def test_the_root_models_yaml_selects_the_samples_and_loads_without_a_problem() -> None:
    path = ROOT / "models.yaml"
    catalog = load_catalog(path, frameworks=FRAMEWORKS)
    assert list(catalog.tasks) == list(SAMPLES)
    for task, name in SAMPLES.items():
        selected = catalog.tasks[task].get_selected_config()
        assert (path.parent / selected.model_id).resolve() == sample_dir(name)
        assert len(catalog.tasks[task].options) >= 3


def test_the_demo_configuration_loads_wherever_the_package_is_installed(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(demo_config()))
    catalog = load_catalog(path, frameworks=FRAMEWORKS)
    for task, name in DEMO.items():
        assert Path(catalog.tasks[task].get_selected_config().model_id) == sample_dir(name)
    shipped = load_catalog(ROOT / "models.yaml", frameworks=FRAMEWORKS)
    assert {task: catalog.tasks[task].kind for task in DEMO} == {task: shipped.tasks[task].kind for task in DEMO}


# --- the renderers ----------------------------------------------------------------------------------------------------


def test_a_seed_is_a_data_set() -> None:
    def draw(seed: int) -> tuple[bytes, bytes, str]:
        rng = np.random.default_rng(seed)
        return shapes.render(rng).tobytes(), tones.render(rng).tobytes(), claims.render(rng).sentence

    assert draw(3) == draw(3)
    assert all(one != other for one, other in zip(draw(3), draw(4), strict=True))


def test_every_label_can_be_rendered() -> None:
    rng = np.random.default_rng(0)
    for label in shapes.LABELS:
        assert shapes.render(rng, label, size=(70, 50)).size == (70, 50)
    for label in tones.LABELS:
        sound = tones.render(rng, label)
        assert sound.dtype == np.float32
        assert 0.04 < np.abs(sound).max() <= 1


def test_a_shape_has_the_colour_it_is_named_after() -> None:
    rng = np.random.default_rng(0)
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        pixels = np.asarray(shapes.render(rng, f"{colour} square"), dtype=float)
        vivid = pixels[np.ptp(pixels, axis=2) > 90]
        assert len(vivid)
        assert vivid.mean(axis=0).argmax() == channel


def test_a_rising_tone_rises_and_a_falling_one_falls() -> None:
    rng = np.random.default_rng(0)

    def pitch(sound: np.ndarray) -> float:
        return float(np.abs(np.fft.rfft(sound)).argmax() / len(sound))

    for label, sign in (("rising tone", 1), ("falling tone", -1)):
        sound = tones.render(rng, label)
        third = len(sound) // 3
        assert (pitch(sound[-third:]) - pitch(sound[:third])) * sign > 0


def test_training_sentences_never_pair_what_is_held_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        for split in ("train", "held-out"):
            for claim in claims.render(rng, split).claims:
                words = claim.removesuffix(".").split()
                verb = next(word for word in words if word in lexicon.VERBS)
                assert claims.is_held_out(words[words.index(verb) - 1], verb) == (split == "held-out"), claim


def test_a_claim_is_bare_and_stands_alone() -> None:
    rng = np.random.default_rng(0)
    dressing = {*lexicon.HEDGES, "he", "she", "it", "they", "who", "which", "whether", "but", "and"}
    several = 0
    for _ in range(300):
        example = claims.render(rng)
        several += len(example.claims) > 1
        for claim in example.claims:
            assert not dressing & set(claim.lower().removesuffix(".").split())
            assert claim[0].isupper()
            assert claim.endswith(".")
    assert several > 100


def test_copying_the_sentence_is_no_answer() -> None:
    rng = np.random.default_rng(0)
    examples = [claims.render(rng) for _ in range(300)]
    assert sum(example.answer == example.sentence for example in examples) < 30
