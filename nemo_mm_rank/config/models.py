"""What is loaded and what it does: models by name, experts, trimming, projection; and the models of the default."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nemo_mm_rank.config.base import OFF, Carrying, ModalityName, Settings, refuse_passwords
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.schema import Modality


class ModelSpec(Carrying, BaseModel):
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
