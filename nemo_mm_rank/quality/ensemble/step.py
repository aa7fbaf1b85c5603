"""A fitted ensemble as steps that add quality and the votes that it comes from, and the choice of the best pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Budget
from nemo_mm_rank.errors import EmbeddingError, MissingColumnError, PairError, UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import file_digest, read_table
from nemo_mm_rank.quality.ensemble.fit import DUPLICATE_OF, LABELLED, Ensemble, modalities_of, sorted_scores
from nemo_mm_rank.quality.ensemble.votes import REJECT, SELECT, VETO, Votes, decode, encode
from nemo_mm_rank.schema import MODALITY, PAIR_ID, POOL
from nemo_mm_rank.shards import Shards, live
from nemo_mm_rank.steps import Added, Step, by_value
from nemo_mm_rank.topk import TopK

QUALITY, VOTES = "quality", "votes"


@dataclass
class EnsembleStep(Step):
    """Adds ``quality``, P(good | votes) in [0, 1], and ``votes``, one number per labeling function.

    A pair for which nobody votes has a half; one of a modality that the ensemble was not fitted on is quarantined.
    Where duplicates are known, that a better pair stays in the place of this one is a veto too, though no vote.

    Args:
        ensemble: fitted.
    """

    ensemble: Ensemble
    name: str = "quality-ensemble"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """Modality and scores."""
        columns = {function.column for functions in self.ensemble.functions.values() for function in functions}
        return {MODALITY: pa.string(), **dict.fromkeys(sorted(columns), pa.float32())}

    @property
    def uses(self) -> tuple[str, ...]:
        """Which pairs are duplicates of better ones."""
        return (DUPLICATE_OF,)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Quality and votes."""
        return {QUALITY: pa.float32(), VOTES: pa.list_(pa.int8())}

    def identity(self) -> dict[str, Any]:
        """Functions, thresholds, the model's parameters, and what a veto is worth."""
        return {"step": self.name, "veto": VETO, **self.ensemble.as_json()}

    def process(self, rows: Frame) -> Added:
        """Vote, and look each pattern of votes up."""
        votes = self.ensemble.votes(rows)
        modalities = frames.strings(rows, MODALITY)
        errors: dict[int, PairError] = {
            row: EmbeddingError(f"the ensemble was fitted without {modality}, and has no thresholds for it")
            for row, modality in enumerate(modalities)
            if modality not in self.ensemble.functions
        }
        failed = np.zeros(len(votes), dtype=bool)
        failed[list(errors)] = True
        mask = pa.array(failed)
        offsets = pa.array(np.arange(len(votes) + 1, dtype=np.int32) * votes.shape[1])
        lists = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(votes).ravel()), mask=mask)
        quality = self.ensemble.predict(votes)
        if DUPLICATE_OF in rows.columns:
            duplicate = np.array(frames.array(rows, DUPLICATE_OF).is_valid())
            quality = np.where(duplicate, VETO * quality, quality)
        return Added({QUALITY: pa.array(quality.astype(np.float32), mask=failed), VOTES: lists}, errors)


@dataclass
class LookUpStep(Step):
    """Adds a column of a file, by ``pair_id``; null for pairs that are not in it.

    Args:
        file: Parquet with ``pair_id`` and the column.
        column: its name in the file.
        adds: its name here.
        dtype: its type here.
    """

    file: Path
    column: str
    adds: str
    dtype: pa.DataType
    name: str

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The id."""
        return {PAIR_ID: pa.string()}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The column."""
        return {self.adds: self.dtype}

    def identity(self) -> dict[str, Any]:
        """What the file says."""
        return {"step": self.name, "file": file_digest(str(self.file))}

    def process(self, rows: Frame) -> Added:
        """Look the ids up.

        Raises:
            UserError: the file lacks a column.
        """
        table = read_table(self.file, our=False)
        for name in (PAIR_ID, self.column):
            if name not in table.column_names:
                raise UserError(
                    f"{self.file}: must have the columns {PAIR_ID!r} and {self.column!r}, and lacks {name!r}"
                )
        ids = pa.array(frames.strings(rows, PAIR_ID), pa.string())
        place = pc.index_in(ids, value_set=table[PAIR_ID].cast(pa.string()).combine_chunks())
        return Added({self.adds: table[self.column].cast(self.dtype).combine_chunks().take(place)})


def label_step(truth: str | Path) -> LookUpStep:
    """Return the step that adds ``labelled``: true or false for pairs of the labelled set, null for all others.

    Args:
        truth: a Parquet file with ``pair_id`` and ``clean``, such as `benchmark.planting.plant` writes.
    """
    return LookUpStep(Path(truth), "clean", LABELLED, pa.bool_(), "labelled")


Floats = npt.NDArray[np.floating[Any]]

_WORDS = (PAIR_ID, POOL, MODALITY)
_PART, _ROW = "_part", "_row"


@dataclass(frozen=True)
class Choice:
    """A blend, without the users' own columns. All but ``places`` is the same however the pool is sharded.

    Attributes:
        chosen: best first: ``pair_id, pool, modality, rank`` (from 1), ``score`` (the quality, float64), ``votes`` and
            the ``reason`` in words.
        places: ``(k, 2)`` shard number and row of each.
    """

    chosen: pa.Table
    places: Ints


def choose(
    shards: Shards,
    names: Sequence[str],
    budget: Budget,
    pairs: int,
    tie_break: str | None = None,
    vetoes: Collection[str] = (),
    by_modality: bool = False,
) -> Choice:
    """Fill the budget from shards that have been through `step.EnsembleStep`.

    Scores are those of at most 3^m patterns of votes, so that the budget nearly always ends among equals.

    Args:
        shards: with ``pair_id, pool, modality, quality, votes``; duplicates and labelled pairs are passed by.
        names: of the labeling functions.
        budget: how many, or from which quality on.
        pairs: how many can be chosen at all.
        tie_break: a column that decides between equals, higher first; a pair without a value comes last.
        vetoes: names of those that veto.
        by_modality: what decides is where a pair's value stands in its modality, so that equals of all modalities stay
            mixed: a column's numbers mean something else in each.

    Raises:
        MissingColumnError: a shard lacks a column.
    """
    columns = [*_WORDS, QUALITY, VOTES, *([tie_break] if tie_break else [])]
    top = TopK(budget.pairs(pairs))
    scale = sorted_scores(shards, tie_break, modalities_of(shards), True) if tie_break and by_modality else None
    for part, rows, table in live(shards, [*columns, DUPLICATE_OF, LABELLED]):
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise MissingColumnError(f"ensemble: shard {part} lacks {', '.join(map(repr, missing))}")
        scores = table[QUALITY].to_numpy().astype(np.float64)
        good = scores >= (-np.inf if budget.threshold is None else budget.threshold)
        for name in (DUPLICATE_OF, LABELLED):
            if name in table.column_names:
                good &= pc.is_null(table[name]).to_numpy()
        inside = np.flatnonzero(good)
        table = table.take(pa.array(inside))
        keys = {PAIR_ID: table[PAIR_ID].cast(pa.string())}
        if tie_break:
            values: Floats = frames.numbers(frames.from_table(table.select([tie_break])), tie_break)
            if scale is not None:
                values = standing(values, table[MODALITY].to_pylist(), scale)
            keys = {"tie": pa.array(-values, from_pandas=True), **keys}  # nulls last
        payload = table.select([*_WORDS, VOTES])
        payload = payload.cast(pa.schema([*((name, pa.string()) for name in _WORDS), (VOTES, pa.list_(pa.int8()))]))
        for name, numbers in ((_PART, np.full(len(inside), part)), (_ROW, rows[inside])):
            payload = payload.append_column(name, pa.array(numbers))
        nothing = payload.slice(0, 0)
        top.add(scores[inside], pa.table(keys), payload)
    best = top.result()
    scores, rows = (np.zeros(0), nothing) if best is None else (best[0], best[2])
    places = np.stack([rows[_PART].to_numpy(), rows[_ROW].to_numpy()], axis=1)
    votes = rows[VOTES].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, len(names))
    chosen = pa.table(
        {
            **{name: rows[name] for name in _WORDS},
            "rank": np.arange(1, rows.num_rows + 1),
            "score": scores,
            VOTES: rows[VOTES],
            "reason": reasons(votes, names, vetoes),
        }
    )
    return Choice(chosen, places)


def standing(values: Floats, modality: Sequence[str], scale: Mapping[str, Floats]) -> Floats:
    """Return ``(n,)`` the share of its modality's scores that each value is above, NaN for NaN.

    Args:
        values: ``(n,)``.
        modality: of each.
        scale: modality -> its scores, sorted.
    """
    ranks = np.full(len(values), np.nan)
    for name, rows in by_value(modality).items():
        scores = scale.get(name, np.zeros(0))
        ranks[rows] = np.searchsorted(scores, values[rows]) / max(1, len(scores))
    return np.where(np.isnan(values), np.nan, ranks)


def reasons(votes: Votes, names: Sequence[str], vetoes: Collection[str] = ()) -> pa.Array:
    """Return a line for each pair, like ``selected by clip; vetoed by dark``; made once per pattern."""
    codes, place = np.unique(encode(votes), return_inverse=True)
    lines = [_line(pattern, names, vetoes) for pattern in decode(codes, votes.shape[1])]
    return pa.array(lines, pa.string()).take(pa.array(place))


def _line(pattern: npt.NDArray[np.int8], names: Sequence[str], vetoes: Collection[str]) -> str:
    selected, rejected = (
        [names[place] for place in np.flatnonzero(pattern == vote).tolist()] for vote in (SELECT, REJECT)
    )
    said = {
        "selected": selected,
        "rejected": [name for name in rejected if name not in vetoes],
        "vetoed": [name for name in rejected if name in vetoes],
    }
    return "; ".join(f"{what} by {', '.join(by)}" for what, by in said.items() if by) or "no labeling function votes"
