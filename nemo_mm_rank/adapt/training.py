"""Training of one stage: AdamW over modality-balanced batches of a blend, its state kept so that it can be taken up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from safetensors import safe_open
from torch.utils.checkpoint import checkpoint

from nemo_mm_rank.adapt.pairs import Batch, Pairs
from nemo_mm_rank.config import Folders, ModelSpec, Settings
from nemo_mm_rank.io.files import OPEN, SEAL, is_sound, write_tensors
from nemo_mm_rank.models.batching import Features, ahead
from nemo_mm_rank.models.chat_encoder import ChatEncoder
from nemo_mm_rank.models.lora import get_weights, put_weights
from nemo_mm_rank.projection.fit import balanced_batches
from nemo_mm_rank.projection.losses import contrastive_loss
from nemo_mm_rank.projection.mamcl import mamcl_loss

Embed = Callable[[Sequence[Features]], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def accumulate(embed: Embed, queries: Sequence[Features], targets: Sequence[Features], loss: Loss, rows: int) -> float:
    """Add the gradients of ``loss`` to the parameters behind ``embed``; return the loss.

    Where both sides fit into a pass each, that is a plain backward pass. Otherwise it is gradient caching (Gao et al.
    2021, arXiv 2101.06983) by PyTorch's own checkpoints: every part is embedded without a memory of how, and again,
    with the same dropout, when its vectors' gradients flow back. The gradients are those of the whole batch at once.
    (The cached losses of sentence-transformers are for its own models and for contrasts without classes.)

    Args:
        embed: from items to ``(n, d)`` vectors.
        queries: ``n`` items.
        targets: ``n`` items.
        loss: from both sides' vectors to a scalar.
        rows: items of a pass.
    """

    def vectors(side: Sequence[Features]) -> torch.Tensor:
        if len(side) <= rows:
            return embed(side)
        parts = [side[at : at + rows] for at in range(0, len(side), rows)]
        return torch.cat(
            [checkpoint(lambda items, _: embed(items), part, place, use_reentrant=False) for part in parts]
        )

    # Says whose chances a checkpoint is to keep: those of the devices of its arguments.
    place = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")
    value = loss(vectors(queries), vectors(targets))
    value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach())


class StageSettings(Settings):
    """One stage: an adapter of its own, trained on one blend, merged into the model before the next begins."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    run: str | None = Field(
        None,
        description="The finished run whose blend this stage learns from. Default: the run of the whole adaptation.",
    )
    contrastive_weight: float = Field(
        1.0, ge=0, description="Weight of InfoNCE in both directions over the whole batch."
    )
    mamcl_weight: float = Field(0.0, ge=0, description="Weight of InfoNCE from queries to the targets of one modality.")
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1, description="LoRA's alpha: the adapter is scaled by alpha / rank.")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="Share of the adapter's inputs that are dropped while it learns."
    )
    learning_rate: float = Field(1e-4, gt=0, description="Highest learning rate, which is reached after the warm-up.")
    epochs: int = Field(1, ge=1, description="Number of passes over the blend.")

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

    run: str = Field(min_length=1, description="Folder of the finished run whose blend the model learns from.")
    model: ModelSpec = Field(
        description="An encoder of the Qwen2-VL family: its class, its path and its other arguments."
    )
    output: str = "nemo-mm-rank-adapter"
    import_from: Folders = Field(
        (), description="Folders that hold a model class of yours. '.' is the folder of this file."
    )
    stages: tuple[StageSettings, ...] = Field(UNITE_STAGES, min_length=1)
    temperature: float = Field(0.03, gt=0)
    batch_size: int = Field(
        64, ge=2, description="Number of pairs in a batch; each pair is told apart from the others in its batch."
    )
    rows: int | None = Field(None, ge=1, description="Number of items in one forward pass. Default: the whole batch.")
    gradient_checkpointing: bool = Field(
        True, description="Compute activations a second time in the backward pass instead of keeping them in memory."
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="Share of the steps during which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0)
    max_norm: float = Field(1.0, gt=0, description="Gradients that are longer than this are scaled down to it.")
    held_out: float = Field(
        0.05, ge=0, lt=1, description="Share of the pairs that are used to measure the model and never to train it."
    )
    max_held_out: int = Field(512, ge=2)
    checkpoint_steps: int = Field(
        100,
        ge=1,
        description="Number of steps between checkpoints; a job that is killed loses no more steps than this.",
    )
    seed: int = Field(0, ge=0)
    device: str | None = Field(
        None, description="Device of the model, such as cpu or cuda. Default: cuda where there is a GPU."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> AdaptSettings:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must differ, not {names}")
        if "adapter" in self.model.arguments:
            raise ValueError("model: it has an adapter already; merge that adapter into its weights first")
        return self


def train(
    encoder: ChatEncoder,
    adapted: Any,
    pairs: Pairs,
    learnt: torch.Tensor,
    stage: StageSettings,
    settings: AdaptSettings,
    state: Checkpoint,
    advance: Callable[[int], None],
) -> list[float]:
    """Train the adapter in ``encoder``, going on from the checkpoint where there is one; return every step's loss.

    The learning rate rises over the first steps and then falls to zero along a cosine. A batch of which fewer than two
    pairs can be read teaches nothing, and its loss is 0.

    Args:
        encoder: with the adapter in its model.
        adapted: peft's view of that model.
        pairs: of the blend.
        learnt: positions to learn from.
        stage: objective and optimiser.
        settings: what all stages share.
        state: where the state is kept.
        advance: called with the number of pairs of each batch.
    """
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=settings.weight_decay)
    steps = stage.epochs * max(1, round(len(learnt) / settings.batch_size))
    classes, twins = pairs.classes(), pairs.twins()
    generator = torch.Generator().manual_seed(settings.seed)
    batches = balanced_batches(classes, learnt, settings.batch_size, generator)
    with _training(encoder.model, settings):
        losses = state.load(adapted, optimiser, pairs)
        todo = islice(batches, len(losses), steps)
        for batch in ahead(lambda rows: pairs.prepare(rows.tolist(), encoder), todo, 1, 1):
            for group in optimiser.param_groups:
                group["lr"] = stage.learning_rate * schedule(len(losses), steps, settings.warmup)
            optimiser.zero_grad(set_to_none=True)
            losses.append(_step(encoder, batch, stage, settings, classes, twins))
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_norm)
            optimiser.step()
            advance(len(batch.rows))
            if len(losses) % settings.checkpoint_steps == 0 and len(losses) < steps:
                state.save(adapted, optimiser, pairs, losses)
    return losses


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the learning rate at a step: up in a line, then down to zero along a cosine.

    Args:
        step: from 0.
        steps: in all.
        warmup: share of them in which it rises; rounded up.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _step(
    encoder: ChatEncoder,
    batch: Batch,
    stage: StageSettings,
    settings: AdaptSettings,
    classes: torch.Tensor,
    twins: torch.Tensor,
) -> float:
    if len(batch.rows) < 2:
        return 0.0
    loss = objective(stage, settings.temperature, classes[batch.rows], twins[batch.rows])
    return accumulate(encoder.learnable, batch.queries, batch.targets, loss, settings.rows or len(batch.rows))


def objective(stage: StageSettings, temperature: float, classes: torch.Tensor, twins: torch.Tensor) -> Loss:
    """Return the weighted sum of a stage's terms, as a function of annotations' and data's vectors.

    Args:
        stage: its weights.
        temperature: of both terms.
        classes: ``(n,)`` codes of the data's modalities: MAMCL tells targets of one class apart.
        twins: ``(n, 2)`` codes of annotation and data; pairs that share one are not each other's negatives.
    """

    def loss(queries: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=queries.device)
        if stage.contrastive_weight:
            total = total + stage.contrastive_weight * contrastive_loss(targets, queries, temperature, twins[:, 0])
        if stage.mamcl_weight:
            total = total + stage.mamcl_weight * mamcl_loss(queries, targets, classes, temperature, groups=twins)
        return total

    return loss


@contextmanager
def _training(model: Any, settings: AdaptSettings) -> Iterator[None]:
    """Put ``model`` into training, with chances of its own, and back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    model.train()
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(settings.seed)
            yield
    finally:
        if settings.gradient_checkpointing:
            model.activation_checkpointing_disable()
        model.eval()


@dataclass(frozen=True)
class Checkpoint:
    """The state of a stage under way, in one file: weights, moments, chances, losses and what was left out.

    Attributes:
        path: of the file.
        key: of what is being done; a file of something else is passed by.
    """

    path: Path
    key: str

    def save(self, adapted: Any, optimiser: torch.optim.Optimizer, pairs: Pairs, losses: list[float]) -> None:
        """Write the state as it is between two steps."""
        tensors = {f"weights.{name}": value for name, value in get_weights(adapted).items()}
        for position, kept in optimiser.state_dict()["state"].items():
            tensors |= {f"moments.{position}.{name}": value.cpu() for name, value in kept.items()}
        tensors["chances.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors |= {f"chances.{place}": state for place, state in enumerate(torch.cuda.get_rng_state_all())}
        left_out = {str(row): why for row, why in pairs.left_out.items()}
        said = json.dumps({"losses": losses, "left_out": left_out})
        write_tensors(self.path, tensors, {"format": "pt", "key": self.key, "state": said, SEAL: OPEN})

    def load(self, adapted: Any, optimiser: torch.optim.Optimizer, pairs: Pairs) -> list[float]:
        """Take up the state that is there; return the losses so far, none where there is no such state."""
        if not is_sound(self.path):
            return []
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != self.key:
                return []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        put_weights(adapted, _below("weights.", tensors), str(self.path))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _below("moments.", tensors).items():
            position, _, moment = name.partition(".")
            moments.setdefault(int(position), {})[moment] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        torch.set_rng_state(tensors["chances.cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all([tensors[f"chances.{p}"] for p in range(torch.cuda.device_count())])
        state = json.loads(metadata["state"])
        pairs.left_out.update({int(row): why for row, why in state["left_out"].items()})
        losses: list[float] = state["losses"]
        return losses


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
