"""What a run did, in sections: figures and findings first, then counts, scores, spaces, and where it all comes from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from nemo_mm_rank.config import Config
from nemo_mm_rank.io.files import read_table, table_digest
from nemo_mm_rank.measures.gaps import gap_text
from nemo_mm_rank.media.preview import copy
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.ranking.blend import label
from nemo_mm_rank.ranking.conditions import percent
from nemo_mm_rank.report import content
from nemo_mm_rank.report.charts import colour, distributions, mixes
from nemo_mm_rank.report.content import Example, Finding, Section, Tile
from nemo_mm_rank.report.details import excerpt
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.run.finished import State, replaced, rows_of
from nemo_mm_rank.run.summary import matching_table, mix_table, reasons_table, rows_table, space_name, spaces_table
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_PARTS, MEDIA_ROOT, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.tables import Row, Table, counted, number, share

SHOWN = 24
"""Examples of each query that a page shows."""

_EXAMPLE = 240  # characters of its text
_SHIFT = 0.1  # of a share, from which on a mix is another
_CLOSE = 0.1  # standard deviations of the scores, within which a pair might as well have been chosen


LEFT_OUT = "What was kept and left out"
"""Title of the section on rows by step, and on why some were quarantined."""


def findings(run: Run) -> list[Finding]:
    """Return what a careful reader would check, checked."""
    counts = run.manifest["counts"]
    rows, quarantined, ranked = counts["pool"]["rows"], run.quarantine.num_rows, run.scoring.ranked
    checks = []
    if rows == ranked + quarantined:
        text = f"Every row is accounted for: {rows:,} in = {ranked:,} ranked + {quarantined:,} quarantined."
        checks.append(Finding("good", text))
    else:
        checks.append(Finding("warn", f"{rows:,} rows in, but {ranked:,} ranked + {quarantined:,} quarantined."))
    if table_digest(read_table(run.folder.blend)) == run.manifest["blend"]["digest"]:
        checks.append(Finding("good", "The blend is the one that the manifest describes (same digest)."))
    else:
        checks.append(
            Finding(
                "warn", "The blend is not the one that the manifest describes: its digest differs. Rank the run again."
            )
        )
    if (said := replaced(rows_of(run.folder, run.ranking.chosen[PAIR_ID]))) is not None:
        checks.append(Finding("warn", f"{said}."))
    if quarantined > 0.05 * rows:
        left = share(quarantined, rows)
        checks.append(Finding("warn", f"{left} of the rows could not be ranked; “{LEFT_OUT}” says why."))
    checks += _of_spaces(run.manifest["projection"]["metrics"]["mean"])
    checks += _of_mix(counts)
    checks += _of_cut(run)
    return checks


def _of_spaces(spaces: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    fused, others = spaces.get("fused"), {name: space for name, space in spaces.items() if name != "fused"}
    if fused is None or not others:
        return []
    name, best = max(others.items(), key=lambda item: item[1]["recall_at_10"])
    text = (
        f"On held-out pairs, the fused space ranks the other half of a pair among the first ten for "
        f"{share(fused['recall_at_10'], 1)} of the pairs; the best single space ({space_name(name)}) does so for "
        f"{share(best['recall_at_10'], 1)}; matched gap {gap_text(fused, 'matched_gap')} "
        f"against {gap_text(best, 'matched_gap')}."
    )
    gaps = fused["matched_gap"], best["matched_gap"]
    better = fused["recall_at_10"] >= best["recall_at_10"] and None not in gaps and gaps[0] <= gaps[1]
    return [Finding("good" if better else "note", text)]


def _of_mix(counts: Mapping[str, Any]) -> list[Finding]:
    ranked, blend = counts["ranked"], counts["blend"]
    whole, chosen = sum(ranked.values()), sum(blend.values())
    absent = [name for name, n in ranked.items() if n and not blend.get(name)]
    checks = []
    if absent:
        checks.append(Finding("warn", f"No pair was chosen from {', '.join(absent)}."))
    if chosen and whole:
        gains = {name: blend.get(name, 0) / chosen - n / whole for name, n in ranked.items() if n}
        by_gain = sorted(gains, key=lambda name: gains[name])
        for name, verb in ((by_gain[-1], "more"), (by_gain[0], "less")):
            if abs(gains[name]) >= _SHIFT and name not in absent:
                shares = f"{share(blend[name], chosen)} of the blend, {share(ranked[name], whole)} of the pool"
                checks.append(Finding("note", f"There is {verb} {name} in the blend than in the pool: {shares}."))
        if not checks:
            checks.append(Finding("good", "Every modality has about the share in the blend that it has in the pool."))
    return checks


def _of_cut(run: Run) -> list[Finding]:
    distance = run.distance
    spread = float(run.scored.scores.std())
    if not spread or not np.isfinite(distance).any():
        return []
    left_out = int(((distance < 0) & (distance >= -_CLOSE * spread)).sum())
    if not left_out:
        return [Finding("good", f"No pair lies within {_CLOSE:g} standard deviations below the cut.")]
    chosen = run.ranking.chosen.num_rows
    text = (
        f"{counted(left_out, 'pair')} left out {'lies' if left_out == 1 else 'lie'} within {_CLOSE:g} standard "
        f"deviations below the cut, {share(left_out, chosen)} of the size of the blend: look at the pairs around the "
        "cut before you rely on single pairs near it."
    )
    return [Finding("note", text)]


ABOUT_MAPS = (
    "Filled: data. Hollow: annotations. A line joins a pair's two sides. Neighbours on a map are neighbours in the "
    "space; distances between groups that lie far apart mean little (t-SNE of a sample)."
)
"""How a map is to be read."""


def objective(run: Run) -> str:
    """Return what the run was asked for, in its own words."""
    sought = [query.label for query in run.config.queries if query.weight > 0]
    avoided = [query.label for query in run.config.queries if query.weight <= 0]
    return " + ".join(sought) + "".join(f" \N{MINUS SIGN} {text}" for text in avoided)


def subtitle(run: Run) -> str:
    """Return what came out, in a line."""
    chosen, ranked = run.ranking.chosen.num_rows, run.scoring.ranked
    return f"{chosen:,} of {ranked:,} ranked pairs chosen, {counted(run.quarantine.num_rows, 'row')} quarantined"


def overview(run: Run) -> Section:
    """Return the figures that are looked at first, and what they say about the blend."""
    counts = run.manifest["counts"]
    chosen, ranked, rows = run.ranking.chosen.num_rows, run.scoring.ranked, counts["pool"]["rows"]
    trimmed = Counter[str]()
    for step in counts["steps"]:
        trimmed.update(step["trimmed"])
    tiles = [
        Tile("rows in", f"{rows:,}", counted(len(run.manifest["inputs"]), "manifest")),
        Tile("ranked", f"{ranked:,}", f"{share(ranked, rows)} of the rows"),
        Tile("quarantined", f"{run.quarantine.num_rows:,}", f"{share(run.quarantine.num_rows, rows)} of the rows"),
        Tile("chosen", f"{chosen:,}", f"{share(chosen, ranked)} of the ranked pairs"),
    ]
    if run.config.sns.mode != "off":
        total = sum(trimmed.values())
        tiles.insert(1, Tile("trimmed", f"{total:,}", f"{run.config.sns.mode}, by SNS"))
    lead = "What the run did with the pool, and what speaks for and against the blend."
    return Section(
        "overview", "Overview", lead, [content.Tiles(tiles), content.Findings(findings(run)), *_examples(run)]
    )


def _examples(run: Run) -> Iterator[content.Part]:
    """Yield what each query by examples is made of; the first of them, with copies of their media."""
    for like in State.load(run.folder).likes(run.folder):
        rows = like.examples.rows
        query = like.query
        asked = "what should not be picked" if query.weight < 0 else "what is asked for"
        near = "the nearest one" if query.norm == "inf" else "all of them"
        sides = (
            "data and annotations" if query.side == "both" else query.side if query.side == "data" else "annotations"
        )
        note = f"{counted(len(rows), 'example')} of {asked}; pairs are compared with {near}, by {sides}"
        if like.examples.failed:
            note += f"; {len(like.examples.failed):,} more could not be embedded ({like.examples.failed[0]})"
        if len(rows) > SHOWN:
            note += f"; the first {SHOWN} are shown"
        shown = [_example(row, run.config) for row in rows.slice(0, SHOWN).to_pylist()]
        yield content.Examples(f"Un{query.label}" if query.weight < 0 else query.label.capitalize(), shown, f"{note}.")


def _example(row: Mapping[str, Any], config: Config) -> Example:
    modality, data, annotation = row[MODALITY], row[DATA] or "", row[ANNOTATION] or ""
    if not is_media(modality) or row.get(DATA_PARTS):
        text = data if data == annotation else f"{data} \N{EM DASH} {annotation}"
        return Example(row[PAIR_ID], excerpt(text, _EXAMPLE))
    shown = copy(data, modality, None, row.get(MEDIA_ROOT) or ".", None, config.media)
    text = excerpt(annotation or shown.get("missing", ""), _EXAMPLE)
    return Example(row[PAIR_ID], text, shown.get("kind", "") if "src" in shown else "", shown.get("src", ""))


def rows(run: Run) -> Section:
    """Return what became of every row: by step and modality, and why pairs left."""
    lead = "From the manifests to the blend, step by step. What fails a step is kept apart, with its reason."
    parts: list[content.Part] = [
        rows_table(run.manifest["counts"]),
        *filter(None, [reasons_table(run.quarantine)]),
        _mix(run),
        *_types(run),
        *_pools(run),
    ]
    return Section("rows", LEFT_OUT, lead, parts)


def _mix(run: Run) -> content.Chart:
    counts = run.manifest["counts"]
    names = sorted(counts["pool"]["in"])
    colours = [colour(name, place) for place, name in enumerate(names)]
    shares = {"ranked pairs": _shares(counts["ranked"], names), "blend": _shares(counts["blend"], names)}
    return mixes("Modalities in the pool and in the blend", names, colours, shares)


def _types(run: Run) -> list[Table]:
    """Return what a mix asked for by type, and what there was, with its source and the advice that goes with it."""
    mix = run.manifest["mix"]
    if mix is None:
        return []
    sentences = [mix["source"], mix["note"], *(f"Advice: {line}" for line in mix["advice"])]
    note = ". ".join(text.rstrip(".") for text in sentences if text) + "."
    return [replace(mix_table(mix), title=f"Mix by type: {mix['name'] or 'your own'}", note=note)]


def _shares(counts: Mapping[str, int], names: list[str]) -> list[float]:
    whole = sum(counts.values()) or 1
    return [counts.get(name, 0) / whole for name in names]


def _pools(run: Run) -> list[Table]:
    ranked = run.scoring.counts[POOL]
    chosen = Counter(run.ranking.chosen[POOL].to_pylist())
    lost = Counter(run.quarantine[POOL].to_pylist())
    if len(ranked) < 2:
        return []
    lines = [
        Row((name, f"{n:,}", f"{lost[name]:,}", f"{chosen[name]:,}", share(chosen[name], n)))
        for name, n in ranked.items()
    ]
    return [Table("Pools", ["pool", "ranked", "quarantined", "chosen", "share chosen"], lines)]


def scores(run: Run) -> Section:
    """Return how scores lie in each modality, what they are made of, and where the cut is."""
    scored = run.scored
    chosen = np.zeros(len(scored.scores), dtype=bool)
    chosen[run.chosen] = True
    distributed = []
    for code, name in enumerate(scored.modalities):
        in_modality = scored.modality == code
        distributed.append((name, colour(name, code), scored.scores[in_modality], scored.scores[in_modality & chosen]))
    cuts = {cut for cut in run.cuts if cut is not None}
    chart = distributions(
        "Scores by modality",
        distributed,
        cuts.pop() if len(cuts) == 1 else None,
        "Pale: all ranked pairs. Solid: chosen pairs. Each row is scaled to its highest bin.",
        "score (standard deviations, weighted sum)",
    )
    lead = "The score of a pair compares it with the whole pool; the blend is what lies above the cut."
    return Section("scores", "Scores and the cut", lead, [chart, _weights(run), *_matching(run), *_cuts(run)])


def _weights(run: Run) -> Table:
    asked, topic = run.config.ranking.weights, run.scoring.topic
    lines = [
        Row((name, number(asked[name], 2) if name in asked else "", number(topic.weight(name), 2)))
        for name in topic.narrow.weights
    ]
    strengths = {name: number(condition.strength, 2) for name, condition in run.scoring.conditions.items()}
    lines += [Row((f"if {name}", strength, strength)) for name, strength in strengths.items()]
    note = (
        "A component counts for less than its weight if the objective hardly distinguishes the pairs of the pool in it."
    )
    if topic.breadth:
        note += (
            " Much of the pool fits the objective, so the weights for broad objectives, with closeness to the best "
            f"pairs, count for {percent(topic.breadth)}."
        )
    if run.scoring.conditions:
        note += " A line “if ...” is a condition: the logarithm of its probability is added, multiplied by the number."
    return Table("What a score is made of", ["component", "weight", "counts with"], lines, note=note)


def _matching(run: Run) -> list[Table]:
    """Return how well own annotations can be told from others; nothing where no modality had enough pairs."""
    table = matching_table(run.manifest["matching"])
    note = (
        "Annotations of this pool were exchanged on purpose, and a judge learnt to tell a pair's own annotation from "
        "an exchanged one. All figures are out of sample. ROC AUC: how often the own annotation scores above an "
        "exchanged one; 0.5 is a guess, and below 0.7 the result does not count against a pair. Taken for wrong: the "
        "least share of the pool's pairs that look like exchanged ones."
    )
    return [replace(table, note=note)] if table.rows else []


def _cuts(run: Run) -> list[Table]:
    summary = run.ranking.summary
    if not summary["settings"]["quotas"]:
        return []
    lines = [
        Row(
            (
                label(entry["group"], summary["settings"]["quotas"]),
                f"{entry['quota']:,}",
                f"{entry['chosen']:,}",
                _cut(entry["cut"]),
            )
        )
        for entry in summary["groups"]
    ]
    if summary["filling"]["chosen"]:
        lines.append(
            Row(("to fill shortages", "", f"{summary['filling']['chosen']:,}", _cut(summary["filling"]["cut"])))
        )
    return [Table("Quotas", ["group", "quota", "chosen", "cut"], lines)]


def _cut(cut: Mapping[str, Any] | None) -> str:
    return "\N{EN DASH}" if cut is None else number(cut["score"])


def spaces(run: Run) -> Section:
    """Return the geometry of the spaces, and the place of their maps."""
    table = spaces_table(run.manifest["projection"]["metrics"], (1, 5, 10))
    note = (
        f"{table.note} No network is measured on pairs that it learnt from. Gap: distance between the centroids "
        "of modalities. Matched gap: from data to their own annotations, so that the content does not matter. "
        "Both are corrected for the noise of means over few pairs, with the 95 % "
        "bootstrap interval in brackets. Recall@k: share of pairs whose other half is among the k most similar. A "
        "small gap is worth nothing if recall falls with it."
    )
    lead = "Where the experts put the pairs, and where the projection puts them."
    return Section(
        "spaces", "Spaces", lead, [replace(table, title="Geometry", note=note), content.Widget("maps", ABOUT_MAPS)]
    )


def pairs() -> Section:
    """Return the place of the gallery."""
    lead = "The best pairs, those around the cut, the last ones, and those that could not be ranked."
    return Section("pairs", "Pairs", lead, [content.Widget("pairs")])


def provenance(run: Run) -> Section:
    """Return where the blend comes from: inputs, models, versions, configuration."""
    manifest, blend = run.manifest, run.manifest["blend"]
    inputs = [Row((source["file"].rsplit("/", 1)[-1], source["digest"])) for source in manifest["inputs"]]
    versions = {"nemo-mm-rank": manifest["nemo_mm_rank"], "python": manifest["python"], **manifest["versions"]}
    lines = [Row((name, version)) for name, version in versions.items()]
    config = yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True)
    parts: list[content.Part] = [
        Table("Manifests read", ["file", "digest"], inputs, text=(0, 1)),
        Table("Blend", ["pairs", "digest"], [Row((f"{blend['pairs']:,}", blend["digest"]))], text=(0, 1)),
        Table("Versions", ["library", "version"], lines, text=(0, 1)),
        content.Folded("Configuration", config),
        content.Folded("Models", json.dumps(manifest["models"], indent=2, ensure_ascii=False)),
    ]
    lead = "The same input, seed and versions give the same bytes."
    return Section("provenance", "How the blend was made", lead, parts)
