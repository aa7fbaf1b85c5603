"""``models check``: what it prints of models that work, and of those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nemo_mm_rank.check import Checked, Refused, check
from nemo_mm_rank.config import CLASSICAL_MODELS, MediaSettings, ModelSpec
from tests.integration.runs import say
from tests.models import tiny_detector, tiny_encoders


def spec(**values: object) -> ModelSpec:
    return ModelSpec.model_validate(values)


def test_the_classical_models() -> None:
    done = list(check(CLASSICAL_MODELS, "cpu", MediaSettings()))
    rows = [(one.name, one.class_, one.modalities, one.dim) for one in done if isinstance(one, Checked)]
    assert rows == [
        ("text", "HashedText", ("text", "code"), 512),
        ("words", "PlainWords", ("image", "audio", "video"), None),
        ("image", "ImageFeatures", ("image",), 438),
        ("audio", "AudioFeatures", ("audio",), 192),
        ("video", "VideoFeatures", ("video",), 940),
    ]
    for one in done:
        assert isinstance(one, Checked)
        assert (one.device, one.dtype) == ("cpu", None)
        assert one.revision
        assert one.rate > 0


def test_models_with_weights_and_those_that_fail(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'models'")
    broken = tiny_encoders.clip(tmp_path / "broken")
    tiny_encoders.broken(broken, "visual_projection.weight", 0)
    models = {
        "clap": spec(**{"class": "clap", "path": str(tiny_encoders.clap(tmp_path / "clap"))}),
        "broken": spec(**{"class": "clip", "path": str(broken)}),
        "typo": spec(**{"class": "clapp", "path": "x"}),
        "dino": spec(**{"class": "grounding-dino", "path": str(tiny_detector.grounding_dino(tmp_path / "dino"))}),
    }
    clap, failed, typo, dino = check(models, "cpu", MediaSettings())
    assert isinstance(clap, Checked)
    assert (clap.class_, clap.modalities, clap.device, clap.dtype, clap.dim) == (
        "ClapEncoder",
        ("text", "audio"),
        "cpu",
        "float32",
        16,
    )
    assert len(clap.revision) == 40
    assert isinstance(failed, Refused)
    assert failed.reason.startswith("broken fails on the sample of image: EmbeddingError: ")
    assert isinstance(typo, Refused)
    assert "did you mean 'clap'?" in typo.reason
    assert isinstance(dino, Checked)
    assert (dino.class_, dino.modalities, dino.dtype, dino.dim) == (
        "GroundingDinoGrounder",
        ("image",),
        "float32",
        None,
    )


class Halfway:
    """A model of somebody's that lacks what an encoder has."""

    modalities = frozenset({"text"})

    def encode(self, items: list[str], modality: str) -> None:
        raise AssertionError("is not asked")


def test_a_model_that_is_not_what_it_should_be() -> None:
    models = {"own": spec(**{"class": "tests.models.test_check:Halfway"})}
    assert list(check(models, "cpu", MediaSettings())) == [
        Refused("own", "model 'own' (Halfway) cannot be used as encoder: it lacks name, revision, dim")
    ]


def test_the_command_goes_on_after_a_model_that_is_not_there(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    missing = tmp_path / "no such folder"
    models = {"lost": {"class": "clip", "path": str(missing)}, "text": {"class": "hashed-text", "dim": 64}}
    expert = {"name": "only", "kind": "end-to-end", "encoder": "text"}
    config.write_text(yaml.safe_dump({"models": models, "experts": [expert]}), encoding="utf-8")
    done = say("models", "check", "--config", config)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"failed   lost: {missing}: there is no such folder, and it is not the name of a model on the hub"
    )
    cells = [cell.strip() for line in done.stdout.splitlines() if line.startswith("│ text") for cell in line.split("│")]
    assert cells[1:2] == ["text"]
    assert "64" in cells
    assert "Traceback" not in done.stderr


def test_the_command_checks_the_default_models() -> None:
    done = say("models", "check")
    assert done.returncode == 0, done.stderr
    names = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert [name for name in names if name] == ["text", "words", "image", "audio", "video"]
