"""What an adaptation can be told: which run's blend, which model, and in what stages."""

from __future__ import annotations

from pydantic import Field, model_validator

from nemo_mm_rank.config import Folders, ModelSpec, Settings


class StageSettings(Settings):
    """One stage: an adapter of its own, trained on one blend, merged into the model before the next begins."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    run: str | None = Field(None, description="a finished run whose blend is learnt from; default: the adaptation's")
    contrastive_weight: float = Field(1.0, ge=0, description="InfoNCE in both directions, over the whole batch")
    mamcl_weight: float = Field(0.0, ge=0, description="InfoNCE among targets of one modality, query to target")
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1, description="the adapter counts alpha / rank times")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of what the adapter reads")
    learning_rate: float = Field(1e-4, gt=0, description="at its highest, after the warm-up")
    epochs: int = Field(1, ge=1, description="how often the blend is gone through")

    @model_validator(mode="after")
    def _some_objective(self) -> StageSettings:
        if not self.contrastive_weight and not self.mamcl_weight:
            raise ValueError(f"stage {self.name!r}: one of the weights must be positive, or there is nothing to learn")
        return self


UNITE_STAGES = (
    StageSettings(name="adaptation"),
    StageSettings(name="instruction", contrastive_weight=0.0, mamcl_weight=1.0, alpha=64, learning_rate=2e-5),
)
"""The two stages of UNITE (arXiv 2505.19650; ranks, alphas and rates as in the authors' scripts)."""


class AdaptSettings(Settings):
    """A whole adaptation. Only ``run`` and ``model`` have no default."""

    run: str = Field(min_length=1, description="folder of a finished run, whose blend is learnt from")
    model: ModelSpec = Field(description="a Qwen2-VL-type encoder: class, path and its other arguments")
    output: str = "nemo-mm-rank-adapter"
    import_from: Folders = Field((), description="folders with a model class of yours; '.': where this file lies")
    stages: tuple[StageSettings, ...] = Field(UNITE_STAGES, min_length=1)
    temperature: float = Field(0.03, gt=0)
    batch_size: int = Field(64, ge=2, description="pairs that are told apart from each other")
    rows: int | None = Field(None, ge=1, description="items of a forward pass; default: the whole batch")
    gradient_checkpointing: bool = Field(True, description="layers are computed twice rather than remembered")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0)
    max_norm: float = Field(1.0, gt=0, description="longer gradients are cut to this length")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the pairs that are measured, and never learnt from")
    max_held_out: int = Field(512, ge=2)
    checkpoint_steps: int = Field(100, ge=1, description="a run that is killed loses no more steps than this")
    seed: int = Field(0, ge=0)
    device: str | None = Field(None, description="cpu, cuda ...; default: cuda where there is one")

    @model_validator(mode="after")
    def _names_differ(self) -> AdaptSettings:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must differ, not {names}")
        if "adapter" in self.model.arguments:
            raise ValueError("model: what is adapted has no adapter yet; merge that one into its weights first")
        return self
