"""A run's folder that comes from somebody else: what it may have executed, at every door."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_mm_rank import curate, rank
from nemo_mm_rank.adapt.pairs import Pairs
from nemo_mm_rank.config import ModelSpec, parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import read_sealed, write_sealed
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.trust import Trust
from tests.command_line import CommandLine

QUERY = "a calm blue sea"
OWN = "from nemo_mm_rank.models.classical.text import HashedText\n\n\nclass Letters(HashedText):\n    pass\n"
EVIL = "open({marker!r}, 'w').close()\nfrom nemo_mm_rank.models.classical.text import HashedText as Model\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model class of the user's own."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "letters_of_mine.py").write_text(OWN, encoding="utf-8")
    path = list(sys.path)
    yield folder
    sys.path[:] = path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Path:
    """A run of some texts, embedded by that class."""
    folder = tmp_path_factory.mktemp("trust")
    words = ["sea", "sky", "sand", "wind", "rain", "snow", "field", "tree", "river", "cloud"]
    rows = [
        {"pair_id": f"p{n}", "modality": "text", "data": f"{a} and {b} in the {a}", "annotation": f"{b} over {a}"}
        for n, (a, b) in enumerate((a, b) for a in words for b in words[:4])
    ]
    pool = folder / "pool.jsonl"
    pool.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = {
        "models": {"text": {"class": "letters_of_mine:Letters", "dim": 64}},
        "experts": [{"name": "words", "kind": "text-based", "encoder": "text"}],
        "projection": {"max_epochs": 1, "folds": 2, "threads": 1},
        "budget": 5,
    }
    return curate(pool, QUERY, config=config, output=folder / "run", import_from=library, progress=False).folder


def renamed(run: Path, to: Path, spec: dict[str, Any], **settings: Any) -> Path:
    """Return a copy of a run whose files name another model, beside which its code lies."""
    shutil.copytree(run, to)
    config = yaml.safe_load((to / "config.yaml").read_text("utf-8"))
    config["models"]["text"] = spec
    config |= {"import_from": [str(to)], **settings}
    (to / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    state = read_sealed(to / "state.json")
    state["models"]["text"] = spec
    write_sealed(to / "state.json", state)
    manifest = read_sealed(to / "manifest.json")
    manifest["config"]["models"]["text"] = spec
    write_sealed(to / "manifest.json", manifest)
    return to


@pytest.fixture
def foreign(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run that names a class beside it, in a folder where the user stands."""
    found = renamed(run, tmp_path / "foreign", {"class": "evil:Model", "dim": 64})
    (found / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "RAN")), encoding="utf-8")
    monkeypatch.chdir(found)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield found
    sys.modules.pop("evil", None)


def refusal(run: Path, name: str = "evil:Model") -> str:
    return (
        f"{run}: model 'text' of this run is the class {name!r}, which is not this package's, and the folder of a run "
        "may come from anybody: if you trust this one, say so with --trust-run (trust_run in Python), or name the "
        "folder of the class with --import-from"
    )


def test_commands_that_load_models_refuse_it(foreign: Path, tmp_path: Path, command_line: CommandLine) -> None:
    before = (foreign / "blend.parquet").read_bytes()
    for command in (["rank", foreign, "-q", "rain"], ["ecodatum", "--run", foreign, "-o", tmp_path / "quality"]):
        status, said = command_line(*command)
        assert (status, said.splitlines()[-1]) == (2, f"error: {refusal(foreign)}")
    with pytest.raises(UserError) as refused:
        rank(foreign, "rain")
    assert str(refused.value) == refusal(foreign)
    assert not (tmp_path / "RAN").exists()
    assert "evil" not in sys.modules
    assert (foreign / "blend.parquet").read_bytes() == before


def test_commands_that_load_none_run_nothing(foreign: Path, tmp_path: Path, command_line: CommandLine) -> None:
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    for command in (["explain", foreign, "p1"], ["export", foreign, "-o", tmp_path / "tars"], ["report", foreign]):
        status, said = command_line(*command)
        assert status == 0, said
    Pairs.load(str(foreign), frozenset({"text"}))
    assert not (tmp_path / "RAN").exists()
    assert "evil" not in sys.modules


def test_curator_stages_refuse_it(foreign: Path, tmp_path: Path) -> None:
    pytest.importorskip("nemo_curator", reason="needs the extra 'curator'")
    from nemo_mm_rank.curator import MultimodalRankStage

    with pytest.raises(UserError) as refused:
        MultimodalRankStage(run=foreign)
    assert str(refused.value) == refusal(foreign)
    assert not (tmp_path / "RAN").exists()


def test_curator_stages_of_a_class_of_ones_own(run: Path, library: Path) -> None:
    pytest.importorskip("nemo_curator", reason="needs the extra 'curator'")
    from nemo_mm_rank.curator import MultimodalRankStage

    named = MultimodalRankStage(run=run, import_from=library).decompose()
    assert [stage.name for stage in named] == ["experts", "projection", "match", "rank"]
    assert len(MultimodalRankStage(run=run, trust_run=True).decompose()) == len(named)


def test_a_class_of_ones_own_is_named_again(run: Path, library: Path, command_line: CommandLine) -> None:
    status, said = command_line("rank", run, "-q", "rain")
    assert (status, said.splitlines()[-1]) == (2, f"error: {refusal(run, 'letters_of_mine:Letters')}")
    for option in (["--import-from", library], ["--trust-run"]):
        status, said = command_line("rank", run, "-q", "rain", *option)
        assert status == 0, said
    assert rank(run, "rain", import_from=library).blend["pair_id"].tolist() == (
        rank(run, "rain", trust_run=True).blend["pair_id"].tolist()
    )


def test_a_folder_that_is_named_vouches_for_its_own_classes_only(foreign: Path, library: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'evil:Model'"):
        rank(foreign, "rain", import_from=library)
    assert not (tmp_path / "RAN").exists()
    installed = renamed(foreign, tmp_path / "installed", {"class": "subprocess:Popen", "args": ["true"]})
    with pytest.raises(UserError, match="'subprocess:Popen'"):
        rank(installed, "rain", import_from=library)
    # What the run names as its own folder is taken only where all of it is trusted.
    assert rank(foreign, "rain", trust_run=True).blend.shape[0] == 5
    assert (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"class": "moments", "predictor": "subprocess:Popen", "arguments": {}}, "runs the class 'subprocess:Popen'"),
        ({"class": "clip", "path": "x", "trust_remote_code": True}, "sets trust_remote_code"),
        ({"class": "open-clip", "path": "x", "more": {"trust_remote_code": 1}}, "sets trust_remote_code"),
        ({"class": "hashed-text", "allow_pickle": True}, "sets allow_pickle"),
        ({"class": "nemo_mm_rank.models.grounders:TemporaryDirectory"}, "TemporaryDirectory"),
        ({"class": "nemo_mm_rank.benchmark.downstream.vlm.__main__:Path"}, "__main__:Path"),
    ],
)
def test_what_else_runs_code(tmp_path: Path, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Trust().admit({"text": parse(ModelSpec, spec)}, RunFolder.at(tmp_path))


def test_a_describer_is_not_asked_where_a_run_says(tmp_path: Path) -> None:
    spec = parse(ModelSpec, {"class": "openai", "model": "m", "base_url": "http://elsewhere", "key_variable": "MY_KEY"})
    folder = RunFolder.at(tmp_path)
    assert Trust().admit({"captions": spec}, folder) == {"captions": spec}  # nobody is asked when pairs are ranked
    with pytest.raises(UserError, match="sends data, and perhaps a key of yours, to http://elsewhere"):
        Trust().admit({"captions": spec}, folder, describing=True)


def test_a_cluster_is_not_joined_where_a_run_says(run: Path, tmp_path: Path, command_line: CommandLine) -> None:
    engine = {"scheduler_address": "tcp://127.0.0.1:9"}
    there = renamed(run, tmp_path / "there", {"class": "hashed-text", "dim": 64}, engine=engine)
    status, said = command_line("rank", there, "-q", "rain")
    assert status == 0, said
    line = "ranked on this machine, and not on the cluster that the folder of the run names (tcp://127.0.0.1:9)"
    assert f"{line} without --trust-run" in " ".join(said.split())


def test_the_folders_travel_with_models(library: Path) -> None:
    spec = pickle.dumps(parse(ModelSpec, {"class": "letters_of_mine:Letters"}))
    sys.modules.pop("letters_of_mine", None)
    sys.path[:] = [folder for folder in sys.path if folder != str(library)]
    with pytest.raises(UserError, match="name its folder with --import-from"):
        loader.find_class("letters_of_mine:Letters")
    found = loader.find_class(pickle.loads(spec).class_)
    assert str(library) in sys.path[1:]
    assert found.__module__ == "letters_of_mine"
