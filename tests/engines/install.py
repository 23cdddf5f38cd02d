"""Installs the engines that the slow tests serve with, beside the tests' own environment: ``install.py NAME…``.

What can't be had (no CPU build of torch on the index, no compiler) is no failure here: the reason goes to ``NAME.why``,
and the tests that need it are skipped with it, or fail where ``CI=true``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
MORE = {
    "vllm": ["--with", str(HERE / "torchvision_cpu")],
    "sglang": ["--with", str(HERE / "torchvision_cpu"), "--with", str(HERE / "sglang_cpu"), "--with", "decord==0.6.0"],
}
"""What the engines miss on a machine without a GPU. SGLang decodes clips with decord where there is no torchcodec."""
TORCHVISION = "torchvision==0.29.1"
"""vLLM wants it for models that watch clips. Its metadata asks for another torch than the engine has."""
ENGINES = Path(sys.prefix) / "engines"
BOUND_S = 1500

TASKROUTER = [sys.executable, "-m", "taskrouter", "engines", "install"]
"""The product's own command, as its users run it; the conformance suite is the proof."""


def command(name: str) -> list[str]:
    folder = ENGINES / name
    torch = os.environ.get("ENGINE_TORCH")
    chosen = ["--torch", torch] if torch else []
    if name in MORE:
        return [*TASKROUTER, name, "--cpu", "--dir", str(folder), *MORE[name], "--no-proof", *chosen]
    return [sys.executable, str(Path(__file__)), "--llama", str(folder)]


def llama(folder: Path) -> None:
    """llama.cpp's server, built from its source with as little of it as serves."""
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        env["CMAKE_ARGS"] = f"-DCMAKE_PROJECT_INCLUDE={HERE / 'llama' / 'lean.cmake'}"
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        requirements = ["--no-binary", "llama-cpp-python", "-r", str(HERE / "llama" / "requirements.txt")]
        subprocess.run([*pip, *requirements], check=True, env=env)
        (folder / "done").touch()


def run(step: list[str]) -> str:
    """What a step said, if it failed."""
    env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    done = subprocess.run(
        step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BOUND_S, check=False, env=env
    )
    return done.stdout if done.returncode else ""


def torchvision(folder: Path) -> list[str]:
    """What puts it into an engine's environment that is there, without asking what it wants beside it."""
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [*pip, "--no-deps", TORCHVISION]


def main(names: list[str]) -> None:
    ENGINES.mkdir(exist_ok=True)
    for name in names:
        why = ENGINES / f"{name}.why"
        start = time.monotonic()
        steps = [command(name)] + [torchvision(ENGINES / name)] * (name == "vllm")
        said = ""
        try:
            for step in steps:
                if not said:
                    said = run(step)
        except subprocess.TimeoutExpired:
            said = f"it was not installed within {BOUND_S} s"
        if said:
            why.write_text(said, encoding="utf-8")
        else:
            why.unlink(missing_ok=True)
        state = "could not be installed, so its tests are skipped: " + said[-400:] if said else "is there"
        print(f"{name} {state} ({time.monotonic() - start:.0f} s)", flush=True)  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:2] == ["--llama"]:
        llama(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
