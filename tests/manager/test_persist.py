"""A selection that is written into the file: only that changes, and what can't be written is not selected."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from taskrouter import errors
from tests.manager.stage import Stage, option, play

TWO = {"selected": "small", "options": {"small": option("small"), "large": option("large", vram_gb=8)}}
TEXT = """\
# Our models.
tasks:
  t:   # the summaries
    selected: small   # since spring
    options:
      large: {model_id: large, framework: fake, vram_gb: 8}
      small:
        model_id: 'small'
        framework: fake   # until the card is there
        vram_gb: 4
  other: {selected: small, options: {small: {model_id: small, framework: fake, vram_gb: 4}}}
inference: {offload_threshold: 1.0}
"""


class Written(Stage):
    """A file as a person wrote it."""

    def __init__(self, folder: Path, text: str = TEXT) -> None:
        super().__init__(folder, {"t": TWO})
        self.file.write_text(text, encoding="utf-8")
        from taskrouter import ModelManager

        self.manager = ModelManager(self.file, registry=self.registry, machine=self.machine)


def test_only_the_selection_changes_in_the_file(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        os.chmod(stage.file, 0o640)
        await stage.manager.set_selected_model("t", "large", persist=True)
        assert stage.file.read_text() == TEXT.replace("selected: small   # since", "selected: large   # since")
        assert stage.file.stat().st_mode & 0o777 == 0o640
        assert stage.manager.tasks["t"].selected == "large"
        assert list(tmp_path.iterdir()) == [stage.file]
        assert str(await stage.manager.reload()) == "nothing changed"  # its own selection is no news

    play(Written(tmp_path), main)


def test_what_is_selected_already_is_written_all_the_same(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.set_selected_model("t", "large")
        assert stage.file.read_text() == TEXT
        await stage.manager.set_selected_model("t", "large", persist=True)
        assert "selected: large   # since spring" in stage.file.read_text()

    play(Written(tmp_path), main)


def test_a_selection_without_persist_survives_a_reload_after_one_with(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.set_selected_model("t", "large", persist=True)
        await stage.manager.set_selected_model("t", "small")
        await stage.manager.reload()
        assert stage.manager.tasks["t"].selected == "small"

    play(Written(tmp_path), main)


@pytest.mark.parametrize(
    ("old", "new", "error", "match"),
    [
        ("tasks:", "tasks: [", errors.BadInput, "can't be read"),
        ("vram_gb: 8", "vram_gb: -8", errors.ConfigError, "vram_gb"),
        ("selected: small   #", "selected: ${CHOICE:-small}   #", errors.BadInput, "from the environment"),
    ],
)
def test_a_file_that_can_not_hold_it_is_left_and_nothing_is_selected(
    tmp_path: Path, old: str, new: str, error: type[Exception], match: str
) -> None:
    async def main(stage: Stage) -> None:
        text = TEXT.replace(old, new)
        stage.file.write_text(text)
        with pytest.raises(error, match=match):
            await stage.manager.set_selected_model("t", "large", persist=True)
        assert stage.file.read_text() == text
        assert stage.manager.tasks["t"].selected == "small"

    play(Written(tmp_path), main)


def test_two_tasks_that_share_one_block_are_not_both_changed(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.BadInput, match=r"can't hold tasks.other.selected"):
            await stage.manager.set_selected_model("other", "large", persist=True)
        assert stage.file.read_text() == text

    head, tail = TEXT.replace("  t:   #", "  t: &x   #").split("  other:")
    text = head + "  other: *x\n" + tail.split("\n", 1)[1]
    play(Written(tmp_path, text), main)


def test_a_disk_that_is_full_by_then_leaves_file_and_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main(stage: Stage) -> None:
        await stage.manager.get_model("t")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            await stage.manager.set_selected_model("t", "large", persist=True)
        assert stage.file.read_text() == TEXT
        assert list(tmp_path.iterdir()) == [stage.file]
        assert stage.manager.tasks["t"].selected == "small"
        assert (await (await stage.manager.get_model("t")).chat("x")).text

    play(Written(tmp_path), main)


def test_a_load_that_fails_writes_nothing(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("t")
        with pytest.raises(errors.LoadFailed):
            await stage.manager.set_selected_model("t", "large", persist=True)
        assert stage.file.read_text() == text
        assert stage.manager.tasks["t"].selected == "small"

    text = TEXT.replace(
        "{model_id: large, framework: fake, vram_gb: 8}",
        "{model_id: large, framework: fake, vram_gb: 8, engine_args: {fail: error}}",
    )
    play(Written(tmp_path, text), main)


def test_a_file_that_may_not_be_written_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("t")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(PermissionError):
            await stage.manager.set_selected_model("t", "large", persist=True)
        assert stage.backend.labels("load-start") == ["small"]

    play(Written(tmp_path), main)


def test_the_older_name_of_the_key_is_kept(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.set_selected_model("t", "large", persist=True)
        assert stage.file.read_text().startswith("# Our models.\nmodels:\n  t:")
        assert "selected: large   # since" in stage.file.read_text()

    play(Written(tmp_path, TEXT.replace("tasks:", "models:")), main)


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        real = tmp_path / "real.yaml"
        stage.file.rename(real)
        stage.file.symlink_to(real)
        await stage.manager.set_selected_model("t", "large", persist=True)
        assert stage.file.is_symlink()
        assert "selected: large" in real.read_text()

    play(Written(tmp_path), main)
