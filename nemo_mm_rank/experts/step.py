"""EEE, the Expert Embedding Engine: embeds the (trimmed) data and annotation of every pair with every expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from nemo_mm_rank import frames, schema
from nemo_mm_rank.config import ExpertSpec, MediaSettings, ModelSpec
from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import (
    Apart,
    annotation_texts,
    by_class,
    in_chunks,
    iter_data,
    take_apart,
    views,
    with_several,
)
from nemo_mm_rank.media.segment import Item, Items
from nemo_mm_rank.modality import is_media, modalities_of
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoded, Encoder
from nemo_mm_rank.models.batching import ahead, calls_at_once
from nemo_mm_rank.models.expert import build, load_encoder, sources, text_models
from nemo_mm_rank.steps import Added, PairStep

LEAST = 1e-6
"""A shorter mean is that of parts whose vectors cancel each other out."""


def mean_of_parts(apart: Apart, items: Sequence[Items], encoders: Mapping[int, Encoder]) -> Encoded:
    """Embed some parts of each row, and return the mean of their vectors, L2-normalised.

    Args:
        apart: what the parts are.
        items: ``n`` rows, each with its decoded parts.
        encoders: by the number of the part; all of one space. Other parts are passed by.

    Returns:
        ``n`` vectors; where a part has none, the error names it. ``texts`` are what was said of the parts, line by
        line.
    """
    errors: dict[int, PairError] = {}
    vectors: list[torch.Tensor] = []
    said: list[list[str]] = [[] for _ in items]
    for number, encoder in encoders.items():
        encoded = encoder.encode([parts[number] for parts in items], apart.kinds[number])
        vectors.append(encoded.vectors)
        for row, error in encoded.errors.items():
            errors.setdefault(row, apart.named(number, error))
        for row, text in enumerate(encoded.texts or ()):
            if text is not None and is_media(apart.kinds[number]):
                said[row].append(text)
    if len(vectors) == 1:
        mean = vectors[0]
    else:
        sums = torch.stack(vectors).mean(dim=0)
        for row in torch.nonzero(sums.norm(dim=1) < LEAST).flatten().tolist():
            errors.setdefault(row, EmbeddingError("the embeddings of its parts cancel each other out"))
        mean = F.normalize(sums, dim=1)
    if errors:
        mean = mean.clone()
        mean[list(errors)] = float("nan")
    texts = ["\n".join(own) if own else None for own in said]
    return Encoded(mean, errors, texts if any(text is not None for text in texts) else None)


@dataclass
class ExpertStep(PairStep):
    """Adds one column of data embeddings per source, one of annotation embeddings per text space, and the descriptions.

    Every vector is L2-normalised float32. Data of a modality that an expert does not take is null in its column;
    a pair that a model fails on, or that no expert takes, is quarantined. Data of several parts is embedded as one by
    models that can; otherwise its vector is the mean of those of its parts, normalised, in each column that takes them.
    Data with several media of a modality is embedded once for each (`views`, of which ``media.several`` bounds the
    number), and has the mean of those vectors, normalised.

    Args:
        experts: which experts.
        models: the configuration's models by name.
        anchor: the model that embeds annotations for the projection.
        media: how media are opened.
        given: experts whose embeddings of data are there already, L2-normalised; their models do not look at it again.
    """

    experts: Sequence[ExpertSpec]
    models: Mapping[str, ModelSpec]
    anchor: str
    media: MediaSettings = field(default_factory=MediaSettings)
    given: Sequence[str] = ()
    name: str = "experts"
    loaded = ("_experts", "_device")

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The canonical columns, and those of embeddings that are given."""
        return {**super().requires, **dict.fromkeys(self._given_columns, schema.VECTOR)}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One vector column per source and per text space, and what describers said where there are any."""
        return {**dict.fromkeys(self._vector_columns, schema.VECTOR), **dict.fromkeys(self._descriptions, pa.string())}

    @property
    def _vector_columns(self) -> list[str]:
        data = [source.column for expert in self._embedding for source in sources(expert)]
        return [*data, *(schema.annotation_column(model) for model in self.text_models)]

    @property
    def _descriptions(self) -> list[str]:
        return [schema.description_column(expert.name) for expert in self._embedding if expert.describers]

    @property
    def _embedding(self) -> list[ExpertSpec]:
        return [expert for expert in self.experts if expert.name not in self.given]

    @property
    def _given_columns(self) -> list[str]:
        given = [expert for expert in self.experts if expert.name in self.given]
        return [source.column for expert in given for source in sources(expert)]

    @property
    def used(self) -> set[str]:
        """The models that the step loads."""
        return {*self.text_models}.union(*(expert.models for expert in self._embedding))

    @property
    def text_models(self) -> list[str]:
        """See `expert.text_models`."""
        return text_models(self.experts, self.models, self.anchor)

    def setup(self, device: str | None = None) -> None:
        """Load every model (nothing happens where this process has them)."""
        self._device = loader.pick_device(device)
        self._experts = [build(expert, self.models, self._device) for expert in self._embedding]

    def identity(self) -> dict[str, Any]:
        """Experts, models with their revisions, and how media are decoded."""
        used = {self.anchor}.union(*(expert.models for expert in self.experts))
        return {
            "step": self.name,
            "experts": [expert.model_dump(mode="json") for expert in self.experts],
            "anchor": self.anchor,
            "models": loader.identities({name: self.models[name] for name in sorted(used)}),
            "media": self.media.identity(),
            **({"given": sorted(self.given)} if self.given else {}),
        }

    def process(self, rows: Frame) -> Added:
        """Embed both sides of ``rows``, modality by modality, media decoded ahead in threads."""
        n = len(rows)
        columns = {name: VectorColumn(n) for name in self._vector_columns}
        descriptions: dict[str, list[str | None]] = {name: [None] * n for name in self._descriptions}
        errors: dict[int, PairError] = {}
        several = with_several(rows)
        self._embed(rows, set(several), columns, descriptions, errors)
        if several:
            self._embed_several(rows, several, columns, descriptions, errors)
        self._embed_annotations(rows, columns, errors)
        vectors = {name: column.vectors(errors) for name, column in columns.items()}
        return Added(
            {**vectors, **{name: pa.array(texts, pa.string()) for name, texts in descriptions.items()}}, errors
        )

    def _embed(
        self,
        rows: Frame,
        without: Set[int],
        columns: dict[str, VectorColumn],
        descriptions: dict[str, list[str | None]],
        errors: dict[int, PairError],
    ) -> None:
        """Embed the data of all rows but some."""
        for modality, every in by_class(rows, errors):
            positions = [row for row in every if row not in without] if without else every
            embed = self._embed_parts if len(modalities_of(modality)) > 1 else self._embed_data
            if positions:
                embed(rows, modality, positions, columns, descriptions, errors)

    def _embed_several(
        self,
        rows: Frame,
        positions: list[int],
        columns: dict[str, VectorColumn],
        descriptions: dict[str, list[str | None]],
        errors: dict[int, PairError],
    ) -> None:
        """Embed data with several media of a modality: each view of it by itself, and then the mean."""
        frame, counts = views(rows, positions, self.media.several)
        owner = np.repeat(positions, counts).tolist()
        own = {name: VectorColumn(len(frame)) for name in columns}
        said: dict[str, list[str | None]] = {name: [None] * len(frame) for name in descriptions}
        failed: dict[int, PairError] = {}
        self._embed(frame, frozenset(), own, said, failed)
        for view, error in failed.items():
            errors.setdefault(owner[view], error)
        for name, column in own.items():
            there, mean = column.means(counts)
            if there:
                columns[name].put([positions[row] for row in there], mean, errors)
        for name, texts in said.items():
            for row, text in zip(owner, texts, strict=True):
                told = descriptions[name][row]
                descriptions[name][row] = text if told is None else told if text is None else f"{told}\n{text}"

    def _embed_data(
        self,
        rows: Frame,
        modality: str,
        positions: list[int],
        columns: dict[str, VectorColumn],
        descriptions: dict[str, list[str | None]],
        errors: dict[int, PairError],
    ) -> None:
        takers: list[tuple[str, str, Encoder]] = []
        for expert in self._experts:
            column, encoder = expert.column(modality), expert.encoder(modality)
            if column is not None and encoder is not None:
                takers.append((column, expert.name, encoder))
        if not takers:
            there = self._there(rows)
            errors.update((row, EmbeddingError(f"no expert takes {modality}")) for row in positions if not there[row])
            return
        opener = Opener(self.media)
        items = iter_data(rows, opener, positions, threads=self.media.threads)

        def embed(chunk: tuple[list[int], list[Item]]) -> tuple[list[int], list[Encoded]]:
            return chunk[0], [encoder.encode(chunk[1], modality) for _, _, encoder in takers]

        chunks = in_chunks(zip(positions, items, strict=True), errors, *self.chunk)
        at_once = calls_at_once(self._device)
        for chunk_rows, found in ahead(embed, chunks, at_once, at_once - 1):
            for (column, name, _), encoded in zip(takers, found, strict=True):
                columns[column].put(chunk_rows, encoded, errors)
                if encoded.texts is not None and is_media(modality):
                    said = descriptions[schema.description_column(name)]
                    for row, text in zip(chunk_rows, encoded.texts, strict=True):
                        said[row] = text

    def _there(self, rows: Frame) -> list[bool]:
        """Return which rows have an embedding that is given."""
        there = [frames.array(rows, column).is_valid().to_pylist() for column in self._given_columns]
        return [any(row) for row in zip(*there, strict=True)] if there else [False] * len(rows)

    def _embed_parts(
        self,
        rows: Frame,
        modality: str,
        positions: list[int],
        columns: dict[str, VectorColumn],
        descriptions: dict[str, list[str | None]],
        errors: dict[int, PairError],
    ) -> None:
        """Embed data of several parts: as one by experts that can, otherwise as the mean of its parts' vectors."""
        ways = [(expert, expert.taking_together(modality), expert.taking_parts(modality)) for expert in self._experts]
        taken = {number for _, _, parts in ways for own in parts.values() for number in own}
        for number, kind in enumerate(modalities_of(modality)):
            if number not in taken and not any(one for _, one, _ in ways):
                error = EmbeddingError(f"{kind} part: no expert takes {kind}")
                errors.update(dict.fromkeys(positions, error))
                return
        apart = take_apart(rows, modality, positions)
        errors.update(apart.errors)
        decoded = apart.decoded(Opener(self.media), self.media.threads)
        for chunk_rows, chunk in in_chunks(zip(apart.rows, decoded, strict=True), errors, *self.chunk):
            for expert, together, parts in ways:
                if together is not None:
                    column, encoder = together
                    columns[column].put(chunk_rows, encoder.encode(chunk, modality), errors)  # type: ignore[arg-type]
                    continue
                for column, encoders in parts.items():
                    encoded = mean_of_parts(apart, chunk, encoders)
                    columns[column].put(chunk_rows, encoded, errors)
                    if encoded.texts is not None:
                        said = descriptions[schema.description_column(expert.name)]
                        for row, text in zip(chunk_rows, encoded.texts, strict=True):
                            said[row] = text

    def _embed_annotations(self, rows: Frame, columns: dict[str, VectorColumn], errors: dict[int, PairError]) -> None:
        texts = annotation_texts(rows, self.media)
        errors.update((row, text) for row, text in enumerate(texts) if isinstance(text, PairError))
        live = [row for row in range(len(texts)) if row not in errors]
        items = [text for row in live if isinstance(text := texts[row], str)]
        for model in self.text_models:
            encoder = load_encoder(model, self.models, self._device)
            columns[schema.annotation_column(model)].put(live, encoder.encode(items, "text"), errors)


class VectorColumn:
    """A column of embeddings under construction; its width is known once the first vectors are there."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._values: torch.Tensor | None = None
        self._valid = torch.zeros(rows, dtype=torch.bool)

    def put(self, rows: Sequence[int], encoded: Encoded, errors: dict[int, PairError]) -> None:
        """Take in the vectors of ``rows``; what failed goes to ``errors``."""
        vectors = encoded.vectors.detach()
        if self._values is None:
            self._values = vectors.new_zeros((self._rows, vectors.shape[1]), dtype=torch.float32)
            self._valid = self._valid.to(vectors.device)
        for item, error in encoded.errors.items():
            errors.setdefault(rows[item], error)
        good = [item for item in range(len(rows)) if item not in encoded.errors]
        if len(good) < len(rows):
            vectors = vectors[good]
        index = torch.tensor([rows[item] for item in good], dtype=torch.long, device=vectors.device)
        self._values[index] = vectors
        self._valid[index] = True

    def means(self, counts: Sequence[int]) -> tuple[list[int], Encoded]:
        """Return which runs of so many rows have a vector in each, and the mean of each such run, normalised."""
        if self._values is None:
            return [], Encoded(torch.zeros((0, 0)))
        lengths = torch.tensor(counts, device=self._values.device)
        mean = torch.segment_reduce(self._values, "mean", lengths=lengths, axis=0)
        least = torch.segment_reduce(self._valid.float(), "min", lengths=lengths, axis=0)
        there = torch.nonzero(least > 0).flatten()
        mean = mean[there]
        errors: dict[int, PairError] = {
            row: EmbeddingError("the vectors of its media cancel each other out")
            for row in torch.nonzero(mean.norm(dim=1) < LEAST).flatten().tolist()
        }
        return there.tolist(), Encoded(F.normalize(mean, dim=1), errors)

    def vectors(self, errors: Mapping[int, PairError]) -> Vectors:
        """Return the column, without the rows that failed anywhere."""
        values = self._values if self._values is not None else torch.zeros((self._rows, 0))
        if errors:
            self._valid[list(errors)] = False
        return Vectors(values, self._valid)
