"""Other words for some of the words of the template language. None of them is a word of it itself."""

from __future__ import annotations

from collections.abc import Mapping

from taskrouter.samples.renderers.lexicon import VERBS


def _others(text: str) -> Mapping[str, str]:
    return {word: " ".join(other.split()) for word, other in (entry.split("=") for entry in text.split("|"))}


SYNONYMS = _others(
    "bought=purchased|built=constructed|repaired=mended|closed=shut|opened=unlocked|cleaned=scrubbed|moved=shifted"
    "|lost=misplaced|found=discovered|stole=swiped|hid=concealed|burned=torched|copied=duplicated|counted=tallied"
    "|designed=devised|drew=sketched|guarded=protected|measured=gauged|ordered=requested|polished=buffed"
    "|praised=lauded|rented=leased|saved=rescued|shipped=dispatched|studied=examined|tested=assessed|washed=rinsed"
    "|boat=vessel|tower=spire|fence=railing|engine=motor|statue=sculpture|barn=shed|lamp=lantern|road=street"
    "|tunnel=underpass|wagon=cart|map=chart|letter=note|poem=verse|ring=band|carpet=rug|kettle=teapot|violin=fiddle"
    "|bicycle=bike|basket=hamper|oven=stove|island=isle|clock=timepiece|umbrella=parasol"
    "|old=aged|small=little|large=big|red=crimson|green=emerald|broken=damaged|famous=celebrated|heavy=weighty"
    "|narrow=thin|quiet=silent|strange=odd|golden=gilded|ancient=antique|empty=vacant|tired=weary|young=youthful"
    "|doctor=physician|farmer=grower|judge=magistrate|painter=artist|pilot=aviator|sailor=mariner|singer=vocalist"
    "|teacher=tutor|writer=author|lawyer=attorney|chef=cook|company=firm|hospital=clinic|museum=gallery|city=town"
    "|school=academy|church=chapel|workers=labourers|students=pupils|scientists=researchers|soldiers=troops"
    "|tourists=visitors|engineers=technicians"
)

WHEN_AND_WHERE = _others(
    "last year=a year ago|two years ago=a couple of years back|near the harbour=close to the port"
    "|by the river=on the riverbank|before the storm=ahead of the bad weather|after the war=once peace had come"
    "|at night=after dark|in winter=during the cold months|in the valley=down in the dale"
)

_IRREGULAR = {"stole": "stolen", "hid": "hidden", "drew": "drawn"}
DONE: Mapping[str, str] = {verb: _IRREGULAR.get(verb, verb) for verb in VERBS}
"""What a thing has been when somebody did that to it."""
