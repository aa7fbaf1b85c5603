"""The command line: ``nemo-mm-rank curate | rank | explain | report | export | validate | presets | demo`` and more."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nemo_mm_rank import __version__
from nemo_mm_rank.config import Config, PoolSource, parse, read_yaml
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.mix import MIXES
from nemo_mm_rank.presets import overlay, read

app = typer.Typer(
    help="Curate multimodal pairs by ranked retrieval: the best k pairs for an objective in plain words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

models = typer.Typer(help="The models of a configuration.", no_args_is_help=True)
app.add_typer(models, name="models")

Pools = Annotated[
    list[str] | None, typer.Argument(help="Manifests: JSONL, Parquet or WebDataset; a file, folder, glob or URL.")
]
Queries = Annotated[list[str] | None, typer.Option("--query", "-q", help="The objective in plain words; repeatable.")]
Avoid = Annotated[list[str] | None, typer.Option("--avoid", help="What not to pick, in plain words; repeatable.")]
BudgetText = Annotated[str | None, typer.Option("--budget", "-b", help="How many pairs: 10000, or a share: 20%.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML configuration; options go before it.")]
PresetName = Annotated[
    str | None, typer.Option("--preset", "-p", help="A built-in configuration, see presets; --config goes before it.")
]
DeviceName = Annotated[str | None, typer.Option(help="Where models run: cpu, cuda ...")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="The run's folder.")]
Fields = Annotated[list[str] | None, typer.Option("--field", help="Field map, e.g. annotation=caption; repeatable.")]
ModalityName = Annotated[str | None, typer.Option(help="Modality of pools whose rows do not say.")]
Root = Annotated[
    str | None, typer.Option(help="What media references are relative to; default: the manifest's folder.")
]


Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what this command wrote there of other input; never what is yours.")
]
MixName = Annotated[str | None, typer.Option(help=f"Quotas by type of pair, as published: {', '.join(MIXES)}.")]


@app.command()
def curate(
    pool: Pools = None,
    query: Queries = None,
    avoid: Avoid = None,
    budget: BudgetText = None,
    config: ConfigFile = None,
    preset: PresetName = None,
    output: Output = None,
    field: Fields = None,
    modality: ModalityName = None,
    root: Root = None,
    mix: MixName = None,
    sns: Annotated[str | None, typer.Option(help="Trim pairs: off, forward, backward or bidirectional.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(help="What a bad row leads to: fail or quarantine.")] = None,
    workers: Annotated[int | None, typer.Option(help="Dask worker processes; 0 is this process.")] = None,
    scheduler_address: Annotated[str | None, typer.Option(help="A running Dask scheduler.")] = None,
    gpus: Annotated[bool | None, typer.Option("--gpus", help="One worker per GPU, cuDF partitions.")] = None,
    device: DeviceName = None,
    shards: Annotated[int | None, typer.Option(help="Number of shards.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    jsonl: Annotated[bool | None, typer.Option("--jsonl", help="Write blend.jsonl beside blend.parquet.")] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
) -> None:
    """Rank a pool of pairs against an objective and keep the best."""
    values = _configured(config, preset)
    if pool:
        values["pools"] = _pools(pool, field, modality, root)
    elif field or modality or root:
        raise UserError("--field, --modality and --root are for pools on the command line; write yours beside them")
    if query or avoid:
        values["queries"] = _queries(query, avoid)
    plain = {
        "budget": budget,
        "output": output,
        "on_bad_row": on_bad_row,
        "shards": shards,
        "seed": seed,
        "jsonl": jsonl,
    }
    values.update({key: value for key, value in plain.items() if value is not None})
    engine = {"workers": workers, "scheduler_address": scheduler_address, "gpus": gpus, "device": device}
    _merge(values, "engine", engine)
    _merge(values, "sns", {"mode": sns})
    _merge(values, "ranking", {"mix": mix})
    settings = parse(Config, values)
    from nemo_mm_rank.run import curation  # takes seconds, which a mistake above should not cost

    if dry_run:
        curation.dry_run(settings, Console(), overwrite)
    else:
        curation.curate(settings, Console(), overwrite=overwrite).print(Console())


@app.command()
def rank(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    query: Queries = None,
    avoid: Avoid = None,
    budget: BudgetText = None,
    quality: Annotated[
        Path | None, typer.Option(help="A finished ecodatum job: its quality is one more condition.")
    ] = None,
    mix: MixName = None,
    jsonl: Annotated[bool | None, typer.Option("--jsonl", help="Write blend.jsonl beside blend.parquet.")] = None,
) -> None:
    """Rank a finished run against another objective, or on other conditions; nothing is embedded again."""
    from nemo_mm_rank.run import curation
    from nemo_mm_rank.run.ecodatum import as_condition
    from nemo_mm_rank.run.folder import RunFolder

    ranking: dict[str, Any] = {"mix": mix} if mix else {}
    if quality:
        ranking |= as_condition(RunFolder.at(run).load_config().ranking, quality)
    changes: dict[str, Any] = {"budget": budget, "ranking": ranking or None, "jsonl": jsonl}
    if query or avoid:
        changes["queries"] = _queries(query, avoid)
    changes = {key: value for key, value in changes.items() if value is not None}
    curation.rank(run, changes, Console()).print(Console())


@app.command()
def ecodatum(
    pool: Pools = None,
    run: Annotated[Path | None, typer.Option(help="A finished run: its pool, and what it has embedded.")] = None,
    budget: BudgetText = None,
    config: ConfigFile = None,
    output: Output = None,
    field: Fields = None,
    modality: ModalityName = None,
    root: Root = None,
    workers: Annotated[int | None, typer.Option(help="Dask worker processes; 0 is this process.")] = None,
    device: DeviceName = None,
    overwrite: Overwrite = False,
) -> None:
    """Keep the pairs of the best quality, whatever they are about: EcoDatum's operators, votes and label model."""
    values = read_yaml(config) if config else {}
    if pool:
        values["pools"] = _pools(pool, field, modality, root)
    plain = {"run": str(run) if run else None, "budget": budget, "output": output}
    values.update({key: value for key, value in plain.items() if value is not None})
    _merge(values, "engine", {"workers": workers, "device": device})
    from nemo_mm_rank.run import ecodatum as job

    job.curate(parse(job.EcoDatumConfig, values), Console(), overwrite=overwrite).print(Console())


@app.command()
def benchmark(
    pool: Pools = None,
    query: Queries = None,
    avoid: Avoid = None,
    budget: BudgetText = None,
    config: ConfigFile = None,
    preset: PresetName = None,
    output: Output = None,
    field: Fields = None,
    modality: ModalityName = None,
    root: Root = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.")] = None,
    workers: Annotated[int | None, typer.Option(help="Dask worker processes; 0 is this process.")] = None,
    scheduler_address: Annotated[str | None, typer.Option(help="A running Dask scheduler.")] = None,
    device: DeviceName = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare strategies at one budget: by truth, by training on the blends, by cost; see configs/benchmark.yaml."""
    values = _configured(config, preset)
    if pool:
        values["pools"] = _pools(pool, field, modality, root)
        if values.pop("demo", None) is not None:
            values.pop("relevant", None)  # a column of the built-in pool's
    elif field or modality or root:
        raise UserError("--field, --modality and --root are for pools on the command line; write yours beside them")
    if query or avoid:
        values["queries"] = _queries(query, avoid)
    plain = {"budget": budget, "output": output, "seeds": seeds}
    values.update({key: value for key, value in plain.items() if value is not None})
    _merge(values, "engine", {"workers": workers, "scheduler_address": scheduler_address, "device": device})
    from nemo_mm_rank.run.benchmark.job import benchmark as compare
    from nemo_mm_rank.run.benchmark.settings import BenchmarkConfig

    console = Console()
    compare(parse(BenchmarkConfig, values), console, overwrite=overwrite).print(console)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    pair_id: Annotated[str, typer.Argument(help="The pair to explain.")],
) -> None:
    """Say why a pair was or was not chosen."""
    from nemo_mm_rank.run import curation

    Console().print(curation.explain(run, pair_id), highlight=False, markup=False, soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A folder that is made for the files.")],
    form: Annotated[str, typer.Option("--format", help="webdataset: tars with the media themselves.")] = "webdataset",
    max_samples: Annotated[int, typer.Option(min=1, help="Most pairs of a tar.")] = 10_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of a tar.")] = 2**30,
    overwrite: Overwrite = False,
) -> None:
    """Write a run's blend, media included, in another format."""
    if form != "webdataset":
        raise UserError(
            f"--format {form!r}: a blend is exported as webdataset; as Parquet it lies in the run's folder, "
            "and as JSONL beside it with rank --jsonl"
        )
    from nemo_mm_rank.run.export import export_webdataset

    for path in export_webdataset(run, output, max_samples, max_bytes, overwrite):
        typer.echo(path)


@app.command()
def adapt(
    run: Annotated[
        Path | None, typer.Argument(help="The folder of a finished run, whose blend is learnt from.")
    ] = None,
    config: ConfigFile = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="A folder for the adapter.")] = None,
    device: DeviceName = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Adapt an end-to-end model to a run's blend, in stages: LoRA adapters, see configs/unite_adapt.yaml."""
    from nemo_mm_rank.adapt.settings import AdaptSettings

    given = {"run": str(run) if run else None, "output": output, "device": device, "seed": seed}
    values = read_yaml(config) if config else {}
    settings = parse(AdaptSettings, {**values, **{key: value for key, value in given.items() if value is not None}})
    from nemo_mm_rank.adapt.job import adapt as adapt_model

    adapt_model(settings, Console(), overwrite).print(Console())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run, or of a benchmark.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="The page; default: RUN/report.html.")] = None,
) -> None:
    """Write one self-contained page: what the run did, its blend to look at, and what was left out and why."""
    from nemo_mm_rank.report import write_report

    typer.echo(write_report(run, output))


@app.command()
def validate(
    pool: Annotated[
        list[str], typer.Argument(help="Manifests: JSONL, Parquet or WebDataset; a file, folder, glob or URL.")
    ],
    field: Fields = None,
    modality: ModalityName = None,
    root: Root = None,
) -> None:
    """Report every bad row of a pool; exit status 1 where there is one, or where a manifest cannot be read."""
    from nemo_mm_rank.io.validate import validate as check

    sources = [parse(PoolSource, source) for source in _pools(pool, field, modality, root)]
    report = check(sources)
    console = Console()
    for line in report.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where the demo pool and its run go.")] = "nemo-mm-rank-demo",
) -> None:
    """Make the built-in demo pool and run the main job on it."""
    import pandas as pd

    from nemo_mm_rank.demo import QUERY, make_demo_pool
    from nemo_mm_rank.io.owned import local
    from nemo_mm_rank.run import curation

    place = local(folder)
    pool = make_demo_pool(place / "pool")
    settings = parse(
        Config,
        {
            "pools": str(pool),
            "queries": QUERY,
            "budget": "20%",
            "output": str(place / "run"),
            "sns": {"mode": "bidirectional"},
        },
    )
    console = Console()
    console.print(f"objective: {QUERY}", highlight=False)
    result = curation.curate(settings, console)
    result.print(console)
    found, pool_share = result.blend["on_topic"].mean(), pd.read_json(pool, lines=True)["on_topic"].mean()
    console.print(f"on topic    {found:.0%} of the blend, {pool_share:.0%} of the pool", highlight=False)


@app.command()
def presets() -> None:
    """List the built-in configurations, with what they need, and recommend one for this machine."""
    from nemo_mm_rank.presets.table import print_presets

    print_presets(Console())


@models.command("check")
def check_models(config: ConfigFile = None, preset: PresetName = None, device: DeviceName = None) -> None:
    """Load every model of a configuration and try it on one sample of each modality; exit status 1 where one fails."""
    values = _configured(config, preset)
    # What is to be ranked is no part of the check, and may be missing.
    settings = parse(Config, {"pools": "unused", "queries": "unused", **values})
    from nemo_mm_rank.models.check import check
    from nemo_mm_rank.models.check_table import print_checks

    checks = check(settings.models, device or settings.engine.device, settings.media)
    if not print_checks(checks, Console()):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _pools(paths: list[str], fields: list[str] | None, modality: str | None, root: str | None) -> list[dict[str, Any]]:
    mapping = {}
    for field in fields or []:
        ours, separator, theirs = field.partition("=")
        if not separator or not ours or not theirs:
            raise UserError(f"--field {field!r}: write it as ours=theirs, e.g. annotation=caption")
        mapping[ours] = theirs
    shared = {"fields": mapping or None, "modality": modality, "root": root}
    return [{"path": path, **{k: v for k, v in shared.items() if v is not None}} for path in paths]


def _configured(config: Path | None, preset: str | None) -> dict[str, Any]:
    """Return what the file says, over what the preset says."""
    values = read_yaml(config) if config else {}
    return overlay(read(preset), values) if preset else values


def _queries(wanted: list[str] | None, avoided: list[str] | None) -> list[dict[str, Any]]:
    return [{"text": text} for text in wanted or []] + [{"text": text, "weight": -1.0} for text in avoided or []]


def _merge(values: dict[str, Any], section: str, options: dict[str, Any]) -> None:
    given = {key: value for key, value in options.items() if value is not None}
    there = values.get(section, {})
    if given and isinstance(there, dict):  # anything else is refused with the rest of the configuration
        values[section] = {**there, **given}


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error and exit status 2."""
    # A user's own model class is found where they stand, as `python -m` would.
    sys.path.insert(0, os.getcwd())
    try:
        app()
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; start the same command again to go on from here")
        sys.exit(130)


if __name__ == "__main__":
    main()
