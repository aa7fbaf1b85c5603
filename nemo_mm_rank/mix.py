"""How much of which kind of pair a blend holds: shares by (data -> annotation) type, published ones by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_mm_rank.errors import nearest
from nemo_mm_rank.modality import code_of, name_of
from nemo_mm_rank.schema import Modality

ARROW = "->"

UNITE = "UNITE, arXiv 2505.19650"


@dataclass(frozen=True)
class Mix:
    """Shares of a blend by type.

    Attributes:
        shares: type -> share, as decimal numbers that sum to 1 at most.
        source: where they come from.
        note: what to know of them; empty where there is nothing.
    """

    shares: Mapping[str, float]
    source: str
    note: str = ""


MIXES: dict[str, Mix] = {
    "unite-adaptation": Mix(
        {"text->text": 0.216, "image->text": 0.392, "video->text": 0.392},
        f"{UNITE}: adaptation data, 1,379.6 thousand text-text, 2,500 image-text and 2,500 video-text pairs",
        "the figure prints 36.1 % for video-text, which its own counts do not give",
    ),
    # Thousands, query -> target: I->I 15.9, T->I 323.2, I->T 349.6, T->IT 17.2, IT->T 187.2, IT->I 175.1, VT->V 200.
    "unite-instruction": Mix(
        {
            "image->text": 0.5305,
            "text+image->text": 0.1612,
            "image->image": 0.0125,
            "text+image->image": 0.1381,
            "text+video->video": 0.1577,
        },
        f"{UNITE}: instruction data, 1,268.2 thousand",
        "a text that asks for an image is an image with that text as annotation, so both directions are one type; "
        "types with an image or a video for annotation have no pairs here, and are left to ranking.shortage",
    ),
}
"""Published mixes by name. None of them was searched for: its authors report no other shares."""


def canonical_type(name: str) -> str:
    """Return a type as it is compared: ``image,text->text`` is ``text+image->text``.

    Raises:
        ValueError: no arrow, or a modality that is unknown or empty.

    >>> canonical_type("image,text->text")
    'text+image->text'
    """
    sides = name.replace("→", ARROW).split(ARROW)
    if len(sides) != 2:
        raise ValueError(f"a type is written data{ARROW}annotation, like image{ARROW}text, not {name!r}")
    return ARROW.join(name_of(code_of(side)) for side in sides)


def type_of(modality: str) -> str:
    """Return the type of pairs whose data are of ``modality``: the annotation is always text.

    >>> type_of("image")
    'image->text'
    """
    return f"{name_of(code_of(modality))}{ARROW}{Modality.TEXT}"


def mix_of(mix: str | Mapping[str, float]) -> Mix:
    """Return a mix by its name, or one of your own shares.

    Raises:
        ValueError: no such name, or a type that is none.

    >>> mix_of({"image->text": 0.7, "text->text": 0.3}).shares["image->text"]
    0.7
    >>> mix_of("unite-adaptation").source.partition(":")[0]
    'UNITE, arXiv 2505.19650'
    """
    if isinstance(mix, str):
        if mix not in MIXES:
            raise ValueError(f"there is no mix {mix!r}{nearest(mix, MIXES)}; the mixes are {', '.join(MIXES)}")
        return MIXES[mix]
    shares = {canonical_type(name): share for name, share in mix.items()}
    if not shares or len(shares) < len(mix):
        raise ValueError(f"a mix has a share for every type, and each type once, not {dict(mix)}")
    return Mix(shares, "your own")


def advice(mix: Mix) -> list[str]:
    """Return what was reported of mixes like this one, each with its source. It is never applied."""
    image, video, text = (mix.shares.get(f"{data}{ARROW}text", 0) for data in ("image", "video", "text"))
    found = []
    if image or video:
        found.append("training on video-text pairs helped image-text retrieval more than image-text pairs did")
    if video:
        found.append("video captions in fine detail hurt beside other video-text pairs (table 10)")
    elif text:
        found.append("video captions in fine detail helped beside text-text pairs (table 10)")
    return [f"{UNITE}, as reported there and not tested here: {line}" for line in found]
