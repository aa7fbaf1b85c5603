"""Training of one stage: AdamW over modality-balanced batches of a blend, its state kept so that it can be taken up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nemo_mm_rank.adapt.gradients import Loss, accumulate
from nemo_mm_rank.adapt.pairs import Batch, Pairs
from nemo_mm_rank.adapt.settings import AdaptSettings, StageSettings
from nemo_mm_rank.models.adapter import get_weights, put_weights, write_tensors
from nemo_mm_rank.models.batches import ahead
from nemo_mm_rank.models.chat_encoder import ChatEncoder
from nemo_mm_rank.projection.losses import contrastive_loss
from nemo_mm_rank.projection.mamcl import mamcl_loss
from nemo_mm_rank.projection.train import balanced_batches


def train(
    encoder: ChatEncoder,
    adapted: Any,
    pairs: Pairs,
    learnt: torch.Tensor,
    stage: StageSettings,
    settings: AdaptSettings,
    checkpoint: Checkpoint,
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
        checkpoint: where the state is kept.
        advance: called with the number of pairs of each batch.
    """
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=settings.weight_decay)
    steps = stage.epochs * max(1, round(len(learnt) / settings.batch_size))
    classes, twins = pairs.classes(), pairs.twins()
    generator = torch.Generator().manual_seed(settings.seed)
    batches = balanced_batches(classes, learnt, settings.batch_size, generator)
    with _training(encoder.model, settings):
        losses = checkpoint.load(adapted, optimiser, pairs)
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
                checkpoint.save(adapted, optimiser, pairs, losses)
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
        for position, state in optimiser.state_dict()["state"].items():
            tensors |= {f"moments.{position}.{name}": value.cpu() for name, value in state.items()}
        tensors["chances.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors |= {f"chances.{place}": state for place, state in enumerate(torch.cuda.get_rng_state_all())}
        left_out = {str(row): why for row, why in pairs.left_out.items()}
        said = json.dumps({"losses": losses, "left_out": left_out})
        write_tensors(self.path, tensors, {"key": self.key, "state": said})

    def load(self, adapted: Any, optimiser: torch.optim.Optimizer, pairs: Pairs) -> list[float]:
        """Take up the state that is there; return the losses so far, none where there is no such state."""
        if not self.path.exists():
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
