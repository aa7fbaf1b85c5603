"""An expert: models put together so that data of several modalities and text can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemo_mm_rank.config import ExpertSpec, ModelSpec
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Describer, Encoder, taken_together
from nemo_mm_rank.models.cached import CachedDescriber, CachedEncoder
from nemo_mm_rank.models.composed import DescribedEncoder
from nemo_mm_rank.schema import Modality, data_column, modalities_of

Models = Mapping[str, ModelSpec]


def load_encoder(name: str, models: Models, device: str = "cpu") -> Encoder:
    """Return the encoder that the configuration calls ``name``: loaded once per process, each item embedded once."""
    spec = models[name]
    encoder: Encoder = loader.load(name, spec.class_, spec.arguments, device, wrap=_cached_encoder)
    return encoder


def load_describer(name: str, models: Models, device: str = "cpu") -> Describer:
    """Return the describer that the configuration calls ``name``."""
    spec = models[name]
    describer: Describer = loader.load(name, spec.class_, spec.arguments, device, wrap=_cached_describer)
    return describer


def _cached_encoder(name: str, model: object) -> Encoder:
    return CachedEncoder(loader.as_encoder(name, model))


def _cached_describer(name: str, model: object) -> Describer:
    return CachedDescriber(loader.as_describer(name, model))


def text_models(experts: Iterable[ExpertSpec], models: Models, anchor: str) -> list[str]:
    """Return the models whose spaces hold annotations: the anchor, and every expert's that takes text."""
    used = dict.fromkeys([anchor, *(source.model for expert in experts for source in sources(expert))])
    return [model for model in used if model == anchor or has_text(model, models)]


def has_text(name: str, models: Models) -> bool:
    """Whether the model embeds text, so that queries and annotations can enter its space."""
    spec = models[name]
    return Modality.TEXT in loader.modalities(name, spec.class_, spec.arguments)


@dataclass(frozen=True)
class Source:
    """One column of data embeddings.

    Attributes:
        column: its name.
        expert: the expert it belongs to.
        model: the model whose space it lies in.
        modalities: whose rows it can hold; None where only the loaded model knows.
    """

    column: str
    expert: str
    model: str
    modalities: frozenset[Modality] | None


def sources(expert: ExpertSpec) -> list[Source]:
    """Return the columns that an expert fills; nothing is loaded.

    A fusion expert has one for each of its models, because their spaces have nothing in common but the pairs.
    """
    if expert.kind == "fusion":
        by_model: dict[str, list[Modality]] = {}
        for modality, model in expert.encoders.items():
            by_model.setdefault(model, []).append(modality)
        return [
            Source(data_column(expert.name, model), expert.name, model, frozenset(modalities))
            for model, modalities in by_model.items()
        ]
    assert expert.encoder is not None  # noqa: S101 (ExpertSpec refuses anything else)
    described = frozenset({Modality.TEXT, Modality.CODE, *expert.describers})
    modalities = described if expert.kind == "text-based" else None
    return [Source(data_column(expert.name), expert.name, expert.encoder, modalities)]


class Expert:
    """An expert with its models loaded.

    Args:
        spec: which models, and how they are put together.
        models: the configuration's models by name.
        device: where they run.

    Raises:
        ConfigError: where a model does not take a modality that the expert gives it.
    """

    def __init__(self, spec: ExpertSpec, models: Models, device: str = "cpu") -> None:
        self.name = spec.name
        self._in_columns = spec.kind == "fusion"
        self._encoders: dict[Modality, tuple[str, Encoder]] = {}
        text_models = set()
        for source in sources(spec):
            encoder = load_encoder(source.model, models, device)
            if spec.kind == "text-based":
                describers: dict[str, Describer] = {}
                for modality, name in spec.describers.items():
                    describers[modality] = load_describer(name, models, device)
                    _check(spec.name, name, describers[modality].modalities, modality)
                if describers:
                    encoder = DescribedEncoder(describers, encoder)
            for modality in source.modalities or (Modality(name) for name in encoder.modalities):
                _check(spec.name, source.model, encoder.modalities, modality)
                self._encoders[modality] = (source.column, encoder)
            if Modality.TEXT in encoder.modalities:
                text_models.add(source.model)
        names = {source.model for source in sources(spec)}
        shared = next(iter(names)) if len(names) == 1 and names == text_models else None
        self.text_encoder: Encoder | None = load_encoder(shared, models, device) if shared else None

    def encoder(self, modality: str) -> Encoder | None:
        """Return the encoder for data of ``modality``, or None where the expert has none."""
        found = self._encoders.get(Modality(modality))
        return found[1] if found else None

    def taking_together(self, modality: str) -> tuple[str, Encoder] | None:
        """Return column and encoder that take data of several parts as one, where the expert has such an encoder."""
        found = [self._encoders.get(kind) for kind in modalities_of(modality)]
        first = found[0]
        same = first is not None and all(one == first for one in found)
        return first if first is not None and same and modality in taken_together(first[1]) else None

    def taking_parts(self, modality: str) -> dict[str, dict[int, Encoder]]:
        """Return the columns that data of several parts goes to, with the encoder of each part (by its number) there.

        A fusion expert has a column for each of its models, and in each the parts that this one takes. What another
        expert does not take in all of its parts it does not take.
        """
        columns: dict[str, dict[int, Encoder]] = {}
        kinds = modalities_of(modality)
        for number, kind in enumerate(kinds):
            if found := self._encoders.get(kind):
                columns.setdefault(found[0], {})[number] = found[1]
        whole = self._in_columns or all(len(parts) == len(kinds) for parts in columns.values())
        return columns if whole else {}

    def column(self, modality: str) -> str | None:
        """Return the column that holds the embeddings of data of ``modality``."""
        found = self._encoders.get(Modality(modality))
        return found[0] if found else None


def _check(expert: str, model: str, takes: frozenset[str], modality: str) -> None:
    if modality not in takes:
        raise ConfigError(f"expert {expert!r}: model {model!r} takes {', '.join(sorted(takes))}, not {str(modality)!r}")


def build(spec: ExpertSpec, models: Models, device: str = "cpu") -> Expert:
    """Load an expert's models and put them together."""
    return Expert(spec, models, device)
