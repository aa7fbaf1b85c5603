"""Adaptation in two stages, by the real classes: what is learnt, what stays as it was, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from scipy.io import wavfile
from typer.testing import CliRunner

from nemo_mm_rank import curate
from nemo_mm_rank.adapt.job import Adapted, adapt
from nemo_mm_rank.adapt.pairs import Pairs
from nemo_mm_rank.adapt.training import (
    UNITE_STAGES,
    AdaptSettings,
    Checkpoint,
    StageSettings,
    accumulate,
    schedule,
    train,
)
from nemo_mm_rank.cli import app
from nemo_mm_rank.config import parse, read_yaml
from nemo_mm_rank.errors import ConfigError, ModelError, UserError
from nemo_mm_rank.measures.geometry import recalls
from nemo_mm_rank.media.segment import Image
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.chat_models import UniteEncoder
from nemo_mm_rank.models.lora import (
    adapter_settings,
    attach,
    get_weights,
    joined,
    merge_adapter,
    read_adapter,
    write_adapter,
)
from nemo_mm_rank.projection.losses import contrastive_loss
from tests.adapt import concepts

pytest.importorskip("peft", reason="needs the extra 'models'")

SMALL = "tests.adapt.concepts:SmallUnite"
STAGES = [
    {"name": "adaptation", "learning_rate": 5e-3, "epochs": 56, "dropout": 0.0},
    {
        "name": "instruction",
        "learning_rate": 1e-4,
        "epochs": 4,
        "alpha": 64,
        "dropout": 0.0,
        "contrastive_weight": 0.0,
        "mamcl_weight": 1.0,
    },
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    loader.release()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return concepts.base(tmp_path_factory.mktemp("base"))


@dataclass(frozen=True)
class Run:
    """A finished run on the sixteen concepts, a question with a picture, a sound, and a picture that is gone now."""

    folder: Path
    media: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    media = tmp_path_factory.mktemp("concepts")
    rows = concepts.pool(media)
    wavfile.write(media / "hum.wav", 16_000, np.sin(np.arange(16_000) / 20).astype(np.float32))
    rows.append({"pair_id": "hum", "modality": "audio", "data": "hum.wav", "annotation": "a hum"})
    concepts.picture("red").save(media / "gone.png")
    rows.append({"pair_id": "gone", "modality": "image", "data": "gone.png", "annotation": "a picture that goes"})
    parts = [{"modality": "text", "data": "which colour?"}, {"modality": "image", "data": "red.png"}]
    rows.append({"pair_id": "both", "data": parts, "annotation": "the colour of a rose"})
    folder = concepts.run(media, rows)
    (media / "gone.png").unlink()
    return Run(folder, media)


def settings(run: Run, base: Path, output: Path, **more: Any) -> AdaptSettings:
    values = {
        "run": str(run.folder),
        "output": str(output),
        "model": {"class": SMALL, "path": str(base)},
        "device": "cpu",
        "batch_size": 16,
        "held_out": 0.0,
        "gradient_checkpointing": False,
        "stages": STAGES,
    }
    return parse(AdaptSettings, {**values, **more})


@pytest.fixture(scope="module")
def adapted(run: Run, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapt(settings(run, base, tmp_path_factory.mktemp("out") / "adapter"))


def recall(encoder: UniteEncoder) -> dict[str, float]:
    texts = encoder.encode([f"it is {colour}" for colour in concepts.COLOURS]).vectors
    pictures = encoder.encode([Image(colour, concepts.picture(colour)) for colour in concepts.COLOURS]).vectors
    return recalls(pictures, texts, (1,))[1]


def small(base: Path, adapter: Path | None = None) -> concepts.SmallUnite:
    return concepts.SmallUnite(str(base), adapter=None if adapter is None else str(adapter))


@pytest.mark.slow
def test_sixteen_concepts_are_learnt(adapted: Adapted, base: Path) -> None:
    assert recall(small(base))["average"] < 0.3
    assert recall(small(base, adapted.adapter)) == {
        "annotation_to_data": 1.0,
        "data_to_annotation": 1.0,
        "average": 1.0,
    }
    first, second = adapted.record["stages"]
    assert [first["pairs"], len(first["losses"]), len(second["losses"])] == [18, 56, 4]
    assert first["losses"][0] > 2 > first["losses"][-1]
    assert second["losses"][-1] < 0.2


def test_what_is_not_learnt_stays_bit_equal(adapted: Adapted, base: Path) -> None:
    before, after = small(base).model.state_dict(), small(base, adapted.adapter).model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {tuple(name.split(".")[-2:]) for name in changed} == {(name, "weight") for name in projections}
    assert len(changed) == 2 * len(projections)
    assert all("language_model.layers" in name for name in changed)


def lora(model: Any, stage: StageSettings) -> dict[str, Any]:
    return adapter_settings(model, stage.rank, stage.alpha, stage.dropout)


def test_only_linear_layers_of_the_language_model_are_trained(base: Path) -> None:
    encoder = small(base)
    adapted = attach(encoder.model, lora(encoder.model, UNITE_STAGES[0]))
    trained = {name: p.shape for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(".language_model.layers." in name and ".lora_" in name for name in trained)
    linear = [
        name
        for name, module in encoder.model.get_decoder().named_modules()
        if name.endswith("base_layer") and isinstance(module, torch.nn.Linear)
    ]
    assert len(trained) == 2 * len(linear) == 2 * 7 * 2
    assert {min(shape) for shape in trained.values()} == {8}


def test_the_stages_one_after_the_other_are_the_one_adapter(adapted: Adapted, base: Path) -> None:
    one, two = (adapted.folder / "stages" / name for name in ("1-adaptation", "2-instruction"))
    encoder = small(base)
    merge_adapter(encoder.model, str(one))
    merge_adapter(encoder.model, str(two))
    whole = small(base, adapted.adapter).model.state_dict()
    for name, weight in encoder.model.state_dict().items():
        torch.testing.assert_close(whole[name], weight, atol=1e-5, rtol=0)
    weights, configured = joined([read_adapter(one), read_adapter(two)])
    assert configured["r"] == configured["lora_alpha"] == 16
    name = next(name for name in weights if "layers.1.mlp.down_proj.lora_A" in name)
    assert weights[name].shape == (16, 64)


def test_loaded_again_it_gives_the_same_vectors(adapted: Adapted, base: Path) -> None:
    arguments: dict[str, Any] = {"path": str(base), "adapter": str(adapted.adapter)}
    first = UniteEncoder(**arguments).encode(["it is red", "green"]).vectors
    again = UniteEncoder(**arguments)
    assert torch.equal(again.encode(["it is red", "green"]).vectors, first)
    plain = UniteEncoder(str(base))
    assert not torch.allclose(plain.encode(["it is red"]).vectors, first[:1], atol=1e-2)
    assert again.revision == UniteEncoder.revision_of(**arguments)
    own, _, added = again.revision.partition("+")
    assert (own, len(added)) == (plain.revision, 40)


def test_what_peft_itself_loads_gives_the_same_vectors(adapted: Adapted, base: Path) -> None:
    peft: Any = pytest.importorskip("peft")
    encoder = small(base)
    texts = ["it is red", "it is white"]
    peft.PeftModel.from_pretrained(encoder.model, str(adapted.adapter))  # in place, not merged
    torch.testing.assert_close(
        encoder.encode(texts).vectors, small(base, adapted.adapter).encode(texts).vectors, atol=1e-5, rtol=0
    )


def test_a_run_embeds_with_the_adapter(adapted: Adapted, base: Path, run: Run, tmp_path: Path) -> None:
    result = curate(
        config={
            "pools": str(run.media / "pool.jsonl"),
            "queries": "it is blue",
            "budget": 1,
            "output": str(tmp_path),
            "models": {"unite": {"class": SMALL, "path": str(base), "adapter": str(adapted.adapter)}},
            "experts": [{"name": "whole", "kind": "end-to-end", "encoder": "unite"}],
            "anchor": "unite",
            "ranking": {"weights": {"experts": 1.0}, "spread": 0},
            "projection": {"max_epochs": 1, "folds": 2, "threads": 1},
        },
        progress=False,
    )
    assert result.blend["pair_id"].tolist() == ["blue"]
    assert "+" in result.manifest["models"]["unite"]["revision"]


def test_pairs_that_cannot_be_learnt_are_quarantined(adapted: Adapted) -> None:
    for stage in ("1-adaptation", "2-instruction"):
        lost = pd.read_parquet(adapted.folder / "stages" / stage / "quarantine.parquet")
        assert sorted(zip(lost["pair_id"], lost["step"], lost["error"], strict=True)) == [
            ("gone", "adapt", "MediaError"),
            ("hum", "adapt", "EmbeddingError"),
        ]
        said = dict(zip(lost["pair_id"], lost["message"], strict=True))
        assert said["hum"] == "the model takes image, text, text+image, text+video, video, not audio"
        assert said["gone"] == "'gone.png': does not exist"
    assert [stage["left_out"] for stage in adapted.record["stages"]] == [2, 2]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}


def test_what_is_finished_is_not_done_again(adapted: Adapted, run: Run, base: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (adapted.folder / "stages").rglob("*.safetensors")}
    again = adapt(settings(run, base, adapted.folder))
    assert again.record == adapted.record
    assert {file: file.stat().st_mtime_ns for file in before} == before


SHORT = {"stages": [{"name": "one", "epochs": 2, "learning_rate": 1e-2, "dropout": 0.3}], "batch_size": 6}


def test_a_stage_that_is_broken_off_ends_with_the_same_bytes(run: Run, base: Path, tmp_path: Path) -> None:
    whole = adapt(settings(run, base, tmp_path / "whole", **SHORT))
    short = settings(run, base, tmp_path, checkpoint_steps=2, **SHORT)
    seen = 0

    class StoppedError(Exception):
        pass

    def advance(pairs: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise StoppedError

    def once(advance: Any) -> dict[str, torch.Tensor]:
        encoder = small(base)
        encoder.model.requires_grad_(False)
        pairs = Pairs.load(run.folder, encoder.modalities | encoder.together)
        learnt, _ = pairs.split(0.0, 2, 0)
        model = attach(encoder.model, lora(encoder.model, short.stages[0]))
        train(encoder, model, pairs, learnt, short.stages[0], short, Checkpoint(tmp_path / "state", "key"), advance)
        return get_weights(model)

    with pytest.raises(StoppedError):
        once(advance)
    steps: list[int] = []
    found = once(steps.append)
    assert len(steps) == 6 - 2
    expected = load_file(whole.folder / "stages" / "1-one" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_same_seed_gives_the_same_bytes(run: Run, base: Path, tmp_path: Path) -> None:
    one, two, other = (
        adapt(settings(run, base, tmp_path / name, seed=seed, **SHORT)).adapter
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert bytes_of(one) == bytes_of(two)
    assert bytes_of(one) != bytes_of(other)


def test_gradients_of_a_batch_in_parts_are_those_of_the_whole(base: Path) -> None:
    encoder = small(base)
    stage = StageSettings(name="one", dropout=0.5)
    model = attach(encoder.model, lora(encoder.model, stage))
    weights = {
        name: 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
        for name, v in get_weights(model).items()
    }
    import peft

    peft.set_peft_model_state_dict(model, weights)
    queries = [encoder.features(text) for text in ("red", "green on the left", "blue", "white", "black")]
    targets = [encoder.features(text) for text in ("rot", "links gruen", "blau", "weiss", "schwarz")]

    def loss(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(right, left, 0.03)

    def gradients() -> dict[str, torch.Tensor]:
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    encoder.model.train()  # with dropout
    torch.manual_seed(3)
    value = accumulate(encoder.learnable, queries, targets, loss, 2)
    found = gradients()
    torch.manual_seed(3)
    sides = [torch.cat([encoder.learnable(side[at : at + 2]) for at in (0, 2, 4)]) for side in (queries, targets)]
    whole = loss(*sides)
    whole.backward()  # type: ignore[no-untyped-call]
    expected = gradients()
    assert value == pytest.approx(float(whole.detach()), abs=1e-5)
    assert len(found) == len(expected) == 28
    for name, gradient in expected.items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)
    encoder.model.eval()
    accumulate(encoder.learnable, queries, targets, loss, 2)
    parts = gradients()
    accumulate(encoder.learnable, queries, targets, loss, 5)
    for name, gradient in gradients().items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-4, rtol=1e-3)


def test_gradients_with_and_without_checkpointing_are_the_same(run: Run, base: Path, tmp_path: Path) -> None:
    found = [
        load_file(
            adapt(settings(run, base, tmp_path / str(on), gradient_checkpointing=on, **SHORT)).adapter
            / "adapter_model.safetensors"
        )
        for on in (False, True)
    ]
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-5, rtol=1e-4)


def test_held_out_pairs_are_measured_and_never_learnt(run: Run, base: Path, tmp_path: Path) -> None:
    out = adapt(settings(run, base, tmp_path, held_out=0.5, **SHORT))
    [stage] = out.record["stages"]
    pairs = Pairs.load(run.folder, UniteEncoder.modalities | {"text+image"})
    learnt, held_out = pairs.split(0.5, 512, 0)
    assert not set(learnt.tolist()) & set(held_out)
    assert len(learnt) + len(held_out) == 18
    assert stage["pairs"] == len(learnt)
    assert stage["before"]["pairs"] == stage["after"]["pairs"] >= len(held_out) - 1
    assert stage["before"]["recall_at_10"] <= 1
    console = Console(record=True, width=200)
    out.print(console)
    text = console.export_text()
    assert f"of {stage['before']['pairs']} held-out pairs" in text
    assert str(out.adapter) in text.replace("\n", "")


def test_the_rate_rises_and_falls() -> None:
    rates = [schedule(step, 100, 0.03) for step in range(101)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(0 <= b < a for a, b in pairwise(rates[3:]))
    assert rates[100] == pytest.approx(0)
    assert schedule(0, 1, 0.0) == 1


def test_the_settings_of_unite_are_those_of_the_configuration() -> None:
    configured = parse(AdaptSettings, read_yaml(Path(__file__).parents[2] / "configs" / "unite_adapt.yaml"))
    assert configured.stages == UNITE_STAGES
    assert [(s.rank, s.alpha, s.dropout, s.learning_rate) for s in UNITE_STAGES] == [
        (8, 16, 0.05, 1e-4),
        (8, 64, 0.05, 2e-5),
    ]
    assert (configured.temperature, configured.warmup, configured.batch_size) == (0.03, 0.03, 4096)


def write(folder: Path, weights: dict[str, torch.Tensor], settings: dict[str, Any]) -> Path:
    write_adapter(folder, weights, settings, "base")
    return folder


def test_adapters_that_do_not_fit_are_refused(adapted: Adapted, base: Path, tmp_path: Path) -> None:
    weights, configured = read_adapter(adapted.adapter)
    first = next(iter(weights))
    lacking = write(tmp_path / "lacking", {k: v for k, v in weights.items() if k != first}, configured)
    with pytest.raises(ModelError, match=r"not an adapter of this model: 1 of its 28 weights differ"):
        small(base, lacking)
    wide = write(tmp_path / "wide", {**weights, first: torch.zeros(16, 99)}, configured)
    with pytest.raises(ModelError, match="not an adapter of this model"):
        small(base, wide)
    (tmp_path / "none").mkdir()
    save_file(weights, tmp_path / "none" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"not an adapter folder: it lacks adapter_config\.json"):
        small(base, tmp_path / "none")
    other = write(tmp_path / "other", weights, {**configured, "peft_type": "IA3"})
    with pytest.raises(ModelError, match="of type IA3"):
        small(base, other)
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    (pickle / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a pickle"):
        small(base, pickle)
    with pytest.raises(ModelError, match="no such folder"):
        small(base, tmp_path / "nowhere")


def test_settings_that_cannot_be_meant(run: Run, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stages: names must differ"):
        settings(run, base, tmp_path, stages=[{"name": "a"}, {"name": "a"}])
    with pytest.raises(ConfigError, match="one of the weights must be positive"):
        settings(run, base, tmp_path, stages=[{"name": "a", "contrastive_weight": 0}])
    with pytest.raises(ConfigError, match="it has an adapter already; merge that adapter"):
        settings(run, base, tmp_path, model={"class": "unite", "path": "x", "adapter": "y"})
    with pytest.raises(ConfigError, match="it is not a chat encoder"):
        adapt(settings(run, base, tmp_path, model={"class": "hashed-text"}))
    with pytest.raises(UserError, match="is not a run"):
        adapt(settings(Run(tmp_path, tmp_path), base, tmp_path / "out"))


def test_the_command(run: Run, base: Path, tmp_path: Path) -> None:
    values = settings(run, base, tmp_path / "unused", **SHORT).model_dump(mode="json", by_alias=True)
    del values["run"]
    (tmp_path / "adapt.yaml").write_text(json.dumps(values), encoding="utf-8")
    arguments = ["adapt", str(run.folder), "-c", str(tmp_path / "adapt.yaml"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "adapt: one" in done.output
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    (tmp_path / "adapt.yaml").write_text(json.dumps({**values, "temprature": 1}), encoding="utf-8")
    wrong = CliRunner().invoke(app, arguments)
    assert isinstance(wrong.exception, ConfigError)
    assert "did you mean 'temperature'" in str(wrong.exception)
