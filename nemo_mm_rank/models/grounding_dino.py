"""Grounding DINO, of the transformers library, as a grounder: boxes round what phrases speak of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import ModelError, PairError, require
from nemo_mm_rank.models.base import Grounded, Item
from nemo_mm_rank.models.batches import Features, ahead, padded_lengths
from nemo_mm_rank.models.contract import support
from nemo_mm_rank.models.equal_shapes import EqualShapes
from nemo_mm_rank.models.parts import pictures
from nemo_mm_rank.models.weights import (
    folder_revision,
    load_pretrained,
    loading_arguments,
    opening,
    pick_dtype,
    resolve,
)
from nemo_mm_rank.schema import Modality

SEPARATORS = re.compile(r"[.?]+")
"""What parts one phrase from the next: the model lets the words of a phrase see each other, and no others."""


@dataclass(frozen=True)
class _Pass:
    """One look at a picture, for some or all of its phrases.

    Attributes:
        item: which picture.
        tokens: of the phrases, each ended by a full stop.
        places: phrase -> the positions of its tokens, first and behind the last.
    """

    item: int
    tokens: list[int]
    places: dict[int, tuple[int, int]]


class GroundingDinoGrounder:
    """Finds the boxes that phrases speak of, all phrases of a picture in one pass (more only where they are too many).

    A box's score for a phrase is the largest probability of any of the phrase's tokens, as in the library's own
    post-processing, here phrase by phrase. A box is kept where its best phrase reaches ``threshold``.

    Only pictures and texts of equal shape share a batch, so that boxes do not depend on the batch (`equal_shapes`);
    texts are padded to a few lengths.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        name: what the configuration calls it; default: ``path``.
        device: where it runs.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``. Half precision moves boxes by some pixels.
        threshold: least score of a box.
        batch_size: pictures of a batch; default: 2 on a CPU, 8 (or what the memory allows) elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, or another kind of model.
    """

    modalities: ClassVar[frozenset[str]] = frozenset({Modality.IMAGE})

    def __init__(
        self,
        path: str,
        name: str | None = None,
        device: str = "cpu",
        revision: str | None = None,
        dtype: str = "float32",
        threshold: float = 0.3,
        batch_size: int | None = None,
    ) -> None:
        library = require("transformers", "models")
        folder = resolve(path, revision)
        self.name = name or path
        self.revision = folder_revision(folder)
        self._threshold = threshold
        arguments = loading_arguments()
        arguments.pop("use_safetensors")
        with opening(path):
            processor = library.AutoProcessor.from_pretrained(str(folder), **arguments)
        if not isinstance(processor, library.GroundingDinoProcessor):
            raise ModelError(f"{path}: {type(processor).__name__} is not Grounding DINO's")
        self._images: Any = processor.image_processor
        self._tokenizer: Any = processor.tokenizer
        self._model = load_pretrained(
            library.GroundingDinoForObjectDetection, folder, path, device, pick_dtype(dtype, device)
        )
        self._longest = min(self._model.config.max_text_len, self._tokenizer.model_max_length)
        self._stop = self._tokenizer.convert_tokens_to_ids(".")
        own = 2 if torch.device(device).type == "cpu" else 8
        self._rows = own if batch_size is None else batch_size
        self._batches: EqualShapes[tuple[torch.Tensor, torch.Tensor]] = EqualShapes(
            self._detect, self._model, self._rows
        )

    @staticmethod
    def revision_of(path: str, revision: str | None = None, **_: Any) -> str:
        """Return the revision of the model that these arguments name, without loading it."""
        return folder_revision(resolve(path, revision))

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        """Find what each picture's own phrases speak of; ``spans`` are what was ``found``, and may be none.

        A phrase without a word that the tokenizer knows has scores of NaN, as has one of another pass over the same
        picture.

        Raises:
            ModelError: a modality that is not listed.
        """
        support(self, modality)
        results: list[Grounded | PairError] = []
        looks: list[_Pass] = []
        sizes: dict[int, tuple[int, int]] = {}
        for row, (item, own) in enumerate(zip(items, phrases, strict=True)):
            results.append(Grounded(torch.empty((0, 4), dtype=torch.float64), torch.empty((0, len(own))), found=True))
            try:
                sizes[row] = pictures(item)[0].size
            except PairError as error:
                results[row] = error
            else:
                looks.extend(self._passes(row, own))
        seen = self._batches(ahead(partial(self._prepare, items), looks, 1, 2 * self._rows))
        for look, (boxes, scores) in zip(looks, seen, strict=True):
            so_far = results[look.item]
            if isinstance(so_far, Grounded):
                results[look.item] = self._found(so_far, look, boxes, scores, sizes[look.item])
        return results

    def _passes(self, item: int, phrases: Sequence[str]) -> Iterator[_Pass]:
        """Put phrases together, as many as the model reads at a time."""
        if not phrases:
            return
        plain = [SEPARATORS.sub(" ", phrase.lower()) for phrase in phrases]
        marks = {*self._tokenizer.all_special_ids, self._stop}
        tokens: list[int] = []
        places: dict[int, tuple[int, int]] = {}
        for phrase, ids in enumerate(self._tokenizer(plain, add_special_tokens=False)["input_ids"]):
            own = [token for token in ids if token not in marks][: self._longest - 3]
            if not own:
                continue
            if len(tokens) + len(own) + 3 > self._longest:  # the full stop, and the marks of start and end
                yield _Pass(item, tokens, places)
                tokens, places = [], {}
            places[phrase] = (1 + len(tokens), 1 + len(tokens) + len(own))
            tokens = [*tokens, *own, self._stop]
        if places:
            yield _Pass(item, tokens, places)

    def _prepare(self, items: Sequence[Item], look: _Pass) -> Features:
        image = self._images(images=pictures(items[look.item]), return_tensors="pt")
        text = [self._tokenizer.cls_token_id, *look.tokens, self._tokenizer.sep_token_id]
        ids = torch.tensor([text])
        length = int(padded_lengths(torch.tensor([len(text)]), self._longest)[0])
        padding = (0, length - len(text))
        return {
            "pixel_values": image["pixel_values"],
            "pixel_mask": image["pixel_mask"],
            "input_ids": F.pad(ids, padding, value=self._tokenizer.pad_token_id),
            "attention_mask": F.pad(torch.ones_like(ids), padding),
            "token_type_ids": torch.zeros((1, length), dtype=torch.long),
        }

    def _detect(self, batch: Features) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with torch.inference_mode():
            output = self._model(**batch)
        return list(zip(output.pred_boxes.float().cpu(), output.logits.float().sigmoid().cpu(), strict=True))

    def _found(
        self, so_far: Grounded, look: _Pass, boxes: torch.Tensor, tokens: torch.Tensor, size: tuple[int, int]
    ) -> Grounded:
        """Add what one pass has found.

        Args:
            so_far: what others have.
            look: the pass.
            boxes: ``(q, 4)`` centre x, centre y, width and height, as shares of the picture's.
            tokens: ``(q, t)`` probability that a box shows what a token is part of.
            size: width and height of the picture in pixels.
        """
        scores = torch.full((len(boxes), so_far.scores.shape[1]), float("nan"))
        for phrase, (first, end) in look.places.items():
            scores[:, phrase] = tokens[:, first:end].amax(dim=1)
        kept = scores.nan_to_num(-1).amax(dim=1) >= self._threshold
        x, y, w, h = (boxes[kept].double() * torch.tensor(size * 2)).unbind(dim=1)
        spans = torch.stack([x - w / 2, y - h / 2, w, h], dim=1)
        return Grounded(torch.cat([so_far.spans, spans]), torch.cat([so_far.scores, scores[kept]]), found=True)
