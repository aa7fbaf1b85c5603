"""Which models tell of the data what the trained model is told: never one that ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_mm_rank.config import Config, ModelSpec
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.models import loader
from nemo_mm_rank.schema import Modality

Encoders = dict[Modality, ModelSpec]
"""Models by what they take."""


def _set(text: str, image: str, video: str, audio: str) -> Encoders:
    classes = {
        Modality.TEXT: text,
        Modality.CODE: text,
        Modality.IMAGE: image,
        Modality.VIDEO: video,
        Modality.AUDIO: audio,
    }
    return {modality: ModelSpec.model_validate({"class": name}) for modality, name in classes.items()}


_HERE = "nemo_mm_rank.downstream.signals"
SETS: dict[str, Encoders] = {
    "classical": _set("hashed-text", "image-features", "video-features", "audio-features"),
    "signals": _set(f"{_HERE}:LetterPairs", f"{_HERE}:Thumbnails", f"{_HERE}:Thumbnails", f"{_HERE}:Spectrograms"),
}
"""Built-in sets, the better first. Neither has learnt anything from anybody, and both need no download."""

PLAIN: Encoders = {
    modality: ModelSpec.model_validate({"class": "plain-words"})
    for modality in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)
}
"""Who puts media in words where nobody is named."""


def frozen_encoders(wanted: str | Mapping[Modality, ModelSpec], config: Config) -> Encoders:
    """Return the encoders to make features with, none of them of the models that rank by ``config``.

    A strategy that ranks by a model would be judged by how well that model's own view of the data predicts the
    annotation. Two models are taken for one where they are of one class, and of one ``path`` where they have that.

    Args:
        wanted: the name of a set, ``auto`` for the first that does not rank, or encoders by modality.
        config: of the ranking.

    Raises:
        ConfigError: naming the model that ranks as well.
    """
    ranking = {model: config.models[model] for model in _ranking(config)}
    if wanted == "auto":
        return next((found for found in SETS.values() if not _shared(found, ranking)), SETS["signals"])
    encoders = SETS[wanted] if isinstance(wanted, str) else dict(wanted)
    if shared := _shared(encoders, ranking):
        modality, model = shared
        free = [name for name, found in SETS.items() if not _shared(found, ranking)]
        raise ConfigError(
            f"downstream.features: the features of {modality} are by {encoders[modality].class_!r}, which ranks as "
            f"{model!r}: a strategy must not grade itself; {' or '.join(map(repr, free))} would do"
        )
    return encoders


def frozen_describers(wanted: str | Mapping[Modality, ModelSpec], config: Config) -> Encoders:
    """Return who puts media in words, none of them of the models that rank by ``config``; see `frozen_encoders`.

    Args:
        wanted: describers by modality, or ``auto`` for `PlainWords`.
        config: of the ranking.

    Raises:
        ConfigError: naming the model that ranks as well.
    """
    describers = PLAIN if isinstance(wanted, str) else dict(wanted)
    if shared := _shared(describers, {model: config.models[model] for model in _ranking(config)}):
        modality, model = shared
        raise ConfigError(
            f"downstream.describers: {modality} would be put in words by {describers[modality].class_!r}, which ranks "
            f"as {model!r}: a strategy must not grade itself; name another"
        )
    return describers


def _ranking(config: Config) -> list[str]:
    return sorted({config.anchor}.union(*(expert.models for expert in config.experts)))


def _shared(encoders: Mapping[Modality, ModelSpec], ranking: Mapping[str, ModelSpec]) -> tuple[Modality, str] | None:
    known = {_identity(spec): model for model, spec in ranking.items()}
    for modality, spec in encoders.items():
        if _identity(spec) in known:
            return modality, known[_identity(spec)]
    return None


def _identity(spec: ModelSpec) -> tuple[type[Any], Any]:
    return loader.find_class(spec.class_), spec.arguments.get("path")
