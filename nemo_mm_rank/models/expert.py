"""An expert: models put together so that data of several modalities and text can be compared."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import torch

from nemo_mm_rank.config import ExpertSpec, ModelSpec
from nemo_mm_rank.errors import ConfigError, PairError, TransientError
from nemo_mm_rank.media.segment import Item, Items
from nemo_mm_rank.modality import modalities_of
from nemo_mm_rank.models import base, loader
from nemo_mm_rank.schema import Modality, data_column

Key: TypeAlias = tuple[str, bytes]


class Made(Protocol):
    """What a model made of an item, or why it could not."""

    @property
    def error(self) -> PairError | None:
        """Why it could not."""
        ...


V = TypeVar("V", bound=Made)
M = TypeVar("M", bound=base.Encoder | base.Describer)

QUERY = "query"


def item_key(item: Item | Items, modality: str) -> Key:
    """Return what tells ``item`` from others: its modality, and a digest of the text or the segment's own key.

    Of several parts it is a digest of theirs.
    """
    if isinstance(item, tuple):
        text = " ".join(f"{type(part).__name__} {item_key(part, modality)[1].hex()}" for part in item)
    else:
        text = item if isinstance(item, str) else item.key
    return modality, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Recent(Generic[V]):
    """The values of the ``max_items`` keys used last; not of what may pass.

    Args:
        max_items: the bound; 0 keeps nothing between calls.
    """

    def __init__(self, max_items: int) -> None:
        if max_items < 0:
            raise ValueError(f"max_items must be at least 0, not {max_items}")
        self._max_items = max_items
        self._values: OrderedDict[Key, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, keys: Sequence[Key], make: Callable[[list[int]], list[V]]) -> list[V]:
        """Return one value per key; ``make`` is called at most once, with the first positions of unknown keys."""
        found: dict[Key, V] = {}
        first: dict[Key, int] = {}
        for position, key in enumerate(keys):
            if key in self._values:
                found[key] = self._values[key]
                self._values.move_to_end(key)
            else:
                first.setdefault(key, position)
        if first:
            made = dict(zip(first, make(list(first.values())), strict=True))
            found.update(made)
            self._values.update(
                (key, value) for key, value in made.items() if not isinstance(value.error, TransientError)
            )
            while len(self._values) > self._max_items:
                self._values.popitem(last=False)
        return [found[key] for key in keys]

    def forget_failures(self) -> None:
        """Try again, when next asked for, what has failed."""
        for key in [key for key, one in self._values.items() if one.error is not None]:
            del self._values[key]


class _Embedding(NamedTuple):
    vector: torch.Tensor
    error: PairError | None
    text: str | None


class _Description(NamedTuple):
    text: str | None
    error: PairError | None


# By the model's id, which holds as long as a cache holds the model: what encodes and describes has two of them.
_LOCKS: WeakValueDictionary[int, Lock] = WeakValueDictionary()


class _Cached(Generic[M, V]):
    """What a cache round a model has in common with it. The model, which may not bear threads, has one call at a time.

    Attributes:
        computed: items that the model was given.
    """

    def __init__(self, model: M, max_items: int) -> None:
        self._model = model
        self._recent: Recent[V] = Recent(max_items)
        self._one_at_a_time = _LOCKS.setdefault(id(model), Lock())
        self.computed = 0
        self.name = model.name
        self.revision = model.revision
        self.modalities = model.modalities

    def forget_failures(self) -> None:
        """See `Recent.forget_failures`."""
        self._recent.forget_failures()


class CachedEncoder(_Cached[base.Encoder, _Embedding]):
    """Gives each distinct item to ``encoder`` once; results are the same, to the bit.

    Args:
        encoder: whose vector of an item does not depend on its batch.
        max_items: how many embeddings are kept between calls (each ``4 * dim`` bytes, on the encoder's device).
    """

    def __init__(self, encoder: base.Encoder, max_items: int = 20_000) -> None:
        super().__init__(encoder, max_items)
        self.dim = encoder.dim
        self.together = base.taken_together(encoder)

    def encode(self, items: Sequence[Item], modality: str) -> base.Encoded:
        """Embed ``items``, those that are not known yet in one call."""

        def make(positions: list[int]) -> base.Encoded:
            return self._model.encode([items[position] for position in positions], modality)

        return self._get([item_key(item, modality) for item in items], make)

    def encode_queries(self, texts: Sequence[str]) -> base.Encoded:
        """Embed search queries, those that are not known yet in one call."""

        def make(positions: list[int]) -> base.Encoded:
            return base.encode_queries(self._model, [texts[position] for position in positions])

        return self._get([item_key(text, QUERY) for text in texts], make)

    def _get(self, keys: list[Key], encode: Callable[[list[int]], base.Encoded]) -> base.Encoded:
        def make(positions: list[int]) -> list[_Embedding]:
            self.computed += len(positions)
            with base.answering(self.name):
                encoded = encode(positions)
            encoded = base.usable(encoded, self._model, len(positions))
            texts = encoded.texts or [None] * len(positions)
            # Copies, because a row that is a view would keep its whole batch in memory.
            rows = [row.clone() for row in encoded.vectors.detach()]
            return [_Embedding(row, encoded.errors.get(i), texts[i]) for i, row in enumerate(rows)]

        if not keys:
            return encode([])
        with self._one_at_a_time:
            got = self._recent.get(keys, make)
        texts = [one.text for one in got]
        return base.Encoded(
            torch.stack([one.vector for one in got]),
            {row: one.error for row, one in enumerate(got) if one.error is not None},
            texts if any(text is not None for text in texts) else None,
        )


class CachedDescriber(_Cached[base.Describer, _Description]):
    """Gives each distinct segment to ``describer`` once; results are the same.

    Args:
        describer: whose words for an item do not depend on its batch.
        max_items: how many descriptions are kept between calls.
    """

    def __init__(self, describer: base.Describer, max_items: int = 50_000) -> None:
        super().__init__(describer, max_items)

    def describe(self, items: Sequence[Item], modality: str) -> base.Described:
        """Describe ``items``, those that are not known yet in one call."""

        def make(positions: list[int]) -> list[_Description]:
            self.computed += len(positions)
            with base.answering(self.name):
                described = self._model.describe([items[position] for position in positions], modality)
            described = base.told(described, self.name, len(positions))
            return [_Description(text, described.errors.get(i)) for i, text in enumerate(described.texts)]

        keys = [item_key(item, modality) for item in items]
        with self._one_at_a_time:
            got = self._recent.get(keys, make)
        errors = {row: one.error for row, one in enumerate(got) if one.error is not None}
        return base.Described([None if row in errors else one.text for row, one in enumerate(got)], errors)


class DescribedEncoder:
    """Embeds media by the words that describers find for them; text and code are embedded as they are.

    All modalities share the text encoder's space, so it serves queries and grounding as well.

    Args:
        describers: modality -> the describer that takes it.
        encoder: embeds text (and code, where it lists it).
        name: what the configuration calls it; default: the parts' own names.
    """

    def __init__(
        self, describers: Mapping[str, base.Describer], encoder: base.Encoder, name: str | None = None
    ) -> None:
        self._describers = {str(modality): describer for modality, describer in describers.items()}
        self._encoder = encoder
        for modality, describer in self._describers.items():
            base.support(describer, modality)
        base.support(encoder, Modality.TEXT)
        parts = {describer.name: describer.revision for describer in self._describers.values()}
        parts[encoder.name] = encoder.revision
        self.name = name or "+".join(parts)
        self.revision = " ".join(f"{part}@{revision}" for part, revision in parts.items())
        self.modalities = frozenset(self._describers) | (encoder.modalities & {Modality.TEXT, Modality.CODE})
        self.dim = encoder.dim

    def encode(self, items: Sequence[Item], modality: str) -> base.Encoded:
        """Embed ``items``; for media, ``texts`` holds the descriptions.

        Raises:
            ModelError: a modality that is not listed, or a part that breaks its contract.
        """
        base.support(self, modality)
        if modality not in self._describers:
            return base.usable(self._encoder.encode(items, modality), self._encoder, len(items))
        describer = self._describers[modality]
        described = base.told(describer.describe(items, modality), describer.name, len(items))
        errors: dict[int, PairError] = dict(described.errors)
        rows = [row for row in range(len(items)) if row not in errors]
        texts = [described.texts[row] or "" for row in rows]
        encoded = base.usable(self._encoder.encode(texts, Modality.TEXT), self._encoder, len(texts))
        errors.update({rows[row]: error for row, error in encoded.errors.items()})
        vectors = encoded.vectors
        if len(rows) < len(items):
            vectors = vectors.new_full((len(items), self.dim), float("nan"))
            vectors[rows] = encoded.vectors
        shown = [None if row in described.errors else text for row, text in enumerate(described.texts)]
        return base.Encoded(vectors, errors, shown)

    def encode_queries(self, texts: Sequence[str]) -> base.Encoded:
        """Embed search queries as the text encoder does."""
        return base.usable(base.encode_queries(self._encoder, texts), self._encoder, len(texts))


Models = Mapping[str, ModelSpec]


def load_encoder(name: str, models: Models, device: str = "cpu") -> base.Encoder:
    """Return the encoder that the configuration calls ``name``: loaded once per process, each item embedded once."""
    spec = models[name]
    encoder: base.Encoder = loader.load(name, spec.class_, spec.arguments, device, wrap=_cached_encoder)
    return encoder


def load_describer(name: str, models: Models, device: str = "cpu") -> base.Describer:
    """Return the describer that the configuration calls ``name``."""
    spec = models[name]
    describer: base.Describer = loader.load(name, spec.class_, spec.arguments, device, wrap=_cached_describer)
    return describer


def _cached_encoder(name: str, model: object) -> base.Encoder:
    return CachedEncoder(loader.as_encoder(name, model))


def _cached_describer(name: str, model: object) -> base.Describer:
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
    modalities: frozenset[str] | None


def sources(expert: ExpertSpec) -> list[Source]:
    """Return the columns that an expert fills; nothing is loaded.

    A fusion expert has one for each of its models, because their spaces have nothing in common but the pairs.
    """
    if expert.kind == "fusion":
        by_model: dict[str, list[str]] = {}
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
        self._encoders: dict[str, tuple[str, base.Encoder]] = {}
        text_models = set()
        for source in sources(spec):
            encoder = load_encoder(source.model, models, device)
            if spec.kind == "text-based":
                describers: dict[str, base.Describer] = {}
                for modality, name in spec.describers.items():
                    describers[modality] = load_describer(name, models, device)
                    _check(spec.name, name, describers[modality].modalities, modality)
                if describers:
                    encoder = DescribedEncoder(describers, encoder)
            for modality in source.modalities or map(str, encoder.modalities):
                _check(spec.name, source.model, encoder.modalities, modality)
                self._encoders[modality] = (source.column, encoder)
            if Modality.TEXT in encoder.modalities:
                text_models.add(source.model)
        names = {source.model for source in sources(spec)}
        shared = next(iter(names)) if len(names) == 1 and names == text_models else None
        self.text_encoder: base.Encoder | None = load_encoder(shared, models, device) if shared else None

    def encoder(self, modality: str) -> base.Encoder | None:
        """Return the encoder for data of ``modality``, or None where the expert has none."""
        found = self._encoders.get(modality)
        return found[1] if found else None

    def taking_together(self, modality: str) -> tuple[str, base.Encoder] | None:
        """Return column and encoder that take data of several parts as one, where the expert has such an encoder."""
        found = [self._encoders.get(kind) for kind in modalities_of(modality)]
        first = found[0]
        same = first is not None and all(one == first for one in found)
        return first if first is not None and same and modality in base.taken_together(first[1]) else None

    def taking_parts(self, modality: str) -> dict[str, dict[int, base.Encoder]]:
        """Return the columns that data of several parts goes to, with the encoder of each part (by its number) there.

        A fusion expert has a column for each of its models, and in each the parts that this one takes. What another
        expert does not take in all of its parts it does not take.
        """
        columns: dict[str, dict[int, base.Encoder]] = {}
        kinds = modalities_of(modality)
        for number, kind in enumerate(kinds):
            if found := self._encoders.get(kind):
                columns.setdefault(found[0], {})[number] = found[1]
        whole = self._in_columns or all(len(parts) == len(kinds) for parts in columns.values())
        return columns if whole else {}

    def column(self, modality: str) -> str | None:
        """Return the column that holds the embeddings of data of ``modality``."""
        found = self._encoders.get(modality)
        return found[0] if found else None


def _check(expert: str, model: str, takes: frozenset[str], modality: str) -> None:
    if modality not in takes:
        raise ConfigError(f"expert {expert!r}: model {model!r} takes {', '.join(sorted(takes))}, not {str(modality)!r}")


def build(spec: ExpertSpec, models: Models, device: str = "cpu") -> Expert:
    """Load an expert's models and put them together."""
    return Expert(spec, models, device)
