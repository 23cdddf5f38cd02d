"""The house itself: what importing costs, what the wheel holds, that the documents keep up with the tree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import taskrouter
from taskrouter.samples import SAMPLES

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "numpy", "PIL", "av", "anthropic", "openai", "google.genai", "starlette", "fastapi",
         "aiohttp", "uvicorn", "ray", "pydantic", "typer", "rich")  # fmt: skip


def in_a_fresh_process(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_importing_taskrouter_pulls_in_nothing_heavy_and_is_quick() -> None:
    program = f"""
import json, sys, time
start = time.process_time()
import taskrouter
from taskrouter.samples import SAMPLES
seconds = time.process_time() - start
print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    seconds, heavy = json.loads(in_a_fresh_process(program))
    assert heavy == []
    assert seconds <= 0.3


def test_making_a_manager_pulls_in_no_torch_and_no_web_framework() -> None:
    program = """
import sys
from taskrouter import ModelManager
ModelManager("models.yaml")
print([name for name in ("torch", "transformers", "numpy", "PIL", "av", "starlette", "aiohttp") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", taskrouter.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(taskrouter, name) is not None
    assert name in dir(taskrouter)


def test_a_name_that_is_not_public_says_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ModelManger'"):
        _ = taskrouter.ModelManger


@pytest.mark.slow
def test_the_wheel_holds_the_samples_and_the_types(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command = [*pip, "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "taskrouter/py.typed" in names
    for sample in SAMPLES.values():
        assert f"taskrouter/samples/{sample}/model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]


def test_links_and_paths_in_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "otel" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
