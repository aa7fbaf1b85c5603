"""LoRA fine-tuning with tiny, randomly initialised models of the real classes, processors included."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_mm_rank.benchmark.downstream import features, train
from nemo_mm_rank.benchmark.downstream.perplexity import evaluation_steps
from nemo_mm_rank.benchmark.downstream.settings import VLMSettings
from nemo_mm_rank.benchmark.downstream.vlm.job import Example, Pairs, Reader, TrainingRun
from nemo_mm_rank.benchmark.downstream.vlm.training import Shown, load, loss
from nemo_mm_rank.benchmark.settings import BenchmarkConfig
from nemo_mm_rank.config import Config, parse, read_yaml
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.errors import ModelError, PairError, UserError
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import DATA_PARTS, DATA_SPANS, PARTS, SPANS
from tests.models import tiny_encoders, tiny_omni, tiny_writers

pytest.importorskip("transformers", reason="needs the extra 'models'")
pytest.importorskip("peft", reason="needs the extra 'models'")
pytest.importorskip("accelerate", reason="needs the extra 'models'")

ITEMS: dict[str, Any] = {
    "text": "The sea is <|im_end|> calm.",
    "image": tiny_encoders.image(0, 96, 64),
    "video": tiny_encoders.video(0, 5),
    "audio": tiny_encoders.sound(0, 0.5),
}
ANNOTATION = "A red dog, <|im_end|> here."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_omni.thinker(tmp_path_factory.mktemp("thinker"))


@pytest.fixture(scope="module")
def settings(folder: Path) -> VLMSettings:
    return VLMSettings(
        model=str(folder), steps=4, evaluations=2, pairs=4, longest=48, rank=4, device="cpu", learning_rate=1e-2
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """The demo pool, in which one picture is corrupt."""
    where = tmp_path_factory.mktemp("pool")
    manifest = make_demo_pool(where / "demo", pairs_per_modality=4)
    config = parse(Config, {"pools": str(manifest), "queries": "x"})
    report = ingest(config.pools, where / "shards")
    shards = {"pool": ShardStore((where / "shards",), report.shards)}
    found = features(shards, VLMSettings(model=str(where)), config, where, SerialEngine())
    assert isinstance(found, Pairs)
    return found


def split(pairs: Pairs) -> tuple[list[int], list[int]]:
    """Return a blend of all modalities with the corrupt picture in it, and a validation set of all modalities."""
    last = {pair_id.split("-")[0]: row for row, pair_id in enumerate(pairs.parts["pool"]) if pair_id[-3:] == "003"}
    validation = sorted(last.values())
    return [row for row in pairs.rows("pool") if row not in validation], validation


def test_what_counts_is_the_annotation_and_its_end(settings: VLMSettings) -> None:
    model, processor = load(settings, "cpu", 0)
    reader = Reader(processor, model.get_base_model(), settings.prompt, 48, 4000)
    for modality, item in ITEMS.items():
        example = reader(item, modality, ANNOTATION)
        ids = example.inputs["input_ids"][0]
        count = len(example.targets)
        assert torch.equal(ids[-count:], example.targets)
        assert processor.tokenizer.decode(example.targets) == ANNOTATION + "<|im_end|>"
        asked = processor.tokenizer.decode(ids[:-count])
        assert asked.endswith(f"Write the annotation of this {modality}.<|im_end|>\n<|im_start|>assistant\n")
        # Neither text ends the turn, though both try: the prompt has one end, and the answer its own.
        assert int((ids == processor.tokenizer.eos_token_id).sum()) == 2
        assert example.inputs["attention_mask"].shape == example.inputs["input_ids"].shape
        assert bool(example.inputs["attention_mask"].all())
    assert len(reader(ITEMS["text"], "text", "x" * 100).targets) == 48


def test_the_loss_is_the_library_s_own_with_everything_else_masked(settings: VLMSettings) -> None:
    model, processor = load(settings, "cpu", 0)
    model.eval()
    reader = Reader(processor, model.get_base_model(), settings.prompt, 48, 4000)
    for modality, item in ITEMS.items():
        example = reader(item, modality, ANNOTATION)
        labels = torch.full_like(example.inputs["input_ids"], -100)
        labels[0, -len(example.targets) :] = example.targets
        with torch.no_grad():
            expected = model(**example.inputs, labels=labels).loss * len(example.targets)
            assert float(loss(model, example, torch.device("cpu"))) == pytest.approx(float(expected), rel=1e-5)


def test_media_are_seen(settings: VLMSettings) -> None:
    model, processor = load(settings, "cpu", 0)
    model.eval()
    reader = Reader(processor, model.get_base_model(), settings.prompt, 48, 4000)
    others: dict[str, Any] = {"image": tiny_encoders.image(1, 96, 64), "video": tiny_encoders.video(1, 5)}
    others |= {"audio": tiny_encoders.sound(1, 0.5), "text": "Another"}
    with torch.no_grad():
        for modality, item in ITEMS.items():
            one, two = (
                float(loss(model, reader(shown, modality, ANNOTATION), torch.device("cpu")))
                for shown in (item, others[modality])
            )
            assert one != pytest.approx(two, rel=1e-6)


def test_only_the_adapter_of_the_language_model_is_learnt(settings: VLMSettings) -> None:
    model, _ = load(settings, "cpu", 0)
    learnt = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learnt) == 2 * 2 * 7  # two matrices, two layers, seven projections
    assert all("lora_" in name and "language_model.layers" in name for name in learnt)
    again, _ = load(settings, "cpu", 0)
    other, _ = load(settings, "cpu", 1)
    state, same, differs = (one.state_dict() for one in (model, again, other))
    drawn = [name for name in learnt if "lora_A" in name]
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not any(torch.equal(state[name], differs[name]) for name in drawn)
    assert not any(state[name].any() for name in learnt if "lora_B" in name)


def test_a_blend_is_learnt_and_judged_on_all_modalities(settings: VLMSettings, pairs: Pairs) -> None:
    blend, validation = split(pairs)
    found = train(pairs, pairs.annotations, blend, validation, settings, 0)
    assert found.steps == (2, 4)
    assert found.values[1] < found.values[0]
    assert found.tokens[0] < found.tokens[1] <= 16 * 48
    _, processor = load(settings, "cpu", 0)
    texts = [str(pairs.annotations[row]) for row in validation]
    assert found.judged == sum(min(48, len(processor.tokenizer(text)["input_ids"]) + 1) for text in texts)
    again = train(pairs, pairs.annotations, blend, validation, settings, 0)
    assert dataclasses.replace(again, seconds=found.seconds) == found
    assert train(pairs, pairs.annotations, blend, validation, settings, 1).values != found.values
    twice = settings.model_copy(update={"checkpointing": True})
    assert train(pairs, pairs.annotations, blend, validation, twice, 0).values == pytest.approx(found.values, rel=1e-5)


def test_perplexity_before_anything_is_learnt_is_the_model_s_own(settings: VLMSettings, pairs: Pairs) -> None:
    blend, validation = split(pairs)
    still = settings.model_copy(update={"steps": 1, "evaluations": 1, "learning_rate": 1e-12, "dropout": 0.5})
    found = train(pairs, pairs.annotations, blend, validation, still, 0)
    model, processor = load(settings, "cpu", 0)
    model.eval()
    reader = Reader(processor, model.get_base_model(), settings.prompt, 48, settings.longest_data)
    total, count = 0.0, 0
    for example in examples(TrainingRun.of(pairs, pairs.annotations, blend, validation, still, 0), reader):
        total += float(loss(model, example, torch.device("cpu")).detach())
        count += len(example.targets)
    assert found.best == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-5)


def examples(job: TrainingRun, reader: Reader) -> list[Example]:
    return list(Shown(job, reader).validation(0, 1))


def test_a_pair_that_does_not_open_is_left_out_of_the_blend_and_refused_for_judging(
    settings: VLMSettings, pairs: Pairs
) -> None:
    blend, validation = split(pairs)
    corrupt = pairs.rows("pool", ["bad-corrupt"])
    short = settings.model_copy(update={"steps": 8, "evaluations": 1})
    assert train(pairs, pairs.annotations, blend, validation, short, 0).skipped == 1
    with pytest.raises(UserError, match=r"no pair of the blend can be shown; .*corrupt\.jpg"):
        train(pairs, pairs.annotations, corrupt, validation, short, 0)
    with pytest.raises(UserError, match="validation pair 'bad-corrupt' cannot be shown"):
        train(pairs, pairs.annotations, [row for row in blend if row not in corrupt], corrupt, short, 0)


def test_only_what_trimming_kept_is_shown(settings: VLMSettings, pairs: Pairs) -> None:
    model, processor = load(settings, "cpu", 0)
    reader = Reader(processor, model.get_base_model(), settings.prompt, 48, 4000)
    kept = {"text-000": [[0.0, 10.0]], "image-000": [[0.0, 0.0, 60.0, 30.0]], "audio-000": [[0.0, 0.4]]}
    spans = [kept.get(pair_id) for pair_id in pairs.parts["pool"]]
    trimmed = dataclasses.replace(pairs, table=pairs.table.append_column(DATA_SPANS, pa.array(spans, SPANS)))
    blend, rows = pairs.rows("pool", ["code-000"]), pairs.rows("pool", list(kept))
    whole, parts = (
        examples(TrainingRun.of(one, one.annotations, blend, rows, settings, 0), reader) for one in (pairs, trimmed)
    )
    assert all(
        after.inputs["input_ids"].shape[1] < before.inputs["input_ids"].shape[1]
        for before, after in zip(whole, parts, strict=True)
    )
    assert "user\nThe island" + "Write the" in processor.tokenizer.decode(parts[0].inputs["input_ids"][0])


def test_data_of_several_parts_is_shown_as_one(settings: VLMSettings, pairs: Pairs) -> None:
    model, processor = load(settings, "cpu", 0)
    reader = Reader(processor, model.get_base_model(), settings.prompt, 48, 4000)
    row = pairs.rows("pool", ["image-001"])[0]
    picture = pairs.table["data"][row].as_py()
    parts: list[Any] = [None] * len(pairs.annotations)
    parts[row] = [{"modality": "text", "data": "A card lies here."}, {"modality": "image", "data": picture}]
    modality = pairs.table["modality"].to_pylist()
    modality[row] = "text+image"
    table = pairs.table.set_column(pairs.table.schema.get_field_index("modality"), "modality", pa.array(modality))
    fused = dataclasses.replace(pairs, table=table.append_column(DATA_PARTS, pa.array(parts, PARTS)))
    blend = pairs.rows("pool", ["code-000"])
    whole, alone = (
        examples(TrainingRun.of(one, one.annotations, blend, [row], settings, 0), reader)[0] for one in (fused, pairs)
    )
    assert torch.equal(whole.inputs["pixel_values"], alone.inputs["pixel_values"])
    text = processor.tokenizer.decode(whole.inputs["input_ids"][0])
    assert "user\nA card lies here.<|vision_bos|>" in text
    assert "Write the annotation of this text and image." in text


@pytest.mark.parametrize("make", [tiny_writers.qwen2_vl, tiny_writers.llava])
def test_other_models_that_see_are_trained_too(make: Any, tmp_path: Path) -> None:
    settings = VLMSettings(model=str(make(tmp_path / "model")), rank=2, device="cpu")
    model, processor = load(settings, "cpu", 0)
    reader = Reader(processor, model.get_base_model(), settings.prompt, 48, 4000)
    for modality in ("text", "image", "video"):
        found = loss(model, reader(ITEMS[modality], modality, ANNOTATION), torch.device("cpu"))
        found.backward()  # type: ignore[no-untyped-call]
        assert bool(torch.isfinite(found))
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with pytest.raises(PairError, match="takes no audio"):
        reader(ITEMS["audio"], "audio", ANNOTATION)


def test_the_poster_s_set_up_is_written_down() -> None:
    path = Path(__file__).parents[3] / "configs" / "benchmark_qwen_omni.yaml"
    config = parse(BenchmarkConfig, read_yaml(path))
    assert config.budget.count == 10_000
    assert config.seeds == (0, 1, 2)
    assert isinstance(config.downstream, VLMSettings)
    assert evaluation_steps(config.downstream.steps, config.downstream.evaluations) == (250, 500, 750)
    assert config.downstream.model == "Qwen/Qwen2.5-Omni-3B"
    assert len(config.downstream.revision or "") == 40


def test_half_a_model_is_refused(folder: Path, tmp_path: Path) -> None:
    half = shutil.copytree(folder, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    lacking = {name: value for name, value in weights.items() if "layers.1." not in name}
    save_file(lacking, half / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="hold no weights for"):
        load(VLMSettings(model=str(half)), "cpu", 0)
    (half / "model.safetensors").unlink()
    torch.save(weights, half / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        load(VLMSettings(model=str(half)), "cpu", 0)


def test_a_job_is_the_same_after_it_was_written(settings: VLMSettings, pairs: Pairs, tmp_path: Path) -> None:
    blend, validation = split(pairs)
    annotations: list[str | None] = list(pairs.annotations)
    annotations[blend[0]] = None
    job = TrainingRun.of(pairs, annotations, blend, validation, settings, 3)
    assert job.skipped == 1
    job.save(tmp_path)
    assert TrainingRun.load(tmp_path) == job


@pytest.mark.slow
def test_two_processes_learn_the_same_as_one(settings: VLMSettings, pairs: Pairs) -> None:
    blend, validation = split(pairs)
    good = [row for row in blend if row not in pairs.rows("pool", ["bad-corrupt"])]
    calm = settings.model_copy(update={"dropout": 0.0})
    one = train(pairs, pairs.annotations, good, validation, calm, 0)
    two = train(pairs, pairs.annotations, good, validation, calm.model_copy(update={"processes": 2}), 0)
    assert two.values == pytest.approx(one.values, rel=1e-4)
    assert (two.steps, two.tokens, two.judged) == (one.steps, one.tokens, one.judged)
    odd = calm.model_copy(update={"processes": 2, "pairs": 3})
    with pytest.raises(UserError, match="3 pairs of a step do not divide among 2 processes"):
        train(pairs, pairs.annotations, good, validation, odd, 0)
