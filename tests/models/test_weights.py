from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models.weights import folder_revision, load_pretrained, opening, pick_dtype, resolve

transformers = pytest.importorskip("transformers", reason="needs the extra 'models'")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=9, **shape)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_folder_is_itself(bert: Path) -> None:
    assert resolve(str(bert)) == bert
    with pytest.raises(ModelError, match="is a folder: it has no revision 'main'"):
        resolve(str(bert), "main")


def test_what_is_nowhere_is_refused_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path, said in (
        ("no/such/folder", "there is no such folder, and it is not the name of a model on the hub"),
        ("bert", "there is no such folder, and it is not the name of a model on the hub"),
        ("nobody-at-all/no-such-model", "there is no such folder, and it cannot be downloaded from the hub: "),
    ):
        with pytest.raises(ModelError, match=said):
            resolve(path)


def test_a_snapshot_in_the_hubs_cache_is_found_offline_by_its_revision(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--bert"
    shutil.copytree(bert, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text(commit, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision in ("v1", commit):
        folder = resolve("someone/bert", revision)
        assert folder == cached / "snapshots" / commit
        assert folder_revision(folder) == commit
    with pytest.raises(ModelError, match="and it cannot be downloaded from the hub"):
        resolve("someone/bert", "v2")


def test_the_revision_of_a_folder_is_what_it_holds(bert: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bert, tmp_path / "copy")
    before = folder_revision(bert)
    assert folder_revision(copy) == before
    (copy / "README.md").write_text("words", encoding="utf-8")
    assert folder_revision(copy) == before
    (copy / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert folder_revision(copy) != before


def test_pickles_are_refused_unless_safetensors_lie_beside_them(bert: Path) -> None:
    torch.save({}, bert / "pytorch_model.bin")
    assert resolve(str(bert)) == bert
    (bert / "inside").mkdir()
    torch.save({}, bert / "inside" / "x.pt")
    with pytest.raises(ModelError, match=r"inside/x.pt is a pickle, which can run code when it is opened"):
        resolve(str(bert))


def test_a_folder_without_weights_is_refused(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="contains no safetensors weights, and no other weights are loaded"):
        resolve(str(bert))


def test_a_model_is_loaded_whole_or_not_at_all(bert: Path) -> None:
    model = load_pretrained(transformers.AutoModel, bert, "mine")
    assert not model.training
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    held = load_file(bert / "model.safetensors")
    assert torch.equal(model.embeddings.word_embeddings.weight, held["embeddings.word_embeddings.weight"])
    half = load_pretrained(transformers.AutoModel, bert, "mine", dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    lacking = {name: value for name, value in held.items() if "attention.self" not in name}
    save_file(lacking, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"^mine: its files hold no weights for .*attention\.self\.key\.bias, .*6 missing"
    ):
        load_pretrained(transformers.AutoModel, bert, "mine")


def test_a_folder_that_does_not_fit_together_is_one_line(bert: Path) -> None:
    settings = json.loads((bert / "config.json").read_text(encoding="utf-8"))
    (bert / "config.json").write_text(json.dumps({**settings, "hidden_size": 32}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"^mine: ") as raised:
        load_pretrained(transformers.AutoModel, bert, "mine")
    assert "\n" not in str(raised.value)
    (bert / "config.json").write_text(json.dumps({**settings, "model_type": "brt"}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"^mine: .*brt"):
        load_pretrained(transformers.AutoModel, bert, "mine")


def test_opening_leaves_other_errors_alone() -> None:
    with pytest.raises(ModelError, match=r"^mine: a b$"), opening("mine"):
        raise ValueError("a\n b")
    with pytest.raises(ZeroDivisionError), opening("mine"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("asked", "device", "given"),
    [
        (None, "cpu", torch.float32),
        (None, "cuda:1", torch.bfloat16),
        ("float16", "cpu", torch.float16),
        ("float32", "cuda", torch.float32),
    ],
)
def test_types(asked: str | None, device: str, given: torch.dtype) -> None:
    assert pick_dtype(asked, device) == given
