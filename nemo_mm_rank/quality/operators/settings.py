"""Which quality operators judge a pool, and with which models. By default those that need none."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from nemo_mm_rank.config import ModalityName, ModelSpec, Settings, Share
from nemo_mm_rank.quality.text_filters import existing_file

PREFIX = "quality__"
"""How the names of all columns begin that operators add."""

ImageScore = Literal["blurry", "dark", "light", "low_information", "geometric", "resolution"]
Text = Literal["words", "characters", "character_repetition", "word_repetition", "caption_like", "concrete_words"]
IMAGE_SCORES: tuple[ImageScore, ...] = get_args(ImageScore)
TEXTS: tuple[Text, ...] = get_args(Text)

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
File = Annotated[str, AfterValidator(existing_file)]


def column(operator: str) -> str:
    """Name of the column with an operator's scores (float32, higher is better, null where it does not apply)."""
    return f"{PREFIX}{operator}"


class LanguageSettings(Settings):
    """``language``, by a fastText file of yours."""

    model: File = Field(description="Path of a fastText file, such as lid.176.ftz.")
    languages: tuple[str, ...] = Field(
        ("en",),
        min_length=1,
        description="fastText codes of the wanted languages; a text in any other language scores 0.",
    )
    lowercase: bool = Field(
        False, description="Read texts in lower case, as EcoDatum's operator does. DataComp reads them as they are."
    )


class ConcretenessSettings(Settings):
    """``concreteness`` by ratings of single words, ``icc`` by a model that reads the whole annotation."""

    norms: File | None = Field(
        None, description="A CSV file of words and their ratings; a higher rating is more concrete."
    )
    model: str | None = Field(
        None, description="Name of a model of the configuration: text-regressor, or a class with score(texts)."
    )

    @model_validator(mode="after")
    def _something(self) -> ConcretenessSettings:
        if self.norms is None and self.model is None:
            raise ValueError("give either a file of norms or a model")
        return self


class AgreementSettings(Settings):
    """How well data and annotation fit, by an encoder that shares a space with text."""

    model: str = Field(description="Name of the encoder in the configuration.")
    mirrored: bool = Field(False, description="Write <name>_h (mirrored) and <name>_v (upside down), too.")
    modalities: tuple[ModalityName, ...] | None = Field(
        None, description="Modalities that the operator scores. Default: the media that the model takes."
    )


class GroundingSettings(Settings):
    """How much of the annotation a grounder finds in the data: <name>_count, _mean, _best and _coverage."""

    model: str = Field(
        description="Name of the grounder in the configuration. Its own threshold decides what counts as a box."
    )
    threshold: Share = Field(0.3, description="Least score of a box that counts and that covers its phrase.")
    phrases: Literal["phrases", "sentences", "whole"] = Field("phrases", description="What the grounder looks for.")


class ExpertSettings(Settings):
    """How well data and annotation fit, by existing embeddings (`experts.ExpertStep`)."""

    expert: str = Field(
        description="An expert that embeds its data in the space of its texts, which a fusion expert does not."
    )
    model: str = Field(description="The model whose annotation embeddings lie in that space.")


class BatchSettings(Settings):
    """What a pair is compared with for negCLIPLoss."""

    batches: int = Field(4, ge=1, description="Number of batches; the mean of their logarithms counts.")
    batch_size: int = Field(
        512, ge=2, description="Number of pairs of the pool in a batch; a smaller pool is one batch."
    )
    temperature: float = Field(0.01, gt=0, description="Temperature of the model; trained CLIP models have .01.")


class OthersSettings(ExpertSettings, BatchSettings):
    """negCLIPLoss: the agreement of a pair compared with that of other pairs, by existing embeddings."""

    reference: str | None = Field(
        None, description="A safetensors file with the batches. Default: they are drawn from the pool of the job."
    )


class ClipScoreSettings(Settings):
    """DataComp's CLIP score filter."""

    operator: Name = Field(description="Name of an operator under `agreement` or `given`, such as clip_l14.")
    threshold: float = Field(description="Least score. DataComp uses .3 for ViT-L/14 and .25 for ViT-B/32.")


class ImageBasedSettings(Settings):
    """DataComp's image-based filter."""

    centroids: File = Field(
        description="A safetensors file with `centroids` (k, d) and `targets`, the rows of the centroids to keep."
    )
    features: str = Field(description="The column of embeddings, such as emb_data__bind__clip.")


class DataCompSettings(Settings):
    """DataComp's baselines, each as ``datacomp_<name>``: 1 kept, 0 dropped. They apply to images only."""

    basic: bool = Field(
        False,
        description="Basic filtering. It needs `language` and the image sizes: those of the table, or "
        "`resolution` and `geometric`.",
    )
    clip_score: ClipScoreSettings | None = None
    laion2b: Name | None = Field(
        None, description="The operator that holds the score of CLIP ViT-B/32. It needs `language`."
    )
    image_based: ImageBasedSettings | None = Field(None, description="Image-based filtering. It needs `language`.")


class OperatorSettings(Settings):
    """The operators, each a column ``quality__<operator>``."""

    images: tuple[ImageScore, ...] = IMAGE_SCORES
    texts: tuple[Text, ...] = TEXTS
    language: LanguageSettings | None = None
    concreteness: ConcretenessSettings | None = None
    agreement: dict[Name, AgreementSettings] = Field(
        default_factory=dict, description="Agreement of both sides: the name of an operator, and its encoder."
    )
    grounding: dict[Name, GroundingSettings] = Field(
        default_factory=dict, description="Boxes for phrases: the names of operators, and their grounder."
    )
    experts: dict[Name, ExpertSettings] = Field(
        default_factory=dict, description="Agreement by an expert: the name of an operator, and its expert."
    )
    weakest: dict[Name, ExpertSettings] = Field(
        default_factory=dict,
        description="Agreement of the sentence of the annotation that fits least: the name of an operator, and "
        "its expert.",
    )
    others: dict[Name, OthersSettings] = Field(
        default_factory=dict, description="negCLIPLoss: the name of an operator, and its expert."
    )
    given: dict[Name, str] = Field(
        default_factory=dict,
        description="The name of an operator, and a column of the pool or of an earlier step that holds its "
        "scores; nothing is computed.",
    )
    own: dict[Name, ModelSpec] = Field(
        default_factory=dict,
        description="The name of an operator, and your `class` for it by import path, with its arguments (PairScorer).",
    )
    datacomp: DataCompSettings = DataCompSettings()
    fingerprints: bool = Field(
        True, description="Compute fingerprints for finding duplicates, from the same decoded media."
    )

    @model_validator(mode="after")
    def _own_names_are_free(self) -> OperatorSettings:
        ours = {*IMAGE_SCORES, *TEXTS, "language", "concreteness", "icc", *self.agreement, *self.experts, *self.weakest}
        ours |= self.others.keys()
        if taken := sorted(ours & self.own.keys()):
            raise ValueError(f"own: {taken[0]!r} is the name of another operator; choose another name for yours")
        return self

    @model_validator(mode="after")
    def _languages_are_known(self) -> OperatorSettings:
        asked = self.datacomp.basic or self.datacomp.laion2b or self.datacomp.image_based
        if asked and (self.language is None or "language" in self.given):
            raise ValueError("datacomp: these baselines ask for English: give `language` a fastText file")
        return self
