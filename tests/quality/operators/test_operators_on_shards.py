"""From a DataComp metadata table to scores and duplicates: shards on disk, whatever their number, and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from nemo_mm_rank.config import PoolSource, parse
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.quality.duplicates import DuplicateSettings, deduplicate
from nemo_mm_rank.quality.operators import DATACOMP, OperatorSettings, agreements, column, columns, steps
from nemo_mm_rank.run.store import Chain, ShardStore, Stage, digest

LID = Path(__file__).parents[4] / "shared" / "models" / "lid.176.ftz"

pytestmark = pytest.mark.skipif(not LID.is_file(), reason="the folder of small models is not beside the project")
pytest.importorskip("fasttext", reason="needs the extra 'curator'")

ROWS = [
    # picture, caption, original size, B/32, L/14
    ("sea", "The calm sea under a clear sky.", 640, 480, 0.31, 0.25),
    ("sea", "Buy a wonderful poster of the sea.", 640, 480, 0.29, 0.21),
    ("sea", "sea", 640, 480, 0.35, 0.20),
    ("field", "Ein grünes Feld unter dem Himmel.", 640, 480, 0.40, 0.30),
    ("field", "A green field in the bright sun.", 640, 150, 0.20, 0.31),
    ("lost", "A picture that is not there.", 640, 480, 0.30, 0.30),
]


def colours(name: str) -> Image.Image:
    seed = {"sea": 1, "field": 2}[name]
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datacomp")
    table = pd.DataFrame(ROWS, columns=["picture", "text", "original_width", "original_height", "b32", "l14"])
    for row, name in enumerate(table["picture"]):
        if name != "lost":
            colours(name).save(folder / f"{row}.jpg", quality=95 - 5 * row)
    table = table.assign(uid=[f"{row:032x}" for row in range(len(table))], file=[f"{row}.jpg" for row in table.index])
    table = table.rename(columns={"b32": DATACOMP["clip_b32"], "l14": DATACOMP["clip_l14"]})
    write_table(folder / "metadata.parquet", pa.Table.from_pandas(table, preserve_index=False))
    return folder / "metadata.parquet"


SETTINGS = parse(
    OperatorSettings,
    {
        "language": {"model": str(LID)},
        "given": DATACOMP,
        "datacomp": {"basic": True, "laion2b": "clip_b32", "clip_score": {"operator": "clip_l14", "threshold": 0.3}},
    },
)


def scored(metadata: Path, folder: Path, count: int) -> tuple[ShardStore, Chain]:
    fields = {"pair_id": "uid", "annotation": "text", "data": "file"}
    source = parse(PoolSource, {"path": str(metadata), "fields": fields, "modality": "image"})
    report = ingest([source], folder / "pool", shards=count, check_files=False)
    shards, stages = ShardStore((folder / "pool",), report.shards), []
    for step in steps(SETTINGS):
        stages.append(Stage(step, shards, folder / step.name, digest(step.identity())))
        shards = shards.then(folder / step.name)
    chain = Chain(tuple(stages))
    for part in range(report.shards):
        chain(part)
    return shards, chain


def test_datacomps_scores_are_used_and_its_baselines_kept(metadata: Path, tmp_path: Path) -> None:
    shards, _ = scored(metadata, tmp_path, 2)
    names = ["pair_id", "error", *columns(steps(SETTINGS))]
    table = pa.concat_tables([shards.read(part, names) for part in range(2)]).to_pandas().sort_values("pair_id")
    assert table["error"].iloc[5].startswith("quality-media: MediaError: '5.jpg'")
    alive = table.iloc[:5]
    np.testing.assert_allclose(alive[column("clip_b32")], [row[4] for row in ROWS[:5]])
    np.testing.assert_allclose(alive[column("clip_l14")], [row[5] for row in ROWS[:5]])
    assert alive[column("datacomp_basic")].tolist() == [1, 1, 0, 0, 0]  # too short, German, too small
    assert alive[column("datacomp_laion2b")].tolist()[:2] == [1, 1]
    assert alive[column("datacomp_laion2b")].tolist()[3:] == [0, 0]
    assert alive[column("datacomp_clip_score")].tolist() == [0, 0, 0, 1, 1]
    assert alive[column("resolution")].tolist() == [90] * 5


def test_of_the_same_picture_the_caption_that_agrees_best_stays(metadata: Path, tmp_path: Path) -> None:
    settings = DuplicateSettings(by=tuple(agreements(SETTINGS)), radius=4)
    assert settings.by == (column("clip_b32"), column("clip_l14"))
    tables = []
    for count in (1, 3):
        shards, _ = scored(metadata, tmp_path / str(count), count)
        found = deduplicate(shards, settings)
        assert [int(part.sum()) for part in found.kept] == ([2] if count == 1 else [0, 2, 0])
        tables.append(found.groups)
    assert tables[0].equals(tables[1])
    places = [int(name, 16) for name in tables[0]["pair_id"].to_pylist()]
    assert places == [2, 0, 1, 3, 4]
    assert tables[0]["kept"].to_pylist() == [True, False, False, True, False]


def test_what_is_done_is_not_done_again(metadata: Path, tmp_path: Path) -> None:
    _, chain = scored(metadata, tmp_path, 2)
    assert chain.done(0)
    assert chain.done(1)
    files = sorted(tmp_path.rglob("quality-*/*.parquet"))
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    scored(metadata, tmp_path, 2)
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before
    assert len(files) == 2 * len(chain.stages) == 8
