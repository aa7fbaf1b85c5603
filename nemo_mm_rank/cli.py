"""The command line: ``nemo-mm-rank curate | sns | rank | explain | report | export | validate | demo`` and more."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_mm_rank import __version__
from nemo_mm_rank.config import POOL_FORMATS, Config, Importing, PoolSource, objectives, parse, read_yaml
from nemo_mm_rank.console import SafeConsole, guard_messages, printable
from nemo_mm_rank.errors import FailedError, UserError
from nemo_mm_rank.mix import MIXES
from nemo_mm_rank.presets import overlay, read

app = typer.Typer(
    help="Curate multimodal pairs by ranked retrieval: the best k pairs for an objective in plain words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take what stands before a command."""


models = typer.Typer(help="Work with the models of a configuration.", no_args_is_help=True)
app.add_typer(models, name="models")

Pools = Annotated[
    list[str] | None,
    typer.Argument(help="The pool: manifests (JSON, CSV, Parquet or WebDataset) as files, folders, globs or URLs."),
]
BudgetText = Annotated[
    str | None, typer.Option("--budget", "-b", help="Size of the blend: a number of pairs (10000) or a share (20%).")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A YAML file with settings. Options on the command line override it."),
]
PresetName = Annotated[
    str | None, typer.Option("--preset", "-p", help="A built-in configuration (see presets). --config overrides it.")
]
ImportFrom = Annotated[
    list[str] | None,
    typer.Option("--import-from", help="A folder with classes of yours, which is searched last. Repeatable."),
]
TrustRun = Annotated[
    bool,
    typer.Option("--trust-run", help="Load whatever classes the folder of the run names: code from there will run."),
]
DeviceName = Annotated[str | None, typer.Option(help="Device of the models, such as cpu or cuda.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="The folder of the run.")]
Workers = Annotated[int | None, typer.Option(help="Number of Dask worker processes. 0: work in this process.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a Dask scheduler that is already running.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Jsonl = Annotated[bool | None, typer.Option("--jsonl", help="Write blend.jsonl beside blend.parquet.")]
FinishedRun = Annotated[str, typer.Argument(help="The folder of a finished run.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what this command wrote there from other input. Your own files are never replaced."
    ),
]
AllowFailures = Annotated[
    str | None,
    typer.Option(
        help="The job stops if a step fails for this share of a modality. Default: 95%. 100%: it never stops for that."
    ),
]
RetryFailed = Annotated[
    bool | None,
    typer.Option("--retry-failed", help="Try all failed pairs again, not only those whose failure may be temporary."),
]
Select = Annotated[
    str | None,
    typer.Option("--select", help="How the blend is chosen: top, clusters, soft-cap, balanced, diverse or coverage."),
]
MixName = Annotated[str | None, typer.Option(help=f"Quotas by type of pair, from a published mix: {', '.join(MIXES)}.")]


@dataclass(frozen=True)
class Objective:
    """What is asked for."""

    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help="What is asked for, in plain words. Repeatable.")
    ] = None
    avoid: Annotated[
        list[str] | None, typer.Option("--avoid", help="What should not be picked, in plain words. Repeatable.")
    ] = None
    like: Annotated[
        list[str] | None,
        typer.Option(
            "--like",
            help="Examples of what is asked for: a pool of pairs, media files, a folder of them, or texts (.txt). "
            "PATH=2 gives a weight. Repeatable.",
        ),
    ] = None
    unlike: Annotated[
        list[str] | None, typer.Option("--unlike", help="Examples of what should not be picked. Repeatable.")
    ] = None

    def queries(self) -> dict[str, Any]:
        """Return it as settings."""
        return _given(queries=objectives(self.query, self.like, self.unlike, self.avoid))


@dataclass(frozen=True)
class PoolOptions:
    """How the pools of the command line are read."""

    field: Annotated[
        list[str] | None, typer.Option("--field", help="Field map, for example annotation=caption. Repeatable.")
    ] = None
    modality: Annotated[str | None, typer.Option(help="Modality of the rows that do not name one.")] = None
    root: Annotated[
        str | None,
        typer.Option(help="Folder that media references are relative to. Default: the folder of the manifest."),
    ] = None
    trust_root: Annotated[
        list[str] | None, typer.Option(help="Another folder that references and links may lead to. Repeatable.")
    ] = None
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help=f"Format of the pools: {', '.join(POOL_FORMATS)}. Default: recognised from the records."
        ),
    ] = None
    turns: Annotated[
        str | None, typer.Option(help="Which turns of a conversation make a pair: all, first or last.")
    ] = None
    system: Annotated[
        str | None,
        typer.Option(help="What to do with the system prompt of a conversation: keep (as part of the data) or drop."),
    ] = None
    captions: Annotated[
        str | None,
        typer.Option(help="What a list of captions becomes: each (a pair for each), join (one pair) or first."),
    ] = None

    def pools(self, paths: list[str] | None) -> dict[str, Any]:
        """Return the pools of the command line as settings, in place of those that a configuration names."""
        mapping = {}
        for pair in self.field or []:
            ours, separator, theirs = pair.partition("=")
            if not separator or not ours or not theirs:
                raise UserError(f"--field {pair!r}: write it as OUR_NAME=YOUR_NAME, for example annotation=caption")
            mapping[ours] = theirs
        about = _given(
            fields=mapping or None,
            modality=self.modality,
            root=self.root,
            trusted_roots=self.trust_root,
            format=self.form,
            turns=self.turns,
            system=self.system,
            captions=self.captions,
        )
        if about and not paths:
            raise UserError(
                "--field, --modality, --root, --trust-root, --format, --turns, --system and --captions apply only to "
                "pools on the command line; for the pools of a configuration, write them in the configuration"
            )
        return {"pools": [{"path": path, **about} for path in paths]} if paths else {}


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; where it asks for a group of options (a dataclass), each of them is an option of its own."""
    parameters, groups = dict[str, inspect.Parameter](), dict[str, Any]()
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind
            parameters.update(inspect.signature(kind, eval_str=True).parameters)
        else:
            parameters[name] = parameter

    @wraps(function)
    def command(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        function(**values)

    named = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters.values()]
    command.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in named}
    return app.command()(command)


@_command
def curate(
    *,
    pool: Pools = None,
    objective: Objective,
    budget: BudgetText = None,
    config: ConfigFile = None,
    preset: PresetName = None,
    output: Output = None,
    options: PoolOptions,
    mix: MixName = None,
    select: Select = None,
    sns: Annotated[
        str | None,
        typer.Option(help="Trim pairs: off, forward (the data), backward (the annotation) or bidirectional."),
    ] = None,
    on_bad_row: Annotated[
        str | None, typer.Option(help="What happens with a bad row: fail (the job stops) or quarantine.")
    ] = None,
    workers: Workers = None,
    scheduler_address: Scheduler = None,
    gpus: Annotated[
        bool | None, typer.Option("--gpus", help="Start one worker for each GPU, with cuDF partitions.")
    ] = None,
    device: DeviceName = None,
    shards: Annotated[int | None, typer.Option(help="Number of shards.")] = None,
    seed: Seed = None,
    jsonl: Jsonl = None,
    import_from: ImportFrom = None,
    allow_failures: AllowFailures = None,
    retry_failed: RetryFailed = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show what would be done.")] = False,
) -> None:
    """Rank a pool of pairs against an objective and keep the best."""
    values = _configured(config, preset, import_from)
    values |= options.pools(pool)
    values |= _given(budget=budget, output=output, on_bad_row=on_bad_row, shards=shards, seed=seed, jsonl=jsonl)
    values |= objective.queries()
    values |= _given(allow_failures=allow_failures, retry_failed=retry_failed)
    _merge(values, "engine", workers=workers, scheduler_address=scheduler_address, gpus=gpus, device=device)
    _merge(values, "sns", mode=sns)
    _merge(values, "ranking", mix=mix, select=select)
    settings = parse(Config, values)
    from nemo_mm_rank.run import curation  # takes seconds, which a mistake above should not cost

    if dry_run:
        curation.dry_run(settings, SafeConsole(), overwrite)
    else:
        with _going_on(settings.output):
            curation.curate(settings, SafeConsole(), overwrite=overwrite).print(SafeConsole())


@_command
def rank(
    run: FinishedRun,
    *,
    objective: Objective,
    budget: BudgetText = None,
    quality: Annotated[
        str | None,
        typer.Option(help="The folder of a finished ecodatum job, whose quality becomes one more condition."),
    ] = None,
    mix: MixName = None,
    select: Select = None,
    jsonl: Jsonl = None,
    import_from: ImportFrom = None,
    trust_run: TrustRun = False,
) -> None:
    """Rank a finished run again, for another objective or with other conditions, without embedding again."""
    from nemo_mm_rank.run import curation
    from nemo_mm_rank.run.ecodatum import as_condition
    from nemo_mm_rank.run.folder import RunFolder
    from nemo_mm_rank.run.trust import Trust

    ranking = _given(mix=mix, select=select)
    if quality:
        ranking |= as_condition(RunFolder.at(run).load_config().ranking, quality)
    changes = _given(budget=budget, ranking=ranking or None, jsonl=jsonl)
    changes |= objective.queries()
    trust = Trust(tuple(import_from or ()), trust_run)
    with _going_on(run):
        curation.rank(run, changes, SafeConsole(), trust=trust).print(SafeConsole())


@_command
def ecodatum(
    *,
    pool: Pools = None,
    run: Annotated[str | None, typer.Option(help="A finished run, whose pool and embeddings are used.")] = None,
    budget: BudgetText = None,
    config: ConfigFile = None,
    output: Output = None,
    options: PoolOptions,
    workers: Workers = None,
    device: DeviceName = None,
    import_from: ImportFrom = None,
    trust_run: TrustRun = False,
    allow_failures: AllowFailures = None,
    retry_failed: RetryFailed = None,
    overwrite: Overwrite = False,
) -> None:
    """Keep the pairs of the best quality, whatever their topic, by EcoDatum's operators, votes and label model."""
    values = _configured(config, None, import_from)
    values |= options.pools(pool)
    values |= _given(run=run, budget=budget, output=output, trust_run=trust_run or None)
    values |= _given(allow_failures=allow_failures, retry_failed=retry_failed)
    _merge(values, "engine", workers=workers, device=device)
    from nemo_mm_rank.run import ecodatum as job

    settings = parse(job.EcoDatumConfig, values)
    with _going_on(settings.output):
        job.curate(settings, SafeConsole(), overwrite=overwrite).print(SafeConsole())


@_command
def benchmark(
    *,
    pool: Pools = None,
    objective: Objective,
    budget: BudgetText = None,
    config: ConfigFile = None,
    preset: PresetName = None,
    output: Output = None,
    options: PoolOptions,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.")] = None,
    workers: Workers = None,
    scheduler_address: Scheduler = None,
    device: DeviceName = None,
    import_from: ImportFrom = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare strategies at one budget: against planted noise, by training on the blends, and by cost.

    configs/benchmark.yaml shows the settings.
    """
    values = _configured(config, preset, import_from)
    values |= options.pools(pool)
    if pool and values.pop("demo", None) is not None:
        values.pop("relevant", None)  # a column of the built-in pool's
    values |= _given(budget=budget, output=output, seeds=seeds) | objective.queries()
    _merge(values, "engine", workers=workers, scheduler_address=scheduler_address, device=device)
    from nemo_mm_rank.benchmark.job import benchmark as compare
    from nemo_mm_rank.benchmark.settings import BenchmarkConfig

    console, settings = SafeConsole(), parse(BenchmarkConfig, values)
    with _going_on(settings.output):
        compare(settings, console, overwrite=overwrite).print(console)


@app.command()
def mix(
    run: FinishedRun,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", help="A pool of pairs that the mix should serve. No model learns from it. Repeatable."
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="What is mixed: modality, pool, type or cluster.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Number of clusters, with --by cluster.")] = None,
    budget: BudgetText = None,
    config: ConfigFile = None,
    output: Output = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds of trial mixes.")] = None,
    draws: Annotated[int | None, typer.Option(help="Number of mixes that are tried in a round.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of trainings of each mix that is compared at the end.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps of each small training.")] = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Search for the mix of modalities, pools, types or clusters that serves a target best, and write it as quotas.

    Small models are trained on trial mixes and measured on the target.
    """
    values = _configured(config, None, None)
    values |= _given(run=run, target=target, by=by, clusters=clusters, budget=budget, output=output, seeds=seeds)
    _merge(values, "search", rounds=rounds, draws=draws)
    _merge(values, "downstream", steps=steps)
    _merge(values, "engine", workers=workers)
    from nemo_mm_rank.benchmark.mixing import MixConfig, find_mix

    settings = parse(MixConfig, values)
    with _going_on(settings.output):
        find_mix(settings, SafeConsole(), overwrite=overwrite).print(SafeConsole())


@app.command()
def explain(
    run: FinishedRun,
    pair_id: Annotated[str, typer.Argument(help="The id of the pair to explain, or of the record that it is of.")],
) -> None:
    """Say why a pair was or was not chosen."""
    from nemo_mm_rank.run import curation

    SafeConsole().print(curation.explain(run, pair_id), highlight=False, markup=False, soft_wrap=True)


@app.command()
def export(
    run: FinishedRun,
    output: Annotated[str, typer.Option("--output", "-o", help="The folder for the files, which is created.")],
    form: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="own, llava, sharegpt, swift, messages, hf, energon, webdataset, nemo-manifest or uids. Repeatable: "
            "each format then has its own folder. Default: own if the pool is made of records, otherwise webdataset.",
        ),
    ] = None,
    media: Annotated[
        str, typer.Option(help="Media of records: copy them, link to them, or keep them where they are.")
    ] = ("copy"),
    trimmed: Annotated[bool, typer.Option("--trimmed", help="Write only what was kept of each pair.")] = False,
    max_samples: Annotated[int, typer.Option(min=1, help="Most pairs in one tar.")] = 10_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes in one tar.")] = 2**30,
    overwrite: Overwrite = False,
) -> None:
    """Write a run's blend, media included, in formats that trainers and viewers read."""
    from nemo_mm_rank.run.export import export as write

    for path in write(run, output, form or (), media, trimmed, max_samples, max_bytes, overwrite):
        typer.echo(printable(path))


@app.command()
def adapt(
    run: Annotated[
        str | None, typer.Argument(help="The folder of a finished run, whose blend the model learns from.")
    ] = None,
    config: ConfigFile = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="The folder for the adapter.")] = None,
    device: DeviceName = None,
    seed: Seed = None,
    import_from: ImportFrom = None,
    overwrite: Overwrite = False,
) -> None:
    """Adapt an end-to-end model to the blend of a run with LoRA, in stages.

    configs/unite_adapt.yaml shows the settings.
    """
    from nemo_mm_rank.adapt.training import AdaptSettings

    overrides = _given(run=run, output=output, device=device, seed=seed)
    settings = parse(AdaptSettings, _configured(config, None, import_from) | overrides)
    from nemo_mm_rank.adapt.job import adapt as adapt_model

    adapt_model(settings, SafeConsole(), overwrite).print(SafeConsole())


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="The folder of a finished run or of a benchmark.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The file for the report. Default: RUN/report.html.")
    ] = None,
    import_from: ImportFrom = None,
    trust_run: TrustRun = False,
) -> None:
    """Write a report as one self-contained page: what the run did, its blend, and what was left out and why."""
    from nemo_mm_rank.benchmark import page
    from nemo_mm_rank.report import write_report
    from nemo_mm_rank.run.folder import RunFolder
    from nemo_mm_rank.run.trust import Trust

    if import_from or trust_run:  # by modalities of the run's own their data is shown
        Trust(tuple(import_from or ()), trust_run).admit({}, RunFolder.at(run))
    write = page.write_benchmark_report if (RunFolder.at(run).path / page.RESULTS).exists() else write_report
    typer.echo(printable(write(run, output)))


@_command
def validate(
    pool: Annotated[
        list[str],
        typer.Argument(help="The pool: manifests (JSON, CSV, Parquet or WebDataset) as files, folders, globs or URLs."),
    ],
    options: PoolOptions,
    config: ConfigFile = None,
    import_from: ImportFrom = None,
) -> None:
    """List every bad row of a pool.

    The exit status is 1 if there is a bad row or a manifest that cannot be read.
    """
    from nemo_mm_rank.io.pool import validate as check

    values = _configured(config, None, import_from)
    parse(Importing, {key: values[key] for key in Importing.model_fields if key in values}).register()
    sources = [parse(PoolSource, source) for source in options.pools(pool)["pools"]]
    report = check(sources)
    console = SafeConsole()
    for line in report.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


@_command
def sns(
    *,
    pool: Pools = None,
    preview: Annotated[int, typer.Option("--preview", min=1, help="Number of pairs to try.")] = 20,
    config: ConfigFile = None,
    preset: PresetName = None,
    options: PoolOptions,
    mode: Annotated[
        str | None,
        typer.Option("--sns", help="forward, backward or bidirectional. Default: the mode of the configuration."),
    ] = None,
    on_bad_row: Annotated[
        str | None, typer.Option(help="What happens with a bad row: fail (the job stops) or quarantine.")
    ] = None,
    device: DeviceName = None,
    seed: Seed = None,
    import_from: ImportFrom = None,
) -> None:
    """Trim a few pairs of a pool as curate --sns would, and show what would be kept and cut, and why."""
    values = _configured(config, preset, import_from)
    values |= options.pools(pool)
    values |= _given(on_bad_row=on_bad_row, seed=seed)
    _merge(values, "engine", device=device)
    _merge(values, "sns", mode=mode)
    settings = parse(Config, {"queries": "unused", **values})  # nothing is ranked
    from nemo_mm_rank.report.preview import preview as show

    show(settings, preview, SafeConsole())


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="The folder for the demo pool and its run.")] = "nemo-mm-rank-demo",
    real: Annotated[
        bool,
        typer.Option("--real", help="Use the forty real pairs of a clone of the project in place of generated ones."),
    ] = False,
) -> None:
    """Make the built-in demo pool and curate it."""
    import pandas as pd

    from nemo_mm_rank.demo import QUERY, REAL_QUERY, make_demo_pool, real_pool
    from nemo_mm_rank.io.owned import local
    from nemo_mm_rank.run import curation

    place = local(folder)
    pool = real_pool() if real else make_demo_pool(place / "pool")
    query, run = (REAL_QUERY, "real-run") if real else (QUERY, "run")
    values = {"pools": str(pool), "queries": query, "budget": "20%", "output": str(place / run)}
    settings = parse(Config, {**values, "sns": {"mode": "bidirectional"}})
    console = SafeConsole()
    console.print(f"objective: {query}", highlight=False)
    result = curation.curate(settings, console)
    result.print(console)
    if not real:  # of made pairs it is known what they are about
        blend_share, pool_share = result.blend["on_topic"].mean(), pd.read_json(pool, lines=True)["on_topic"].mean()
        console.print(f"on topic    {blend_share:.0%} of the blend, {pool_share:.0%} of the pool", highlight=False)


@app.command()
def presets() -> None:
    """List the built-in configurations and what they need, and recommend one for this machine."""
    from nemo_mm_rank.presets import print_presets

    print_presets(SafeConsole())


@models.command("check")
def check_models(
    config: ConfigFile = None, preset: PresetName = None, device: DeviceName = None, import_from: ImportFrom = None
) -> None:
    """Load every model of a configuration and try it on one sample of each modality.

    The exit status is 1 if a model fails.
    """
    values = _configured(config, preset, import_from)
    # What is to be ranked is no part of the check, and may be missing.
    settings = parse(Config, {"pools": "unused", "queries": "unused", **values})
    from nemo_mm_rank.check import check, print_checks

    settings.register()
    checks = check(settings.models, device or settings.engine.device, settings.media)
    if not print_checks(checks, SafeConsole()):
        raise typer.Exit(1)


def _configured(config: Path | None, preset: str | None, import_from: list[str] | None) -> dict[str, Any]:
    """Return what the file says, over what the preset says, with some more folders to import from."""
    values = read_yaml(config) if config else {}
    if import_from:
        values["import_from"] = [*values.get("import_from", []), *import_from]
    return overlay(read(preset), values) if preset else values


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def _merge(values: dict[str, Any], section: str, **options: Any) -> None:
    given, there = _given(**options), values.get(section, {})
    if given and isinstance(there, dict):  # anything else is refused with the rest of the configuration
        values[section] = {**there, **given}


_INTERRUPTED = 130
"""The status that typer gives a command that was stopped from the keyboard."""


class _StoppedError(UserError):
    """A job was stopped from the keyboard."""


@contextmanager
def _going_on(folder: str | Path) -> Iterator[None]:
    """Say of a job that is stopped from the keyboard what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise _StoppedError(f"what is finished is kept in {folder}; start the same command again") from None


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error and exit status 2."""
    # The current folder may be somebody else's pool: nothing is imported from it, here or in what is started from here.
    sys.path[:] = [folder for folder in sys.path if folder]
    os.environ["PYTHONSAFEPATH"] = "1"
    guard_messages()
    errors = SafeConsole(stderr=True, soft_wrap=True)
    SafeConsole()  # sees that standard output, too, can take every letter
    stopped = "start the same command again"
    try:
        status = app(standalone_mode=False)
    except _StoppedError as error:
        status, stopped = _INTERRUPTED, str(error)
    except UserError as error:
        errors.print(f"error: {error}", style="red")
        status = 1 if isinstance(error, FailedError) else 2
    except typer.Abort:
        status = 1
    except Exception as error:
        if (said := getattr(error, "format_message", None)) is None:  # none of typer's own: a fault of ours
            errors.print(traceback.format_exc().rstrip())
            status = 1
        else:
            if message := said():  # none where it has printed its help
                errors.print(f"error: {message}", style="red")
            status = getattr(error, "exit_code", 2)
    if status == _INTERRUPTED:
        errors.print(f"stopped; {stopped} to continue from here")
    sys.exit(status)


if __name__ == "__main__":
    main()
