"""``taskrouter engines install`` proves an environment by serving a sample with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.install import MORE


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_environment_that_is_there_already_is_proved_and_written_into_the_file(
    engine: str, tmp_path: Path, engine_python: Callable[[str], str]
) -> None:
    python = Path(engine_python(engine))
    file = tmp_path / "models.yaml"
    file.write_text("# ours\ntasks: {t: {selected: m, options: {m: {model_id: m, framework: fake}}}}\n")
    words = ["engines", "install", engine, "--cpu", "--dir", str(python.parents[1]), *MORE[engine]]
    done = subprocess.run(
        [sys.executable, "-m", "taskrouter", *words, "--write", str(file), "--json"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["ok"], said["proof"], said["written"]) == (True, "right", str(file))
    assert file.read_text().startswith("# ours\n")
    assert str(python) in file.read_text()
