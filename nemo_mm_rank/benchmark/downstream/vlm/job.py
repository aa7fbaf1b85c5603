"""One training run by itself: what it learns from and is judged by, as a folder that other processes can take up."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F

from nemo_mm_rank.benchmark.downstream.rows import Rows, read_rows, usable
from nemo_mm_rank.benchmark.downstream.settings import VLMSettings
from nemo_mm_rank.config import Config, MediaSettings, parse
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.io.files import read_table, write_json, write_table
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.media.segment import Audio, Item, Items, Video
from nemo_mm_rank.modality import of
from nemo_mm_rank.models.batching import Features
from nemo_mm_rank.models.chat_encoder import Content, Sight, content
from nemo_mm_rank.models.windows import as_images, shots
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, DATA_PARTS, DATA_SPANS, MEDIA_ROOT, MODALITY, PAIR_ID

SHOWN = (PAIR_ID, MODALITY, DATA, DATA_BYTES, DATA_PARTS, MEDIA_ROOT, DATA_SPANS)
"""Columns that say what a pair's data is and where it lies."""

_ROWS, _RUN = "rows.parquet", "run.json"


@dataclass(frozen=True)
class Pairs(Rows):
    """Pairs by reference: media are opened when their turn comes.

    Attributes:
        table: the columns `SHOWN`, as far as there are any, of all rows.
        media: how media are opened.
    """

    table: pa.Table
    media: MediaSettings


def read_pairs(
    parts: Mapping[str, ShardStore], settings: VLMSettings, config: Config, folder: Path, engine: Engine
) -> Pairs:
    """Return the pairs of ``parts``, which are not opened; see `downstream.features`."""
    media = config.media
    rows = read_rows(parts, media)
    tables = [shards.table(SHOWN) for shards in parts.values()]
    return Pairs(rows.parts, rows.annotations, pa.concat_tables(tables, promote_options="default"), media)


@dataclass(frozen=True)
class TrainingRun:
    """One training run.

    Attributes:
        table: the columns `SHOWN` and ``annotation``, as it is to be learnt, of the rows below.
        blend: rows to learn from.
        validation: rows to judge.
        settings: model, adapter, optimiser, steps.
        media: how media are opened.
        seed: of the adapter's weights, batches and dropout.
        skipped: rows of the blend without a usable annotation, which are left out.
    """

    table: pa.Table
    blend: list[int]
    validation: list[int]
    settings: VLMSettings
    media: MediaSettings
    seed: int
    skipped: int

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        annotations: Sequence[str | None],
        blend_rows: Sequence[int],
        validation_rows: Sequence[int],
        settings: VLMSettings,
        seed: int,
    ) -> TrainingRun:
        """Return the run on some rows of ``pairs``, with nothing of the others.

        Raises:
            UserError: no usable pair to learn from or to judge, or validation pairs in the blend.
        """
        blend, validation, skipped = usable(annotations, blend_rows, validation_rows)
        places = {row: place for place, row in enumerate(sorted({*blend, *validation}))}
        own = pa.array([annotations[row] for row in places], pa.string())
        return cls(
            pairs.table.take(pa.array(list(places), pa.int64())).append_column(ANNOTATION, own),
            [places[row] for row in blend],
            [places[row] for row in validation],
            settings,
            pairs.media,
            seed,
            skipped,
        )

    def save(self, folder: Path) -> None:
        """Write the job into a folder.

        Raises:
            UserError: the folder is not ours to write.
        """
        folder = Claim("training").make(folder)
        write_table(folder / _ROWS, self.table)
        values = {
            "blend": self.blend,
            "validation": self.validation,
            "settings": self.settings.model_dump(mode="json"),
            "media": self.media.model_dump(mode="json"),
            "seed": self.seed,
            "skipped": self.skipped,
        }
        write_json(folder / _RUN, values)

    @classmethod
    def load(cls, folder: Path) -> TrainingRun:
        """Read a job back."""
        values = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        settings, media = parse(VLMSettings, values.pop("settings")), parse(MediaSettings, values.pop("media"))
        return cls(table=read_table(folder / _ROWS), settings=settings, media=media, **values)


_LINED_UP = "attention_mask"


@dataclass(frozen=True)
class Example:
    """One pair, tokenised.

    Attributes:
        inputs: what the model is called with, a batch of one.
        targets: ``(m,)`` int64, the annotation's tokens and its end: the last of ``input_ids``, and all that counts.
    """

    inputs: Features
    targets: torch.Tensor


class Reader:
    """Makes examples for one model.

    The annotation's tokens are put after the prompt's, rather than both written as one text, so that which tokens are
    the annotation's is beyond doubt. A text that spells one of the model's marks (``<|im_end|>``) is read as text.

    Args:
        processor: of the model.
        model: whose ``forward`` says what it takes; numbers that are not whole are given in its type.
        prompt: follows the data; ``{modality}`` in it is replaced.
        longest: tokens that an annotation is cut to.
        longest_data: characters that a text is cut to.
    """

    def __init__(self, processor: Any, model: Any, prompt: str, longest: int, longest_data: int) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._prompt, self._longest, self._longest_data = prompt, longest, longest_data
        self._taken, self._dtype = set(inspect.signature(model.forward).parameters), model.dtype
        self._marks = re.compile("|".join(map(re.escape, self._tokenizer.get_added_vocab())) or "(?!)")

    def __call__(self, item: Item | Items, modality: str, annotation: str) -> Example:
        """Return the example of one pair, whose data may have several parts.

        Raises:
            PairError: the model cannot be shown its data.
        """
        shown = [self._shown(part) for part in (item if isinstance(item, tuple) else (item,))]
        parts = [part for own, _ in shown for part in own]
        media = {key: value for _, own in shown for key, value in own.items()}
        called = " and ".join(of(kind).word for kind in modality.split("+"))
        asked = {"type": "text", "text": self._prompt.replace("{modality}", called)}
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": [*parts, asked]}], tokenize=False, add_generation_prompt=True
        )
        given = self._processor(text=[chat], return_tensors="pt", **media)
        read = {key: torch.as_tensor(value) for key, value in given.items() if key in self._taken}
        written = self._tokenizer(annotation, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        targets = torch.tensor([*written, self._tokenizer.eos_token_id][: self._longest])
        shape = read["input_ids"].shape
        inputs = {
            key: F.pad(value, (0, len(targets)), value=int(key == _LINED_UP)) if value.shape == shape else value
            for key, value in read.items()
        }
        inputs["input_ids"] = torch.cat([read["input_ids"], targets[None]], dim=1)
        return Example(
            {key: value.to(self._dtype) if value.is_floating_point() else value for key, value in inputs.items()},
            targets,
        )

    def _shown(self, item: Item) -> Content:
        """Return the parts of a message that show ``item``, and the media to put into them.

        Raises:
            PairError: it cannot be shown.
        """
        if isinstance(item, str):
            text = self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", item[: self._longest_data])
            return [{"type": "text", "text": text}], {}
        if isinstance(item, Audio):
            hears = getattr(self._processor, "feature_extractor", None)
            if hears is None:
                raise PairError("the downstream model takes no audio")
            if not len(item.samples):
                raise EmbeddingError("contains no samples")
            return content(item, Sight(), hears.sampling_rate)
        if isinstance(item, Video) and getattr(self._processor, "video_processor", None) is None:
            seen = as_images(item)
            return [{"type": "image", "image": ""}] * len(seen), {"images": seen}
        shots(item)
        return content(item, Sight(), 0)
