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

    class_: str = Field(
        alias="class", description="A short name or an import path. The arguments of the class stand beside it."
    )

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

    strength: float = Field(1.0, ge=0, description="Weight of the logarithm of the probability.")


class ExpertSpec(Settings):
    """One expert, made of models by their names.

    * ``text-based``: ``describers`` turn media into text, ``encoder`` embeds that text (and text and code as is);
    * ``fusion``: ``encoders`` has one encoder per modality;
    * ``end-to-end``: ``encoder`` takes every modality that it lists.

    >>> sorted(ExpertSpec(name="clip", kind="fusion", encoders={"image": "vit", "text": "bert"}).models)
    ['bert', 'vit']
    """

    name: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$", description="Name of the expert, which its columns and the report carry."
    )
    kind: Literal["text-based", "fusion", "end-to-end"] = Field(
        description="Kind of expert: describers and a text encoder, one encoder for each modality, or one encoder"
        " for all."
    )
    encoder: str | None = Field(
        None, description="For text-based and end-to-end experts: the name of the model that embeds."
    )
    encoders: dict[ModalityName, str] = Field(
        default_factory=dict, description="For fusion experts: the name of the model for each modality."
    )
    describers: dict[ModalityName, str] = Field(
        default_factory=dict,
        description="For text-based experts: the name of the model that describes each modality in words.",
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
    """Symmetric Nucleus Sub-sampler: which side of a pair is trimmed, and how much."""

    mode: Annotated[Literal["off", "forward", "backward", "bidirectional"], OFF] = Field(
        "off",
        description="What is trimmed: the data (forward), the annotation (backward), both (bidirectional) or "
        "nothing (off).",
    )
    expert: str | None = Field(
        None, description="The expert whose embeddings decide what is relevant. Default: the first text-based expert."
    )
    select: Literal["pool", "nucleus", "threshold"] | None = Field(
        None,
        description="How the parts to keep are chosen: by cut scores that the run fits on its pool (pool), by softmax "
        "mass (nucleus) or by tau (threshold). Default: by whichever settings are given, otherwise nucleus.",
    )
    lost: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="Pool selection: largest share of the pool's own parts that may be cut."
    )
    cuts: str | None = Field(
        None, description="Pool selection: the file of cut scores of another run (RUN/fitted/sns-*.safetensors)."
    )
    nucleus: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="Nucleus selection: softmax mass that the kept parts reach together."
    )
    temperature: float = Field(0.05, gt=0, description="Nucleus selection: temperature of the softmax.")
    tau: dict[ModalityName, float] = Field(
        default_factory=dict,
        description="Threshold selection: least similarity of a kept part of the data, by modality.",
    )
    tau_forward: float = Field(
        0.35,
        ge=-1,
        le=1,
        description="Threshold selection: least similarity of a kept part of the data, for modalities that tau "
        "does not name.",
    )
    tau_backward: float = Field(
        0.35, ge=-1, le=1, description="Threshold selection: least similarity of a kept part of the annotation."
    )
    components: Literal["phrases", "sentences", "whole"] = Field(
        "phrases",
        description="The parts of a text that look for segments on the other side: its phrases, its sentences, or"
        " the whole text.",
    )
    spacy_model: str | None = Field(
        None, description="spaCy model that finds phrases. Default: built-in rules, without spaCy."
    )
    gate_ratio: float = Field(
        1.0, ge=0, description="A trimmed pair is accepted if similarity(trimmed) >= ratio * similarity(original)."
    )
    gate_eps: float = Field(1e-6, gt=0, description="Least similarity of the original that the gate calculates with.")
    grounders: dict[ModalityName, str] = Field(
        default_factory=dict,
        description="Models that find the parts that phrases speak of. Default: the parts that the expert finds "
        "most similar.",
    )
    max_segments: int = Field(3, ge=1, description="Most windows that are kept of a recording.")
    min_duration: float = Field(1.0, gt=0, description="Duration of the shortest window in seconds.")
    window: float = Field(2.0, gt=0, description="Duration of a candidate window in seconds.")
    region_grid: int = Field(
        2, ge=1, le=8, description="Candidate regions lie on a grid with this many cells on each side."
    )
    padding: float = Field(
        0.05, ge=0, le=1, description="Margin that is added around the union of the kept boxes, as a share of its size."
    )

    @model_validator(mode="after")
    def _grounders_find_in_media(self) -> SNSSettings:
        for modality in self.grounders:
            if not is_media(modality):
                raise ValueError(f"grounders: {str(modality)!r} is divided into its sentences, so it takes no grounder")
        return self

    @model_validator(mode="before")
    @classmethod
    def _what_is_set_by_hand_counts(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("select") is not None:
            return values
        by_hand = {"threshold": {"tau", "tau_forward", "tau_backward"}, "pool": {"lost", "cuts"}}
        return {**values, "select": next((how for how, names in by_hand.items() if names & set(values)), "nucleus")}

    @property
    def chosen_by(self) -> Literal["pool", "nucleus", "threshold"]:
        """How the parts to keep are chosen; without cut scores of a pool by nucleus.

        >>> SNSSettings(tau_backward=0.2).chosen_by, SNSSettings(select="pool").chosen_by
        ('threshold', 'nucleus')
        """
        if self.select is None or (self.select == "pool" and self.cuts is None):
            return "nucleus"
        return self.select


class ProjectionSettings(Settings):
    """The network that fuses the experts in the space of the anchor, and its training."""

    hidden: int = Field(512, ge=1, description="Width of a hidden layer.")
    depth: int = Field(0, ge=0, le=8, description="Number of hidden layers; 0 is a linear map.")
    dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of the inputs of every layer that are dropped while the network learns."),
    ] = 0.2
    temperature: float = Field(0.05, gt=0, description="Temperature of the contrastive term.")
    contrastive_weight: float = Field(
        1.0, ge=0, description="Weight of the contrastive term: find the own annotation among others."
    )
    alignment_weight: float = Field(
        3.0, ge=0, description="Weight of the alignment term: lie close to the own annotation."
    )
    residual_bias_weight: float = Field(
        6.0, ge=0, description="Weight of the residual bias: leave no error that the modality alone predicts."
    )
    mamcl_weight: float = Field(
        0.0, ge=0, description="Weight of MAMCL: find the own data among other data of the same modality."
    )
    mamcl_temperature: float = Field(0.03, gt=0, description="Temperature of MAMCL.")
    cluster_bias_weight: float = Field(
        0.0, ge=0, description="Weight of the cluster bias: bring the means of the modalities together."
    )
    scale_bias_weight: float = Field(
        0.0, ge=0, description="Weight of the scale bias: give the modalities the same spread."
    )
    normalise_bias: bool = Field(True, description="Compute the cluster bias and the scale bias on normalised vectors.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate at the start; it falls to zero along a cosine.")
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay of AdamW.")
    batch_size: int = Field(512, ge=2, description="Number of pairs in a step.")
    max_epochs: int = Field(20, ge=1, description="Most passes over the sample.")
    patience: int = Field(
        5,
        ge=1,
        description="Number of epochs with a validation loss clearly worse than the best one before training stops.",
    )
    folds: int = Field(
        4,
        ge=2,
        le=20,
        description="Number of networks; each pair is projected by the network that never learnt from it.",
    )
    max_pairs: int = Field(200_000, ge=8, description="Most pairs in the sample that the networks learn from.")
    threads: int = Field(
        2,
        ge=1,
        description="Number of networks that are trained at the same time, each on one thread; the results are "
        "the same.",
    )

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
