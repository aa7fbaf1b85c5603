"""How much of what does not belong is cut, and how much of what does: ``python -m benchmarks.repair``.

Pairs of the real pool get something that is not theirs: a sentence in the annotation (another pair's, of the same
modality or of another), a paragraph or a piece of code in the data, a clip before or after a sound, a picture beside a
picture, a border of noise. Beside these stand pairs as they are, and XQuAD's questions, whose answer lies in one
sentence of the paragraph: all others may go. Each side is trimmed by itself (forward the data, backward the
annotation), and both at once by the default. Cut scores of the pool are fitted on one half of it, and all figures are
of the other; halves share no data.

    python -m benchmarks.repair [--pairs 100] [--modalities text code image audio] [--seed 0] [--ways default pool]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks import real_models, real_pool
from benchmarks.sns_effect import pool
from nemo_mm_rank import media
from nemo_mm_rank.arrays import Bools, Floats, Ints
from nemo_mm_rank.config import Config, SNSSettings, parse
from nemo_mm_rank.media.encode import wav
from nemo_mm_rank.media.segment import Audio
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.sampling import hashes
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_SPANS,
    ERROR,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    POOL,
)
from nemo_mm_rank.sns.fitting import PAIRS, fit_standards
from nemo_mm_rank.sns.standards import Standards
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import columns_added
from nemo_mm_rank.text.split import sentence_spans, text_medium

Region = Sequence[float]
"""``(start, end)`` in characters or seconds, or a box ``(x, y, w, h)`` in pixels."""

GONE, KEPT = 0.1, 0.9
"""A pair is repaired where at most the first share of what was planted is left, and at least the second of its own."""

FOREIGN, OTHER, PARAGRAPH, BESIDE, BORDER = (
    *("foreign sentence", "foreign sentence, other modality"),
    *("foreign paragraph", "another beside it", "border of noise"),
)
CLEAN, ANSWER = "clean", "speaks of a part"

POOL_WAY, DEFAULT = "cut scores of the pool, gate", "nucleus .9, gate"
BOLD = 0.6
"""What may be lost of own data where it is trimmed to what its annotation speaks of."""
SETTINGS: dict[str, dict[str, Any]] = {
    POOL_WAY: {"select": "pool"},
    "cut scores of the pool, no gate": {"select": "pool", "gate_ratio": 0.0},
    f"cut scores of the pool, {BOLD:.0%} may go, no gate": {"select": "pool", "lost": BOLD, "gate_ratio": 0.0},
    DEFAULT: {"select": "nucleus"},
    "both directions at once": {"select": "nucleus", "mode": "bidirectional"},
    "nucleus .9, no gate": {"select": "nucleus", "gate_ratio": 0.0},
    "nucleus .99, gate": {"nucleus": 0.99},
    "threshold .35, no gate (authors)": {"select": "threshold", "gate_ratio": 0.0},
    "threshold .1, no gate (authors)": {
        **{"select": "threshold", "gate_ratio": 0.0},
        **{"tau_forward": 0.1, "tau_backward": 0.1},
    },
    "threshold .2, no gate": {"select": "threshold", "gate_ratio": 0.0, "tau_forward": 0.2, "tau_backward": 0.2},
    "threshold .2, gate": {"select": "threshold", "tau_forward": 0.2, "tau_backward": 0.2},
}
NOTHING, LAST, RANDOM = "cut nothing", "cut the last part", "cut at random as much as nucleus .9"


@dataclass(frozen=True)
class Pieces:
    """What sides consist of, end to end.

    Attributes:
        owner: ``(m,)`` which side a piece is of, from 0.
        planted: ``(m,)`` whether it does not belong to its pair.
        size: ``(m,)`` how much it counts: 1 for a sentence, else seconds or pixels.
        kept: ``(m,)`` the share of it that is left, 0 to 1.
    """

    owner: Ints
    planted: Bools
    size: Floats
    kept: Floats


@dataclass(frozen=True)
class Figures:
    """What trimming did. NaN where there is nothing to count.

    Attributes:
        pairs: how many sides.
        cut: share of them of which anything was cut.
        recall: share of what was planted that is gone.
        precision: share of what is gone that was planted.
        lost: share of the own content that is gone.
        repaired: share of the sides with something planted that are rid of it and have kept their own.
    """

    pairs: int
    cut: float
    recall: float
    precision: float
    lost: float
    repaired: float


def figures(pieces: Pieces) -> Figures:
    """Count what was cut.

    >>> ones, owner = np.ones(4), np.array([0, 0, 1, 1])
    >>> planted = np.array([False, True, False, True])
    >>> figures(Pieces(owner, planted, ones, np.array([1.0, 0.0, 0.0, 0.0])))
    Figures(pairs=2, cut=1.0, recall=1.0, precision=0.6666666666666666, lost=0.5, repaired=0.5)
    """
    n = int(pieces.owner.max(initial=-1)) + 1

    def sums(of: Bools, amount: Floats) -> Floats:
        return np.bincount(pieces.owner[of], amount[of], minlength=n).astype(np.float64)

    gone = pieces.size * (1 - pieces.kept)
    planted, own = sums(pieces.planted, pieces.size), sums(~pieces.planted, pieces.size)
    planted_gone, own_gone = sums(pieces.planted, gone), sums(~pieces.planted, gone)
    rid = planted_gone >= (1 - GONE) * planted - 1e-9
    spoilt = planted > 0
    repaired = rid & (own - own_gone >= KEPT * own - 1e-9)
    return Figures(
        n,
        _share((planted_gone + own_gone > 1e-9).sum(), n),
        _share(planted_gone.sum(), planted.sum()),
        _share(planted_gone.sum(), planted_gone.sum() + own_gone.sum()),
        _share(own_gone.sum(), own.sum()),
        _share(repaired[spoilt].sum(), spoilt.sum()),
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def kept_share(region: Region, spans: Sequence[Region] | None) -> float:
    """Return the share of a region that spans, which do not overlap each other, keep; None keeps all.

    >>> kept_share((0, 4), [(1, 2), (3, 9)]), kept_share((0, 0, 2, 2), [(1, 0, 5, 1)])
    (0.5, 0.25)
    """
    if spans is None:
        return 1.0
    low, high = _corners(region)
    found = 0.0
    for span in spans:
        start, end = _corners(span)
        found += float(np.prod(np.clip(np.minimum(high, end) - np.maximum(low, start), 0, None)))
    return found / float(np.prod(high - low))


def _corners(region: Region) -> tuple[Floats, Floats]:
    values = np.asarray(region, dtype=np.float64)
    if len(values) == 2:
        return values[:1], values[1:]
    return values[:2], values[:2] + values[2:]


@dataclass(frozen=True)
class Case:
    """A pair with something planted in one of its sides, or nothing.

    Attributes:
        kind: what.
        side: ``annotation`` or ``data``.
        row: the pair in canonical columns.
        pieces: what the side consists of, and whether a piece is foreign.
    """

    kind: str
    side: str
    row: dict[str, Any]
    pieces: list[tuple[Region, bool]]

    @property
    def modality(self) -> str:
        """Of the data."""
        return str(self.row[MODALITY])


def sentences(text: str, planted: Region | None, modality: str = "text") -> list[tuple[Region, bool]]:
    """Return the sentences of a text (blocks of code), and whether each lies in the ``planted`` range of it.

    >>> sentences("One. Two. Three.", (5, 9))
    [((0, 4), False), ((5, 9), True), ((10, 16), False)]
    """
    split = sentence_spans if modality == "text" else text_medium(modality).split
    begin, end = planted or (0, 0)
    return [(span, begin <= span[0] and span[1] <= end) for span in split(text)]


def insert(own: str, foreign: str, place: int, joint: str) -> tuple[str, Region]:
    """Return a text with ``foreign`` before its part number ``place`` (the last: behind all), and where that is.

    >>> insert("One. Two.", "Fish.", 1, " ")
    ('One. Fish. Two.', (5, 10))
    """
    starts = [start for start, _ in sentence_spans(own)]
    if place >= len(starts):
        return f"{own}{joint}{foreign}", (len(own) + len(joint), len(own) + len(joint) + len(foreign))
    start = starts[place]
    return f"{own[:start]}{foreign}{joint}{own[start:]}", (start, start + len(foreign))


def answer_pieces(row: Mapping[str, Any]) -> list[tuple[Region, bool]] | None:
    """Return a paragraph's sentences, foreign all but the one that holds the answer; None where that is not one."""
    answer = row[ANNOTATION].rpartition("? ")[2].strip()
    found = sentences(row[DATA], None)
    holds = [answer in row[DATA][int(start) : int(end)] for (start, end), _ in found]
    if not answer or sum(holds) != 1 or row[DATA].count(answer) != 1:
        return None
    return [(region, not own) for (region, _), own in zip(found, holds, strict=True)]


def cases(rows: Sequence[dict[str, Any]], folder: Path, seed: int) -> Iterator[Case]:
    """Yield the pairs as they are, and once with each kind of thing planted that their modality can have."""
    rng = np.random.default_rng(seed)
    for row in rows:
        same = [one for one in rows if one[MODALITY] == row[MODALITY] and one[ANNOTATION] != row[ANNOTATION]]
        others = [one for one in rows if one[MODALITY] != row[MODALITY]]
        modality = row[MODALITY]
        yield Case(CLEAN, "annotation", row, sentences(row[ANNOTATION], None))
        for kind, donors in ((FOREIGN, same), (OTHER, others)):
            if donors:
                foreign = _one_sentence(_drawn(donors, rng)[ANNOTATION], rng)
                place = int(rng.integers(len(sentence_spans(row[ANNOTATION])) + 1))
                own = row[ANNOTATION].strip()
                own = own if own[-1] in ".!?" else f"{own}."
                text, where = insert(own, foreign, place, " ")
                yield Case(kind, "annotation", {**row, ANNOTATION: text}, sentences(text, where))
        if not is_media(modality):
            yield Case(CLEAN, "data", row, sentences(row[DATA], None, modality))
            foreign = _drawn([one for one in same if one[DATA] != row[DATA]], rng)[DATA].strip()
            place = 0 if rng.random() < 0.5 else 1 << 30
            text, where = insert(row[DATA].strip(), foreign, place, "\n\n")
            yield Case(PARAGRAPH, "data", {**row, DATA: text}, sentences(text, where, modality))
        elif modality == "image":
            yield Case(CLEAN, "data", row, [((0, 0, *_opened(row).size), False)])
            yield _beside(row, _drawn(same, rng), folder, bool(rng.random() < 0.5))
            yield _bordered(row, folder, rng)
        elif modality == "audio":
            yield Case(CLEAN, "data", row, [((0.0, _sound(row).duration), False)])
            yield _one_after_the_other(row, _drawn(same, rng), folder, bool(rng.random() < 0.5))
        if row[POOL] == "xquad" and (pieces := answer_pieces(row)) is not None:
            yield Case(ANSWER, "data", row, pieces)


def _drawn(rows: Sequence[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    return rows[int(rng.integers(len(rows)))]


def _one_sentence(text: str, rng: np.random.Generator) -> str:
    spans = sentence_spans(text)
    start, end = spans[int(rng.integers(len(spans)))]
    said = text[start:end]
    return said if said[-1] in ".!?" else f"{said}."


def _made(row: dict[str, Any], kind: str, folder: Path, name: str, pieces: list[tuple[Region, bool]]) -> Case:
    return Case(kind, "data", {**row, DATA: name, MEDIA_ROOT: str(folder)}, pieces)


def _opened(row: Mapping[str, Any]) -> Image.Image:
    with Image.open(Path(row[MEDIA_ROOT]) / row[DATA]) as image:
        return image.convert("RGB")


def _beside(row: dict[str, Any], donor: Mapping[str, Any], folder: Path, first: bool) -> Case:
    own, other = _opened(row), _opened(donor)
    other = other.resize((max(1, other.width * own.height // other.height), own.height))
    image = Image.new("RGB", (own.width + other.width, own.height))
    x, beside = (other.width, 0) if first else (0, own.width)
    image.paste(own, (x, 0))
    image.paste(other, (beside, 0))
    name = f"beside-{row[PAIR_ID]}.png"
    image.save(folder / name)
    pieces: list[tuple[Region, bool]] = [((x, 0, *own.size), False), ((beside, 0, *other.size), True)]
    return _made(row, BESIDE, folder, name, pieces)


def _bordered(row: dict[str, Any], folder: Path, rng: np.random.Generator) -> Case:
    own = _opened(row)
    left, upper = own.width // 2, own.height // 2  # three quarters of the picture are noise
    width, height = own.width + 2 * left, own.height + 2 * upper
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    image.paste(own, (left, upper))
    name = f"border-{row[PAIR_ID]}.png"
    image.save(folder / name, compress_level=1)
    noise: list[Region] = [
        *((0, 0, width, upper), (0, upper + own.height, width, upper)),
        *((0, upper, left, own.height), (left + own.width, upper, left, own.height)),
    ]
    return _made(row, BORDER, folder, name, [((left, upper, *own.size), False), *((one, True) for one in noise)])


def _sound(row: Mapping[str, Any]) -> Audio:
    segment = media.open(row[DATA], modality="audio", root=row[MEDIA_ROOT])
    assert isinstance(segment, Audio)
    return segment


def _one_after_the_other(row: dict[str, Any], donor: Mapping[str, Any], folder: Path, first: bool) -> Case:
    own, other = _sound(row), _sound(donor)
    order = (other, own) if first else (own, other)
    name = f"after-{row[PAIR_ID]}.wav"
    (folder / name).write_bytes(wav(np.concatenate([one.samples for one in order]), own.rate))
    start = other.duration if first else 0.0
    behind = 0.0 if first else own.duration
    pieces: list[tuple[Region, bool]] = [
        ((start, start + own.duration), False),
        ((behind, behind + other.duration), True),
    ]
    return _made(row, BESIDE, folder, name, pieces)


def judged(found: Sequence[Case], kept: Sequence[Sequence[float]]) -> Pieces:
    """Return the pieces of cases, of each the share that is kept."""
    owner = np.repeat(np.arange(len(found)), [len(case.pieces) for case in found])
    regions = [region for case in found for region, _ in case.pieces]
    texts = [case.side == "annotation" or not is_media(case.modality) for case in found]
    sizes = [1.0 if texts[side] else _size(region) for side, region in zip(owner.tolist(), regions, strict=True)]
    planted = [foreign for case in found for _, foreign in case.pieces]
    return Pieces(
        owner, np.array(planted, dtype=bool), np.array(sizes), np.array([share for own in kept for share in own])
    )


def _size(region: Region) -> float:
    low, high = _corners(region)
    return float(np.prod(high - low))


@dataclass(frozen=True)
class Way:
    """How SNS is set up.

    Attributes:
        config: with the models.
        fitted: rows of the half that cut scores are fitted on.
        folder: where those are written.
        seed: of what is planted in them.
    """

    config: Config
    fitted: pa.Table
    folder: Path
    seed: int

    def step(self, **changes: Any) -> SNSStep:
        """Return the step with some settings; where they want cut scores, with those of the half."""
        config = self.config
        settings = parse(SNSSettings, changes)
        step = SNSStep(settings, config.sns_expert, config.models, config.media)
        if settings.select != "pool":
            return step
        path = self.folder / f"cuts-{settings.lost}.safetensors"
        if not path.exists():
            both = replace(step, settings=settings.model_copy(update={"mode": "bidirectional"}))
            fit_standards(self.fitted, both, self.seed).save(path)
        return replace(step, settings=settings.model_copy(update={"cuts": str(path)}))


def trimmed(found: Sequence[Case], changes: Mapping[str, Any], way: Way) -> list[list[float]]:
    """Return of each case, all with the same side, the share of each piece that SNS keeps with some settings."""
    mode = {"mode": "forward" if found[0].side == "data" else "backward"}
    table = pa.Table.from_pylist([case.row for case in found])
    added = columns_added(way.step(**{**mode, **changes}), table).to_pydict()
    if failed := [reason for reason in added[ERROR] if reason is not None]:
        raise RuntimeError(f"{len(failed)} of {len(found)} pairs failed, the first: {failed[0]}")
    spans = added[DATA_SPANS if found[0].side == "data" else ANNOTATION_SPANS]
    return [[kept_share(region, own) for region, _ in case.pieces] for case, own in zip(found, spans, strict=True)]


def last(found: Sequence[Case]) -> list[list[float]]:
    """Cut the last piece of whatever has several."""
    return [[1.0] * (len(case.pieces) - 1) + [0.0 if len(case.pieces) > 1 else 1.0] for case in found]


def at_random(found: Sequence[Case], like: Sequence[Sequence[float]], seed: int) -> list[list[float]]:
    """Cut as many pieces of each case as were cut in ``like``, whichever."""
    rng = np.random.default_rng(seed)
    return [list(rng.permutation(kept)) for kept, _ in zip(like, found, strict=True)]


def compared(found: Sequence[Case], way: Way, names: Sequence[str], seed: int) -> dict[str, Figures]:
    """Return the figures of one kind, side and modality's cases by each of some settings and by baselines."""
    lines: dict[str, list[list[float]]] = {name: trimmed(found, SETTINGS[name], way) for name in names}
    lines[NOTHING] = [[1.0] * len(case.pieces) for case in found]
    if found[0].side == "annotation" or not is_media(found[0].modality):
        lines[LAST] = last(found)
        if DEFAULT in lines:
            lines[RANDOM] = at_random(found, lines[DEFAULT], seed)
    return {name: figures(judged(found, kept)) for name, kept in lines.items()}


def tables(results: Mapping[tuple[str, str, str], Mapping[str, Figures]]) -> Iterator[str]:
    """Yield markdown: a table for each way of cutting, that of the default first, the worst cases on top."""
    for how in (*SETTINGS, NOTHING, LAST, RANDOM):
        lines = [(key, found[how]) for key, found in results.items() if how in found]
        if not lines:
            continue
        yield f"\n{how}\n"
        yield "| modality | side | what | pairs | of them cut | recall | precision | own lost | repaired |"
        yield "|---" * 9 + "|"
        for (kind, side, modality), one in sorted(lines, key=lambda line: _standing(line[1])):
            cells = ("-" if value != value else f"{value:.2f}" for value in list(vars(one).values())[1:])
            yield f"| {modality} | {side} | {kind} | {one.pairs} | {' | '.join(cells)} |"


def _standing(one: Figures) -> float:
    """Return what is the lower the worse: repaired pairs, or what is left of clean ones."""
    return one.repaired if one.repaired == one.repaired else 1 - one.lost


def halves(rows: Sequence[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return two halves of the pool that share no data (XQuAD asks several questions of one paragraph)."""
    first = hashes([row[DATA] for row in rows], seed) % 2 == 0
    chosen = list(zip(rows, first.tolist(), strict=True))
    return [row for row, own in chosen if own], [row for row, own in chosen if not own]


def drawn(rows: Sequence[dict[str, Any]], each: int, seed: int) -> list[dict[str, Any]]:
    """Return so many pairs of each modality, in an order that the hashes of their ids give."""
    order = np.argsort(hashes([row[PAIR_ID] for row in rows], seed), kind="stable")
    found: dict[str, list[dict[str, Any]]] = {}
    for place in order.tolist():
        found.setdefault(rows[place][MODALITY], []).append(rows[place])
    return [row for name in sorted(found) for row in found[name][:each]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100, help="of each modality")
    parser.add_argument("--fitted", type=int, default=PAIRS, help="of each modality, that cut scores are fitted on")
    parser.add_argument("--modalities", nargs="+", default=["text", "code", "image", "audio"])
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--ways", nargs="+", default=[""], help="settings whose names begin so; default: all")
    parser.add_argument("--models", choices=["labels", "objects", "static"], default="labels")
    parser.add_argument("--pool", choices=["real", "mixed"], default="real")
    parser.add_argument("--fit-on", choices=["real", "mixed"], help="default: the other half of the pool")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    models = {
        "labels": lambda: real_models.mini(images="labels"),
        "objects": real_models.mini,
        "static": real_models.static,
    }[options.models]()
    config = parse(Config, real_pool.settings("unused", **models))
    names = [name for name in SETTINGS if name.startswith(tuple(options.ways))]
    rows = [row for row in pool(None, POOLS[options.pool]).to_pylist() if row[MODALITY] in options.modalities]
    fitted, shown = halves(rows, options.seed)
    if options.fit_on not in (None, options.pool):
        fitted = [r for r in pool(None, POOLS[options.fit_on]).to_pylist() if r[MODALITY] in options.modalities]
    with tempfile.TemporaryDirectory(prefix="nemo-mm-rank-repair-") as made:
        folder = Path(made)
        sample = pa.Table.from_pylist(drawn(fitted, options.fitted, options.seed))
        way = Way(config, sample, folder, options.seed)
        groups: dict[tuple[str, str, str], list[Case]] = {}
        for case in cases(drawn(shown, options.pairs, options.seed), folder, options.seed):
            if options.kinds is None or case.kind in options.kinds:
                groups.setdefault((case.kind, case.side, case.modality), []).append(case)
        results = {}
        for name, found in groups.items():
            results[name] = compared(found, way, names, options.seed)
            print(f"{name}: {results[name][names[0]]}", file=sys.stderr, flush=True)
        print(f"{options.models}, {options.pool}, seed {options.seed}: {len(sample)} pairs to fit on")
        for path in sorted(folder.glob("cuts-*")):
            print("\n".join(fitted_lines(Standards.load(path))))
        print("\n".join(tables(results)))


POOLS = {"real": real_pool.POOL, "mixed": real_pool.MIXED}


def fitted_lines(found: Standards) -> Iterator[str]:
    """Yield markdown: where each side is cut, and what that was expected to do."""
    yield "\n| side | cut | pairs | parts | told | own lost | planted caught | taken for foreign |"
    yield "|---" * 8 + "|"
    for name, one in sorted(found.standards.items()):
        figures = (one.told, one.lost, one.caught, one.foreign)
        shown = " | ".join(f"{value:.2f}" for value in figures)
        yield f"| {name} | {one.cut:.2f} | {one.pairs} | {one.parts} | {shown} |"


if __name__ == "__main__":
    main()
