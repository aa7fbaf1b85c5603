"""A blend's pairs as an encoder learns them: read from where they lie, trimmed as they were ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import EmbeddingError, PairError, UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import table_digest
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import annotation_texts, iter_class
from nemo_mm_rank.media.segment import Item, Items
from nemo_mm_rank.models.batching import Features
from nemo_mm_rank.models.chat_encoder import ChatEncoder
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.projection.mamcl import modality_codes
from nemo_mm_rank.run.finished import read_blend
from nemo_mm_rank.sampling import hashes
from nemo_mm_rank.schema import ANNOTATION, DATA, ERROR, MEDIA_ROOT, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.steps import by_value, reason

_SHARES = 10_000
"""Held-out shares are told apart to a hundredth of a percent."""


@dataclass(frozen=True)
class Batch:
    """Pairs that are told apart from each other, as the encoder takes them.

    Attributes:
        rows: their positions.
        queries: of the annotations.
        targets: of the data.
    """

    rows: list[int]
    queries: list[Features]
    targets: list[Features]


@dataclass
class Pairs:
    """The pairs of a blend.

    Attributes:
        frame: the blend, with where media lie.
        media: how they are opened.
        digest: of the blend.
        left_out: position -> why it is not learnt from; grows as more turn out to be unusable.
    """

    frame: Frame
    media: MediaSettings
    digest: str
    left_out: dict[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, run: str | Path, takes: frozenset[str]) -> Pairs:
        """Read the blend of a finished run; pairs of a modality (or class of several) not in ``takes`` are left out.

        Raises:
            UserError: no finished run, or too few pairs that can be learnt from.
        """
        config, blend = read_blend(run)
        pairs = cls(frames.from_table(blend), config.media, table_digest(blend.drop_columns([MEDIA_ROOT])))
        for row, modality in enumerate(pairs.modality):
            if modality not in takes:
                taken = ", ".join(sorted(takes))
                pairs.left_out[row] = reason("adapt", EmbeddingError(f"the model takes {taken}, not {modality}"))
        if len(pairs.usable) < 2:
            raise UserError(f"{run}: its blend has fewer than two pairs that the model takes")
        return pairs

    @property
    def modality(self) -> list[str]:
        """What the data of each pair is."""
        return [str(name) for name in frames.strings(self.frame, MODALITY)]

    @property
    def annotations(self) -> list[str]:
        """What is said of each."""
        return [str(text) for text in frames.strings(self.frame, ANNOTATION)]

    @property
    def usable(self) -> list[int]:
        """The positions of pairs that nothing is known against."""
        return [row for row in range(len(self.frame)) if row not in self.left_out]

    def split(self, share: float, most: int, seed: int) -> tuple[torch.Tensor, list[int]]:
        """Return the positions to learn from, and those to measure on, by a hash of the annotation.

        Equal annotations are on the same side.

        Args:
            share: of the pairs to hold out.
            most: of them that are measured; the others are held out all the same.
            seed: of the hash.
        """
        out = hashes(self.annotations, seed) % np.uint64(_SHARES) < round(share * _SHARES)
        usable = self.usable
        learnt = torch.tensor([row for row in usable if not out[row]], dtype=torch.long)
        return learnt, [row for row in usable if out[row]][:most]

    def classes(self) -> torch.Tensor:
        """Return ``(n,)`` int64 codes of what the data is made of."""
        return modality_codes(self.modality)

    def twins(self) -> torch.Tensor:
        """Return ``(n, 2)`` int64 codes of annotation and data: pairs that share one are not each other's negatives."""
        data = [str(value) for value in frames.strings(self.frame, DATA)]
        return torch.stack([codes(side, len(data)) for side in (self.annotations, data)], dim=1)

    def read(self, rows: Sequence[int]) -> tuple[list[int], list[str], list[Item | Items]]:
        """Return those of ``rows`` that can be read, with their annotations and their data; others are left out."""
        wanted = [row for row in rows if row not in self.left_out]
        some = self.frame.iloc[wanted]
        texts = annotation_texts(some, self.media)
        items = self._data(some)
        good: list[int] = []
        said: list[str] = []
        seen: list[Item | Items] = []
        for row, text, item in zip(wanted, texts, items, strict=True):
            if isinstance(text, PairError):
                self.left_out[row] = reason("adapt", text)
            elif isinstance(item, PairError):
                self.left_out[row] = reason("adapt", item)
            else:
                good.append(row)
                said.append(text)
                seen.append(item)
        return good, said, seen

    def _data(self, some: Frame) -> list[Item | Items | PairError]:
        opener, threads = Opener(self.media), self.media.threads
        found: dict[int, Item | Items | PairError] = {}
        for modality, rows in by_value([str(name) for name in frames.strings(some, MODALITY)]).items():
            found.update(zip(rows, iter_class(some, modality, rows, opener, threads), strict=True))
        return [found[row] for row in range(len(some))]

    def prepare(self, rows: Sequence[int], encoder: ChatEncoder) -> Batch:
        """Read some pairs as ``encoder`` learns them; those that it cannot be shown are left out."""
        batch = Batch([], [], [])
        for row, text, item in zip(*self.read(rows), strict=True):
            try:
                query, target = encoder.features(text), encoder.features(item)
            except PairError as error:
                self.left_out[row] = reason("adapt", error)
                continue
            batch.rows.append(row)
            batch.queries.append(query)
            batch.targets.append(target)
        return batch

    def quarantine(self) -> pa.Table:
        """Return the pairs that were left out, with an ``error`` each."""
        rows = sorted(self.left_out)
        table = frames.to_table(self.frame[[PAIR_ID, POOL, MODALITY]].iloc[rows])
        return table.append_column(ERROR, pa.array([self.left_out[row] for row in rows], pa.string()))
