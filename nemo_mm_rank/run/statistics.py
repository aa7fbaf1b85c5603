"""Statistics that a text model takes from the pool before anything is embedded (IDF): counts that add over shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.engine import Engine
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import Shards, digest
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_PARTS, MODALITY, Modality


@dataclass(frozen=True)
class _Count:
    """Counts one shard's texts with a model that can; callable on any worker."""

    model: str
    spec: ModelSpec
    shards: Shards
    name: str = "count"

    def __call__(self, part: int) -> tuple[npt.NDArray[np.int64], int, int]:
        table = self.shards.read(part, [MODALITY, DATA, ANNOTATION, DATA_PARTS])
        texts = table[ANNOTATION].to_pylist() + _textual(table[MODALITY], table[DATA])
        if DATA_PARTS in table.column_names:
            parts = pc.list_flatten(table[DATA_PARTS])
            texts += _textual(*(pc.struct_field(parts, name) for name in (MODALITY, DATA)))
        model = loader.load(self.model, self.spec.class_, self.spec.arguments)
        return model.count(texts), len(texts), table.num_rows


def _textual(modality: pa.ChunkedArray, data: pa.ChunkedArray) -> list[str]:
    """Return the data that is text or code."""
    words = pa.array([str(Modality.TEXT), str(Modality.CODE)])
    texts: list[str] = data.filter(pc.is_in(modality, value_set=words)).to_pylist()
    return texts


def fit_statistics(
    models: Mapping[str, ModelSpec], shards: Shards, folder: Path, engine: Engine, reporter: Reporter, pairs: int
) -> dict[str, ModelSpec]:
    """Return ``models`` with ``statistics`` filled in for those that can count and were given none.

    A class can count where it has ``count(texts) -> int64 array`` and ``save_statistics(path, counts, n)``.
    """
    fitted = dict(models)
    for name, spec in models.items():
        found = loader.find_class(spec.class_)
        if not hasattr(found, "count") or spec.arguments.get(loader.STATISTICS):
            continue
        keys = [shards.key(part) for part in range(shards.count)]
        path = folder / f"{name}-{digest([spec.model_dump(mode='json', by_alias=True), keys])[:12]}.safetensors"
        if not path.exists():
            total, texts = None, 0
            with reporter.step(f"count {name}", pairs) as advance:
                for _, (counts, n, rows) in engine.map(_Count(name, spec, shards), range(shards.count)):
                    total = counts if total is None else total + counts
                    texts += n
                    advance(rows)
            found.save_statistics(path, total, texts)
        fitted[name] = ModelSpec.model_validate({**spec.model_dump(by_alias=True), loader.STATISTICS: str(path)})
    return fitted
