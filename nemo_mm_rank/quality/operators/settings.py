"""Which quality operators judge a pool, and with which models. By default those that need none."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from nemo_mm_rank.config import ModalityName, ModelSpec, Settings, Share
from nemo_mm_rank.quality.text_filters import existing_file

PREFIX = "quality__"
"""How the names of all columns begin that operators add."""

Picture = Literal["blurry", "dark", "light", "low_information", "geometric", "resolution"]
Text = Literal["words", "characters", "character_repetition", "word_repetition", "caption_like", "concrete_words"]
PICTURES: tuple[Picture, ...] = get_args(Picture)
TEXTS: tuple[Text, ...] = get_args(Text)

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
File = Annotated[str, AfterValidator(existing_file)]


def column(operator: str) -> str:
    """Name of the column with an operator's scores (float32, higher is better, null where it does not apply)."""
    return f"{PREFIX}{operator}"


class LanguageSettings(Settings):
    """``language``, by a fastText file of yours."""

    model: File = Field(description="path, for example of lid.176.ftz")
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="fastText's codes; any other scores 0")
    lowercase: bool = Field(False, description="as EcoDatum's operator reads texts; DataComp reads them as they are")


class ConcretenessSettings(Settings):
    """``concreteness`` by ratings of single words, ``icc`` by a model that reads the whole annotation."""

    norms: File | None = Field(None, description="CSV: a word and its rating, higher is more concrete")
    model: str | None = Field(None, description="of the configuration: text-regressor, or a class with score(texts)")

    @model_validator(mode="after")
    def _something(self) -> ConcretenessSettings:
        if self.norms is None and self.model is None:
            raise ValueError("name a file of norms, or a model")
        return self


class AgreementSettings(Settings):
    """How well data and annotation fit, by an encoder that shares a space with text."""

    model: str = Field(description="of the configuration")
    mirrored: bool = Field(False, description="also <name>_h and <name>_v: mirrored, and upside down")
    modalities: tuple[ModalityName, ...] | None = Field(None, description="default: the media that the model takes")


class GroundingSettings(Settings):
    """What a grounder finds of the annotation: <name>_count, <name>_mean, <name>_best and <name>_coverage."""

    model: str = Field(description="of the configuration; its own threshold says what is a box at all")
    threshold: Share = Field(0.3, description="least score of a box that counts, and that covers its phrase")
    phrases: Literal["phrases", "sentences", "whole"] = Field("phrases", description="what is looked for")


class ExpertSettings(Settings):
    """How well data and annotation fit, by embeddings that are there already (`experts.ExpertStep`)."""

    expert: str = Field(description="one that embeds its data in the space of its texts: no fusion expert")
    model: str = Field(description="the model whose annotations' embeddings lie in that space")


class BatchSettings(Settings):
    """What a pair is compared with for negCLIPLoss."""

    batches: int = Field(4, ge=1, description="their logarithms' mean counts")
    batch_size: int = Field(512, ge=2, description="pairs of the pool; of a smaller one all of them are one batch")
    temperature: float = Field(0.01, gt=0, description="of the model; .01 is that of trained CLIP models")


class OthersSettings(ExpertSettings, BatchSettings):
    """negCLIPLoss: agreement against what other pairs get, by embeddings that are there already."""

    reference: str | None = Field(None, description="safetensors with the batches; default: drawn of the job's pool")


class ClipScoreSettings(Settings):
    """DataComp's CLIP score filter."""

    operator: Name = Field(description="clip_l14, say, of `agreement` or `given`")
    threshold: float = Field(description="least score; DataComp: .3 for ViT-L/14, .25 for ViT-B/32")


class ImageBasedSettings(Settings):
    """DataComp's image-based filter."""

    centroids: File = Field(description="safetensors: `centroids` (k, d), and `targets`, the rows of those to keep")
    features: str = Field(description="column of embeddings, such as emb_data__bind__clip")


class DataCompSettings(Settings):
    """DataComp's baselines, each as ``datacomp_<name>``: 1 kept, 0 dropped. They speak of pictures only."""

    basic: bool = Field(False, description="needs `language`; and sizes: the table's, or `resolution` and `geometric`")
    clip_score: ClipScoreSettings | None = None
    laion2b: Name | None = Field(None, description="the operator with CLIP ViT-B/32's score; needs `language`")
    image_based: ImageBasedSettings | None = Field(None, description="needs `language`")


class OperatorSettings(Settings):
    """The operators, each a column ``quality__<operator>``."""

    pictures: tuple[Picture, ...] = PICTURES
    texts: tuple[Text, ...] = TEXTS
    language: LanguageSettings | None = None
    concreteness: ConcretenessSettings | None = None
    agreement: dict[Name, AgreementSettings] = Field(default_factory=dict, description="operator -> encoder")
    grounding: dict[Name, GroundingSettings] = Field(default_factory=dict, description="operators -> grounder")
    experts: dict[Name, ExpertSettings] = Field(default_factory=dict, description="operator -> expert")
    weakest: dict[Name, ExpertSettings] = Field(
        default_factory=dict, description="operator -> expert, for the sentence of the annotation that fits least"
    )
    others: dict[Name, OthersSettings] = Field(default_factory=dict, description="operator -> expert, for negCLIPLoss")
    given: dict[Name, str] = Field(
        default_factory=dict,
        description="operator -> a column that the pool or an earlier step has (nothing is computed for it)",
    )
    own: dict[Name, ModelSpec] = Field(
        default_factory=dict, description="operator -> `class` of yours by import path, and its arguments (PairScorer)"
    )
    datacomp: DataCompSettings = DataCompSettings()
    fingerprints: bool = Field(True, description="keys by which duplicates are found, from the same decoding")

    @model_validator(mode="after")
    def _own_names_are_free(self) -> OperatorSettings:
        ours = {*PICTURES, *TEXTS, "language", "concreteness", "icc", *self.agreement, *self.experts, *self.weakest}
        ours |= self.others.keys()
        if taken := sorted(ours & self.own.keys()):
            raise ValueError(f"own: {taken[0]!r} is the name of another operator; give yours another")
        return self

    @model_validator(mode="after")
    def _languages_are_known(self) -> OperatorSettings:
        asked = self.datacomp.basic or self.datacomp.laion2b or self.datacomp.image_based
        if asked and (self.language is None or "language" in self.given):
            raise ValueError("datacomp: these baselines ask for English: give `language` a fastText file")
        return self
