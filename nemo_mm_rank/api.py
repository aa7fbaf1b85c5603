"""The main job from Python, in a line or three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_mm_rank.config import Config, Wanted, objectives, parse, read_yaml
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.report import write_report
from nemo_mm_rank.report.notebook import ReportPath, gallery
from nemo_mm_rank.run import curation
from nemo_mm_rank.run.trust import Trust
from nemo_mm_rank.schema import ANNOTATION, MODALITY, PAIR_ID

_SHOWN = ("rank", "score", MODALITY, PAIR_ID, ANNOTATION, "reason")
"""Columns of a blend in a notebook."""


class Result(curation.Result):
    """A finished run. A notebook shows the first pairs of its blend, with their media.

    Attributes:
        folder: the run's folder, where everything lies.
        manifest: configuration, models, digests, counts, metrics, versions.
    """

    def report(self, output: str | Path | None = None) -> ReportPath:
        """Write the report of the run, one self-contained page, and return its path; a notebook shows the page inline.

        Args:
            output: the file; default: ``report.html`` in the run's folder.

        Raises:
            UserError: a library of the extra ``report`` is missing, or something that is no report of ours is in the
                place of the file.
            StorageError: the file cannot be written.
        """
        return ReportPath(write_report(self.folder, output))

    def _repr_html_(self) -> str:
        table: Any = self.blend[[*_SHOWN]]
        return gallery(self.folder) + str(table._repr_html_())


def curate(
    pool: str | Path | Sequence[str | Path] | None = None,
    query: Wanted | Sequence[Wanted] | None = None,
    budget: int | str | None = None,
    *,
    like: str | Path | Sequence[str | Path] | None = None,
    unlike: str | Path | Sequence[str | Path] | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    output: str | Path | None = None,
    import_from: str | Path | Sequence[str | Path] | None = None,
    client: Any = None,
    engine: Engine | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Result:
    """Rank a pool of pairs against an objective and keep the best.

    >>> import tempfile
    >>> from nemo_mm_rank.demo import make_demo_pool
    >>> place = tempfile.TemporaryDirectory()
    >>> pool = make_demo_pool(Path(place.name, "pool"), pairs_per_modality=6)
    >>> result = curate(pool, query="a red circle", budget=3, output=Path(place.name, "run"), progress=False)
    >>> result.blend["rank"].tolist(), sorted(result.quarantine["pair_id"])
    ([1, 2, 3], ['bad-corrupt', 'bad-empty', 'bad-missing', 'text-000'])
    >>> len(rank(result.folder, "a blue square", budget=2).blend)
    2

    Args:
        pool: one or several manifests.
        query: the objective in plain words; several are averaged.
        budget: a number of pairs, or a share like ``"20%"``.
        like: examples of what is wanted, beside a query or instead: pools of pairs, media files or folders of them,
            texts (``.txt``). ``"good.jsonl=2"`` has a weight, ``query={"like": ..., "norm": "inf"}`` a norm and a side.
        unlike: examples of what is not.
        config: everything else: a `Config`, a mapping, or the path of a YAML file; the arguments above go before it.
        output: the run's folder: a new or empty one, or one with a run of the same pools, which is taken up.
        import_from: folders with model classes of your own; what this process can import already needs none.
        client: a ``distributed.Client`` to work on; default: what ``config.engine`` says.
        engine: an `engine.Engine` of your own to work on, instead of a client; it is left open.
        progress: whether to show it.
        overwrite: replace a run of other pools in that folder; what no run has made is never replaced.

    Raises:
        UserError: anything that you can mend, in one line.
    """
    queries = objectives(query, like, unlike)
    options = {"pools": pool, "queries": queries, "budget": budget, "output": output, "import_from": import_from}
    chosen = settings(config, options)
    console = SafeConsole() if progress else None
    found = curation.curate(chosen, console, _engine(client, engine), overwrite)
    return Result(found.folder, found.manifest)


def rank(
    run: str | Path,
    query: Wanted | Sequence[Wanted] | None = None,
    budget: int | str | None = None,
    *,
    like: str | Path | Sequence[str | Path] | None = None,
    unlike: str | Path | Sequence[str | Path] | None = None,
    ranking: Mapping[str, Any] | None = None,
    import_from: str | Path | Sequence[str | Path] = (),
    trust_run: bool = False,
    client: Any = None,
    engine: Engine | None = None,
) -> Result:
    """Rank a finished run against another objective; no pair is embedded again.

    Args:
        run: the folder of a finished run.
        query: the new objective; default: the run's own.
        budget: the new budget; default: the run's own.
        like: examples of what is wanted, as for `curate`; they alone are embedded.
        unlike: examples of what is not.
        ranking: settings of `config.RankingSettings` to change.
        import_from: folders whose classes the run may name as its models.
        trust_run: load whatever classes the run names; without it, those of this package and of ``import_from``.
        client: a ``distributed.Client`` to work on; default: what the run's ``engine`` says.
        engine: an `engine.Engine` of your own to work on, instead of a client; it is left open.

    Raises:
        UserError: the folder is no finished run, or names code that is not trusted; or a setting is impossible.
    """
    changes = {"queries": objectives(query, like, unlike), "budget": budget, "ranking": ranking}
    found = curation.rank(
        run,
        {key: value for key, value in changes.items() if value is not None},
        None,
        _engine(client, engine),
        Trust.of(import_from, trust_run),
    )
    return Result(found.folder, found.manifest)


def settings(config: Config | Mapping[str, Any] | str | Path | None, given: Mapping[str, Any]) -> Config:
    """Return a checked configuration: what ``config`` says, overruled by what is ``given`` and not None."""
    if isinstance(config, Config):
        values = config.model_dump(by_alias=True, exclude_defaults=True)
    elif isinstance(config, (str, Path)):
        values = read_yaml(config)
    else:
        values = dict(config or {})
    values.update({key: value for key, value in given.items() if value is not None})
    if "output" in values:
        values["output"] = str(values["output"])
    checked = parse(Config, values)
    checked.register()
    return checked


def _engine(client: Any, engine: Engine | None) -> Engine | None:
    """Return what the work is done on; None for what the configuration says.

    Raises:
        ConfigError: a client and an engine, or something that is no engine.
    """
    if engine is not None:
        missing = [name for name in ("backend", "device", "map") if not hasattr(engine, name)]
        if client is not None or missing:
            lacks = f"{type(engine).__name__} cannot be used as engine: it lacks {', '.join(missing)}"
            raise ConfigError(lacks if missing else "give either a client or an engine to work on")
        return engine
    if client is None:
        return None
    from nemo_mm_rank.engine.dask import DaskEngine

    return DaskEngine(client)
