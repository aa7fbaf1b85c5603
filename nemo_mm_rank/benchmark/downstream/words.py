"""The data of all pairs in words, made once and shared by all strategies: what a language model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.benchmark.downstream.features import frozen_describers
from nemo_mm_rank.benchmark.downstream.rows import Rows, added, read_rows
from nemo_mm_rank.benchmark.downstream.settings import LMSettings
from nemo_mm_rank.config import Config, MediaSettings, ModelSpec
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import by_class, in_chunks, iter_class
from nemo_mm_rank.media.segment import Item, Items
from nemo_mm_rank.modality import is_media, modalities_of
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Described, told
from nemo_mm_rank.models.expert import load_describer
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import ERROR, MODALITY
from nemo_mm_rank.steps import Added, PairStep

_WORDS = "words"


@dataclass(frozen=True)
class Words(Rows):
    """What a language model is told of the data of ``n`` rows.

    Attributes:
        modality: of each row; ``text+image`` where it has several parts.
        words: its data; None where it cannot be put in words.
        failed: row -> why.
    """

    modality: list[str]
    words: list[str | None]
    failed: dict[int, str]

    def codes(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the modalities of some rows as ``(k,)`` int64 numbers."""
        return codes([self.modality[row] for row in rows], len(rows), "cpu")


def make_words(
    parts: Mapping[str, ShardStore], settings: LMSettings, config: Config, folder: Path, engine: Engine
) -> Words:
    """Put the data of all ``parts`` in words, or read what an earlier run has found.

    Args:
        parts: the pool, and after it what else is trained on or judged (trimmed variants, the validation pairs).
        settings: who describes.
        config: of the ranking, whose models are not used.
        folder: where the words are kept, shard by shard.
        engine: where the work is done.

    Raises:
        ConfigError: a describer that ranks as well.
    """
    step = WordsStep(frozen_describers(settings.describers, config), config.media)
    frame = added(step, parts, folder, engine, [MODALITY, _WORDS, ERROR])
    modality = [str(value) for value in frames.strings(frame, MODALITY)]
    failed = {row: error for row, error in enumerate(frames.strings(frame, ERROR)) if error is not None}
    rows = read_rows(parts, config.media)
    return Words(rows.parts, rows.annotations, modality, list(frames.strings(frame, _WORDS)), failed)


@dataclass
class WordsStep(PairStep):
    """Adds the data in words: texts and code as they are, media as describers see them, several parts line by line.

    Args:
        describers: by the modality that each describes.
        media: how media are opened.
    """

    describers: Mapping[str, ModelSpec]
    media: MediaSettings
    name: str = "words"

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The words."""
        return {_WORDS: pa.string()}

    def setup(self, device: str | None = None) -> None:
        """Load the describers (nothing happens where this process has them)."""
        models = {str(modality): spec for modality, spec in self.describers.items()}
        on = loader.pick_device(device)
        self._loaded = {modality: load_describer(modality, models, on) for modality in models}

    def identity(self) -> dict[str, Any]:
        """Describers with their revisions, and how media are decoded."""
        models = {str(modality): self.describers[modality] for modality in sorted(self.describers)}
        return {
            "step": self.name,
            "models": loader.identities(models),
            "media": self.media.identity(),
        }

    def process(self, rows: Frame) -> Added:
        """Put ``rows`` in words, class by class, media decoded ahead in threads."""
        words: list[str | None] = [None] * len(rows)
        errors: dict[int, PairError] = {}
        opener = Opener(self.media)
        for modality, positions in by_class(rows, errors):
            kinds = modalities_of(modality)
            if silent := [kind for kind in kinds if is_media(kind) and kind not in self._loaded]:
                lacking = EmbeddingError(f"no describer takes {silent[0]}")
                errors.update(dict.fromkeys(positions, lacking))
                continue
            decoded = map(_parts, iter_class(rows, modality, positions, opener, self.media.threads))
            chunks = in_chunks(zip(positions, decoded, strict=True), errors, *self.chunk)
            for chunk_rows, chunk in chunks:
                columns = zip(*chunk, strict=True)  # the first part of every row, the second, and so on
                said = [self._said(items, kind) for items, kind in zip(columns, kinds, strict=True)]
                for place, row in enumerate(chunk_rows):
                    wrong = [part.errors[place] for part in said if place in part.errors]
                    if wrong:
                        errors[row] = wrong[0]
                    else:
                        words[row] = "\n".join(part.texts[place] or "" for part in said)
        return Added({_WORDS: pa.array(words, pa.string())}, errors)

    def _said(self, items: Sequence[Item], kind: str) -> Described:
        if not is_media(kind):
            return Described([str(item) for item in items])
        describer = self._loaded[kind]
        return told(describer.describe(items, kind), describer.name, len(items))


def _parts(item: Item | Items | PairError) -> Items | PairError:
    """Return data of one part as of several."""
    return item if isinstance(item, tuple | PairError) else (item,)
