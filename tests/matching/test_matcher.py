"""The matcher: what it learns from a pool, kept and read back, and as a step over any partitions."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings, ModelSpec, parse
from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.matching import Matcher, MatchStep, Pairs, Sample, Space
from nemo_mm_rank.matching.judge import FEWEST
from nemo_mm_rank.matching.matcher import ADDED, ADDED_ACROSS, BANKS, JUDGES, SWAPPED, SWAPPED_ACROSS
from nemo_mm_rank.measures.separation import separation
from nemo_mm_rank.models.expert import load_encoder
from nemo_mm_rank.schema import ERROR, LEAST_CHANCE, MATCH, MATCH_SENTENCE, MATCH_WHOLE, WEAKEST, WEAKEST_SENTENCE

dd = pytest.importorskip("dask.dataframe", reason="needs the extra 'dask'")

MODELS = {"text": parse(ModelSpec, {"class": "hashed-text", "dim": 128})}
SPACES = [Space("fused", "emb_fused", "text"), Space("words", "emb_data__words", "text")]
NOUNS = [f"{first}{second}" for first in ("rim", "tol", "bax", "kiv", "mun") for second in "aeiou"]
DEEDS = [f"{first}{second}ing" for first in ("gral", "spen", "trod", "flim", "brask") for second in ("t", "d", "k")]
NEW = [MATCH, MATCH_WHOLE, MATCH_SENTENCE, WEAKEST, WEAKEST_SENTENCE]


def rows_of(count: int, seed: int, modality: str = "text", words: list[str] = NOUNS) -> list[dict[str, str]]:
    """Pairs that share words, each annotation of three sentences."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        a, b, c, d = rng.choice(words, 4, replace=False)
        annotation = f"The {a} beside a {b}. Some {b} with the {c}. One {c} or {d}."
        rows.append(
            {
                "pair_id": f"{modality}-{number:04d}",
                "modality": modality,
                "data": f"{a} {b} {c} {d} {a} {b} {c} {d}",
                "annotation": annotation,
            }
        )
    return rows


def table_of(rows: list[dict[str, str]]) -> pa.Table:
    encoder = load_encoder("text", MODELS)
    data, texts = ([row[name] for row in rows] for name in ("data", "annotation"))
    vectors = {name: list(encoder.encode(items, "text").vectors.numpy()) for name, items in (("d", data), ("a", texts))}
    return pa.table(
        {
            **{name: [row[name] for row in rows] for name in ("pair_id", "modality", "annotation")},
            "emb_fused": pa.array(vectors["d"], pa.list_(pa.float32())),
            "emb_data__words": pa.array(vectors["d"], pa.list_(pa.float32())),
            "emb_annotation__text": pa.array(vectors["a"], pa.list_(pa.float32())),
        }
    )


def fit(table: pa.Table) -> Matcher:
    frame = frames.from_table(table)
    pairs = Pairs(
        {space.name: frames.vectors(frame, space.data) for space in SPACES},
        {"text": frames.vectors(frame, "emb_annotation__text")},
    )
    modality = np.array(table["modality"].to_pylist(), dtype=object)
    sample = Sample(modality, table["annotation"].to_pylist(), pairs)
    return Matcher.fit(sample, SPACES, "text", load_encoder("text", MODELS), 3)


def spoilt(rows: list[dict[str, str]], how: str, share: float = 0.4) -> tuple[list[dict[str, str]], np.ndarray]:
    """Spoil a share of the pairs, in tenths; return the rows, and which are clean."""
    clean = np.arange(len(rows)) % 10 >= round(10 * share)
    bad = np.flatnonzero(~clean)
    out = [dict(row) for row in rows]
    for place, other in zip(bad.tolist(), np.roll(bad, 1).tolist(), strict=True):
        first, second, third = rows[place]["annotation"].split(". ")
        foreign = rows[other]["annotation"].split(". ")[1]
        out[place]["annotation"] = (
            rows[other]["annotation"] if how == "swap" else f"{first}. {second}. {foreign}. {third}"
        )
    return out, clean


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Texts of which two in five have another's annotation, and code that is clean."""
    swapped = spoilt(rows_of(200, 0), "swap")[0]
    return table_of([*swapped, *rows_of(120, 1, "code", DEEDS), *rows_of(FEWEST - 1, 2, "audio")])


@pytest.fixture(scope="module")
def folder(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matching")
    fit(table).save(path)
    return path


def through(step: MatchStep, table: pa.Table) -> pa.Table:
    return frames.to_table(step(frames.from_table(table)))


def test_swapped_annotations_are_found_and_clean_ones_left_alone(folder: Path, table: pa.Table) -> None:
    found = through(MatchStep(folder, MODELS), table)
    modality = np.array(found["modality"].to_pylist())
    whole, both = found[MATCH_WHOLE].to_numpy(), found[MATCH].to_numpy()
    assert both.tolist() == np.minimum(whole, found[MATCH_SENTENCE].to_numpy()).tolist()
    assert ((both >= LEAST_CHANCE) & (both <= 1)).all()
    clean = np.arange(200) % 10 > 3
    assert whole[:200][clean].mean() > 0.85
    assert whole[:200][~clean].mean() < 0.2
    assert (both[modality == "code"] > 0.9).mean() > 0.98
    assert set(both[modality == "audio"].tolist()) == {1.0}  # too few to be told
    assert found[ERROR].null_count == len(found)


@pytest.mark.parametrize(("share", "apart"), [(0.1, 0.5), (0.4, 0.2)])
def test_foreign_sentences_are_found_and_named(share: float, apart: float, tmp_path: Path) -> None:
    rows, clean = spoilt(rows_of(250, 4), "sentence", share)
    table = table_of(rows)
    matcher = fit(table)
    matcher.save(tmp_path)
    found = through(MatchStep(tmp_path, MODELS), table)
    sentence = found[MATCH_SENTENCE].to_numpy()
    assert separation(sentence[clean], sentence[~clean]) > 0.95
    assert sentence[clean].mean() > 0.95
    assert sentence[clean].mean() - sentence[~clean].mean() > apart
    named = found[WEAKEST_SENTENCE].to_pylist()
    foreign = [row["annotation"].split(". ")[2] + "." for row in rows]
    hits = [named[row] == foreign[row] for row in np.flatnonzero(~clean).tolist()]
    assert np.mean(hits) > 0.9
    # What is made of an annotation with a foreign sentence has two, so the share found is below the true one.
    assert 0.05 < matcher.about()["text"][ADDED]["wrong"] < share + 0.05


def test_the_lowest_cosine_of_a_sentence_is_there_besides(folder: Path) -> None:
    rows = [
        {**rows_of(1, 5)[0], "pair_id": "two", "annotation": "The rima beside a tola. Quarterly rates were raised."},
        {**rows_of(1, 5)[0], "pair_id": "one", "annotation": "The rima beside a tola."},
    ]
    table = table_of(rows)
    found = through(MatchStep(folder, MODELS), table).to_pylist()
    encoder = load_encoder("text", MODELS)
    data = np.array(table["emb_fused"].to_pylist())
    sentences = encoder.encode(["The rima beside a tola.", "Quarterly rates were raised."], "text").vectors.numpy()
    assert found[0][WEAKEST] == pytest.approx((sentences @ data[0]).min(), abs=1e-6)
    assert found[1][WEAKEST] == pytest.approx(sentences[0] @ data[1], abs=1e-6)
    assert found[0][WEAKEST_SENTENCE] == "Quarterly rates were raised."
    assert found[1][WEAKEST_SENTENCE] is None


def test_what_is_learnt_is_kept_and_read_back(folder: Path, table: pa.Table) -> None:
    matcher, again = fit(table), Matcher.load(folder)
    assert again.about() == matcher.about()
    assert sorted(again.judges) == ["code", "text"]
    assert set(again.about()["text"]) == {SWAPPED, SWAPPED_ACROSS, ADDED, ADDED_ACROSS}
    assert (again.spaces, again.anchor, again.seed) == (matcher.spaces, "text", 3)
    for modality, own in matcher.judges.items():
        assert {name: one.as_json() for name, one in own.items()} == {
            name: one.as_json() for name, one in again.judges[modality].items()
        }
        bank, other = matcher.banks[modality], again.banks[modality]
        for first, second in ((bank.data, other.data), (bank.annotations, other.annotations)):
            assert {name: values.tolist() for name, values in first.items()} == {
                name: values.tolist() for name, values in second.items()
            }
        assert bank.sentences.tolist() == other.sentences.tolist()


def test_a_folder_that_holds_no_matcher_is_refused(folder: Path, tmp_path: Path) -> None:
    judges, banks = (folder / JUDGES).read_bytes(), (folder / BANKS).read_bytes()
    values = json.loads(judges)
    less = {**values, "judges": {"video": values["judges"]["text"]}}
    for broken in (
        {},
        {JUDGES: judges},
        {BANKS: banks},
        {JUDGES: b"{", BANKS: banks},
        {JUDGES: b"[]", BANKS: banks},
        {JUDGES: judges, BANKS: banks[:50]},
        {JUDGES: json.dumps({**values, "spaces": [{"nam": "x"}]}).encode(), BANKS: banks},
        {JUDGES: json.dumps(less).encode(), BANKS: banks},
    ):
        for name in (JUDGES, BANKS):
            (tmp_path / name).unlink(missing_ok=True)
            if name in broken:
                (tmp_path / name).write_bytes(broken[name])
        with pytest.raises(ModelError, match="contains no matcher"):
            Matcher.load(tmp_path)
        with pytest.raises(ModelError, match="contains no matcher"):
            MatchStep(tmp_path, MODELS)


def test_one_modality_alone_knows_no_others_and_single_sentences_no_rest() -> None:
    rows = [{**row, "annotation": row["annotation"].split(". ")[0]} for row in rows_of(FEWEST, 6)]
    assert set(fit(table_of(rows)).about()["text"]) == {SWAPPED}
    assert fit(table_of(rows[:-1])).about() == {}
    same = [{**row, "annotation": "The rima."} for row in rows]  # nothing to exchange with
    assert fit(table_of(same)).about() == {"text": {}}


def parts_of(table: pa.Table, cuts: list[int]) -> list[pa.Table]:
    return [table.slice(first, last - first) for first, last in pairwise([0, *cuts, len(table)])]


def with_everything(table: pa.Table) -> pa.Table:
    """Add what trimming has kept, a pair that failed, annotations that cannot be read, and vectors that are missing."""
    count = len(table)
    spans: list[Any] = [None] * count
    for row in range(0, count, 4):
        spans[row] = [[0.0, float(table["annotation"][row].as_py().index(". ") + 1)]]
    annotations = table["annotation"].to_pylist()
    annotations[10], annotations[11] = None, "x " * 400
    errors: list[str | None] = [None] * count
    errors[20] = "experts: MediaError: no"
    missing = [row if place % 9 else None for place, row in enumerate(table["emb_data__words"].to_pylist())]
    for name, column in (
        ("annotation", pa.array(annotations)),
        ("emb_data__words", pa.array(missing, pa.list_(pa.float32()))),
    ):
        table = table.set_column(table.column_names.index(name), name, column)
    table = table.append_column("sns_annotation_spans", pa.array(spans, pa.list_(pa.list_(pa.float64()))))
    return table.append_column(ERROR, pa.array(errors, pa.string()))


def test_no_division_and_no_order_changes_a_bit(folder: Path, table: pa.Table) -> None:
    table = with_everything(table)
    step = MatchStep(folder, MODELS, MediaSettings(max_text_chars=500))
    whole = through(step, table)
    told = {row: error for row, error in enumerate(whole[ERROR].to_pylist()) if error}
    assert sorted(told) == [10, 11, 20]
    assert told[10].startswith("match: TextError: ")
    assert told[11].startswith("match: TextError: ")
    assert told[20] == "experts: MediaError: no"
    for name in NEW[:4]:
        assert whole[name].is_null().to_pylist() == [row in told for row in range(len(table))], name
    # What trimming has left of an annotation is one sentence.
    assert whole[WEAKEST_SENTENCE].to_pylist()[4] is None
    assert whole[WEAKEST_SENTENCE].to_pylist()[5] is not None
    other = pickle.loads(pickle.dumps(step))
    for cuts in ([1, 2, 9, 150], [200], list(range(25, 340, 25))):
        assert pa.concat_tables([through(other, part) for part in parts_of(table, cuts)]).equals(whole)
    order = pa.array(np.random.default_rng(0).permutation(len(table)))
    assert through(step, table.take(order)).equals(whole.take(order))
    frame = frames.from_table(table)
    collection = dd.from_pandas(frame, npartitions=4).map_partitions(step, meta=step.meta(frame))
    done = collection.compute(scheduler="threads")
    assert list(collection.columns) == list(done.columns)
    assert frames.to_table(done).select(whole.column_names).equals(whole)


def test_what_is_fitted_does_not_depend_on_a_vector_that_is_missing(table: pa.Table) -> None:
    found = fit(with_everything(table).drop_columns(["sns_annotation_spans", ERROR]).filter(pa.array(_readable(table))))
    assert sorted(found.judges) == ["code", "text"]
    assert all(np.isfinite(list(one.values())).all() for own in found.about().values() for one in own.values())


def _readable(table: pa.Table) -> list[bool]:
    return [row not in (10, 11) for row in range(len(table))]


def test_an_empty_frame_and_one_of_unknown_modality(folder: Path, table: pa.Table) -> None:
    step = MatchStep(folder, MODELS)
    assert through(step, table.slice(0, 0)).num_rows == 0
    strange = table.slice(0, 3).set_column(1, "modality", pa.array(["text+image"] * 3))
    found = through(step, strange)
    assert found[MATCH].to_pylist() == [1.0] * 3
    assert found[WEAKEST].null_count == 0
    assert found[WEAKEST_SENTENCE].null_count == 0


def test_it_is_known_by_what_was_fitted_and_by_its_model(folder: Path, table: pa.Table, tmp_path: Path) -> None:
    one = MatchStep(folder, MODELS)
    fit(table).save(tmp_path)
    assert MatchStep(tmp_path, MODELS).identity() == one.identity()  # the same bytes from the same sample
    fit(table.slice(0, 200)).save(tmp_path)
    assert MatchStep(tmp_path, MODELS).identity() != one.identity()
    other = {"text": parse(ModelSpec, {"class": "hashed-text", "dim": 64})}
    assert MatchStep(folder, other).identity() != one.identity()
    assert one.requires.keys() == {"annotation", "modality", "emb_fused", "emb_data__words", "emb_annotation__text"}
    assert list(one.provides) == NEW


def test_a_missing_vector_is_the_mean_of_its_features(folder: Path, table: pa.Table) -> None:
    gone = table.slice(0, 40)
    for name in ("emb_fused", "emb_data__words", "emb_annotation__text"):
        nothing = pa.nulls(40, pa.list_(pa.float32()))
        gone = gone.set_column(gone.column_names.index(name), name, nothing)
    found = through(MatchStep(folder, MODELS), gone)
    assert found[MATCH].null_count == 0
    assert found[WEAKEST].null_count == 40
    assert found["emb_fused"].null_count == 40
