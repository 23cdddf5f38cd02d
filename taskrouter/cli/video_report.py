"""What the demo makes of a video: its sound written down, a picture of it searched, the whole told; on two pages.

``video_report.png`` is the picture in the middle of the video with a box around each object that was found;
``video_report.txt`` says what was heard, seen and told, and by which models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskrouter.cli.outcome import Outcome
from taskrouter.errors import BadInput
from taskrouter.media.limits import MediaLimits
from taskrouter.media.video import load_video
from taskrouter.verbs import Detection, Transcript

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "video_report"
_WIDTH = 640
"""Small pictures are enlarged to about so many pixels, so that what is written on them can be read."""
_FONT = 18
_PEN = (255, 230, 0)
_INK = (20, 20, 20)


def in_the_middle(video: str) -> tuple[Image, float]:
    """The picture in the middle of a video, and its time in seconds. Raises ``BadInput``."""
    clip = load_video(video, MediaLimits(), count=2)  # where two equal parts begin
    return clip.frames[-1], clip.times_s[-1]


def write_report(video: Path, outcomes: Sequence[Outcome], folder: Path) -> tuple[Path, ...]:
    """Write both pages, as far as there are answers, and return their paths. Raises ``BadInput`` where it can't."""
    answers: Mapping[str, Outcome] = {outcome.question.verb: outcome for outcome in outcomes if outcome.error is None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = folder / f"{NAME}.txt"
        text.write_text("\n".join(_lines(video, answers)) + "\n", encoding="utf-8")
        if "detect" not in answers:
            return (text,)
        picture = folder / f"{NAME}.png"
        annotated(in_the_middle(str(video))[0], answers["detect"].given).save(picture)
    except OSError as error:
        raise BadInput(
            f"the report can't be written to {folder}: {error.strerror or error}. Name another folder with --report."
        ) from error
    return text, picture


def annotated(picture: Image, found: Sequence[Detection]) -> Image:
    """A picture with a box and a name around each object."""
    from PIL import ImageDraw, ImageFont

    scale = max(1, round(_WIDTH / picture.width))
    page = picture.resize((picture.width * scale, picture.height * scale)).convert("RGB")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    for each in found:
        box = [edge * scale for edge in each.box]
        draw.rectangle(box, outline=_PEN, width=3)
        name = f"{each.label} {each.score:.2f}"
        corner = (box[0] + 4, max(0.0, box[1] - 1.3 * _FONT))
        draw.rectangle(draw.textbbox(corner, name, font=font), fill=_PEN)
        draw.text(corner, name, fill=_INK, font=font)
    return page


def _lines(video: Path, answers: Mapping[str, Outcome]) -> list[str]:
    lines = [f"{video.name}", ""]
    if (outcome := answers.get("transcribe")) is not None:
        heard: Transcript = outcome.given
        length = f" in {heard.duration_s:.1f} s" if heard.duration_s is not None else ""
        lines += [_by("Heard", outcome), f"  “{heard.text}”{length}"]
    if (outcome := answers.get("detect")) is not None:
        lines += [_by(f"Seen after {in_the_middle(str(video))[1]:.1f} s", outcome), *map(_object, outcome.given)]
    if (outcome := answers.get("chat")) is not None:
        lines += [_by("Told", outcome), f"  “{outcome.answer}”"]
    return lines


def _by(what: str, outcome: Outcome) -> str:
    return f"{what} ({outcome.question.task}: {outcome.option}, {outcome.seconds:.2f} s)"


def _object(each: Detection) -> str:
    left, top, right, bottom = (round(edge) for edge in each.box)
    return f"  {each.label}, {each.score:.0%} sure, from ({left}, {top}) to ({right}, {bottom})"
