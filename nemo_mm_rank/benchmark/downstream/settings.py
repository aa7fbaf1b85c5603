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
        "auto", description="frozen encoders of the data, none of which may rank; auto: a built-in set that does not"
    )
    components: int = Field(16, ge=1, description="principal components of the features that are kept")
    steps: int = Field(150, ge=1)
    tokens: int = Field(768, ge=16, description="annotation tokens of a step, the same for every strategy")
    evaluations: int = Field(6, ge=1, description="times that the validation set is judged, the last at the end")
    width: int = Field(96, ge=8, multiple_of=4)
    layers: int = Field(2, ge=1, le=24)
    heads: int = Field(4, ge=1)
    prefix: int = Field(4, ge=1, le=64, description="tokens that the features become")
    vocabulary: int = Field(2048, ge=64, le=65_536)
    longest: int = Field(64, ge=2, le=1024, description="tokens that an annotation is cut to")
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(2e-3, gt=0, description="at its peak; it rises for a tenth, then falls to zero")
    feature_rate: float = Field(
        0.3,
        ge=0,
        description="share of it at which the prefix learns: few pairs, many features",
    )
    weight_decay: float = Field(0.1, ge=0)
    threads: int = Field(1, ge=1, description="of one run; another number may change the last digits")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SmallSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class VLMSettings(AdapterSettings):
    """LoRA fine-tuning of a multimodal language model that reads the data and is asked for the annotation."""

    kind: Literal["vlm"] = "vlm"
    model: str = Field(description="a local folder, or a name on the Hugging Face hub")
    prompt: str = Field("Write the annotation of this {modality}.", min_length=1, description="follows the data")
    steps: int = Field(750, ge=1)
    evaluations: int = Field(3, ge=1, description="times that the validation set is judged, the last at the end")
    pairs: int = Field(16, ge=1, description="of a step, over all processes")
    longest: int = Field(512, ge=2, description="tokens that an annotation is cut to, its end included")
    checkpointing: bool = Field(False, description="compute activations twice: less memory, more time")
    processes: int | None = Field(None, ge=1, description="by accelerate launch; default: one for each GPU")

    @property
    def weights(self) -> str:
        """The folder or the name on the hub."""
        return self.model


class LMSettings(AdapterSettings):
    """LoRA fine-tuning of a language model that reads the data in words and is asked for the annotation."""

    kind: Literal["lm"] = "lm"
    path: str = Field(description="a local folder, or a name on the Hugging Face hub")
    describers: Literal["auto"] | dict[ModalityName, ModelSpec] = Field(
        "auto", description="who puts media in words, none of which may rank; auto: plain words of colours and sounds"
    )
    prompt: str = Field(
        "The {modality}: {data}\nIts annotation:\n", pattern=r"\{data\}", description="comes before the annotation"
    )
    steps: int = Field(25, ge=1)
    tokens: int = Field(384, ge=16, description="annotation tokens of a step, the same for every strategy")
    evaluations: int = Field(2, ge=1, description="times that the validation set is judged, the last at the end")
    longest: int = Field(64, ge=2, description="tokens that an annotation is cut to, its end included")
    longest_data: int = Field(400, ge=16, description="characters that data in words is cut to")
    learning_rate: float = Field(1e-3, gt=0, description="at its peak; it rises for a tenth, then falls to zero")
    threads: int = Field(1, ge=1, description="of one run; another number may change the last digits")

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
