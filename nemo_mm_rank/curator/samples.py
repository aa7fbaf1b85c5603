"""From Curator's tasks of a single image, such as those of its OCR pipeline, to pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from nemo_curator.tasks.image import ImageSampleTask, ImageTaskData

from nemo_mm_rank.curator.pairs import Found, GatheredPairsStage, plain_value
from nemo_mm_rank.schema import ANNOTATION, DATA, PAIR_ID, Modality

_OWN = {"image_path", "image_id", "is_valid", "error"}


def sample_rows(samples: Sequence[ImageTaskData], text: str) -> Found:
    """Return samples as rows: the image's path and a text of the sample; its other simple values become columns.

    >>> from nemo_curator.tasks.ocr import OCRData, OCRDenseItem
    >>> words = [OCRDenseItem(bbox_2d=[0, 0, 9, 9], text_content=word) for word in ("No", "parking")]
    >>> sample_rows([OCRData(image_path="a.jpg", image_id="a", ocr_dense=words)], "ocr_dense").columns["annotation"]
    ['No parking']

    Args:
        samples: what `ImageSampleTask.data` holds.
        text: the attribute with the annotation: a string, a conversation (what the assistant says in it), or a list of
            strings or of OCR's items, which are joined by spaces without those that are marked as not valid.
    """
    columns: dict[str, Any] = {
        PAIR_ID: [plain_value(sample.image_id) for sample in samples],
        DATA: [plain_value(sample.image_path) for sample in samples],
        ANNOTATION: [_said(getattr(sample, text, None)) for sample in samples],
    }
    names = dict.fromkeys(one.name for sample in samples for one in fields(sample))
    for name in names:
        if name not in _OWN and name != text:
            values = [getattr(sample, name, None) for sample in samples]
            if any(isinstance(value, (str, int, float)) for value in values):
                columns[name] = [value if isinstance(value, (str, int, float)) else None for value in values]
    found = Found(columns)
    for row, sample in enumerate(samples):
        if not sample.is_valid or sample.error:
            found.faults[row] = (DATA, "a valid sample", str(sample.error or "one that is marked as not valid"))
    return found


def _said(value: Any) -> str | None:
    """Return the text of an attribute, None where there is none."""
    messages = getattr(value, "conversation", None)
    if isinstance(messages, list):
        parts = [part for message in messages if message.sender == "assistant" for part in message.fragments]
        return "\n".join(part for part in parts if isinstance(part, str)) or None
    if isinstance(value, list):
        texts = [getattr(item, "text_content", item) for item in value if getattr(item, "valid", True)]
        return " ".join(one for one in texts if isinstance(one, str)) or None
    return value if isinstance(value, str) and value else None


@dataclass(kw_only=True, repr=False)
class ImageSamplePairsStage(GatheredPairsStage):
    """Makes one batch of pairs of many samples: see `sample_rows`, and `PairColumnsStage` for what comes out.

    Args:
        text: the sample's attribute that is the annotation.
    """

    kind = ImageSampleTask
    modality = Modality.IMAGE

    name: str = "image_sample_pairs"
    text: str = "ocr_dense"

    def rows(self, tasks: Sequence[ImageSampleTask[Any]]) -> Found:
        """See `sample_rows`."""
        return sample_rows([task.data for task in tasks], self.text)
