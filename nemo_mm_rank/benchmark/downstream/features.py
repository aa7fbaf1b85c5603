"""Frozen features of the data, made once and shared by all strategies, by models that never rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.benchmark.downstream.rows import Rows, added, read_rows
from nemo_mm_rank.benchmark.downstream.settings import SmallSettings
from nemo_mm_rank.benchmark.downstream.vocabulary import Vocabulary
from nemo_mm_rank.config import Config, ExpertSpec, ModelSpec
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.media.spectrogram import BANDS, log_mel
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import FeatureEncoder, of_kind
from nemo_mm_rank.models.classical.audio import MIDDLE, SCALE
from nemo_mm_rank.models.classical.image import luma, squares
from nemo_mm_rank.models.expert import sources
from nemo_mm_rank.models.windows import as_images
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import MODALITY, Modality

Encoders = dict[str, ModelSpec]
"""Models by what they take."""


def _set(text: str, image: str, video: str, audio: str) -> Encoders:
    # In this order: it is that of the features' columns, and so of the weights that are drawn for them.
    order = (Modality.TEXT, Modality.CODE, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO)
    names = zip(order, (text, text, image, video, audio), strict=True)
    return {modality: ModelSpec.model_validate({"class": name}) for modality, name in names}


_HERE = "nemo_mm_rank.benchmark.downstream.features"
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


def frozen_encoders(wanted: str | Mapping[str, ModelSpec], config: Config) -> Encoders:
    """Return the encoders to make features with, none of them of the models that rank by ``config``.

    A strategy that ranks by a model would be judged by how well that model's own view of the data predicts the
    annotation. Two models are taken for one where they are of one class, and of one ``path`` where they have that.

    Args:
        wanted: the name of a set, ``auto`` for the first that does not rank, or encoders by modality.
        config: of the ranking.

    Raises:
        ConfigError: naming the model that ranks as well.
    """
    if wanted == "auto":
        return next((models for models in SETS.values() if not _shared(models, config)), SETS["signals"])
    encoders = SETS[wanted] if isinstance(wanted, str) else dict(wanted)
    if shared := _shared(encoders, config):
        free = [name for name, models in SETS.items() if not _shared(models, config)]
        raise ConfigError(
            f"downstream.features: the features of {shared}: a strategy must not grade itself; "
            f"{' or '.join(map(repr, free))} would do"
        )
    return encoders


def frozen_describers(wanted: str | Mapping[str, ModelSpec], config: Config) -> Encoders:
    """Return who puts media in words, none of them of the models that rank by ``config``; see `frozen_encoders`.

    Args:
        wanted: describers by modality, or ``auto`` for `PlainWords`.
        config: of the ranking.

    Raises:
        ConfigError: naming the model that ranks as well.
    """
    describers = PLAIN if isinstance(wanted, str) else dict(wanted)
    if shared := _shared(describers, config, "would be described"):
        raise ConfigError(f"downstream.describers: {shared}: a strategy must not grade itself; name another")
    return describers


def _shared(models: Mapping[str, ModelSpec], config: Config, done: str = "are") -> str | None:
    """Return in words which of some models ranks as well, None where none does."""
    ranking = sorted({config.anchor}.union(*(expert.models for expert in config.experts)))
    known = {_identity(config.models[name]): name for name in ranking}
    for modality, spec in models.items():
        if name := known.get(_identity(spec)):
            return f"{modality} {done} by {spec.class_!r}, which ranks as {name!r}"
    return None


def _identity(spec: ModelSpec) -> tuple[type[Any], Any]:
    return loader.find_class(spec.class_), spec.arguments.get("path")


_FITTED = 20_000  # rows of the pool at most that say what is common in it
_BESIDE = "annotation"  # the name of a model that is there because the step asks for one
_NOTHING = 1e-5  # of the largest deviation: float32 features have no more to say


@dataclass(frozen=True)
class Features(Rows):
    """What the small model is told of the data of ``n`` rows.

    Attributes:
        modality: ``(n,)`` int64 codes.
        columns: per modality ``(n, d)`` float32, the features' principal components; not valid in rows of other
            modalities, and where the data could not be read.
        vocabulary: fitted on the pool's annotations.
    """

    modality: torch.Tensor
    columns: tuple[Vectors, ...]
    vocabulary: Vocabulary


def make_features(
    parts: Mapping[str, ShardStore], settings: SmallSettings, config: Config, folder: Path, engine: Engine
) -> Features:
    """Embed the data of all ``parts`` by frozen encoders, or read what an earlier run has embedded.

    What is fitted, principal components and the vocabulary, is fitted on the first part: the pool, as it was before
    anything was chosen or trimmed.

    Args:
        parts: the pool, and after it what else is trained on or judged (trimmed variants, the validation pairs).
        settings: encoders and sizes.
        config: of the ranking, whose models are not used.
        folder: where the embeddings are kept, shard by shard.
        engine: where the work is done.

    Raises:
        ConfigError: an encoder that ranks as well.
    """
    step, names = feature_step(settings, config)
    frame = added(step, parts, folder, engine, [MODALITY, *names])
    modality = [str(value) for value in frames.strings(frame, MODALITY)]
    rows = read_rows(parts, config.media)
    pool = len(next(iter(rows.parts.values())))
    columns = [principal(frames.vectors(frame, name), pool, settings.components) for name in names]
    texts = [text for text in rows.annotations[:pool] if text]
    return Features(
        rows.parts,
        rows.annotations,
        codes(modality, len(modality), "cpu"),
        tuple(column for column in columns if column.values.shape[1]),
        Vocabulary.fit(texts, settings.vocabulary),
    )


def feature_step(settings: SmallSettings, config: Config) -> tuple[ExpertStep, list[str]]:
    """Return the step that embeds the data by frozen encoders, and the columns that it is run for.

    It is the experts' own, so that media are opened, trimmed and refused in one way; that it embeds annotations too,
    by hashed n-grams, costs next to nothing.
    """
    models = {str(modality): spec for modality, spec in frozen_encoders(settings.features, config).items()}
    expert = ExpertSpec(name="frozen", kind="fusion", encoders={name: name for name in models})
    models[_BESIDE] = ModelSpec.model_validate({"class": "hashed-text", "dim": 8})
    step = ExpertStep([expert], models, _BESIDE, config.media, name="features")
    return step, [source.column for source in sources(expert)]


def principal(column: Vectors, fitted: int, components: int) -> Vectors:
    """Return the leading principal components of a column, in their own proportions, of mean square 1 all together.

    So that a linear prefix learns from few pairs: what most of the pool differs in comes first, and no modality's
    features outweigh another's. (Scaled to one variance each, the last components would be as loud as the first.)

    Args:
        column: ``(n, d)``.
        fitted: its first so many rows say what the components are.
        components: how many to keep; fewer where the rows span fewer.

    Returns:
        ``(n, k)`` float32, zero where not valid; ``k = 0`` where no two fitted rows are.
    """
    sample = column.values[:fitted][column.valid[:fitted]][:_FITTED].double()
    if len(sample) < 2:
        return Vectors(column.values[:, :0], column.valid)
    mean = sample.mean(dim=0)
    _, spread, directions = torch.linalg.svd(sample - mean, full_matrices=False)
    kept = min(components, int((spread > spread[0] * _NOTHING).sum()))
    values = (column.values.double() - mean) @ directions[:kept].T
    values *= (len(sample) * kept) ** 0.5 / torch.linalg.vector_norm(spread[:kept])
    return Vectors(values.float().masked_fill(~column.valid[:, None], 0.0), column.valid)


SIDE = 16
SLICES = 8
LETTERS = 37
"""a to z, ten digits, and everything else."""

_LETTER = np.full(256, LETTERS - 1)
_LETTER[np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789", dtype=np.uint8)] = np.arange(LETTERS - 1)


class Thumbnails(FeatureEncoder):
    """Images and videos as 16 x 16 pixels about middle grey; of a video the mean frame, and how it changes."""

    modalities = frozenset({Modality.IMAGE, Modality.VIDEO})
    dim = 4 * SIDE**2

    def _features(self, item: Item) -> Floats:
        pixels = squares(as_images(item), SIDE)
        mean = pixels.mean(axis=0) - 127.5
        change = (
            np.abs(np.diff(luma(pixels), axis=0)).mean(axis=0) / 1000 if len(pixels) > 1 else np.zeros((SIDE, SIDE))
        )
        return np.concatenate([mean.reshape(-1), change.reshape(-1)])


class Spectrograms(FeatureEncoder):
    """Audio as log-mel spectrograms of eight slices of time."""

    modalities = frozenset({Modality.AUDIO})
    dim = SLICES * BANDS

    def _features(self, item: Item) -> Floats:
        frames = (np.concatenate(list(log_mel(of_kind(item, Audio)))) - MIDDLE) / SCALE
        edges = np.linspace(0, len(frames), SLICES + 1).astype(int)
        slices = [frames[first : max(last, first + 1)].mean(axis=0) for first, last in pairwise(edges)]
        return np.concatenate(slices)


class LetterPairs(FeatureEncoder):
    """Texts and code as how often one letter, digit or sign follows another (square root), case folded."""

    modalities = frozenset({Modality.TEXT, Modality.CODE})
    dim = LETTERS**2

    def _features(self, item: Item) -> Floats:
        codes = _LETTER[np.frombuffer(str(item).casefold().encode("utf-8", "surrogatepass"), dtype=np.uint8)]
        return np.sqrt(np.bincount(codes[:-1] * LETTERS + codes[1:], minlength=self.dim))
