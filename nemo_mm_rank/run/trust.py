"""What a run's folder may have executed: it may come from somebody else, and it says which classes are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nemo_mm_rank.config import ModelSpec, read_yaml
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.imports import import_from, lies_in, take_up
from nemo_mm_rank.io import mirror
from nemo_mm_rank.modality import register
from nemo_mm_rank.models.loader import SHORT_NAMES
from nemo_mm_rank.run.folder import RunFolder

CODE = ("trust_remote_code", "allow_pickle")
"""Arguments of our own classes that let files run code."""


@dataclass(frozen=True)
class Trust:
    """Which code a run's folder may have executed, besides this package's own classes.

    Attributes:
        import_from: folders whose classes it may name.
        run: whether all that it names is trusted, and the folders that its configuration imports from.
    """

    import_from: tuple[str, ...] = ()
    run: bool = False

    @classmethod
    def of(cls, import_from: str | Path | Sequence[str | Path], run: bool) -> Trust:
        """Return what these arguments of a public function say."""
        folders = [import_from] if isinstance(import_from, (str, Path)) else import_from
        return cls(tuple(map(str, folders)), run)

    def admit(
        self, models: Mapping[str, ModelSpec], folder: RunFolder, describing: bool = False, kind: str = "model"
    ) -> dict[str, ModelSpec]:
        """Return the models that a run's folder names, once nothing of them is foreign, its modalities registered.

        Nothing is imported before.

        Args:
            models: by name; or conditions.
            folder: of the run.
            describing: describers are going to be asked, too, which may send data and a key to an address.
            kind: what they are.

        Raises:
            UserError: naming the model or modality, and what would run.
        """
        import_from(self.import_from)
        mirror.fetch(folder.config)
        config = read_yaml(folder.config) if folder.config.exists() else {}
        modalities = config.get("modalities", {})
        if self.run:
            take_up(config.get("import_from", ()))  # some may be gone
            register(modalities)
            return dict(models)
        for name, path in modalities.items():
            if not self._knows(path):
                self._refuse(folder, f"modality {name!r} of this run is the class {path!r}, none of this package's")
        for name, spec in models.items():
            for foreign in self._foreign(spec, describing):
                self._refuse(folder, f"{kind} {name!r} of this run {foreign}")
        register(modalities)
        return dict(models)

    def _refuse(self, folder: RunFolder, found: str) -> NoReturn:
        raise UserError(
            f"{folder.path}: {found}, and the folder of a run may come from anybody: if you trust this one, say so "
            "with --trust-run (trust_run in Python), or name the folder of the class with --import-from"
        )

    def _foreign(self, spec: ModelSpec, describing: bool) -> Iterator[str]:
        arguments = spec.arguments
        if not self._knows(spec.class_):
            yield f"is the class {spec.class_!r}, which is not this package's"
        if (predictor := arguments.get("predictor")) is not None and not self._knows(predictor):
            yield f"runs the class {predictor!r}, which is not this package's"
        for argument in CODE:
            if _given(arguments, argument):
                yield f"sets {argument}"
        if describing and arguments.get("base_url") is not None:
            yield f"sends data, and perhaps a key of yours, to {arguments['base_url']}"

    def _knows(self, name: Any) -> bool:
        if not isinstance(name, str):
            return False
        path = SHORT_NAMES.get(name, name)
        return path in SHORT_NAMES.values() or lies_in(path.partition(":")[0], self.import_from)


NOTHING = Trust()
"""This package's own classes, and nothing else."""


def _given(arguments: Any, name: str) -> bool:
    """Whether an argument is set, at whatever depth."""
    if isinstance(arguments, Mapping):
        return any((key == name and value) or _given(value, name) for key, value in arguments.items())
    return isinstance(arguments, (list, tuple)) and any(_given(value, name) for value in arguments)
