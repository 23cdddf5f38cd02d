"""A rehearsal as a picture: what each device held over time, and how long requests waited."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from taskrouter.config.writing import write_whole
from taskrouter.errors import BadInput, MissingDependency
from taskrouter.simulate import Report
from taskrouter.types import GIB

KINDS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raise ``MissingDependency`` or ``BadInput`` for what would keep a picture from being written."""
    if find_spec("matplotlib") is None:
        raise MissingDependency("--plot needs matplotlib: pip install 'taskrouter[plot]'")
    if path.suffix.lower() not in KINDS:
        raise BadInput(f"--plot {path}: write a name that ends in {', '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"--plot {path}: there is no folder {path.absolute().parent}")


def draw(path: Path, reports: Sequence[Report]) -> None:
    """Write the picture, whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2 * (1 + len(reports))), layout="constrained")
    axes = figure.subplots(1 + len(reports), 1, squeeze=False)[:, 0]
    for report, axis in zip(reports, axes, strict=False):
        for device in report.devices:
            if device.peak and device.device not in ("models", "host"):
                steps = [count / GIB for count in device.bytes]
                axis.step(device.at, steps, where="post", label=f"{device.device} of {device.capacity / GIB:.1f} GiB")
        axis.set(title=f"{report.policy}: charged", xlabel="seconds", ylabel="GiB")
        axis.legend(loc="upper right")
    for report in reports:
        waits = sorted(report.total.waited)
        total = report.total.granted or 1
        share = [(total - len(waits) + number + 1) / total for number in range(len(waits))]
        axes[-1].step([0.0, *waits], [(total - len(waits)) / total, *share], where="post", label=report.policy)
    axes[-1].set(title="waits", xlabel="seconds until granted", ylabel="share of requests", ylim=(0, 1.02))
    axes[-1].legend(loc="lower right")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().removeprefix("."))
    try:
        write_whole(path.absolute(), picture.getvalue())
    except OSError as error:
        raise BadInput(f"--plot {path} can't be written: {error.strerror or error}") from error
