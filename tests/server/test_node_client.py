"""The OpenAI API, by the npm package ``openai``: an unmodified client in another language."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .serving import API_KEY, keys, serving, written

PACKAGE = "openai@7.57.0"
PROGRAM = Path(__file__).parent / "node" / "client.mjs"
FAKE = {"framework": "fake", "model_id": "m", "vram_gb": 1}
TASKS: dict[str, Any] = {
    "say": {"kind": "chat", "selected": "parrot", "options": {"parrot": FAKE}},
    "fold": {"kind": "embedding", "selected": "it", "options": {"it": FAKE}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed; skips where it can't be."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm aren't installed")
    found = tmp_path_factory.mktemp("node")
    shutil.copy(PROGRAM, found)
    env = {**os.environ, "npm_config_cache": str(found / "cache")}
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(found), PACKAGE], cwd=found, text=True, timeout=100,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, env=env,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm can't install {PACKAGE} here: {done.stdout[-300:]}")
    return found


@pytest.mark.slow
def test_it_is_answered_and_its_errors_are_its_own(folder: Path, tmp_path: Path) -> None:
    with serving(written(tmp_path, TASKS), keys()) as served:
        done = subprocess.run(
            ["node", "client.mjs", f"{served.url}/v1", API_KEY], cwd=folder, text=True, timeout=60, capture_output=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heard = json.loads(done.stdout)
    assert heard["models"] == ["say", "say/parrot", "fold", "fold/it"]
    assert heard["answer"] == "parrot: hello there"
    assert "".join(heard["pieces"]) == "parrot: hello there"
    assert len(heard["pieces"]) > 2
    assert len(heard["vectors"]) == 2
    assert all(isinstance(value, (int, float)) for vector in heard["vectors"] for value in vector)
    assert heard["refused"] == {
        "unknown": {"kind": "NotFoundError", "status": 404, "code": "unknown_task"},
        "nonsense": {"kind": "BadRequestError", "status": 400, "code": "bad_input"},
    }
