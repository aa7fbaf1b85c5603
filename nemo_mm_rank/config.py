"""Everything a run can be told, checked before it starts: unknown keys and impossible values are refused."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nemo_mm_rank.console import printable, without_passwords
from nemo_mm_rank.errors import ConfigError, nearest
from nemo_mm_rank.imports import import_from, named, take_up
from nemo_mm_rank.mix import canonical_type, find_mix
from nemo_mm_rank.modality import declare, is_media, known_class, names, register, registered
from nemo_mm_rank.modality import take_up as take_up_modalities
from nemo_mm_rank.schema import CANONICAL, DATA_BYTES, Modality


class Settings(BaseModel):
    """A section of the configuration: frozen, closed to keys that it does not know, and to passwords in URLs."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)

    @model_validator(mode="after")
    def _no_passwords(self) -> Self:
        refuse_passwords(dict(self))
        return self


def refuse_passwords(value: Any) -> None:
    """Refuse URLs with a password, wherever they stand in ``value``: a run's folder would keep them for all to read.

    Raises:
        ValueError: without the URL.
    """
    if isinstance(value, str) and without_passwords(value) != value:
        raise ValueError(
            "a URL here holds a password, which a run would write down; give it to fsspec by the environment "
            "(FSSPEC_FTP_USERNAME and FSSPEC_FTP_PASSWORD, say) or by its configuration file"
        )
    if isinstance(value, dict):
        refuse_passwords([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for one in value:
            refuse_passwords(one)


class _Carrying(BaseModel):
    """Settings that take along, where they are pickled, what a worker finds classes of the user's own by."""

    def __getstate__(self) -> dict[Any, Any]:
        """Add the folders that classes are imported from, and the modalities that are registered."""
        return {**super().__getstate__(), "import_from": named(), "modalities": registered()}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Name those folders and modalities here."""
        state = dict(state)
        take_up(state.pop("import_from"))
        take_up_modalities(state.pop("modalities"))
        super().__setstate__(state)


def _modality(name: Any) -> str:
    if name not in names():
        there = [f"'{known}'" for known in names()]
        raise PydanticCustomError("modality", f"Input should be {', '.join(there[:-1])} or {there[-1]}")
    return str(name)


ModalityName = Annotated[str, AfterValidator(_modality)]
"""The name of one modality: built in, or declared in ``modalities``."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _folders(value: Any) -> Any:
    folders = [str(one) for one in _listed(value)]
    refuse_passwords(folders)
    return [str(Path(one).expanduser().absolute()) for one in folders]


Folders = Annotated[tuple[str, ...], BeforeValidator(_folders)]
"""Folders to import classes from, after all that is installed; those in a file are relative to where it lies."""


class Importing(Settings):
    """Settings that name classes of the user's own."""

    import_from: Folders = Field((), description="folders with classes of yours; '.': where this file lies")
    modalities: dict[str, str] = Field(
        default_factory=dict, description="modalities of yours: name -> import path like 'my_module:PointCloud'"
    )

    @model_validator(mode="before")
    @classmethod
    def _declare(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("modalities"):
            declare(values["modalities"])  # before anything is read that may name one of them
        return values

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name != "modalities" or value}

    def register(self) -> None:
        """Let this process import what these settings name.

        Raises:
            ConfigError: a folder that is none, or a class that is no modality.
        """
        import_from(self.import_from)
        register(self.modalities)


OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML reads a bare ``off`` as false."""

Share = Annotated[float, Field(ge=0, le=1)]

FIELDS = (*CANONICAL, DATA_BYTES, "data_path", "annotation_path")
"""What a pool's field map may name; ``data_path`` and ``annotation_path`` point to text files."""


# fmt: off
PoolFormat = Literal["rows", "llava", "sharegpt", "alpaca", "swift", "messages",
                     "nemo-manifest", "coco", "img2dataset", "captions", "urls"]
# fmt: on
POOL_FORMATS: tuple[str, ...] = get_args(PoolFormat)
"""What the records of a pool may be written in; ``rows`` are pairs by our own names."""


class PoolSource(Settings):
    """One pool: a manifest file, a folder or a glob of them, local or any fsspec URL."""

    path: str = Field(description="a file, a folder, a glob pattern or any fsspec URL")
    fields: dict[str, str] = Field(default_factory=dict, description="ours -> the manifest's own name")
    modality: ModalityName | None = Field(None, description="for pools whose rows do not say")
    format: PoolFormat | None = Field(None, description="what the records are written in; default: as they look")
    turns: Literal["all", "first", "last"] = Field("all", description="of a conversation, that make its two sides")
    system: Literal["keep", "drop"] = Field("drop", description="whether a conversation's system prompt is of the data")
    captions: Literal["each", "join", "first"] = Field(
        "each", description="of a list of captions: each makes a pair, all of them do, or the first does"
    )
    name: str | None = Field(None, description="the `pool` of rows that do not say; default: the manifest's stem")
    rename: dict[str, str] = Field(default_factory=dict, description="your own columns: name -> name to keep it under")
    root: str | None = Field(None, description="what media references are relative to; default: the manifest's folder")
    trusted_roots: list[str] = Field(
        default_factory=list, description="folders besides the root that references and links may lead to"
    )
    download_seconds: float = Field(300, gt=0, description="to wait for one read of a manifest behind a URL, in all")

    @model_validator(mode="after")
    def _known_fields(self) -> PoolSource:
        for ours in self.fields:
            if ours not in FIELDS:
                raise ValueError(f"field map: no field {ours!r}{nearest(ours, FIELDS)}")
        if "\n" in (self.root or "") or any("\n" in root or "://" in root for root in self.trusted_roots):
            raise ValueError("root and trusted_roots: names on one line, and those that are trusted folders on a disk")
        return self


MEDIA_NO_MATTER = {"threads", "decode_seconds", "download_seconds"}
"""Settings of media that say how long the work may take, and change nothing of what comes out."""


class MediaSettings(_Carrying, Settings):
    """How media are opened, and the bounds that protect a run from hostile files."""

    max_pixels: int = Field(100_000_000, gt=0, description="an image with more is refused before it is decoded")
    max_side: int = Field(65_535, gt=0, description="pixels; an image with a longer side is refused, too")
    max_bytes: int = Field(2_000_000_000, gt=0, description="a larger file is refused")
    max_text_chars: int = Field(200_000, gt=0, description="a longer text or code is quarantined")
    max_seconds: float = Field(3600, gt=0, description="only this much of a recording is decoded")
    sample_rate: int = Field(16_000, ge=8_000, le=192_000, description="Hz that audio is decoded to, mono")
    video_frames: int = Field(8, ge=1, le=512, description="frames sampled evenly over the kept part of a video")
    video_side: int = Field(256, ge=16, le=4096, description="longer side in pixels that frames are scaled down to")
    allow_urls: bool = Field(False, description="open references that are fsspec URLs")
    threads: int = Field(2, ge=1, le=64, description="threads that decode ahead of the models")
    decode_seconds: float = Field(60, gt=0, description="of CPU that decoding one file may take")
    download_seconds: float = Field(300, gt=0, description="that fetching one file may take")

    def identity(self) -> dict[str, Any]:
        """Return what a decoded file depends on (for fingerprints)."""
        return self.model_dump(mode="json", exclude=MEDIA_NO_MATTER)


class ModelSpec(_Carrying, BaseModel):
    """A model: a short name or import path as ``class``, and its keyword arguments beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, hide_input_in_errors=True)

    class_: str = Field(alias="class", description="a short name, or an import path; its arguments stand beside it")

    @model_validator(mode="after")
    def _no_passwords(self) -> Self:
        refuse_passwords([self.class_, self.arguments])
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for the class."""
        return dict(self.model_extra or {})


class ConditionSpec(ModelSpec):
    """A condition of your own (`ranking.conditions.Condition`): its import path, its strength, and its arguments."""

    strength: float = Field(1.0, ge=0, description="how much the logarithm of the chance counts")


class ExpertSpec(Settings):
    """One expert, put together from models by name.

    * ``text-based``: ``describers`` turn media into text, ``encoder`` embeds that text (and text and code as is);
    * ``fusion``: ``encoders`` has one encoder per modality;
    * ``end-to-end``: ``encoder`` takes every modality that it lists.

    >>> sorted(ExpertSpec(name="clip", kind="fusion", encoders={"image": "vit", "text": "bert"}).models)
    ['bert', 'vit']
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$", description="of its columns and in reports")
    kind: Literal["text-based", "fusion", "end-to-end"] = Field(
        description="describers and an encoder; an encoder for each modality; or one encoder"
    )
    encoder: str | None = Field(None, description="text-based and end-to-end: the name of its model")
    encoders: dict[ModalityName, str] = Field(default_factory=dict, description="fusion: modality -> name of a model")
    describers: dict[ModalityName, str] = Field(
        default_factory=dict, description="text-based: modality -> name of the model that puts it into words"
    )

    @property
    def models(self) -> frozenset[str]:
        """The names of all models that it is put together from."""
        return frozenset({*self.encoders.values(), *self.describers.values(), *filter(None, [self.encoder])})

    @model_validator(mode="after")
    def _fits_kind(self) -> ExpertSpec:
        wanted = {
            "text-based": ("encoder", "describers"),
            "fusion": ("encoders",),
            "end-to-end": ("encoder",),
        }
        for part in ("encoder", "encoders", "describers"):
            given = bool(getattr(self, part))
            if given and part not in wanted[self.kind]:
                raise ValueError(f"expert {self.name!r}: a {self.kind} expert takes no {part!r}")
            if not given and part in wanted[self.kind] and part != "describers":
                raise ValueError(f"expert {self.name!r}: a {self.kind} expert needs {part!r}")
        return self


class SNSSettings(Settings):
    """Symmetric Nucleus Sub-sampler: which side is trimmed, and how boldly."""

    mode: Annotated[Literal["off", "forward", "backward", "bidirectional"], OFF] = Field(
        "off", description="trim data (forward), annotations (backward), both, or nothing"
    )
    expert: str | None = Field(None, description="whose space judges relevance; default: the first text-based one")
    select: Literal["nucleus", "threshold"] = Field("nucleus", description="how the parts to keep are chosen")
    nucleus: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="softmax mass that the kept parts reach")
    temperature: float = Field(0.05, gt=0, description="of that softmax")
    tau: dict[ModalityName, float] = Field(default_factory=dict, description="threshold mode: by modality")
    tau_forward: float = Field(0.35, ge=-1, le=1, description="threshold mode, data side, other modalities")
    tau_backward: float = Field(0.35, ge=-1, le=1, description="threshold mode, annotation side")
    components: Literal["phrases", "sentences", "whole"] = Field("phrases", description="what looks for segments")
    spacy_model: str | None = Field(None, description="used for phrases where installed; default: rules")
    gate_ratio: float = Field(1.0, ge=0, description="accept iff similarity(candidate) >= ratio * similarity(original)")
    gate_eps: float = Field(1e-6, gt=0, description="least similarity of an original that the gate reckons with")
    grounders: dict[ModalityName, str] = Field(
        default_factory=dict,
        description="models that find what phrases speak of; default: parts that the expert likens",
    )
    max_segments: int = Field(3, ge=1, description="windows kept of a recording")
    min_duration: float = Field(1.0, gt=0, description="seconds, shortest window")
    window: float = Field(2.0, gt=0, description="seconds, length of a candidate window")
    region_grid: int = Field(2, ge=1, le=8, description="candidate regions lie on a grid of this many cells a side")
    padding: float = Field(0.05, ge=0, le=1, description="added round the union of kept boxes, share of its size")

    @model_validator(mode="after")
    def _grounders_find_in_media(self) -> SNSSettings:
        for modality in self.grounders:
            if not is_media(modality):
                raise ValueError(f"grounders: {str(modality)!r} is divided by its sentences, not by a model")
        return self


class ProjectionSettings(Settings):
    """The network that fuses the experts in the anchor's space, and its objective."""

    hidden: int = Field(512, ge=1, description="width of a hidden layer")
    depth: int = Field(0, ge=0, le=8, description="hidden layers; 0 is a linear map")
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of every layer's inputs")] = 0.2
    temperature: float = Field(0.05, gt=0, description="of the contrastive term")
    contrastive_weight: float = Field(1.0, ge=0, description="find the own annotation among others")
    alignment_weight: float = Field(3.0, ge=0, description="lie close to the own annotation")
    residual_bias_weight: float = Field(6.0, ge=0, description="leave no error that the modality alone predicts")
    mamcl_weight: float = Field(0.0, ge=0, description="find the own data among others of its modality")
    mamcl_temperature: float = Field(0.03, gt=0, description="of that term")
    cluster_bias_weight: float = Field(0.0, ge=0, description="let the means of the modalities coincide")
    scale_bias_weight: float = Field(0.0, ge=0, description="let the modalities be spread alike")
    normalise_bias: bool = Field(True, description="cluster and scale bias act on normalised vectors")
    learning_rate: float = Field(1e-3, gt=0, description="at the start; it falls to zero along a cosine")
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW")
    batch_size: int = Field(512, ge=2, description="pairs of a step")
    max_epochs: int = Field(20, ge=1, description="passes over the sample, at most")
    patience: int = Field(5, ge=1, description="epochs with a validation loss clearly worse than the best")
    folds: int = Field(4, ge=2, le=20, description="each pair is projected by the network that never saw it")
    max_pairs: int = Field(200_000, ge=8, description="bound on the sample that is read to fit")
    threads: int = Field(2, ge=1, description="networks trained at a time, one thread each; changes nothing else")

    @model_validator(mode="after")
    def _some_objective(self) -> ProjectionSettings:
        if not any(value for name, value in self if name.endswith("_weight")):
            raise ValueError("at least one weight must be positive, or there is nothing to learn")
        return self

    @property
    def only_mamcl(self) -> bool:
        """Whether the only contrastive term is MAMCL, which never compares pairs of different modalities."""
        return bool(self.mamcl_weight) and not self.contrastive_weight


def _like(value: Any) -> Any:
    values = {"path": str(value)} if isinstance(value, (str, Path)) else value
    if isinstance(values, dict) and "://" not in (path := str(values.get("path", "://"))):
        values = {**values, "path": str(Path(path).expanduser().absolute())}  # a run is ranked again from anywhere
    return values


def _norm(value: Any) -> Any:
    return {"2": 2, math.inf: "inf", ".inf": "inf"}.get(value, value) if isinstance(value, (str, float)) else value


class Query(Settings):
    """One objective, in plain words or by examples; a negative weight says what not to pick."""

    text: str | None = Field(None, min_length=1, description="what is asked for, in plain words")
    like: Annotated[PoolSource | None, BeforeValidator(_like)] = Field(
        None, description="examples: a pool of pairs, media files (a folder of them), or texts (.txt, one a line)"
    )
    norm: Annotated[Literal[2, "inf"], BeforeValidator(_norm)] = Field(
        2, description="of the cosines with the examples: 2 (close to many) or inf (close to one)"
    )
    side: Literal["data", "annotation", "both"] = Field("both", description="of pairs, compared with the same side")
    weight: float = Field(1.0, description="beside other queries; below 0: not to be picked")

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not any(
            unicodedata.category(letter)[0] in "LN" or unicodedata.category(letter) == "So" for letter in text
        ):
            raise ValueError(f"a query is made of words, and {text!r} holds neither letter nor digit")
        return text

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.text is None) == (self.like is None):
            raise ValueError("a query has either a text or, as like, a path of examples")
        if self.like is None and (self.norm != 2 or self.side != "both"):
            raise ValueError("norm and side are for queries by examples (like)")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        values = {name: value for name, value in values.items() if name not in self._others}
        if self.like is not None and self.like.model_fields_set <= {"path"}:
            values["like"] = self.like.path
        return values

    @property
    def _others(self) -> tuple[str, ...]:
        return ("text",) if self.text is None else ("like", "norm", "side")

    @property
    def label(self) -> str:
        """What a person reads for it."""
        if self.like is None:
            return str(self.text)
        return f"like {self.like.name or self.like.path.rstrip('/').rpartition('/')[2]}"


Wanted: TypeAlias = str | Path | Query | Mapping[str, Any]
"""One objective: words, or whatever else `Query` can be made of."""


def objectives(
    query: Wanted | Sequence[Wanted] | None = None,
    like: str | Path | Sequence[str | Path] | None = None,
    unlike: str | Path | Sequence[str | Path] | None = None,
    avoid: str | Sequence[str] | None = None,
) -> list[Any] | None:
    """Return what ``queries`` is to be, from options; None where none is given.

    Args:
        query: what is asked for, in plain words.
        like: paths of examples; ``path=2`` gives them a weight.
        unlike: paths of examples of what not to pick, likewise.
        avoid: what not to pick, in plain words.

    >>> objectives("dogs", like="good.jsonl=2")
    ['dogs', {'like': 'good.jsonl', 'weight': 2.0}]
    """

    def by(paths: Any, sign: float) -> list[Any]:
        found = []
        for path in [] if paths is None else _listed(paths):
            name, _, weight = str(path).rpartition("=")
            if name and re.fullmatch(r"\d+(\.\d+)?", weight) and not Path(str(path)).exists():
                found.append({"like": name, "weight": sign * float(weight)})
            else:
                found.append({"like": str(path), "weight": sign})
        return found

    query, like, unlike = plain(query), plain(like), plain(unlike)  # Hydra's lists are none of Python's
    wanted = [] if query is None else _listed(query)
    avoided = [{"text": text, "weight": -1.0} for text in ([] if avoid is None else _listed(avoid))]
    return [*wanted, *avoided, *by(like, 1.0), *by(unlike, -1.0)] or None


class GivenScore(Settings):
    """A score from elsewhere: a column of a Parquet file that has a ``pair_id``. A plain path stands for one, too."""

    path: str = Field(description="a Parquet file")
    column: str | None = Field(None, description="default: the name that the score is given here")


def _given(value: Any) -> Any:
    named = value if isinstance(value, dict) else {}
    return {name: {"path": str(one)} if isinstance(one, (str, Path)) else one for name, one in named.items()} or value


class BroadSettings(Settings):
    """What counts for an objective that asks for much of the pool, as the skewness of its scores tells."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"fused": 0.5, "experts": 2.0, "annotation": 0.5},
        description="of the standardised scores, as in ranking.weights",
    )
    feedback: int = Field(
        20, ge=0, description="best pairs, of twenty at most one, that say what a query means in each space; 0: none"
    )
    feedback_weight: float = Field(1.0, ge=0, description="of closeness to those pairs; closeness to the query has 1")
    skewness: tuple[float, float] = Field(
        (0.9, 1.05), description="up to the first an objective is broad, from the second on narrow, between them both"
    )

    @model_validator(mode="after")
    def _rising(self) -> BroadSettings:
        if self.skewness[0] >= self.skewness[1]:
            raise ValueError("skewness: the first value is below the second")
        return self


def _broad(value: Any) -> Any:
    return None if value in (False, "off") else value


def _kind_of_condition(value: Any) -> str:
    return "class" if isinstance(value, (dict, ConditionSpec)) else "strength"


Strength = Annotated[
    Annotated[Annotated[float, Field(ge=0)], Tag("strength")] | Annotated[ConditionSpec, Tag("class")],
    Discriminator(_kind_of_condition),
]
"""How much a condition counts that is there, or one of the user's own with its strength."""


class SelectSettings(Settings):
    """What is chosen of the best candidates; by ``top`` the best of them alone, and the rest does not matter."""

    how: Literal["top", "clusters", "soft-cap", "balanced", "diverse"] = Field(
        "top", description="the way to choose; a plain name in place of the section does as well"
    )
    over: int = Field(3, ge=1, description="candidates, in budgets: of so many times the budget the best are looked at")
    clusters: int | None = Field(
        None, ge=2, description="of fused embeddings (clusters, soft-cap); default: the root of the candidates' number"
    )
    temperature: float = Field(
        0.1, gt=0, description="clusters: of exp(nearness / (temperature x density)); soft-cap: of the scores"
    )
    penalty: float = Field(1.0, ge=0, description="soft-cap: what every draw lowers its cluster's logits by")
    entries: str | None = Field(
        None, description="balanced: a file of words and phrases, one a line; default: the words of the annotations"
    )
    seed: int = Field(0, ge=0, description="of clusters and draws")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"how": value} if isinstance(value, str) else value

    @field_validator("entries")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())


class RankingSettings(Settings):
    """How scores are put together, and how the blend is picked."""

    weights: dict[str, float] = Field(
        default_factory=lambda: {"fused": 0.5, "experts": 1.0, "annotation": 8.0},
        description="of the standardised scores: fused, experts (or one expert's name), annotation, scores of yours",
    )
    broad: Annotated[BroadSettings | None, BeforeValidator(_broad)] = Field(
        default_factory=BroadSettings,
        description="what counts for objectives that ask for much of the pool; off: the weights alone, as where you "
        "give weights of your own",
    )
    conditions: dict[str, Strength] = Field(
        default_factory=lambda: dict[str, float | ConditionSpec](match=3.0),
        description="what must hold besides: match (the annotation is the data's own), scores in [0, 1], or a `class` "
        "of yours with its `strength` and arguments; how much the logarithm counts, in standard deviations of the "
        "topic; 0: nothing",
    )
    scores: Annotated[dict[str, GivenScore], BeforeValidator(_given)] = Field(
        default_factory=dict, description="name -> Parquet file with a score for each pair_id, used by that name"
    )
    spread: float = Field(1.0, ge=0, le=8, description="power by which scores count for spreading the pool; 0: alike")
    combine: Literal["mean", "max"] = Field("mean", description="several positive queries: mean, or the best of them")
    calibration: Annotated[Literal["off", "matched", "zscore", "quantile"] | None, OFF] = Field(
        None,
        description="per modality: fused cosines on their annotations' scale (matched), or the final score (zscore, "
        "quantile); default: off, but matched where MAMCL is the only contrastive term",
    )
    mix: str | dict[str, float] | None = Field(
        None, description="a published mix by name, or shares by type, like image->text: quotas in other words"
    )
    quota_by: Literal["modality", "pool", "type"] | None = Field(None, description="what the groups of quotas are")
    quotas: dict[str, float] = Field(default_factory=dict, description="shares of the budget; sum at most 1")
    shortage: Literal["fill", "leave", "fail"] = Field("fill", description="what a group that is too small leads to")
    select: SelectSettings = Field(
        default_factory=SelectSettings, description="the top, or of several times the budget what has more to say"
    )
    collapse_duplicates: bool = Field(False, description="keep the best of pairs whose fused embeddings are near equal")
    duplicate_similarity: float = Field(0.95, gt=0, le=1, description="cosine from which two are near equal")

    @model_validator(mode="before")
    @classmethod
    def _own_weights(cls, value: Any) -> Any:
        if isinstance(value, dict) and "weights" in value and "broad" not in value:
            return {**value, "broad": None}
        return value

    @model_serializer(mode="wrap")
    def _with_broad(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without `broad` beside them, weights would be read back as `_own_weights` reads them.
        values: dict[str, Any] = dump(self)
        if "weights" in values and self.broad is not None:
            values.setdefault("broad", {})
        return values

    @model_validator(mode="after")
    def _quotas_fit(self) -> RankingSettings:
        if bool(self.quota_by) != bool(self.quotas):
            raise ValueError("quota_by says by what, quotas the shares: give both or neither")
        if self.quotas and self.mix is not None:
            raise ValueError("mix: a mix is quotas by type; give one of the two")
        shares = self.quotas if self.mix is None else dict(find_mix(self.mix).shares)
        if any(not 0 <= share <= 1 for share in shares.values()):
            raise ValueError(f"quotas: shares are between 0 and 1, not {shares}")
        if sum(Fraction(str(share)) for share in shares.values()) > 1:
            raise ValueError(f"quotas: the shares {shares} sum to more than 1")
        for name in self.quotas if self.quota_by == "modality" else ():
            if not known_class(name):
                raise ValueError(f"quotas: no modality {name!r}{nearest(name, names())}")
        for name in self.quotas if self.quota_by == "type" else ():
            if name != canonical_type(name):
                raise ValueError(f"quotas: write {name!r} as {canonical_type(name)!r}")
        return self

    @property
    def strengths(self) -> dict[str, float]:
        """How much each condition counts."""
        return {k: v.strength if isinstance(v, ConditionSpec) else v for k, v in self.conditions.items()}

    @property
    def computed(self) -> dict[str, ConditionSpec]:
        """The conditions of the user's own that count."""
        return {k: v for k, v in self.conditions.items() if isinstance(v, ConditionSpec) and v.strength}

    def by_type(self) -> RankingSettings:
        """Return these settings with the mix, where there is one, written as quotas by type."""
        if self.mix is None:
            return self
        shares = dict(find_mix(self.mix).shares)
        return self.model_copy(update={"mix": None, "quota_by": "type", "quotas": shares})


class EngineSettings(Settings):
    """Where the work is done; never changes what comes out."""

    workers: int = Field(0, ge=0, description="Dask worker processes; 0 is this process")
    scheduler_address: str | None = Field(None, description="of a Dask cluster that runs already")
    gpus: bool = Field(False, description="one worker per GPU, cuDF partitions")
    device: str | None = Field(None, description="cpu, cuda ...; default: cuda where there is one")


def _queries(value: Any) -> Any:
    return [{"text": item} if isinstance(item, str) else item for item in _listed(value)]


def _pools(value: Any) -> Any:
    return [{"path": str(item)} if isinstance(item, (str, Path)) else item for item in _listed(value)]


Pools = Annotated[tuple[PoolSource, ...], BeforeValidator(_pools)]
"""One pool or several; a plain path is a pool."""


def _share(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(Fraction(match[1]) / 100)
    return value


class Budget(Settings):
    """How much the blend holds: a count, a share of the ranked pairs, or a least score."""

    count: int | None = Field(None, ge=1, description="a number of pairs")
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="a share of the ranked pairs")
    threshold: float | None = Field(None, description="a least score")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"count": value}
        if isinstance(value, str):
            if isinstance(share := _share(value), float):
                return {"fraction": share}
            if re.fullmatch(r"\s*\d[\d_,]*\s*", value):
                return {"count": int(re.sub(r"[\s_,]", "", value))}
            raise ValueError(f"a budget is a number of pairs or a share like 20%, not {value!r}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(part is not None for part in (self.count, self.fraction, self.threshold)) != 1:
            raise ValueError("a budget is exactly one of count, fraction and threshold")
        return self

    def pairs(self, ranked: int) -> int:
        """Return the number of pairs it allows out of ``ranked`` (a share is rounded down, but never to none).

        >>> Budget(fraction=0.29).pairs(100)
        29
        """
        if self.count is not None:
            return min(self.count, ranked)
        if self.fraction is not None:
            # As the decimal number it was written as: 29 % of 100 is 29, which floats make 28.999...
            return min(ranked, max(1, int(ranked * Fraction(str(self.fraction)))))
        return ranked


class JobSettings(Importing):
    """What every job is told of how its pairs are read and worked on, and of what to do about those that fail."""

    on_bad_row: Literal["fail", "quarantine"] = Field("quarantine", description="what a row that is no pair leads to")
    rows_per_shard: int = Field(1024, ge=1, description="rows that are worked on at once")
    shards: int | None = Field(None, ge=1, description="this many shards instead; needs a count of the rows first")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work is done")
    allow_failures: Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)] = Field(
        0.95, description="a step that fails for this share of a modality (20 pairs at least) stops; 100%: none does"
    )
    retry_failed: bool = Field(
        False, description="try all failed pairs of an earlier start again, not only those whose failure may pass"
    )


class Config(JobSettings):
    """A whole run. Only ``pools`` and ``queries`` have no default; the default models need no download."""

    pools: Annotated[Pools, Field(min_length=1, description="what is ranked; a plain path is a pool")]
    queries: Annotated[
        tuple[Query, ...],
        BeforeValidator(_queries),
        Field(min_length=1, description="what is asked for; a plain text is a query"),
    ]
    budget: Budget = Field(
        default_factory=lambda: Budget(fraction=0.2), description="of the blend: a number like 500, or a share like 20%"
    )
    output: str = Field("nemo-mm-rank-run", description="the run's folder: new, empty, or a run of the same pools")
    seed: int = Field(0, ge=0, description="of everything random")
    jsonl: bool = Field(False, description="write blend.jsonl beside blend.parquet")
    media: MediaSettings = Field(default_factory=MediaSettings, description="how media are opened, and their bounds")
    models: dict[str, ModelSpec] = Field(
        default_factory=lambda: dict(CLASSICAL_MODELS), description="what is loaded, by names of your choice"
    )
    experts: tuple[ExpertSpec, ...] = Field(
        default_factory=lambda: CLASSICAL_EXPERTS, description="how models together embed data"
    )
    anchor: str = Field("text", description="the model that embeds annotations and queries")
    sns: SNSSettings = Field(default_factory=SNSSettings, description="how pairs are trimmed")
    projection: ProjectionSettings = Field(default_factory=ProjectionSettings, description="how experts are fused")
    ranking: RankingSettings = Field(
        default_factory=RankingSettings, description="how pairs are scored and the blend is picked"
    )

    @property
    def ranked_by(self) -> RankingSettings:
        """The ranking's settings with what follows from others: calibration after MAMCL alone, a mix as quotas.

        MAMCL leaves it open how far modalities lie apart, so fused cosines are then put on the scale of their
        annotations' within each; a calibration that is set, ``off`` as well, stands.
        """
        ranking = self.ranking.by_type()
        default = "matched" if self.projection.only_mamcl else "off"
        return ranking.model_copy(update={"calibration": ranking.calibration or default})

    @property
    def sns_expert(self) -> ExpertSpec:
        """The expert in whose space SNS judges what belongs together."""
        named = [expert for expert in self.experts if expert.name == self.sns.expert]
        shared = [expert for expert in self.experts if expert.kind != "fusion"]
        return (named or shared)[0]

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        def known(model: str, where: str) -> None:
            if model not in self.models:
                raise ValueError(f"{where}: no model {model!r}{nearest(model, self.models)}")

        known(self.anchor, "anchor")
        names = [expert.name for expert in self.experts]
        if not names:
            raise ValueError("experts: at least one is needed")
        if len(set(names)) < len(names):
            raise ValueError(f"experts: names must differ, not {names}")
        for expert in self.experts:
            for model in sorted(expert.models):
                known(model, f"expert {expert.name!r}")
        if self.sns.expert is not None and self.sns.expert not in names:
            raise ValueError(f"sns.expert: no expert {self.sns.expert!r}{nearest(self.sns.expert, names)}")
        for model in self.sns.grounders.values():
            known(model, "sns.grounders")
        if self.sns.mode != "off" and self.sns.expert is None and all(e.kind == "fusion" for e in self.experts):
            raise ValueError(
                "sns: trimming needs an expert that shares a space with text, and a fusion expert has none"
            )
        own, given, broad = ("fused", "experts", "annotation", "match"), self.ranking.scores, self.ranking.broad
        for name in names:
            if name in own:
                raise ValueError(f"experts: {name!r} is the name of a score of ours; give the expert another")
        computed = [k for k, v in self.ranking.conditions.items() if isinstance(v, ConditionSpec)]
        for where, mine, others in (("scores", given, ()), ("conditions", computed, given)):
            for name in mine:
                taken = name in (*own, *names, *others)
                if taken or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or "__" in name:
                    raise ValueError(f"ranking.{where}: {name!r} is taken or no name; letters, digits, - and single _")
        scores = (*own[:3], *names, *given)
        for where, weights in (("weights", self.ranking.weights), ("broad.weights", broad.weights if broad else {})):
            for score in weights:
                if score not in scores:
                    raise ValueError(f"ranking.{where}: no score {score!r}{nearest(score, scores)}")
        conditions = ("match", *given, *computed)
        for name in self.ranking.conditions:
            if name not in conditions:
                raise ValueError(f"ranking.conditions: no condition {name!r}{nearest(name, conditions)}")
        if all(query.weight <= 0 for query in self.queries):
            raise ValueError("queries: at least one needs a positive weight")
        return self


CLASSICAL_MODELS: dict[str, ModelSpec] = {
    "text": ModelSpec.model_validate({"class": "hashed-text"}),
    "words": ModelSpec.model_validate({"class": "plain-words"}),
    "image": ModelSpec.model_validate({"class": "image-features"}),
    "audio": ModelSpec.model_validate({"class": "audio-features"}),
    "video": ModelSpec.model_validate({"class": "video-features"}),
}
"""The embedded default: deterministic, no download."""

CLASSICAL_EXPERTS: tuple[ExpertSpec, ...] = (
    ExpertSpec(
        name="words",
        kind="text-based",
        encoder="text",
        describers={Modality.IMAGE: "words", Modality.AUDIO: "words", Modality.VIDEO: "words"},
    ),
    ExpertSpec(
        name="features",
        kind="fusion",
        encoders={
            Modality.TEXT: "text",
            Modality.CODE: "text",
            Modality.IMAGE: "image",
            Modality.AUDIO: "audio",
            Modality.VIDEO: "video",
        },
    ),
)

S = TypeVar("S", bound=BaseModel)


def parse(settings: type[S], values: Any) -> S:
    """Validate ``values`` as ``settings``; any mapping and sequence will do, such as Hydra's.

    Raises:
        ConfigError: one line per mistake: where it is, what it is, and the nearest valid name.
    """
    try:
        return settings.model_validate(plain(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_line(settings, mistake) for mistake in error.errors())) from error


def plain(value: Any) -> Any:
    """Return mappings as dictionaries and sequences as lists, all the way down.

    >>> from types import MappingProxyType
    >>> plain(MappingProxyType({"pools": range(2)}))
    {'pools': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(one) for one in value]
    return value


def _line(settings: type[BaseModel], mistake: Any) -> str:
    where = printable(".".join(str(part) for part in mistake["loc"])) or "configuration"
    if mistake["type"] == "extra_forbidden":
        section = _section(settings, mistake["loc"][:-1])
        known = [field.alias or name for name, field in section.model_fields.items()]
        return f"{where}: unknown key{nearest(str(mistake['loc'][-1]), known)}"
    if mistake["type"] == "missing":
        return f"{where}: missing"
    message = mistake["msg"].removeprefix("Value error, ")
    given = mistake.get("input")
    shown = f", not {given!r}" if isinstance(given, (str, int, float)) and mistake["type"] != "value_error" else ""
    return f"{where}: {message}{shown}"


def _section(settings: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the section that ``path`` leads to, through tuples, dicts and unions of sections."""
    for part, following in zip(path, (*path[1:], None), strict=False):
        if isinstance(part, int) or part not in settings.model_fields:
            continue
        found: list[type[BaseModel]] = []
        waiting = [settings.model_fields[part].annotation]
        while waiting:
            kind = waiting.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found.append(kind)
            else:
                waiting.extend(get_args(kind))
        if found:
            # Of sections that are told apart by their kind, the path names it next.
            kinds = {getattr(one.model_fields.get("kind"), "default", None): one for one in found}
            settings = kinds.get(following, found[0])
    return settings


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML configuration as plain values.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping at its top.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, not {type(values).__name__}")
    if folders := values.get("import_from"):
        home = Path(path).absolute().parent
        values["import_from"] = [str(home / Path(str(folder)).expanduser()) for folder in _listed(folders)]
    return {key: value for key, value in values.items() if value is not None}  # a section with all commented out
