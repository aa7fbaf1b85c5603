"""What a run fits on its pool, each an artifact that is made once: statistics that add over shards; cut scores,
projection and matcher, from bounded samples; and how scores are put together."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemo_mm_rank import frames, matching
from nemo_mm_rank.config import Config, ModelSpec, Query, RankingSettings, SNSSettings
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import ConfigError, PairError, UserError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.examples import Found, read_examples
from nemo_mm_rank.io.files import read_table, write_json, write_table, write_tensors
from nemo_mm_rank.io.owned import remove
from nemo_mm_rank.matching.features import Pairs
from nemo_mm_rank.matching.matcher import Matcher, Sample
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.modality import is_media, names
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.expert import has_text, load_encoder, sources
from nemo_mm_rank.projection.fit import VERSION as FIT
from nemo_mm_rank.projection.fit import fit
from nemo_mm_rank.quality.operators import Batches, OthersSettings
from nemo_mm_rank.ranking.blend import fit_scoring
from nemo_mm_rank.ranking.examples import KIND
from nemo_mm_rank.ranking.feedback import FeedbackStep
from nemo_mm_rank.ranking.query_scores import PREFIX, score_column
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore, digest
from nemo_mm_rank.sampling import FitSample, hashes
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_BYTES,
    DATA_PARTS,
    ERROR,
    FUSED,
    MODALITY,
    PAIR_ID,
    SOURCE_CONTENTS,
    annotation_column,
    data_column,
)
from nemo_mm_rank.shards import Shards, attach_rows, by_part, live
from nemo_mm_rank.sns.fitting import PAIRS as TRIMMED_PAIRS
from nemo_mm_rank.sns.fitting import VERSION as SNS
from nemo_mm_rank.sns.fitting import fit_standards
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import Step, columns_added


def read_sample(shards: Shards, config: Config) -> FitSample:
    """Read at most ``config.projection.max_pairs`` live pairs, chosen and ordered by a hash of their ids.

    Memory: 20 bytes a pair of the pool while choosing, then the sample itself.

    Args:
        shards: with the embeddings by the configuration's experts.
        config: experts, anchor, bound, and the seed, which enters the hash.
    """
    used = [source for expert in config.experts for source in sources(expert)]
    anchor, data = annotation_column(config.anchor), [source.column for source in used]
    texts = [MODALITY, ANNOTATION]
    words, columns = gather(shards, texts, [anchor, *data], config.projection.max_pairs, config.seed)
    held = [source for source in used if source.column in columns]
    return FitSample(
        sources={source.column: columns[source.column] for source in held},
        anchors=columns[anchor].values,
        modality=words[MODALITY].tolist(),
        annotations=words[ANNOTATION].tolist(),
        anchor_space=[source.column for source in held if source.model == config.anchor],
        takes={source.column: source.modalities for source in held if source.modalities is not None},
    )


def gather(
    shards: Shards, texts: Sequence[str], vectors: Sequence[str], max_pairs: int, seed: int, by: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Vectors]]:
    """Read columns of at most ``max_pairs`` live pairs, chosen and ordered by a hash of their ids.

    Args:
        shards: where they are.
        texts: columns of text.
        vectors: columns of embeddings; one that no pair has is left out of what is returned.
        max_pairs: the bound.
        seed: enters the hash.
        by: a column of text; the bound then holds for each of its values.

    Returns:
        Column -> ``(n,)`` objects, and column -> embeddings of ``n`` rows.
    """
    keys, parts, rows = _choose(shards, max_pairs, seed, by)
    order = np.argsort(keys, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    words: dict[str, np.ndarray] = {name: np.empty(len(order), dtype=object) for name in texts}
    columns: dict[str, Vectors] = {}
    for part, mine in by_part(parts):
        table = shards.read(part, [*texts, *vectors]).take(pa.array(rows[mine]))
        frame = frames.from_table(table)
        where = place[mine]
        for name in texts:
            words[name][where] = table[name].to_pylist()
        for name in vectors:
            _put(columns, name, frames.vectors(frame, name), torch.from_numpy(where), len(order))
    return words, columns


def _choose(shards: Shards, max_pairs: int, seed: int, by: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    held: dict[str | None, list[Chosen]] = {}
    counts = Counter[str | None]()
    for part, rows, table in live(shards, [PAIR_ID, *([by] if by else [])]):
        fresh = hashes(table[PAIR_ID].to_pylist(), seed)
        values = np.array(table[by].to_pylist() if by else [None] * table.num_rows, dtype=object)
        for value in dict.fromkeys(values.tolist()):
            of_value = values == value if by else np.ones(len(rows), dtype=bool)
            found = (fresh[of_value], np.full(int(of_value.sum()), part, np.int64), rows[of_value])
            held.setdefault(value, []).append(found)
            counts[value] += len(found[0])
            if counts[value] > 2 * max_pairs:
                held[value], counts[value] = [_smallest(held[value], max_pairs)], max_pairs
    if not held:
        return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    chosen = [_smallest(found, max_pairs) for found in held.values()]
    keys, parts, rows = (np.concatenate(columns) for columns in zip(*chosen, strict=True))
    return keys, parts, rows


Chosen: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


def _smallest(held: Sequence[Chosen], k: int) -> Chosen:
    keys, parts, rows = (np.concatenate(columns) for columns in zip(*held, strict=True))
    if len(keys) <= k:
        return keys, parts, rows
    chosen = np.argpartition(keys, k - 1)[:k]
    return keys[chosen], parts[chosen], rows[chosen]


def _put(columns: dict[str, Vectors], name: str, part: Vectors, where: torch.Tensor, n: int) -> None:
    if part.values.shape[1] == 0:
        return
    if name not in columns:
        columns[name] = Vectors(torch.zeros((n, part.values.shape[1])), torch.zeros(n, dtype=torch.bool))
    columns[name].values[where] = part.values
    columns[name].valid[where] = part.valid


@dataclass(frozen=True)
class _Count:
    """Counts one shard's texts with a model that can; callable on any worker."""

    model: str
    spec: ModelSpec
    shards: ShardStore
    name: str = "count"

    def __call__(self, part: int) -> tuple[npt.NDArray[np.int64], int, int]:
        self.shards.look()
        table = self.shards.read(part, [MODALITY, DATA, ANNOTATION, DATA_PARTS])
        texts = table[ANNOTATION].to_pylist() + _textual(table[MODALITY], table[DATA])
        if DATA_PARTS in table.column_names:
            parts = pc.list_flatten(table[DATA_PARTS])
            texts += _textual(*(pc.struct_field(parts, name) for name in (MODALITY, DATA)))
        model = loader.load(self.model, self.spec.class_, self.spec.arguments)
        return model.count(texts), len(texts), table.num_rows


def _textual(modality: pa.ChunkedArray, data: pa.ChunkedArray) -> list[str]:
    """Return the data that is text or code."""
    words = pa.array([name for name in names() if not is_media(name)])
    texts: list[str] = data.filter(pc.is_in(modality, value_set=words)).to_pylist()
    return texts


VERSION = 1
"""Of what a fit does: one that is kept from another version is made anew."""

MATCHING_PAIRS = 2048
"""Bound on the pairs of each modality that a matcher is fitted on."""


def whole(path: Path) -> bool:
    """Whether what was fitted is there as it was made: what is damaged, or was never finished, counts as not there."""
    return damaged(path) is None


def damaged(path: Path) -> Path | None:
    """Return the file of what was fitted that is gone or not as it was made, None where all is whole."""
    seal = _seal(path)
    mirror.fetch(seal)
    mirror.fetch(path)
    try:
        sealed = json.loads(seal.read_text(encoding="utf-8"))
        content = _content(path)
        wrong = [name for name in {**sealed, **content} if sealed.get(name) != content.get(name)]
    except FileNotFoundError as error:
        return Path(error.filename)
    except (OSError, ValueError, AttributeError, TypeError):
        return seal
    if not wrong:
        return None
    return path / wrong[0] if path.is_dir() else path


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.seal")


def _content(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if not file.name.startswith("."))
    return {file.name: hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in files}


@dataclass(frozen=True)
class Fits:
    """What a run fits on its pool. Each fit is made once: files that only what they were made from gives a name.

    Attributes:
        folder: where they are kept (`RunFolder.fitted`).
        engine: where shards are counted, and on which device networks are fitted.
        reporter: where progress goes.
    """

    folder: Path
    engine: Engine
    reporter: Reporter

    def kept(self, name: str, made_from: Any, make: Callable[[Path], None], suffix: str = "") -> Path:
        """Return a fit's file or folder, ``<name>-<key><suffix>``, which ``make`` fills unless it is there and whole.

        Args:
            name: what is fitted.
            made_from: what it depends on, JSON-able: the key is its digest.
            make: fits, and writes the file or folder of this path.
            suffix: of a file.
        """
        path = self.folder / f"{name}-{digest(made_from)[:12]}{suffix}"
        if not whole(path):
            remove(path, Path.is_file)  # half of one would be in the way of another
            make(path)
            write_json(_seal(path), _content(path))
        return path

    def forget(self, name: str, but: Path) -> None:
        """Remove the files of one kind of fit but for one."""
        pattern = re.compile(rf"\.?{re.escape(name)}-[0-9a-f]{{12}}\.json(\.seal)?")
        for path in self.folder.iterdir():
            if pattern.fullmatch(path.name) and path not in (but, _seal(but)):
                mirror.unlink(path)

    def statistics(self, models: Mapping[str, ModelSpec], shards: ShardStore) -> dict[str, ModelSpec]:
        """Return ``models`` with ``statistics`` filled in for those that can count and were given none.

        A class can count where it has ``count(texts) -> int64 array`` and ``save_statistics(path, counts, n)``.
        """
        fitted = dict(models)
        for name, spec in models.items():
            kind = loader.find_class(spec.class_)
            if not hasattr(kind, "count") or spec.arguments.get(loader.STATISTICS):
                continue
            values = spec.model_dump(mode="json", by_alias=True)
            count = partial(self._count, _Count(name, spec, shards.as_of_now()), kind)
            path = self.kept(name, [values, shards.keys], count, ".safetensors")
            values = spec.model_dump(by_alias=True)
            fitted[name] = ModelSpec.model_validate({**values, loader.STATISTICS: str(path)})
        return fitted

    def _count(self, task: _Count, counting: Any, path: Path) -> None:
        total, texts = None, 0
        with self.reporter.step(f"count {task.model}", task.shards.pairs) as advance:
            for _, (counts, n, rows) in self.engine.map(task, range(task.shards.count)):
                total = counts if total is None else total + counts
                texts += n
                advance(rows)
        counting.save_statistics(path, total, texts)

    def trimming(self, config: Config, models: Mapping[str, ModelSpec], shards: ShardStore) -> SNSSettings:
        """Return the settings of SNS with the file of cut scores, where these are to come from the pool.

        Args:
            config: with the settings, the expert that judges, and the seed, which enters the hash that draws pairs.
            models: with their statistics.
            shards: the pool.
        """
        settings = config.sns
        if settings.mode == "off" or settings.select != "pool" or settings.cuts is not None:
            return settings
        step = SNSStep(settings, config.sns_expert, models, config.media)
        step.device = self.engine.device

        def make(path: Path) -> None:
            with self.reporter.whole("sns fit", shards.pairs):
                fit_standards(_rows(shards, step, config.seed), step, config.seed).save(path)

        made_from = [SNS, step.identity(), config.seed, shards.keys]
        return settings.model_copy(update={"cuts": str(self.kept("sns", made_from, make, ".safetensors"))})

    def projection(self, config: Config, shards: ShardStore) -> Path:
        """Return the folder of the projection, fitted on a sample of embedded pairs."""
        settings = config.projection

        def make(folder: Path) -> None:
            with self.reporter.whole("fit", shards.pairs):
                fit(read_sample(shards, config), settings, config.seed, self._device).save(folder)

        used = [source.column for expert in config.experts for source in sources(expert)]
        fixed = settings.model_dump(exclude={"threads"})
        return self.kept("projection", [FIT, fixed, config.seed, used, config.anchor, shards.keys], make)

    def matcher(self, config: Config, models: Mapping[str, ModelSpec], shards: ShardStore) -> Path:
        """Return the folder of the matcher, fitted on a sample of each modality's pairs.

        Args:
            config: experts, anchor, bounds on texts, and the seed, which enters the hash that chooses the sample.
            models: as the pairs were embedded with.
            shards: with both sides' embeddings and the fused one.
        """
        spaces = matching_spaces(config, models)

        def make(folder: Path) -> None:
            with self.reporter.whole("match fit", shards.pairs):
                sample, used = _matching_sample(config, spaces, shards)
                encoder = load_encoder(config.anchor, models, self._device)
                Matcher.fit(sample, used, config.anchor, encoder, config.seed).save(folder)

        made_from = [[space.name, space.data, space.model] for space in spaces]
        return self.kept("matching", [VERSION, made_from, config.seed, shards.keys], make)

    def examples(self, query: Query, steps: Sequence[Step], alone: Sequence[Step]) -> Path:
        """Return the file of a query's examples, embedded as the pool's pairs are (`ranking.examples.Examples`).

        Args:
            query: with examples.
            steps: what takes pairs from the pool to the fused space, one after the other.
            alone: the same for one side alone, which there is nothing to trim by.

        Raises:
            UserError: the examples cannot be read, or none of them can be embedded.
        """
        assert query.like is not None  # noqa: S101 (asked only then)
        examples = read_examples(query.like)
        used = steps if examples.kind == "pairs" else alone

        def make(path: Path) -> None:
            with self.reporter.whole("examples", examples.rows.num_rows):
                write_table(path, embedded(examples, used, self.engine.device))

        made_from = [VERSION, examples.kind, examples.key, [step.identity() for step in used]]
        path = self.kept("examples", made_from, make, ".parquet")
        failed = read_table(path, [ERROR])[ERROR].drop_null()
        lost = Counter(failed.to_pylist())
        most = lost.most_common(1)[0][0] if lost else ""
        if len(failed) == examples.rows.num_rows:
            raise UserError(f"queries: none of the {len(failed):,} examples of {query.label!r} can be embedded: {most}")
        if len(failed) or examples.bad:
            why = f", most often: {most}" if most else ""
            self.reporter.say(
                f"{'examples':<17} {len(failed) + examples.bad:,} of {query.label!r} left out{why}; "
                f"{examples.rows.num_rows - len(failed):,} used"
            )
        return path

    def others(self, wanted: Mapping[str, OthersSettings], seed: int, shards: ShardStore) -> dict[str, OthersSettings]:
        """Return operators with the file of what was drawn of embedded pairs for them, where they have none.

        Args:
            wanted: operator -> space and batches.
            seed: enters the hash that chooses the sample.
            shards: with both sides' embeddings.
        """
        drawn = {name: operator for name, operator in wanted.items() if operator.reference is None}
        if not drawn:
            return dict(wanted)

        def make(path: Path) -> None:
            tensors: dict[str, torch.Tensor] = {}
            for name, operator in drawn.items():
                sides = [data_column(operator.expert), annotation_column(operator.model)]
                # Not every pair is in every space, so more are read than are needed.
                words, columns = gather(shards, [PAIR_ID], sides, 4 * operator.batches * operator.batch_size, seed)
                if missing := [side for side in sides if side not in columns]:
                    raise ConfigError(f"operators.others.{name}: no pair has {missing[0]!r}")
                batches = Batches.of(columns[sides[0]], columns[sides[1]], words[PAIR_ID].tolist(), operator)
                tensors |= {f"{name}.{key}": value for key, value in batches.tensors().items()}
            write_tensors(path, tensors)

        settings = {name: operator.model_dump(mode="json") for name, operator in sorted(drawn.items())}
        path = self.kept("others", [VERSION, settings, seed, shards.keys], make, ".safetensors")
        return {
            name: operator.model_copy(update={"reference": str(path)}) if name in drawn else operator
            for name, operator in wanted.items()
        }

    def scoring(
        self,
        settings: RankingSettings,
        columns: Sequence[str],
        spaces: Mapping[str, str],
        shards: ShardStore,
        add: Callable[[FeedbackStep], Shards],
    ) -> Path:
        """Return the file of how scores are put together (`Scoring`); arguments as for `fit_scoring`."""

        def make(path: Path) -> None:
            fit_scoring(shards, columns, settings, spaces, add).save(path)

        counted = {"weights", "broad", "conditions", "spread", "calibration"}
        fixed = settings.model_dump(mode="json", by_alias=True, include=counted)
        return self.kept("scoring", [VERSION, fixed, list(columns), dict(spaces), shards.keys], make, ".json")

    @property
    def _device(self) -> str:
        return loader.pick_device(self.engine.device)


STAND_IN = "an example"
"""What is said of media that came without words; nothing is compared with it."""


def embedded(found: Found, steps: Sequence[Step], device: str | None) -> pa.Table:
    """Return examples with the embeddings that steps give pairs, and why those failed that have an ``error``."""
    rows = found.rows
    table = rows
    if found.kind == "media":
        stand_in = pa.array([STAND_IN] * rows.num_rows, pa.string())
        table = table.set_column(table.column_names.index(ANNOTATION), ANNOTATION, stand_in)
    for step in steps:
        step.device = device
        added = columns_added(step, table)
        if ERROR in table.column_names:
            table = table.drop_columns([ERROR])
        table = pa.table([*table.columns, *added.columns], names=[*table.column_names, *added.column_names])
    vectors = [
        name
        for name in table.column_names
        if name == FUSED
        or name.startswith(data_column(""))
        or (found.kind != "media" and name.startswith(annotation_column("")))
    ]
    kinds = pa.array([found.kind] * rows.num_rows, pa.string())
    columns = {name: rows[name] for name in rows.column_names if name not in (DATA_BYTES, SOURCE_CONTENTS)}
    return pa.table({**columns, KIND: kinds, **{name: table[name] for name in (ERROR, *vectors)}})


def _rows(shards: ShardStore, step: SNSStep, seed: int) -> pa.Table:
    """Return what SNS reads of some pairs of each modality, in the order of a hash of their ids."""
    keys, parts, rows = _choose(shards, TRIMMED_PAIRS, seed, MODALITY)
    order = np.argsort(keys, kind="stable")
    places = np.stack([parts, rows], axis=1)[order]
    names = [name for name in (*step.requires, *step.uses) if name in shards.columns()]
    return attach_rows(pa.table({"place": range(len(places))}), places, shards, names).select(names)


def _matching_sample(
    config: Config, spaces: Sequence[matching.Space], shards: ShardStore
) -> tuple[Sample, list[matching.Space]]:
    """Return pairs of every modality, and the spaces in which some of them have both sides."""
    text_models = list(dict.fromkeys([config.anchor, *(space.model for space in spaces)]))
    names = [*(space.data for space in spaces), *map(annotation_column, text_models)]
    texts = [MODALITY, ANNOTATION, *([ANNOTATION_SPANS] if ANNOTATION_SPANS in shards.columns() else [])]
    words, columns = gather(shards, texts, list(dict.fromkeys(names)), MATCHING_PAIRS, config.seed, by=MODALITY)
    table = pa.table({name: pa.array(words[name].tolist(), shards.columns()[name]) for name in texts[1:]})
    read = annotation_texts(frames.from_table(table), config.media)
    used = [space for space in spaces if space.data in columns and annotation_column(space.model) in columns]
    pairs = Pairs(
        {space.name: columns[space.data] for space in used},
        {model: columns[name] for model in text_models if (name := annotation_column(model)) in columns},
    )
    annotations = ["" if isinstance(text, PairError) else str(text) for text in read]
    return Sample(words[MODALITY], annotations, pairs), used


def matching_spaces(config: Config, models: Mapping[str, ModelSpec]) -> list[matching.Space]:
    """Return the spaces that hold both sides of a pair: the fused one, and those of experts."""
    spaces = [matching.Space("fused", FUSED, config.anchor)]
    for expert in config.experts:
        used = [source for source in sources(expert) if has_text(source.model, models)]
        names = [score_column(expert.name, one.column).removeprefix(PREFIX) for one in used]
        spaces += [matching.Space(name, one.column, one.model) for name, one in zip(names, used, strict=True)]
    return spaces
