"""Which model is trained on a blend to judge it, and for how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nemo_mm_rank.config import ModalityName, ModelSpec, Settings
from nemo_mm_rank.models.lora import AdapterSettings


class SmallSettings(Settings):
    """A compact causal language model of the annotation, from scratch, after a prefix made of frozen data features."""

    kind: Literal["small"] = "small"
    features: Literal["auto", "classical", "signals"] | dict[ModalityName, ModelSpec] = Field(
        "auto",
        description="Frozen encoders of the data, none of which may be used for the ranking. auto: a built-in set"
        " that is not.",
    )
    components: int = Field(16, ge=1, description="Number of principal components of the features that are kept.")
    steps: int = Field(150, ge=1)
    tokens: int = Field(768, ge=16, description="Number of annotation tokens in a step, the same for every strategy.")
    evaluations: int = Field(
        6, ge=1, description="Number of evaluations on the validation set; the last one is at the end."
    )
    width: int = Field(96, ge=8, multiple_of=4)
    layers: int = Field(2, ge=1, le=24)
    heads: int = Field(4, ge=1)
    prefix: int = Field(4, ge=1, le=64, description="Number of prefix tokens that the features are turned into.")
    vocabulary: int = Field(2048, ge=64, le=65_536)
    longest: int = Field(64, ge=2, le=1024, description="Most tokens of an annotation; longer annotations are cut.")
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(
        2e-3,
        gt=0,
        description="Highest learning rate: it rises over the first tenth of the steps and then falls to zero.",
    )
    feature_rate: float = Field(
        0.3,
        ge=0,
        description="Learning rate of the prefix, as a share of the learning rate: there are few pairs and many "
        "features.",
    )
    weight_decay: float = Field(0.1, ge=0)
    threads: int = Field(
        1, ge=1, description="CPU threads of one training; another number may change the last digits of the results."
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SmallSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class VLMSettings(AdapterSettings):
    """LoRA fine-tuning of a multimodal language model that reads the data and is asked for the annotation."""

    kind: Literal["vlm"] = "vlm"
    model: str = Field(description="The model: a local folder, or a name on the Hugging Face hub.")
    prompt: str = Field(
        "Write the annotation of this {modality}.", min_length=1, description="The prompt that follows the data."
    )
    steps: int = Field(750, ge=1)
    evaluations: int = Field(
        3, ge=1, description="Number of evaluations on the validation set; the last one is at the end."
    )
    pairs: int = Field(16, ge=1, description="Number of pairs in a step, over all processes.")
    longest: int = Field(
        512, ge=2, description="Most tokens of an annotation, its end token included; longer annotations are cut."
    )
    checkpointing: bool = Field(
        False, description="Compute activations a second time: this takes less memory and more time."
    )
    processes: int | None = Field(
        None, ge=1, description="Number of processes that accelerate launch starts. Default: one for each GPU."
    )

    @property
    def weights(self) -> str:
        """The folder or the name on the hub."""
        return self.model


class LMSettings(AdapterSettings):
    """LoRA fine-tuning of a language model that reads the data in words and is asked for the annotation."""

    kind: Literal["lm"] = "lm"
    path: str = Field(description="The model: a local folder, or a name on the Hugging Face hub.")
    describers: Literal["auto"] | dict[ModalityName, ModelSpec] = Field(
        "auto",
        description="Models that describe media in words, none of which may be used for the ranking. auto: plain "
        "descriptions of colours and sounds.",
    )
    prompt: str = Field(
        "The {modality}: {data}\nIts annotation:\n",
        pattern=r"\{data\}",
        description="The prompt that comes before the annotation.",
    )
    steps: int = Field(25, ge=1)
    tokens: int = Field(384, ge=16, description="Number of annotation tokens in a step, the same for every strategy.")
    evaluations: int = Field(
        2, ge=1, description="Number of evaluations on the validation set; the last one is at the end."
    )
    longest: int = Field(
        64, ge=2, description="Most tokens of an annotation, its end token included; longer annotations are cut."
    )
    longest_data: int = Field(400, ge=16, description="Most characters of the data in words; longer texts are cut.")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="Highest learning rate: it rises over the first tenth of the steps and then falls to zero.",
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of one training; another number may change the last digits of the results."
    )

    @property
    def weights(self) -> str:
        """The folder or the name on the hub."""
        return self.path


class OffSettings(Settings):
    """No training: blends are judged by what they hold alone."""

    kind: Literal["off"] = "off"


def _by_kind(value: Any) -> Any:
    if value is False or isinstance(value, str):  # YAML reads a bare ``off`` as false
        return {"kind": value or "off"}
    return {"kind": "small", **value} if isinstance(value, dict) else value


TrainedSettings = SmallSettings | VLMSettings | LMSettings
"""A model that is trained."""

DownstreamSettings = Annotated[
    Annotated[SmallSettings | VLMSettings | LMSettings | OffSettings, Field(discriminator="kind")],
    BeforeValidator(_by_kind),
]
"""One of the models, by its ``kind``; default: the small one."""
