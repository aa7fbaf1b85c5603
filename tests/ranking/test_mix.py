"""A mix: quotas by (data -> annotation) type, exact, with a shortage policy, from published shares or one's own."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nemo_mm_rank.cli import app
from nemo_mm_rank.config import Budget, Config, RankingSettings, parse
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.mix import MIXES, Mix, advice, canonical_type, mix_of, type_of
from nemo_mm_rank.modality import MODALITY_CODES, code_of, combined, name_of
from nemo_mm_rank.ranking import Files, quota_counts, rank
from nemo_mm_rank.ranking.candidates import Groups
from nemo_mm_rank.ranking.explain import explain
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run.outcome import mix_entry
from nemo_mm_rank.run.summary import mix_lines, mix_table

THOUSANDS = {
    "unite-adaptation": {"text->text": 1379.6, "image->text": 2500.0, "video->text": 2500.0},
    "unite-instruction": {
        "image->text": 323.2 + 349.6,
        "text+image->text": 17.2 + 187.2,
        "image->image": 15.9,
        "text+image->image": 175.1,
        "text+video->video": 200.0,
    },
}


@pytest.mark.parametrize("name", MIXES)
def test_published_shares_are_those_of_the_counts(name: str) -> None:
    shares, counts = MIXES[name].shares, THOUSANDS[name]
    assert sum(Fraction(str(share)) for share in shares.values()) == 1
    assert shares == pytest.approx({kind: count / sum(counts.values()) for kind, count in counts.items()}, abs=5e-4)
    assert [canonical_type(kind) for kind in shares] == list(shares)
    assert "2505.19650" in MIXES[name].source


@given(st.sets(st.sampled_from(list(MODALITY_CODES)), min_size=1), st.randoms())
def test_a_set_has_one_name(names: set[str], order: Any) -> None:
    shuffled = sorted(names)
    order.shuffle(shuffled)
    written = order.choice(["+", ",", ", "]).join(shuffled)
    assert code_of(written) == code_of(names) == sum(MODALITY_CODES[name] for name in names)
    assert name_of(code_of(written)) == combined(names)
    assert code_of(name_of(code_of(written))) == code_of(written)
    assert type_of(written) == canonical_type(f"{written} -> text")


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("unite-adaption", "no mix 'unite-adaption'; did you mean 'unite-adaptation'"),
        ({"image": 0.5}, "a type is written data->annotation, like image->text, not 'image'"),
        ({"imge->text": 0.5}, "unknown modality 'imge'; did you mean 'image'"),
        ({"->text": 0.5}, "empty modality"),
        ({}, "a mix has a share for every type"),
        ({"image,text->text": 0.1, "text+image->text": 0.1}, "each type once"),
        ({"image->text": 0.7, "text->text": 0.7}, "sum to more than 1"),
        ({"image->text": float("nan")}, "between 0 and 1"),
        ({"image->text": -0.1}, "between 0 and 1"),
    ],
)
def test_mistakes_are_named(mix: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, {"pools": "p", "queries": "q", "ranking": {"mix": mix}})


def test_a_mix_and_quotas_exclude_each_other() -> None:
    quotas = {"quota_by": "modality", "quotas": {"image": 0.5}}
    with pytest.raises(ConfigError, match="give either mix or quotas"):
        parse(RankingSettings, {"mix": "unite-adaptation", **quotas})
    with pytest.raises(ConfigError, match=r"write 'image,text->text' as 'text\+image->text'"):
        parse(RankingSettings, {"quota_by": "type", "quotas": {"image,text->text": 0.5}})


def files(folder: Path, modalities: dict[str, int], shards: int = 3) -> Files:
    """A scored pool: the earlier a pair, the better."""
    names = [name for name, count in modalities.items() for _ in range(count)]
    rows = [{"pair_id": f"p{n:03d}", "pool": "a", "modality": name, "error": None} for n, name in enumerate(names)]
    schema = pa.schema([(name, pa.string()) for name in ("pair_id", "pool", "modality", "error")])
    table = pa.Table.from_pylist(rows, schema).append_column(
        "cosine__fused", pa.array([1 - n / 1000 for n in range(len(rows))], pa.float32())
    )
    paths = []
    for part in range(shards):
        path = folder / f"part-{part}.parquet"
        write_table(path, table.take(pa.array(range(part, len(rows), shards))))
        paths.append((path,))
    return Files(tuple(paths))


def mixed(mix: Any, **changes: Any) -> RankingSettings:
    return RankingSettings(weights={"fused": 1.0}, mix=mix, **changes)


def test_quotas_are_exact(tmp_path: Path) -> None:
    pool = files(tmp_path, {"code": 50, "audio": 50, "video": 60, "text": 60, "image": 60})
    found = rank(pool, ["cosine__fused"], mixed("unite-adaptation").by_type(), Budget(count=101))
    wanted = quota_counts(101, MIXES["unite-adaptation"].shares)
    assert wanted == {"image->text": 40, "text->text": 22, "video->text": 39}  # 39.592, 21.816, 39.592: by name
    assert Counter(map(type_of, found.chosen["modality"].to_pylist())) == wanted
    assert found.chosen["reason"][-1].as_py().endswith("; quota image->text 40/40")
    scoring = Scoring.fit(pool, ["cosine__fused"], mixed("unite-adaptation"))
    assert "quota image->text, chosen" not in explain("p200", pool, found, scoring)
    assert "the last one chosen from text->text" in explain("p169", pool, found, scoring)
    assert "the quotas leave no place for others" in explain("p000", pool, found, scoring)


@pytest.mark.parametrize(("policy", "others"), [("fill", 11), ("leave", 0)])
def test_a_shortage_is_filled_or_left_and_counted(tmp_path: Path, policy: str, others: int) -> None:
    pool = files(tmp_path, {"code": 30, "video": 8, "text": 60, "image": 60})
    settings = mixed("unite-adaptation", shortage=policy)
    found = rank(pool, ["cosine__fused"], settings.by_type(), Budget(count=50))
    chosen = Counter(found.chosen["modality"].to_pylist())
    assert chosen == Counter({"code": others, "video": 8, "text": 11, "image": 20}) + Counter()
    entry = mix_entry(settings, found.summary)
    assert entry is not None
    assert (entry["name"], entry["shortage"], entry["filling"]) == ("unite-adaptation", policy, others)
    assert entry["types"] == [
        {"type": "image->text", "share": 0.392, "quota": 20, "chosen": 20},
        {"type": "text->text", "share": 0.216, "quota": 11, "chosen": 11},
        {"type": "video->text", "share": 0.392, "quota": 19, "chosen": 8},
    ]
    assert len(entry["advice"]) == 2
    json.dumps(entry)
    assert len(mix_table(entry).rows) == 3 + (policy == "fill")
    assert mix_lines(entry)[0].endswith("which its own counts do not give")


def test_a_shortage_can_be_refused(tmp_path: Path) -> None:
    pool = files(tmp_path, {"text": 60, "image": 60})
    with pytest.raises(UserError, match="video->text has 0 of 19"):
        rank(pool, ["cosine__fused"], mixed("unite-adaptation", shortage="fail").by_type(), Budget(count=50))


def test_ones_own_mix_leaves_the_rest_to_others(tmp_path: Path) -> None:
    pool = files(tmp_path, {"code": 30, "text+image": 30, "image": 30})
    settings = mixed({"image,text -> text": 0.25, "image->text": 0.5})
    found = rank(pool, ["cosine__fused"], settings.by_type(), Budget(count=12))
    assert Counter(found.chosen["modality"].to_pylist()) == {"text+image": 3, "image": 6, "code": 3}
    entry = mix_entry(settings, found.summary)
    assert entry is not None
    assert [(kind["type"], kind["share"], kind["chosen"]) for kind in entry["types"]] == [
        ("image->text", 0.5, 6),
        ("text+image->text", 0.25, 3),
        ("others", None, 3),
    ]
    assert (entry["name"], entry["source"]) == (None, "your own")
    assert mix_entry(RankingSettings(), found.summary) is None


def grouped(file: Path, groups: dict[str, str], column: str = "group") -> str:
    pq.write_table(pa.table({"pair_id": list(groups), "more": [1] * len(groups), column: list(groups.values())}), file)
    return str(file)


def test_quotas_for_the_groups_of_a_file(tmp_path: Path) -> None:
    pool = files(tmp_path, {"code": 30, "image": 30})
    # p059 is in no group, and comes with the others; "elsewhere" is no pair of the pool.
    groups = {f"p{n:03d}": "odd" if n % 2 else "even" for n in range(59)} | {"elsewhere": "odd"}
    file = grouped(tmp_path / "groups.parquet", groups)
    settings = RankingSettings(weights={"fused": 1.0}, quota_by=file, quotas={"odd": 0.75, "even": 0.2})
    found = rank(pool, ["cosine__fused"], settings, Budget(count=20))
    ids = found.chosen["pair_id"].to_pylist()
    assert [pair_id for pair_id in ids if groups.get(pair_id) == "odd"] == [f"p{n:03d}" for n in range(1, 31, 2)]
    assert [pair_id for pair_id in ids if groups.get(pair_id) == "even"] == ["p000", "p002", "p004", "p006"]
    assert len(ids) == 20
    assert "p059" in ids
    assert found.chosen["reason"][1].as_py().endswith("; quota odd 1/15")
    scoring = Scoring.fit(pool, ["cosine__fused"], settings)
    assert "the last one chosen from even" in explain("p008", pool, found, scoring)
    short = RankingSettings(weights={"fused": 1.0}, quota_by=file, quotas={"odd": 1.0}, shortage="fail")
    with pytest.raises(UserError, match="odd has 29 of 40"):
        rank(pool, ["cosine__fused"], short, Budget(count=40))


def test_files_of_groups_that_are_refused(tmp_path: Path) -> None:
    file = grouped(tmp_path / "groups.parquet", {"p0": "odd"})
    (tmp_path / "text.parquet").write_text("no")
    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.table({"pair_id": ["a", "a"], "group": ["odd", "odd"]}), twice)
    for path, group, message in (
        (tmp_path / "none.parquet", "odd", "ranking.quota_by: .* cannot be read as Parquet"),
        (tmp_path / "text.parquet", "odd", "cannot be read as Parquet"),
        (grouped(tmp_path / "other.parquet", {"p0": "odd"}, "grup"), "odd", "no column 'group'; pair_id, more, grup"),
        (twice, "odd", "has a pair_id twice"),
        (file, "od", "has no group 'od'; did you mean 'odd'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Groups.of(str(path), {group: 0.5})
    with pytest.raises(ConfigError, match="or by a Parquet file, not by 'modalty'; did you mean 'modality'"):
        parse(RankingSettings, {"quota_by": "modalty", "quotas": {"image": 0.5}})


def test_types_without_pairs_are_short_and_not_lost(tmp_path: Path) -> None:
    pool = files(tmp_path, {"image": 80, "text+image": 40, "code": 40})
    settings = mixed("unite-instruction", shortage="leave")
    found = rank(pool, ["cosine__fused"], settings.by_type(), Budget(count=100))
    assert Counter(found.chosen["modality"].to_pylist()) == {"image": 53, "text+image": 16}
    short = {entry["group"]: entry["quota"] - entry["chosen"] for entry in found.summary["groups"]}
    assert {kind: count for kind, count in short.items() if count} == {
        "image->image": 1,
        "text+image->image": 14,
        "text+video->video": 16,
    }


def test_advice_has_its_source_and_depends_on_the_mix() -> None:
    lines = advice(MIXES["unite-adaptation"])
    assert all("2505.19650" in line and "not tested here" in line for line in lines)
    assert [("hurt" in line, "helped" in line) for line in lines] == [(False, True), (True, False)]
    assert "helped beside text-text" in advice(mix_of({"text->text": 1.0}))[0]
    assert advice(Mix({"code->text": 1.0}, "your own")) == []


def test_from_the_command_line(tmp_path: Path) -> None:
    lines = [
        {"pair_id": f"{kind}-{n}", "modality": kind, "data": f"{kind} number {n} of a day", "annotation": f"note {n}"}
        for kind in ("text", "code")
        for n in range(20)
    ]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join(map(json.dumps, lines)))
    settings = tmp_path / "c.yaml"
    settings.write_text(
        "models: {text: {class: hashed-text, dim: 64}}\n"
        "experts: [{name: words, kind: text-based, encoder: text}]\n"
        "projection: {max_epochs: 1, folds: 2, mamcl_weight: 1, contrastive_weight: 0}\n"
        "ranking: {shortage: leave}\n"
    )
    options = [
        "curate",
        str(pool),
        "-q",
        "a day",
        "-b",
        "20",
        "-c",
        str(settings),
        "-o",
        str(tmp_path / "run"),
        "--mix",
    ]
    done = CliRunner().invoke(app, [*options, "unite-adaptation"], catch_exceptions=False)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["mix"]["types"][1] == {"type": "text->text", "share": 0.216, "quota": 4, "chosen": 4}
    assert manifest["counts"]["blend"] == {"text": 4}
    assert manifest["config"]["ranking"]["mix"] == "unite-adaptation"
    assert manifest["ranking"]["settings"]["calibration"] == "matched"
    assert "so fused cosines are calibrated by modality (matched)" in manifest["notes"][0]
    for line in (
        "Mix: unite-adaptation",
        "mix         UNITE, arXiv 2505.19650",
        "advice      UNITE",
        manifest["notes"][0],
    ):
        assert line in done.stdout
    dry = CliRunner().invoke(app, [*options, "unite-adaptation", "--dry-run"], catch_exceptions=False).stdout
    assert "mix      text->text 21.6%, image->text 39.2%, video->text 39.2%" in dry
    with pytest.raises(ConfigError, match="did you mean 'unite-adaptation'"):
        CliRunner().invoke(app, [*options, "unite-adaption"], catch_exceptions=False)
