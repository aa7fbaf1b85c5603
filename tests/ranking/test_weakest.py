"""The sentence that agrees least: found, embedded in every space, and what agreement is judged by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from nemo_mm_rank import curate, frames
from nemo_mm_rank.config import Config, MediaSettings, ModelSpec, parse
from nemo_mm_rank.errors import EmbeddingError
from nemo_mm_rank.evaluation.planting import PlantSettings, plant
from nemo_mm_rank.experts.expert import load_encoder
from nemo_mm_rank.models.base import Encoded, Item
from nemo_mm_rank.ranking.blend import Ranking
from nemo_mm_rank.ranking.score import AGREES, ScoreStep, Sides, Space, spoken
from nemo_mm_rank.ranking.weakest import WeakestStep
from nemo_mm_rank.run.curation import explain
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.queries import score_step
from nemo_mm_rank.schema import ERROR
from tests.integration.runs import settings

FOREIGN = "Quarterly interest rates were raised."
ROWS = [
    ("a brown dog runs over wet grass", "A brown dog runs. The grass is wet."),
    ("a brown dog runs over wet grass", f"A brown dog runs. {FOREIGN} The grass is wet."),
    ("a small boat on a calm lake", "A small boat on a calm lake"),
    ("a small boat on a calm lake", f"A boat. {FOREIGN}"),
]
MODELS = {
    "text": parse(ModelSpec, {"class": "hashed-text", "dim": 64}),
    "other": parse(ModelSpec, {"class": "hashed-text", "dim": 32}),
}


class Mute:
    """Embeds texts as the hashed one does, but none that speaks of interest rates."""

    name, revision, modalities, dim = "mute", "1", frozenset({"text"}), 64

    def __init__(self) -> None:
        self._encoder = load_encoder("text", MODELS)

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        encoded = self._encoder.encode(items, modality)
        for place, item in enumerate(items):
            if "interest" in str(item):
                encoded.vectors[place] = torch.nan
                encoded.errors[place] = EmbeddingError("no word about money")
        return encoded


def embedded(texts: Sequence[str], model: str = "text") -> npt.NDArray[np.float32]:
    return load_encoder(model, MODELS).encode(list(texts), "text").vectors.numpy()


def table(rows: Sequence[tuple[str, str]] = ROWS) -> pa.Table:
    data, annotations = zip(*rows, strict=True)
    return pa.table(
        {
            "annotation": list(annotations),
            "emb_fused": list(embedded(data)),
            "emb_annotation__text": list(embedded(annotations)),
        }
    )


def through(step: WeakestStep, rows: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = frames.to_table(step(frames.from_table(rows))).to_pylist()
    return found


def test_the_sentence_its_cosine_and_its_embedding_in_every_space() -> None:
    step = WeakestStep(["text", "other"], MODELS, "text")
    found = through(step, table())
    least = [("A brown dog runs.", "The grass is wet."), (FOREIGN,), (ROWS[2][1],), (FOREIGN,)]
    for row, (data, _), sentences in zip(found, ROWS, least, strict=True):
        cosines = embedded(sentences) @ embedded([data])[0]
        assert row["weakest"] == pytest.approx(cosines.min(), abs=1e-6)
        sentence = sentences[int(cosines.argmin())]
        if row is found[2]:  # one sentence: its embedding is the annotation's, which is there
            assert row["weakest_sentence"] is row["emb_weakest__text"] is row["emb_weakest__other"] is None
        else:
            assert row["weakest_sentence"] == sentence
            for model in ("text", "other"):
                np.testing.assert_array_equal(row[f"emb_weakest__{model}"], embedded([sentence], model)[0])
    assert found[1]["weakest"] < found[0]["weakest"]
    # No row knows its neighbours.
    assert [through(step, table([row]))[0] for row in ROWS] == found


def test_a_sentence_that_cannot_be_embedded_is_passed_by() -> None:
    models = {"mute": parse(ModelSpec, {"class": "tests.ranking.test_weakest:Mute"}), **MODELS}
    rows = table([ROWS[1], (ROWS[2][0], f"{FOREIGN} The interest was high.")])
    rows = rows.append_column("emb_annotation__mute", rows["emb_annotation__text"])
    first, second = through(WeakestStep(["mute", "text"], models, "mute"), rows)
    sentences = ["A brown dog runs.", "The grass is wet."]
    cosines = embedded(sentences) @ embedded([ROWS[1][0]])[0]
    assert first["weakest"] == pytest.approx(cosines.min(), abs=1e-6)
    np.testing.assert_array_equal(first["emb_weakest__mute"], embedded([sentences[int(cosines.argmin())]])[0])
    # Of two that fail, none is left: the annotation stands for itself.
    whole = embedded([f"{FOREIGN} The interest was high."])[0] @ embedded([ROWS[2][0]])[0]
    assert second["weakest"] == pytest.approx(whole, abs=1e-6)
    assert second["emb_weakest__mute"] is second["emb_weakest__text"] is None
    assert first[ERROR] is second[ERROR] is None


def test_only_what_trimming_has_kept_is_looked_at_and_a_text_beyond_bounds_fails() -> None:
    kept = [[0.0, float(len("A brown dog runs."))]]
    rows = table(ROWS[1:2]).append_column("sns_annotation_spans", pa.array([kept], pa.list_(pa.list_(pa.float64()))))
    (row,) = through(WeakestStep(["text"], MODELS, "text"), rows)
    assert row["emb_weakest__text"] is None
    (row,) = through(WeakestStep(["text"], MODELS, "text", MediaSettings(max_text_chars=10)), table(ROWS[:1]))
    assert row["weakest"] is None
    assert row[ERROR].startswith("weakest: TextError: ")


def test_the_weakest_sentence_speaks_for_the_annotation() -> None:
    rows = frames.to_table(WeakestStep(["text"], MODELS, "text")(frames.from_table(table())))
    sides = Sides(AGREES + "fused", "emb_fused", "emb_annotation__text", "emb_weakest__text")
    space = Space.fused(torch.from_numpy(embedded(["dogs"])))
    rows = rows.drop_columns([ERROR])
    scored = frames.to_table(ScoreStep([space], [1.0], sides=[sides])(frames.from_table(rows)))
    np.testing.assert_allclose(scored[sides.name].to_numpy(), scored["weakest"].to_numpy(), atol=1e-6)
    whole = frames.to_table(ScoreStep([space], [1.0], sides=[replace(sides, weakest=None)])(frames.from_table(rows)))
    cosines = (embedded([data for data, _ in ROWS]) * embedded([text for _, text in ROWS])).sum(1)
    np.testing.assert_allclose(whole[sides.name].to_numpy(), cosines, atol=1e-6)
    column = frames.vectors(frames.from_table(rows), "emb_annotation__text")
    assert spoken(column, None) is column
    nobody = frames.Vectors(torch.zeros((4, 0)), torch.zeros(4, dtype=torch.bool))
    assert spoken(column, nobody) is column


def test_a_run_holds_a_foreign_sentence_against_its_pair(tmp_path: Path) -> None:
    words = ["dog", "cat", "boat", "lake", "tree", "hill", "road", "bird", "cloud", "house", "river", "stone", "horse"]
    rng = np.random.default_rng(0)
    lines = []
    for number in range(240):
        first, second, third = rng.choice(words, 3, replace=False)
        lines.append(
            {
                "pair_id": f"{number:03d}",
                "modality": "text",
                "data": f"{first} {second} {third} {first} {second} {third}",
                "annotation": f"A {first} and a {second}. A {second} by a {third}. A {third} with a {first}.",
            }
        )
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, lines)))
    planted = plant(
        tmp_path / "pool.jsonl", tmp_path / "planted", parse(PlantSettings, {"kinds": {"foreign-sentence": 1}}), 1
    )
    config = settings(Path(planted.pool.path), tmp_path / "run", sns={"mode": "off"}, budget="100%")
    run = curate(config=config, progress=False)
    chosen = Ranking.load(RunFolder(run.folder).ranking).chosen
    clean = dict(zip(planted.truth["pair_id"].to_pylist(), planted.truth["clean"].to_pylist(), strict=True))
    truth = np.array([clean[pair_id] for pair_id in chosen["pair_id"].to_pylist()])
    chance = chosen["chance_agreement"].to_numpy()
    assert chance[truth].mean() - chance[~truth].mean() > 0.5
    spoilt = chosen["pair_id"].to_pylist()[int(np.flatnonzero(~truth)[0])]
    assert "\n  judged by the sentence that agrees least: '" in explain(run.folder, spoilt)


def test_a_run_from_before_is_judged_by_whole_annotations(tmp_path: Path) -> None:
    config = parse(Config, settings(tmp_path / "pool.jsonl", tmp_path / "run"))
    before = ["emb_fused", "emb_annotation__text", "emb_data__words"]
    (fused, words) = score_step(config, config.models, before).sides
    assert (fused.weakest, words.weakest) == (None, None)
    (fused, words) = score_step(config, config.models, [*before, "emb_weakest__text"]).sides
    assert (fused.weakest, words.weakest) == ("emb_weakest__text", "emb_weakest__text")
