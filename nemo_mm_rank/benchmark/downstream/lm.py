"""LoRA fine-tuning of a language model that reads the data in words: the same steps and tokens for every strategy."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from nemo_mm_rank.benchmark.downstream.perplexity import Descent, Perplexity, evaluation_steps
from nemo_mm_rank.benchmark.downstream.rows import usable
from nemo_mm_rank.benchmark.downstream.settings import LMSettings
from nemo_mm_rank.benchmark.downstream.small import alike, training_rows
from nemo_mm_rank.benchmark.downstream.words import Words
from nemo_mm_rank.errors import ModelError, UserError, require
from nemo_mm_rank.models.loader import pick_device
from nemo_mm_rank.models.lora import adapted
from nemo_mm_rank.models.weights import load_pretrained, loading_arguments, opening, pick_dtype, resolve
from nemo_mm_rank.vectors import threads

_AT_ONCE = 768
"""Tokens that go through the model together, data and annotations."""
_NOT_ASKED = -100


def train_lm(
    words: Words,
    annotations: Sequence[str | None],
    blend_rows: Sequence[int],
    validation_rows: Sequence[int],
    settings: LMSettings,
    seed: int,
) -> Perplexity:
    """Fine-tune the language model on a blend and judge it on the validation pairs.

    Equal arguments give equal values, on one machine with one number of threads. Strategies compared under one seed
    start from the same adapter, and learn from the same number of annotation tokens at every step.

    Args:
        words: of all rows that are spoken of.
        annotations: as they are to be learnt (trimmed, say), row by row as ``words``.
        blend_rows: which rows to learn from.
        validation_rows: which rows to judge; none that is learnt from.
        settings: model, adapter, optimiser, number of steps and tokens.
        seed: of the adapter's weights, batches and dropout.

    Raises:
        UserError: no usable pair to learn from or to judge, validation pairs in the blend, or one that cannot be put
            in words.
    """
    started = time.perf_counter()
    usable_rows, validation, skipped = usable(annotations, blend_rows, validation_rows)
    blend = [row for row in usable_rows if words.words[row] is not None]
    if not blend:
        raise UserError(
            f"downstream: no pair of the blend can be described in words: {words.failed.get(usable_rows[0])}"
        )
    if silent := [row for row in validation if words.words[row] is None]:
        pair_ids = [pair_id for part in words.parts.values() for pair_id in part]
        raise UserError(
            f"downstream: validation pair {pair_ids[silent[0]]!r} cannot be described in words: "
            f"{words.failed.get(silent[0])}"
        )
    rows = [*blend, *validation]
    learnt, judged = torch.arange(len(blend)), torch.arange(len(blend), len(rows))
    judged_at = evaluation_steps(settings.steps, settings.evaluations)
    with threads(settings.threads), torch.random.fork_rng():
        torch.manual_seed(seed)  # of the adapter's dropout, which knows the global generator alone
        model, tokenizer = load(settings, seed)
        written = Written.of(words, annotations, rows, tokenizer, settings)
        values = tuple(
            perplexity(model, written, judged)
            for step in learn(model, written, words.codes(rows), learnt, settings, seed)
            if step in judged_at
        )
    judged_tokens = int(written.lengths[judged].sum())
    return Perplexity.after(settings, values, started, judged_tokens, skipped + len(usable_rows) - len(blend))


def load(settings: LMSettings, seed: int) -> tuple[Any, Any]:
    """Return the model with a new adapter (see `lora.adapted`), and its tokenizer.

    Raises:
        ModelError: no such model, weights that are pickles or incomplete, or a tokenizer that knows no end of a text.
    """
    library = require("transformers", "models")
    folder = resolve(settings.path, settings.revision)
    arguments = loading_arguments()
    arguments.pop("use_safetensors")
    with opening(settings.path):
        tokenizer = library.AutoTokenizer.from_pretrained(str(folder), **arguments)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{settings.path}: its tokenizer has no token for the end of a text")
    device = pick_device(settings.device)
    model = load_pretrained(
        library.AutoModelForCausalLM, folder, settings.path, device, pick_dtype(settings.dtype, device)
    )
    return adapted(model, settings, seed), tokenizer


@dataclass(frozen=True)
class Written:
    """Pairs as the model's tokens.

    Attributes:
        asked: of each row, ``(p,)`` int64: its data in words, in the prompt.
        answers: of each row, ``(m,)`` int64: its annotation and the end.
    """

    asked: list[torch.Tensor]
    answers: list[torch.Tensor]

    @classmethod
    def of(
        cls,
        words: Words,
        annotations: Sequence[str | None],
        rows: Sequence[int],
        tokenizer: Any,
        settings: LMSettings,
    ) -> Written:
        """Return some rows as tokens. A text that spells one of the model's marks is read as text."""
        asked, answers = [], []
        for row in rows:
            data = (words.words[row] or "")[: settings.longest_data]
            kind = " and ".join(words.modality[row].split("+"))
            prompt = settings.prompt.replace("{modality}", kind).replace("{data}", data)
            asked.append(torch.tensor(tokenizer(prompt, split_special_tokens=True)["input_ids"]))
            text = tokenizer(annotations[row] or "", add_special_tokens=False, split_special_tokens=True)["input_ids"]
            answers.append(torch.tensor([*text, tokenizer.eos_token_id][: settings.longest]))
        return cls(asked, answers)

    @property
    def lengths(self) -> torch.Tensor:
        """``(n,)`` int64: tokens of each annotation."""
        return torch.tensor([len(answer) for answer in self.answers])

    def batches(
        self, rows: torch.Tensor, wanted: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield ``rows`` in batches of like length, of each the first ``wanted`` tokens of its annotation.

        Yields:
            ``(b, t)`` ids and their mask, padded on the left, and ``(b, m)`` targets: the last ``m`` of the ids, and
            `_NOT_ASKED` where they are not the annotation's.
        """
        whole = torch.tensor([len(self.asked[row]) for row in rows.tolist()]) + wanted
        for own in alike(whole, _AT_ONCE):
            answers = [
                self.answers[row][:count] for row, count in zip(rows[own].tolist(), wanted[own].tolist(), strict=True)
            ]
            read = [
                torch.cat([self.asked[row], answer]) for row, answer in zip(rows[own].tolist(), answers, strict=True)
            ]
            ids = pad_sequence(read, batch_first=True, padding_side="left")
            there = pad_sequence([torch.ones_like(one) for one in read], batch_first=True, padding_side="left")
            targets = pad_sequence(answers, batch_first=True, padding_value=_NOT_ASKED, padding_side="left")
            yield ids, there, targets


def learn(
    model: Any, written: Written, modality: torch.Tensor, rows: torch.Tensor, settings: LMSettings, seed: int
) -> Iterator[int]:
    """Yield the number of every step after it, while ``model`` learns.

    Args:
        model: with an adapter.
        written: all rows.
        modality: ``(n,)`` int64 codes of all rows.
        rows: ``(k,)`` int64, which to learn from.
        settings: optimiser, number of steps and tokens.
        seed: of the batches.
    """
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    descent = Descent(optimiser, learnt, settings.steps)
    order = torch.Generator().manual_seed(seed)
    steps = training_rows(written.lengths, modality, rows, settings.tokens, order)
    for step, (chosen, wanted) in zip(range(1, settings.steps + 1), steps, strict=False):
        model.train()
        for batch in written.batches(chosen, wanted):
            (loss(model, *batch) / settings.tokens).backward()  # type: ignore[no-untyped-call]
        descent.step()
        yield step


def perplexity(model: Any, written: Written, rows: torch.Tensor) -> float:
    """Return ``exp`` of the mean negative log-likelihood over all annotation tokens of ``rows``."""
    model.eval()
    lengths = written.lengths[rows]
    with torch.inference_mode():
        total = sum(float(loss(model, *batch)) for batch in written.batches(rows, lengths))
    return math.exp(total / int(lengths.sum()))


def loss(model: Any, ids: torch.Tensor, there: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of the negative log-likelihoods of the targets, in nats, computed in float32.

    Args:
        model: a causal language model.
        ids: ``(b, t)`` int64, padded on the left.
        there: ``(b, t)`` int64, 0 where there is padding.
        targets: ``(b, m)`` int64, the last of the ids; `_NOT_ASKED` where nothing is asked.
    """
    m = targets.shape[1]
    own = {"position_ids": (there.cumsum(1) - 1).clamp(min=0), "logits_to_keep": m + 1}
    taken = inspect.signature(model.get_base_model().forward).parameters
    given = {key: value for key, value in own.items() if key in taken}
    inputs = {"input_ids": ids, "attention_mask": there, **given}
    on = {key: value.to(model.device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    logits = model(**on, use_cache=False).logits[:, -m - 1 : -1]
    return F.cross_entropy(logits.float().flatten(0, 1), targets.to(model.device).flatten(), reduction="sum")
