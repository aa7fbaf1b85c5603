"""The training loop: the same steps and pairs for every strategy, on as many processes as accelerate has started."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from nemo_mm_rank import frames
from nemo_mm_rank.benchmark.downstream.perplexity import Descent, Perplexity, evaluation_steps
from nemo_mm_rank.benchmark.downstream.settings import VLMSettings
from nemo_mm_rank.benchmark.downstream.vlm.job import Example, Reader, TrainingRun
from nemo_mm_rank.errors import ModelError, PairError, UserError, require
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import iter_class
from nemo_mm_rank.models.lora import adapted
from nemo_mm_rank.models.weights import chat_class, load_pretrained, loading_arguments, opening, pick_dtype, resolve
from nemo_mm_rank.projection.fit import balanced_batches
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.schema import ANNOTATION, MODALITY, PAIR_ID
from nemo_mm_rank.steps import by_value

_THINKERS = ("qwen2_5_omni", "qwen2_5_omni_thinker")
"""Of Qwen2.5-Omni only the thinker is loaded: it reads and writes, the rest speaks."""


def load(settings: VLMSettings, device: str, seed: int) -> tuple[Any, Any]:
    """Return the model with a new adapter, on ``device``, and its processor.

    Raises:
        ModelError: no such model, weights that are pickles or incomplete, or a model without a chat template.
    """
    library = require("transformers", "models")
    folder = resolve(settings.model, settings.revision)
    arguments = loading_arguments()
    arguments.pop("use_safetensors")
    with opening(settings.model):
        kind = library.AutoConfig.from_pretrained(str(folder), **arguments).model_type
        processor = library.AutoProcessor.from_pretrained(str(folder), **arguments)
    if getattr(processor, "tokenizer", None) is None or not getattr(processor, "chat_template", None):
        raise ModelError(f"{settings.model}: {type(processor).__name__} has no chat template, so it cannot be asked")
    stock = library.Qwen2_5OmniThinkerForConditionalGeneration if kind in _THINKERS else chat_class(folder)
    model = load_pretrained(stock, folder, settings.model, device, pick_dtype(settings.dtype, device))
    if settings.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return adapted(model, settings, seed), processor


_IN_ORDER = 256  # rows of a process that are opened by one decoder, which reads ahead


def run(job: TrainingRun) -> Perplexity:
    """Train on the job's blend and judge its validation pairs; every process of a launch calls it.

    Pairs go through the model one at a time, without padding, so that none depends on its neighbours; a step's
    gradients add up over ``pairs`` of them and over the processes, each token weighing the same.

    Raises:
        UserError: processes that do not divide a step's pairs, a validation pair that cannot be shown, or a blend of
            which none can.
    """
    settings = job.settings
    accelerate = require("accelerate", "models")
    accelerator = accelerate.Accelerator(cpu=settings.device == "cpu")
    processes = accelerator.num_processes
    if settings.processes not in (None, processes):
        raise UserError(f"downstream: {settings.processes} processes were asked for, and {processes} are at work")
    if settings.pairs % processes:
        raise UserError(f"downstream: {settings.pairs} pairs of a step do not divide among {processes} processes")
    started = time.perf_counter()
    torch.manual_seed(job.seed)  # of the adapter's dropout, which knows the global generator alone
    model, processor = load(settings, str(accelerator.device), job.seed)
    reader = Reader(processor, model.get_base_model(), settings.prompt, settings.longest, settings.longest_data)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    model, optimiser = accelerator.prepare(model, optimiser)
    descent = Descent(optimiser, learnt, settings.steps, accelerator.clip_grad_norm_)
    shown = Shown(job, reader)
    examples = shown.endlessly(accelerator.process_index, processes)
    judged_at = evaluation_steps(settings.steps, settings.evaluations)
    values, tokens, seen, judged = [], [], 0, 0
    for step in range(1, settings.steps + 1):
        batch = list(islice(examples, settings.pairs // processes))
        count = _summed(accelerator, sum(len(example.targets) for example in batch))
        model.train()
        for number, example in enumerate(batch, 1):
            # Gradients are exchanged once, with the last pair's.
            with accelerator.no_sync(model) if number < len(batch) else nullcontext():
                # Of the mean over processes that the exchange takes, a sum is to be left.
                accelerator.backward(loss(model, example, accelerator.device) * (processes / count))
        descent.step()
        seen += round(count)
        if step in judged_at:
            total, judged = _judge(model, accelerator, shown)
            values.append(math.exp(total / judged))
            tokens.append(seen)
    return Perplexity(
        steps=judged_at,
        values=tuple(values),
        tokens=tuple(tokens),
        seconds=time.perf_counter() - started,
        judged=judged,
        skipped=job.skipped + len(set(accelerate.utils.gather_object(sorted(shown.failed)))),
    )


def loss(model: Any, example: Example, device: torch.device) -> torch.Tensor:
    """Return the sum of the negative log-likelihoods of the annotation's tokens, in nats, computed in float32."""
    inputs = {key: value.to(device) for key, value in example.inputs.items()}
    logits = model(**inputs, use_cache=False).logits[0, -len(example.targets) - 1 : -1]
    return F.cross_entropy(logits.float(), example.targets.to(device), reduction="sum")


def _judge(model: Any, accelerator: Any, shown: Shown) -> tuple[float, int]:
    """Return the validation pairs' summed negative log-likelihood and their tokens, over all processes."""
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for example in shown.validation(accelerator.process_index, accelerator.num_processes):
            total += float(loss(model, example, accelerator.device))
            count += len(example.targets)
    return _summed(accelerator, total), round(_summed(accelerator, count))


def _summed(accelerator: Any, value: float) -> float:
    """Return the sum of a number over all processes."""
    own = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    return float(accelerator.reduce(own, reduction="sum"))


@dataclass
class Shown:
    """The job's pairs as examples, media decoded ahead.

    Attributes:
        failed: rows of the blend that could not be shown.
    """

    job: TrainingRun
    reader: Reader
    failed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._frame = frames.from_table(self.job.table)
        self._modality = [str(one) for one in frames.strings(self._frame, MODALITY)]
        self._annotations = [str(one) for one in frames.strings(self._frame, ANNOTATION)]

    def endlessly(self, process: int, processes: int) -> Iterator[Example]:
        """Yield the blend's pairs over and over, shuffled, modalities evenly mixed; this process's share of them."""
        generator = torch.Generator().manual_seed(self.job.seed)
        blend = torch.tensor(self.job.blend)
        modality = codes(self._modality, len(self._modality), "cpu")
        passes = balanced_batches(modality, blend, len(blend), generator)
        order = islice((int(row) for once in passes for row in once), process, None, processes)
        while True:
            for row, example in self._examples([row for row in islice(order, _IN_ORDER) if row not in self.failed]):
                if isinstance(example, Example):
                    yield example
                    continue
                self.failed.add(row)
                if len(self.failed) == len(set(self.job.blend)):
                    raise UserError(f"downstream: no pair of the blend can be shown; the last one: {example}")

    def validation(self, process: int, processes: int) -> Iterator[Example]:
        """Yield this process's share of the validation pairs.

        Raises:
            UserError: one that cannot be shown: others would be judged by other pairs.
        """
        for row, example in self._examples(self.job.validation[process::processes]):
            if not isinstance(example, Example):
                name = frames.strings(self._frame, PAIR_ID)[row]
                raise UserError(f"downstream: validation pair {name!r} cannot be shown: {example}")
            yield example

    def _examples(self, rows: list[int]) -> Iterator[tuple[int, Example | PairError]]:
        by_class = by_value([self._modality[row] for row in rows])
        opener, threads = Opener(self.job.media), self.job.media.threads
        decoded = {
            name: iter_class(self._frame, name, [rows[place] for place in own], opener, threads)
            for name, own in by_class.items()
        }
        for row in rows:
            item = next(decoded[self._modality[row]])
            try:
                if isinstance(item, PairError):
                    raise item
                yield row, self.reader(item, self._modality[row], self._annotations[row])
            except PairError as error:
                yield row, error
