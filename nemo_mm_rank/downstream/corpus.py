"""Frozen features of the data, made once and shared by all strategies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config, ExpertSpec, ModelSpec
from nemo_mm_rank.downstream.frozen import frozen_encoders
from nemo_mm_rank.downstream.rows import Rows, read_rows, through
from nemo_mm_rank.downstream.settings import SmallSettings
from nemo_mm_rank.downstream.vocabulary import Vocabulary
from nemo_mm_rank.experts.expert import sources
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.run.engine import Engine
from nemo_mm_rank.run.store import Shards
from nemo_mm_rank.schema import MODALITY, Modality

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
    parts: Mapping[str, Shards], settings: SmallSettings, config: Config, folder: Path, engine: Engine
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
    modality: list[str] = []
    found: dict[str, list[Vectors]] = {name: [] for name in names}
    for frame in through(step, parts, folder, engine, [MODALITY, *names]):
        modality += [str(value) for value in frames.strings(frame, MODALITY)]
        for name in names:
            found[name].append(frames.vectors(frame, name))
    rows = read_rows(parts, config.media)
    pool = len(next(iter(rows.parts.values())))
    columns = [principal(_stacked(column), pool, settings.components) for column in found.values()]
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
    expert = ExpertSpec(name="frozen", kind="fusion", encoders={Modality(name): name for name in models})
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


def _stacked(columns: list[Vectors]) -> Vectors:
    """Return the shards' columns as one; a shard without any embedding does not know their width."""
    width = max(column.values.shape[1] for column in columns)
    values = [
        column.values if column.values.shape[1] else column.values.new_zeros((len(column.valid), width))
        for column in columns
    ]
    return Vectors(torch.cat(values), torch.cat([column.valid for column in columns]))
