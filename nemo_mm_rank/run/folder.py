"""What lies where in a run's folder, and that only one process at a time works in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from nemo_mm_rank.config import Config, parse, read_yaml
from nemo_mm_rank.errors import DamagedError, UserError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import OPEN, SEAL, is_sound, sealed, write_bytes
from nemo_mm_rank.io.owned import Claim, clear, local, locked, recognised, refuse_links, take


@dataclass(frozen=True)
class Place:
    """A path below a run's folder."""

    below: str

    def __get__(self, folder: RunFolder, owner: type[RunFolder] | None = None) -> Path:
        return folder.path / self.below


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run's folder.

    Attributes:
        path: the folder itself.
    """

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """Return the folder by its absolute path: workers may stand elsewhere. Of a URL, that of its mirror.

        Raises:
            UserError: no name, or a URL of what is no object store.
            StorageError: the store cannot be reached.
        """
        return cls(local(path))

    def relative(self, path: str | Path) -> str:
        """Return a path below the folder as it stays true where the folder is moved."""
        return str(Path(path).relative_to(self.path))

    config = Place("config.yaml")
    """The configuration that the run was started with."""
    pool = Place("pool")
    """The pool in canonical columns, shard by shard."""
    bad_rows = Place("pool/bad_rows.parquet")
    """Rows of the pool that never became pairs."""
    fitted = Place("fitted")
    """What was fitted on this pool (`run.fits.Fits`)."""
    steps = Place("steps")
    """What the steps added, one folder for each step in each configuration."""
    ranking = Place("ranking")
    """Scores of the last ranking."""
    state = Place("state.json")
    """Which shards hold the embedded pairs, so that they can be ranked again."""
    blend = Place("blend.parquet")
    """The chosen pairs, best first."""
    lines = Place("blend.jsonl")
    """The same as JSONL, where that is asked for."""
    quarantine = Place("quarantine.parquet")
    """The pairs that could not be ranked, with the reason."""
    manifest = Place("manifest.json")
    """Where the blend comes from: configuration, models, digests, counts, versions."""
    timings = Place("timings.json")
    """What every step took (kept apart: it differs from run to run)."""

    def stage(self, name: str, identity: str) -> Path:
        """The files of one step in one configuration."""
        return self.steps / f"{name}-{identity[:12]}"

    def stages(self, name: str) -> list[Path]:
        """The folders of one step, of all configurations, that are there."""
        pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}")
        return [path for path in sorted(self.steps.glob(f"{name}-*")) if pattern.fullmatch(path.name)]

    @contextmanager
    def claimed(self, claim: Claim) -> Iterator[None]:
        """Hold the folder for this process, as one that carries our mark; what a killed one had begun is cleared away.

        Raises:
            UserError: it is not ours to write (see `Claim.check`), or another process works in it.
            StorageError: it cannot be made or written to.
        """
        with claim.held(self.path):
            self._refuse_links()
            yield

    @contextmanager
    def reopened(self) -> Iterator[None]:
        """Hold the folder of a run that is there.

        Raises:
            UserError: it does not carry the mark of a run, or another process works in it.
            StorageError: it cannot be written to.
        """
        recognised(self.path, "run")
        with locked(self.path):
            self._refuse_links()
            clear(self.path)
            yield

    def _refuse_links(self) -> None:
        refuse_links(self.path, [folder.name for folder in (self.pool, self.fitted, self.steps, self.ranking)])

    def begin(self, config: Config) -> None:
        """Keep the configuration; what an earlier run embedded may be ranked again only once this one has come as far.

        The earlier blend stays, with the manifest that vouches for it, until there is another.

        Raises:
            UserError: somebody else's file has the name of one that this run is to write.
        """
        if config.jsonl:
            take(self.path, self.lines.name)
        mirror.unlink(self.state)
        values = config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"retry_failed"})
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_bytes(self.config, sealed(f'{text}# "{SEAL}": "{OPEN}"\n'.encode()))

    def load_config(self) -> Config:
        """Read the run's configuration back.

        Raises:
            UserError: this is not a run's folder, or its configuration is damaged.
        """
        if not self.config.exists():
            raise UserError(
                f"{self.path} is not a run: it has no {self.config.name}; name the folder that curate wrote"
            )
        if not is_sound(self.config):
            raise DamagedError(self.config)
        return parse(Config, read_yaml(self.config))
