"""What describers are asked, in one place.

A prompt never holds a pair's annotation. A description is kept by its content, so it must not depend on the pair that
asks first; and one written by a model that has read the annotation would vouch for it, which is what agreement is to
find out. What all descriptions of a run are to attend to is the configuration's to say: the ``focus``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from nemo_mm_rank.errors import ModelError, nearest
from nemo_mm_rank.schema import Modality

PROMPTS: dict[str, str] = {
    Modality.IMAGE: (
        "Describe this image in two or three plain sentences: the objects and people, what they do, the place, "
        "and any text that can be read. Say only what is visible."
    ),
    Modality.AUDIO: (
        "Describe this recording in two or three plain sentences: what is heard, who or what makes the sounds, "
        "where, and what is said, if anything. Say only what is audible."
    ),
    Modality.VIDEO: (
        "These are frames of one video, in order. Describe it in two or three plain sentences: the objects and "
        "people, what happens, and the place. Say only what is visible."
    ),
}
"""The default for each modality."""

FOCUS = "Above all, attend to this: {focus}"

Prompt: TypeAlias = str | Mapping[str, str] | None
"""One prompt for all modalities, prompts by modality, or the default."""


def prompts(prompt: Prompt, focus: str | None = None) -> dict[str, str]:
    """Return what is asked about media of each modality.

    Args:
        prompt: instead of the default; a modality that a mapping does not name keeps it.
        focus: what to attend to, added to each.

    Raises:
        ModelError: a prompt for what is no kind of media, or one without a word.
    """
    asked = dict.fromkeys(PROMPTS, prompt) if isinstance(prompt, str) else {**PROMPTS, **(prompt or {})}
    for modality, text in asked.items():
        if modality not in PROMPTS:
            raise ModelError(f"prompt: {modality!r} is none of {', '.join(PROMPTS)}{nearest(modality, PROMPTS)}")
        if not text.strip():
            raise ModelError(f"prompt: the one for {modality} is empty")
    return {modality: f"{text} {FOCUS.format(focus=focus)}" if focus else text for modality, text in asked.items()}
