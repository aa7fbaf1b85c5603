"""Choosing more than the top: of the best candidates, several times the budget, those that have more to say together.

Every way is an order in which candidates are taken, group by group, so that budget, quotas and near-duplicates hold as
they do for the top. It depends on the candidates alone, in rank order, and on counts that add over shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.config import SelectSettings
from nemo_mm_rank.errors import ConfigError, UserError, require
from nemo_mm_rank.measures.statistics import apportion
from nemo_mm_rank.ranking.candidates import Candidates
from nemo_mm_rank.ranking.select import DistinctFirst
from nemo_mm_rank.schema import ANNOTATION, FUSED, PAIR_ID
from nemo_mm_rank.shards import Shards, attach_rows, live, read_vectors

Unit = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Order:
    """In which order candidates are taken.

    Attributes:
        positions: ``(n,)`` candidates, the first of each group first.
        why: ``(n,)`` by candidate, a few words for people; None for those in reserve.
        about: for the summary.
    """

    positions: Ints
    why: Sequence[str | None]
    about: dict[str, Any]


def check(settings: SelectSettings) -> None:
    """Refuse, before anything is embedded, a choice that could not be made.

    Raises:
        UserError: scikit-learn is not installed, or there is no file of entries.
    """
    if settings.how != "diverse" and settings.how != "top":
        require("sklearn", "select")
    if settings.how == "balanced" and settings.entries is not None:
        Entries.read(settings.entries)


def vary(settings: SelectSettings, found: Candidates, room: Ints, shards: Shards) -> Order:
    """Return in which order candidates are taken.

    Args:
        settings: in which way; not ``top``.
        found: the candidates, best first.
        room: ``(g,)`` how many each group may take.
        shards: with fused embeddings, and annotations where entries are balanced.

    Raises:
        UserError: more clusters than candidates, or no entry that stands in an annotation.
        ConfigError: a file of entries that cannot be read.
    """
    if not len(found.scores):
        return Order(np.zeros(0, dtype=np.int64), [], {"candidates": 0})
    # More may be there than the settings say, in reserve for near-duplicates: they come last, by rank.
    inside = _turns(found.codes) < np.ceil(room * settings.over)[found.codes]
    places, reserve = np.flatnonzero(inside), np.flatnonzero(~inside)
    order = _WAYS[settings.how](settings, found.take(places), room, shards)
    why = np.full(len(inside), None, dtype=object)
    why[places] = order.why
    about = {"candidates": len(places), **order.about}
    return Order(np.concatenate([places[order.positions], reserve]), why.tolist(), about)


def _clusters(settings: SelectSettings, found: Candidates, room: Ints, shards: Shards) -> Order:
    """Take from each cluster the best, as many as its share (COINCIDE: Lee et al. 2024, arXiv 2406.10995)."""
    vectors = _unit(found, shards)
    labels, centroids = _kmeans(vectors, settings)
    weights = np.exp(_shifted(cluster_scores(vectors, labels, centroids) / settings.temperature))
    sizes = len(centroids)
    first = np.zeros(len(labels), dtype=bool)
    shares = np.zeros(sizes, dtype=np.int64)
    for group, count in enumerate(room.tolist()):
        in_group = np.flatnonzero(found.codes == group)
        caps = np.bincount(labels[in_group], minlength=sizes)
        # A weight of next to nothing still comes before the candidates beyond the other clusters' shares.
        share = apportion(min(count, len(in_group)), np.maximum(weights, np.finfo(np.float64).tiny), caps)
        first[in_group] = _turns(labels[in_group]) < share[labels[in_group]]
        shares += share
    sizes_of = np.bincount(labels, minlength=sizes)
    words = [f"cluster {c}: {share:,} of {n:,}" for c, (share, n) in enumerate(zip(shares, sizes_of, strict=True))]
    about = {"clusters": int((sizes_of > 0).sum()), "shares": sorted(shares[sizes_of > 0].tolist(), reverse=True)[:20]}
    return Order(np.argsort(~first, kind="stable"), [words[label] for label in labels], about)


def cluster_scores(vectors: Unit, labels: Ints, centroids: Unit) -> Floats:
    """Return ``(k,)`` by which clusters share a budget: how near to the others they lie over how dense they are.

    Nearness is the mean cosine of the centroid with the others, those above .9 left out; density the mean of the
    Gaussian kernel (of width 1) over pairs of members, of 512 of them at most.
    """
    unit = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    cosines = (unit @ unit.T).astype(np.float64)
    distinct = cosines <= _SAME
    near = np.where(distinct, cosines, 0.0).sum(1) / np.maximum(distinct.sum(1), 1)
    density = np.ones(len(centroids))
    for cluster in range(len(centroids)):
        members = np.flatnonzero(labels == cluster)
        if len(members) > _MEMBERS:
            members = members[np.linspace(0, len(members) - 1, _MEMBERS).astype(np.int64)]
        if len(members):
            centred = vectors[members].astype(np.float64)
            norms = (centred * centred).sum(1)
            squares = np.maximum(norms[:, None] + norms[None, :] - 2 * centred @ centred.T, 0.0)
            density[cluster] = np.exp(-squares / 2).mean()
    scores: Floats = near / density
    return scores


_SAME, _MEMBERS = 0.9, 512


def _soft_cap(settings: SelectSettings, found: Candidates, room: Ints, shards: Shards) -> Order:
    """Draw by the scores, and lower those of what has been drawn (Shechter and Carmon 2025, arXiv 2503.08805).

    There a pair may be drawn again, and its logit falls each time. Here each pair is there once, so what is repeated
    is its cluster: every draw lowers the logits of its other members.
    """
    labels, centroids = _kmeans(_unit(found, shards), settings)
    rng = np.random.default_rng([settings.seed, 11])
    drawn = np.zeros(len(centroids), dtype=np.int64)
    noise = rng.gumbel(size=len(labels))
    logits = found.scores / settings.temperature + noise
    rounds = np.full(len(labels), -1, dtype=np.int64)
    order: list[Ints] = []
    for group, count in enumerate(room.tolist()):
        left = np.flatnonzero(found.codes == group)
        step = max(1, -(-count // _ROUNDS))
        for _ in range(_ROUNDS):
            if count <= 0 or not len(left):
                break
            now = logits[left] - settings.penalty * drawn[labels[left]]
            best = np.argsort(-now, kind="stable")[: min(step, count)]
            taken = left[best]
            rounds[taken] = drawn[labels[taken]]
            drawn += np.bincount(labels[taken], minlength=len(drawn))
            order.append(taken)
            left, count = np.delete(left, best), count - len(taken)
    rest = np.setdiff1d(np.arange(len(labels)), np.concatenate(order) if order else [])
    words = [
        f"cluster {label}: drawn after {before:,} of its {drawn[label]:,}"
        if before >= 0
        else f"cluster {label}: {drawn[label]:,} drawn before it"
        for label, before in zip(labels.tolist(), rounds.tolist(), strict=True)
    ]
    about = {"clusters": len(np.unique(labels)), "most of a cluster": int(drawn.max())}
    return Order(np.concatenate([*order, rest]).astype(np.int64), words, about)


_ROUNDS = 200
"""Into so many parts a budget is drawn; within one nothing is lowered."""


def _balanced(settings: SelectSettings, found: Candidates, room: Ints, shards: Shards) -> Order:
    """Keep pairs of rare entries, and of frequent ones as many as a cap allows (MetaCLIP: Xu et al. 2023, 2309.16671).

    A pair of an entry with ``c`` pairs is kept where a draw from [0, 1) is below ``t / c``, for any of its entries. The
    cap ``t`` is the one that fills the budget: pairs come by the least of their draws times ``c``.
    """
    entries = Entries.of(settings, shards)
    counts = entries.counts(shards)
    if not counts.any():
        raise UserError(
            f"ranking.select: none of the {len(entries.names):,} entries of {settings.entries} occurs in an annotation"
        )
    texts = _annotations(found, shards)
    keys, decisive = np.full(len(found.scores), np.inf), np.full(len(found.scores), -1, dtype=np.int64)
    rng = np.random.default_rng([settings.seed, 12])
    for start in range(0, len(texts), _TEXTS):
        matched = entries.matched(texts.slice(start, _TEXTS).to_pylist())
        rows, columns = matched.nonzero()
        values = rng.random(len(rows)) * counts[columns]
        order = np.lexsort([values, rows])
        unique, where = np.unique(rows[order], return_index=True)
        keys[start + unique] = values[order][where]
        decisive[start + unique] = columns[order][where]
    caps = []
    for group, count in enumerate(room.tolist()):
        inside = np.sort(keys[(found.codes == group) & np.isfinite(keys)])
        if count:
            caps.append(float(inside[min(count, len(inside)) - 1]) if len(inside) else 0.0)
    words = [
        f"entry {entries.names[entry]!r} ({counts[entry]:,} pairs)" if entry >= 0 else "none of the entries"
        for entry in decisive.tolist()
    ]
    about = {"entries": len(entries.names), "matched": int((counts > 0).sum()), "cap": max(caps, default=0.0)}
    return Order(np.argsort(keys, kind="stable"), words, about)


_TEXTS = 8192


@dataclass(frozen=True)
class Entries:
    """Words and phrases, as a vocabulary that annotations are looked up in.

    Attributes:
        names: in lower case, of ``most`` words at most.
        most: words of the longest.
    """

    names: Sequence[str]
    most: int

    @classmethod
    def of(cls, settings: SelectSettings, shards: Shards) -> Entries:
        """Read the entries of a file, one a line, or take the pool's own words that enough annotations have.

        Raises:
            ConfigError: the file cannot be read, or holds none.
            UserError: no word is in enough annotations.
        """
        if settings.entries is None:
            counts = Counter[str]()
            split = _vectorizer({"binary": True}).build_analyzer()
            for _, _, table in live(shards, [ANNOTATION]):
                for text in table[ANNOTATION].to_pylist():
                    counts.update(set(split(text or "")))
            entries = sorted((word for word, count in counts.items() if count >= _LEAST), key=lambda w: (-counts[w], w))
            if not entries:
                raise UserError(
                    f"ranking.select: no word occurs in {_LEAST} annotations; name a file of words in "
                    "ranking.select.entries"
                )
            return cls(sorted(entries[:_ENTRIES]), 1)
        return cls.read(settings.entries)

    @classmethod
    def read(cls, file: str) -> Entries:
        """Read the entries of a file, one a line; case and punctuation do not matter.

        Raises:
            ConfigError: it cannot be read, or holds none.
        """
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"ranking.select.entries: {file} cannot be read: {line}") from error
        split = _vectorizer({}).build_analyzer()
        names = sorted({words for line in lines if (words := " ".join(split(line)))})
        if not names:
            raise ConfigError(f"ranking.select.entries: {file} contains no entry; write one on each line")
        return cls(names, max(name.count(" ") + 1 for name in names))

    def counts(self, shards: Shards) -> Ints:
        """Return ``(e,)`` in how many annotations of live pairs each entry is: whole numbers, which add over shards."""
        total = np.zeros(len(self.names), dtype=np.int64)
        for _, _, table in live(shards, [ANNOTATION]):
            texts = table[ANNOTATION].to_pylist()
            for start in range(0, len(texts), _TEXTS):
                total += np.asarray(self.matched(texts[start : start + _TEXTS]).sum(axis=0)).reshape(-1)
        return total

    def matched(self, texts: Sequence[str | None]) -> Any:
        """Return ``(n, e)`` sparse 0 and 1: which entries are in which texts, word by word."""
        options = {"binary": True, "vocabulary": self.names, "ngram_range": (1, self.most)}
        return _vectorizer(options).transform([text or "" for text in texts])


_LEAST, _ENTRIES = 5, 50_000
"""Annotations that a word of the pool's own has to be in to be an entry, and most entries."""


def _vectorizer(options: dict[str, Any]) -> Any:
    options = {"token_pattern": r"\w+", "dtype": np.int64, **options}
    return require("sklearn.feature_extraction.text", "select").CountVectorizer(**options)


def _diverse(settings: SelectSettings, found: Candidates, room: Ints, shards: Shards) -> Order:
    """Take the best candidates none of which is nearer to another than a radius, the largest that fills the budget.

    The greedy rule of Hochbaum and Shmoys (1985) for k centres, in rank order; the radius is found by halving.
    """
    vectors = _unit(found, shards)
    total = int(np.minimum(room, np.bincount(found.codes, minlength=len(room))).sum())
    candidates = np.arange(len(vectors))

    def picked(level: int) -> DistinctFirst:
        picker = DistinctFirst(vectors, level / _LEVELS)
        picker.take(candidates, found.codes, room)
        return picker

    low, high, best = 0, _LEVELS, None  # at the top only equal ones are too near
    while low < high:
        middle = (low + high) // 2
        picker = picked(middle)
        if int(picker.taken.sum()) >= total:
            high, best = middle, picker
        else:
            low = middle + 1
    best = best if best is not None and high < _LEVELS else picked(_LEVELS)
    limit = high / _LEVELS
    words = [
        f"no more similar than {limit:.2f} to a better one" if taken else f"nearer than {limit:.2f} to {other!r}"
        for taken, other in zip(best.taken.tolist(), _named(found, best.double_of), strict=True)
    ]
    return Order(np.argsort(~best.taken, kind="stable"), words, {"similarity": limit})


_LEVELS = 128


def _coverage(settings: SelectSettings, found: Candidates, room: Ints, shards: Shards) -> Order:
    """Take most of a budget from the top, and for the rest the pairs whose annotations add the most words to it.

    The greedy rule for maximum coverage (Nemhauser, Wolsey and Fisher 1978); of equal ones the better-ranked.
    """
    texts = _annotations(found, shards)
    try:
        by_row = _vectorizer({"binary": True}).fit_transform([text or "" for text in texts.to_pylist()])
    except ValueError:  # no annotation has a word
        return Order(np.arange(len(texts)), ["no annotation has a word"] * len(texts), {"words": 0})
    by_word = by_row.tocsc()
    new = np.ones(by_row.shape[1], dtype=np.int64)
    turns = _turns(found.codes)
    tails = (settings.tail * room).astype(np.int64)
    head = turns < (room - tails)[found.codes]
    new[by_row[head].indices] = 0
    gains = np.asarray(by_row @ new)
    words = np.where(head, "by rank", "").astype(object)
    free, order = ~head, [np.flatnonzero(head)]
    for group, count in enumerate(tails.tolist()):
        mine = np.flatnonzero(free & (found.codes == group))
        for _ in range(min(count, len(mine))):
            best = mine[np.argmax(np.where(free[mine], gains[mine], -1))]
            words[best] = f"new words: {gains[best]:,}"
            free[best] = False
            order.append(np.array([best]))
            added = by_row[best].indices[new[by_row[best].indices] > 0]
            new[added] = 0
            gains -= np.asarray(by_word[:, added].sum(axis=1)).reshape(-1)
    rest = np.flatnonzero(free)
    words[rest] = [f"new words it would add: {gain:,}" for gain in gains[rest].tolist()]
    about = {"words": int((new == 0).sum()), "of": len(new)}
    return Order(np.concatenate([*order, rest]), words.tolist(), about)


def _annotations(found: Candidates, shards: Shards) -> pa.ChunkedArray:
    return attach_rows(pa.table({PAIR_ID: found.rows[PAIR_ID]}), found.places, shards, [ANNOTATION])[ANNOTATION]


def _named(found: Candidates, positions: Ints) -> list[str]:
    ids = found.rows[PAIR_ID].take(pa.array(np.maximum(positions, 0))).to_pylist()
    return [str(pair_id) for pair_id in ids]


_Way = Callable[[SelectSettings, Candidates, Ints, Shards], Order]
_WAYS: dict[str, _Way] = {
    "clusters": _clusters,
    "soft-cap": _soft_cap,
    "balanced": _balanced,
    "diverse": _diverse,
    "coverage": _coverage,
}


def _unit(found: Candidates, shards: Shards) -> Unit:
    if FUSED not in shards.read(int(found.places[0, 0]), [FUSED]).column_names:
        raise ConfigError(f"ranking.select: the shards lack {FUSED!r}, by which pairs are distinguished")
    vectors = read_vectors(found.places, shards, FUSED)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(norms > 0, norms, 1)
    return vectors


def _kmeans(vectors: Unit, settings: SelectSettings) -> tuple[Ints, Unit]:
    """Return the cluster of each vector and the centroids, the same for the same vectors and seed."""
    n = len(vectors)
    count = settings.clusters or min(n, 1000, max(2, round(n**0.5)))
    if count > n:
        raise UserError(
            f"ranking.select: {count:,} clusters of {n:,} candidates; ask for fewer, or for more candidates (over)"
        )
    return kmeans(vectors, count, settings.seed)


def kmeans(vectors: Unit, count: int, seed: int) -> tuple[Ints, Unit]:
    """Return the cluster of each vector, and the centroids: the same for the same vectors and seed.

    Args:
        vectors: ``(n, d)`` float32, at least ``count``.
        count: number of clusters.
        seed: of where they begin.

    Raises:
        UserError: scikit-learn is not installed.
    """
    cluster = require("sklearn.cluster", "select")
    # On one thread: sums of several are rounded in another order.
    with require("threadpoolctl", "select").threadpool_limits(1):
        model = cluster.MiniBatchKMeans(
            count, random_state=seed, n_init=1, batch_size=4096, max_iter=20, reassignment_ratio=0
        )
        labels = model.fit_predict(vectors)
    return labels.astype(np.int64), model.cluster_centers_.astype(np.float32)


def _shifted(values: Floats) -> Floats:
    """Return values of which the largest is 0: their exponentials do not overflow."""
    shifted: Floats = values - values.max()
    return shifted


def _turns(codes: Ints) -> Ints:
    """Return ``(n,)`` how many before each have the same code."""
    order = np.argsort(codes, kind="stable")
    _, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    turns = np.empty(len(codes), dtype=np.int64)
    turns[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return turns
