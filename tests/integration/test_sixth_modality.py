"""A modality that this package knows nothing of, by import path: from the manifest to the report, at every door."""

from __future__ import annotations

import doctest
import json
import pickle
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nemo_mm_rank import curate, media, modality, rank
from nemo_mm_rank.config import Config, MediaSettings, parse
from nemo_mm_rank.errors import ConfigError, MediaError, UserError
from nemo_mm_rank.run.curation import Result
from tests.command_line import CommandLine
from tests.report.pages import data_of
from tests.tars import Member, write_tar

HERE = Path(__file__).parent
CLOUD = "point_clouds:PointCloud"
QUERY = "points on a flat disc"
SHAPES = {
    "a long thin rod of points": (1.0, 0.02, 0.02),
    "points on a flat disc": (1.0, 1.0, 0.02),
    "a round ball of points": (1.0, 1.0, 1.0),
}


def forget(*names: str) -> None:
    """Let this process be as one that has never heard of these modalities."""
    tables: list[dict[str, Any]] = [modality._declared, modality._registered, modality._made, modality.MODALITY_CODES]
    for name in names:
        for table in tables:
            table.pop(name, None)
    modality.by_extension.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def own_imports() -> Iterator[None]:
    """Leave no modality and no folder of this module's to other tests."""
    path = list(sys.path)
    yield
    forget("point-cloud", "plain", "other")
    sys.path[:] = path


def npy(array: Any) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def cloud(number: int) -> tuple[str, bytes]:
    """Return what a cloud is like, and its file."""
    caption, axes = list(SHAPES.items())[number % len(SHAPES)]
    random = np.random.default_rng(number)
    return f"{caption}, number {number}", npy((random.normal(size=(200, 3)) * axes).astype(np.float32))


BROKEN = {
    "pickled": (npy(np.array([{"a": 1}], dtype=object)), "holds object of shape (1,), not n x 3 numbers with a point"),
    "truncated": (cloud(0)[1][:-100], "cannot be decoded: "),
    "flat": (npy(np.zeros((4, 2))), "holds float64 of shape (4, 2), not n x 3 numbers with a point"),
    "too-many": (
        npy(np.zeros((3, 3), np.float32)).replace(b"(3, 3), }" + b" " * 9, b"(900000000, 3), } "),
        "has 900,000,000 points, not 1 to 100,000",
    ),
    "not-finite": (npy(np.full((3, 3), np.nan)), "has points that are not finite"),
    "no-npy": (b"\x89PNG nothing", "cannot be decoded: "),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clouds and texts, a few pairs of both, and clouds that are none."""
    folder = tmp_path_factory.mktemp("pool")
    rows: list[dict[str, Any]] = []
    for number in range(24):
        caption, content = cloud(number)
        name = f"cloud-{number:02d}"
        (folder / f"{name}.npy").write_bytes(content)
        rows.append({"pair_id": name, "modality": "point-cloud", "data": f"{name}.npy", "annotation": caption})
        rows.append({"pair_id": f"text-{number:02d}", "modality": "text", "data": caption, "annotation": caption})
        if number < 6:
            parts = [{"modality": "point-cloud", "data": f"{name}.npy"}, {"modality": "text", "data": caption}]
            rows.append({"pair_id": f"both-{number}", "data": parts, "annotation": caption})
    for name, (content, _) in BROKEN.items():
        (folder / f"{name}.npy").write_bytes(content)
        rows.append({"pair_id": name, "modality": "point-cloud", "data": f"{name}.npy", "annotation": "points"})
    rows.append({"pair_id": "unknown", "modality": "point-clout", "data": "x.npy", "annotation": "points"})
    (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "pool.jsonl"


def settings(**more: Any) -> dict[str, Any]:
    return {
        "import_from": [str(HERE)],
        "modalities": {"point-cloud": CLOUD},
        "budget": 12,
        "models": {"text": {"class": "hashed-text", "dim": 256}, "spread": {"class": "point_clouds:Spread"}},
        "experts": [
            {"name": "features", "kind": "fusion", "encoders": {"text": "text", "point-cloud": "spread"}},
        ],
        "projection": {"max_epochs": 2, "folds": 2, "threads": 1},
        "ranking": {"quota_by": "type", "quotas": {"point-cloud->text": 0.5, "text+point-cloud->text": 0.25}},
        "rows_per_shard": 20,
        **more,
    }


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    output = tmp_path_factory.mktemp("run") / "run"
    return curate(pool, QUERY, config=settings(), output=output, progress=False)


def test_the_whole_job(run: Result) -> None:
    blend = run.blend
    assert blend["modality"].value_counts().to_dict() == {"point-cloud": 6, "text+point-cloud": 3, "text": 3}
    assert run.manifest["config"]["modalities"] == {"point-cloud": CLOUD}
    quarantine = run.quarantine.set_index("pair_id")
    assert set(quarantine.index) == {*BROKEN, "unknown"}
    for name, (_, reason) in BROKEN.items():
        entry = quarantine.loc[name]
        assert (entry["step"], entry["error"]) == ("experts", "MediaError")
        assert entry["message"].startswith(f"'{name}.npy': {reason}")
    assert quarantine.loc["unknown", "message"] == (
        "modality: expected one of text, code, image, audio, video, point-cloud, found 'point-clout'; "
        "did you mean 'point-cloud'?"
    )


def test_the_page_shows_it(run: Result, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    from nemo_mm_rank.report import write_report

    def shown() -> dict[str, Any]:
        data = data_of(write_report(run.folder, tmp_path / "page.html").read_text("utf-8"))
        place = data["id"].index("cloud-01")
        part: dict[str, Any] = data["details"][str(place)]["data"][0]
        return part

    seen = shown()
    assert (seen["name"], seen["kind"]) == ("cloud-01.npy", "image")
    assert seen["src"].startswith("data:image/jpeg;base64,")
    modality.register({"point-cloud": "point_clouds:PlainCloud"})
    assert shown() == {"name": "cloud-01.npy", "missing": "there is no preview of a point cloud"}
    # A run of somebody else's: nothing of it is imported to be looked at.
    forget("point-cloud")
    assert shown()["missing"] == (
        "modality 'point-cloud' is the class 'point_clouds:PointCloud', which this process may not import"
    )
    modality.register({"point-cloud": CLOUD})


def test_workers_know_it(pool: Path, run: Result, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra 'dask'")
    config = settings(engine={"workers": 2})
    other = curate(pool, QUERY, config=config, output=tmp_path / "run", progress=False)
    assert other.manifest == run.manifest
    assert (other.folder / "blend.parquet").read_bytes() == (run.folder / "blend.parquet").read_bytes()


def test_members_of_tars_are_told_by_their_extension(tmp_path: Path) -> None:
    members: list[Member] = []
    for number in range(12):
        caption, content = cloud(number)
        members += [(f"{number:02d}.npy", content), (f"{number:02d}.txt", caption.encode())]
    pool = write_tar(tmp_path / "clouds.tar", members)
    result = curate(pool, QUERY, 3, config=settings(ranking={}), output=tmp_path / "run", progress=False)
    assert set(result.blend["modality"]) == {"point-cloud"}
    assert result.blend["data"].str.fullmatch(r"clouds\.tar@\d+!\d\d\.npy").all()
    assert result.manifest["counts"]["pool"]["in"] == {"point-cloud": 12}


def test_another_class_makes_anew(pool: Path, run: Result, tmp_path: Path) -> None:
    changed = settings(modalities={"point-cloud": "point_clouds:PlainCloud"})
    result = curate(pool, QUERY, config=changed, output=tmp_path / "run", progress=False)
    keys = [json.loads((folder / "pool" / "ingest.json").read_text("utf-8")) for folder in (run.folder, result.folder)]
    assert keys[0]["key"] != keys[1]["key"]
    assert not set(keys[0]["report"]["digests"]) & set(keys[1]["report"]["digests"])
    modality.register({"point-cloud": CLOUD})


def test_it_stays_whole_where_it_cannot_be_cut(run: Result) -> None:
    medium = modality.of("point-cloud")
    assert medium.parts is None
    assert medium.word == "point cloud"
    assert modality.combined(["point-cloud", "image", "text"]) == "text+image+point-cloud"
    first, again, other = (media.open(f"cloud-{n:02d}.npy", root=str(pool_of(run))) for n in (0, 0, 3))
    assert medium.fingerprint(first) == medium.fingerprint(again) != medium.fingerprint(other)
    with pytest.raises(MediaError, match=r"'cloud-00\.npy': is not an image"):
        media.open("cloud-00.npy", modality="image", root=str(pool_of(run)))


def pool_of(run: Result) -> Path:
    return Path(str(run.pairs(["media_root"])["media_root"].iloc[0]))


@pytest.mark.parametrize(
    ("modalities", "said"),
    [
        ({"image": CLOUD}, "modalities: 'image' is the name of a built-in modality; choose another name for yours"),
        (
            {"Point+Cloud": CLOUD},
            "modalities: 'Point+Cloud' cannot be used as a name; use small letters, digits and single -",
        ),
        ({"other": "clouds"}, "modalities: 'other' is an import path like 'package.module:Class', not 'clouds'"),
        (
            {"other": "point_clouds:Spread"},
            "modality 'other': point_clouds:Spread is not a modality: it must derive from ",
        ),
        (
            {"other": "point_clouds:NoDecoder"},
            "modality 'other': point_clouds:NoDecoder is not a modality: it must derive ",
        ),
        ({"other": "point_clouds:PointClout"}, "module 'point_clouds' has no class 'PointClout'; did you mean 'Point"),
        ({"other": "no_such_module:X"}, "modality 'no_such_module:X': cannot import 'no_such_module' (No module "),
    ],
)
def test_what_is_no_modality(pool: Path, tmp_path: Path, modalities: Any, said: str) -> None:
    config = {"import_from": [str(HERE)], "modalities": modalities}
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        curate(pool, QUERY, config=config, output=tmp_path / "run", progress=False)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_names_in_settings() -> None:
    config: dict[str, Any] = {"pools": [{"path": "x", "modality": "plain"}], "queries": "x"}
    with pytest.raises(ConfigError, match=r"pools\.0\.modality: Input should be 'text', .*, not 'plain'"):
        parse(Config, config)
    named = parse(Config, {**config, "modalities": {"plain": "point_clouds:PlainCloud"}})
    assert named.model_dump()["modalities"] == {"plain": "point_clouds:PlainCloud"}
    assert "modalities" not in parse(Config, {"pools": "x", "queries": "x"}).model_dump()


def test_what_is_pickled_takes_it_along() -> None:
    modality.register({"point-cloud": CLOUD})
    sent = pickle.dumps(MediaSettings())
    forget("point-cloud")
    assert not modality.known_class("text+point-cloud")
    pickle.loads(sent)
    assert modality.known_class("text+point-cloud")
    assert modality.of("point-cloud").extensions == "npy"


def test_a_run_from_elsewhere(run: Result, tmp_path: Path, command_line: CommandLine) -> None:
    forget("point-cloud")
    refusal = (
        f"{run.folder}: modality 'point-cloud' of this run is the class 'point_clouds:PointCloud', none of this "
        "package's, and the folder of a run may come from anybody: if you trust this one, say so with --trust-run"
    )
    with pytest.raises(UserError, match=re.escape(refusal)):
        rank(run.folder, "a rod")
    assert not modality.registered()
    assert set(rank(run.folder, "a rod", import_from=HERE).blend["modality"]) >= {"point-cloud"}
    assert modality.registered() == {"point-cloud": CLOUD}
    forget("point-cloud")
    assert set(rank(run.folder, QUERY, trust_run=True).blend["modality"]) >= {"point-cloud"}


def test_validate_knows_it(pool: Path, tmp_path: Path, command_line: CommandLine) -> None:
    forget("point-cloud")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"modalities": {"point-cloud": CLOUD}}), encoding="utf-8")
    status, said = command_line("validate", pool, "--config", config, "--import-from", HERE)
    assert (status, said.count("point-clout")) == (1, 1)


def test_the_example_runs() -> None:
    assert doctest.testmod(modality) == doctest.TestResults(0, 9)
