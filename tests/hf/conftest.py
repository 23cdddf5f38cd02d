"""One set of tiny checkpoints per session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrouter.backends.transformers import TransformersBackend

from .checkpoints import audio_checkpoint, chat_checkpoint, image_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Random checkpoints are the same in every run."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint(tmp_path_factory.mktemp("chat") / "tiny-llama")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_checkpoint(tmp_path_factory.mktemp("image") / "tiny-vit")


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audio_checkpoint(tmp_path_factory.mktemp("audio") / "tiny-wav2vec2")


@pytest.fixture
def spoil(chat_folder: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy of the chat checkpoint that a test may damage."""

    def copy() -> Path:
        return Path(shutil.copytree(chat_folder, tmp_path / "spoilt"))

    return copy


@pytest.fixture
def backend() -> TransformersBackend:
    return TransformersBackend()
