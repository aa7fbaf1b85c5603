"""Where in media a phrase is spoken of: by parts that are embedded, by Grounding DINO, by moment retrieval."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError, nearest
from nemo_mm_rank.media.encode import wav
from nemo_mm_rank.media.segment import Audio, Item, Segment, Video
from nemo_mm_rank.modality import Medium, media_names, of
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoded, Encoder, Grounded, attempt, support, usable
from nemo_mm_rank.models.batching import EqualShapes, Features, ahead, gathered, padded_lengths
from nemo_mm_rank.models.hub import HubModel
from nemo_mm_rank.models.weights import PICKLES
from nemo_mm_rank.models.windows import as_images
from nemo_mm_rank.schema import Modality

PARTS_AT_ONCE, BYTES_AT_ONCE = 256, 128 * 2**20
"""Parts in one call of the encoder: at most this many, and no more once their pixels or samples weigh this much."""


class PartsGrounder:
    """Scores regions of images and windows of audio and video against phrases by one encoder's similarity.

    Regions are the squares, in cells, of every size on a ``grid x grid`` division of the image, the whole included
    (14 for 3 x 3). Windows are ``window`` seconds long and overlap by half; the last one ends with the recording.

    Args:
        encoder: embeds text and the media into one space.
        grid: cells a side.
        window: seconds; a shorter recording is one window.
        max_windows: in a recording that would have more, windows are longer instead.

    Raises:
        ModelError: the encoder takes no text, or nothing else.
    """

    def __init__(self, encoder: Encoder, grid: int = 3, window: float = 2.0, max_windows: int = 64) -> None:
        support(encoder, Modality.TEXT)
        self.name = f"parts of {encoder.name}"
        self.revision = encoder.revision
        cuttable = (name for name in media_names() if name in encoder.modalities and of(name).parts is not None)
        self.modalities = frozenset(cuttable)
        if not self.modalities:
            raise ModelError(f"{encoder.name} takes no media, so it cannot find what a phrase refers to")
        self._encoder = encoder
        self._grid = grid
        self._window = window
        self._max_windows = max_windows

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        """Score each item's parts against its own phrases.

        All parts of all items are embedded in as few calls as their number allows, and each distinct phrase once. A
        part or a phrase that has no embedding has scores of NaN. An item none of whose parts, or none of whose
        phrases, has one fails.

        Args:
            items: ``n`` images, recordings or videos.
            phrases: for each item, what to look for.
            modality: of the items.
        """
        support(self, modality)
        segments = [_segment(item) for item in items]
        candidates = [self._candidates(segment, of(modality)) for segment in segments]
        parts = self._embed_parts(segments, candidates, modality)
        distinct = {phrase: row for row, phrase in enumerate(dict.fromkeys(p for own in phrases for p in own))}
        words = usable(self._encoder.encode(list(distinct), Modality.TEXT), self._encoder, len(distinct))
        grounded: list[Grounded | PairError] = []
        first = 0
        for spans, own in zip(candidates, phrases, strict=True):
            rows, columns = range(first, first + len(spans)), [distinct[phrase] for phrase in own]
            first += len(spans)
            if error := _fault(parts, rows) or _fault(words, columns):
                grounded.append(error)
                continue
            # A copy, because the last bits of a product depend on where in memory its rows lie.
            scores = parts.vectors[rows.start : rows.stop].clone() @ words.vectors[columns].T
            grounded.append(Grounded(torch.tensor(spans, dtype=torch.float64), scores))
        return grounded

    def _candidates(self, segment: Segment, medium: Medium) -> list[tuple[float, ...]]:
        first, second = medium.extent(segment)
        if medium.parts == "boxes":
            return [*regions(int(first), int(second), self._grid)]
        return [*windows(first, second, self._window, self._max_windows)]

    def _embed_parts(
        self, segments: Sequence[Segment], candidates: Sequence[Sequence[tuple[float, ...]]], modality: str
    ) -> Encoded:
        vectors = [torch.empty((0, self._encoder.dim))]
        errors: dict[int, PairError] = {}
        done = 0
        cut = of(modality).cut
        parts = (cut(segment, [span]) for segment, spans in zip(segments, candidates, strict=True) for span in spans)
        for chunk in gathered(parts, lambda part: part.nbytes, PARTS_AT_ONCE, BYTES_AT_ONCE):
            encoded = usable(self._encoder.encode(chunk, modality), self._encoder, len(chunk))
            vectors.append(encoded.vectors)
            errors.update({done + row: error for row, error in encoded.errors.items()})
            done += len(chunk)
        return Encoded(torch.cat(vectors[1:] or vectors), errors)


def _segment(item: Item) -> Segment:
    if isinstance(item, str):
        raise ModelError("media were expected, not text")
    return item


def regions(width: int, height: int, grid: int) -> Iterator[tuple[float, ...]]:
    """Yield the squares of every size, in cells of a ``grid x grid`` division, as ``(x, y, w, h)`` whole pixels.

    Smaller ones first; none without a pixel, none twice.
    """
    across = [round(width * cell / grid) for cell in range(grid + 1)]
    down = [round(height * cell / grid) for cell in range(grid + 1)]
    boxes = {
        (across[x], down[y], across[x + size] - across[x], down[y + size] - down[y]): None
        for size in range(1, grid + 1)
        for y in range(grid - size + 1)
        for x in range(grid - size + 1)
    }
    yield from ((float(x), float(y), float(w), float(h)) for x, y, w, h in boxes if w and h)


def windows(start: float, end: float, length: float, most: int) -> Iterator[tuple[float, ...]]:
    """Yield windows ``(start, end)`` in seconds: ``length`` long, overlapping by half, the last flush with the end.

    Where that were more than ``most``, they are as much longer as it takes.
    """
    length = max(length, 2 * (end - start) / (most + 1))
    # A rounding error is no reason for one more window.
    steps = math.ceil(round((end - start - length) / (length / 2), 6))
    if steps < 1:
        yield start, end
        return
    for step in range(steps):
        yield start + step * length / 2, start + step * length / 2 + length
    yield end - length, end


def _fault(encoded: Encoded, rows: Sequence[int]) -> PairError | None:
    """Return the first error of ``rows`` where all of them (and there are any) have failed."""
    if rows and all(row in encoded.errors for row in rows):
        return EmbeddingError(f"there is nothing to compare: {encoded.errors[rows[0]]}")
    return None


SEPARATORS = re.compile(r"[.?]+")
"""What parts one phrase from the next: the model lets the words of a phrase see each other, and no others."""


@dataclass(frozen=True)
class _Pass:
    """One look at an image, for some or all of its phrases.

    Attributes:
        item: which image.
        tokens: of the phrases, each ended by a full stop.
        places: phrase -> the positions of its tokens, first and behind the last.
    """

    item: int
    tokens: list[int]
    places: dict[int, tuple[int, int]]


@dataclass(eq=False)
class GroundingDinoGrounder(HubModel):
    """Finds the boxes that phrases speak of, all phrases of an image in one pass (more only where they are too many).

    A box's score for a phrase is the largest probability of any of the phrase's tokens, as in the library's own
    post-processing, here phrase by phrase. A box is kept where its best phrase reaches ``threshold``.

    Only images and texts of equal shape share a batch, so that boxes do not depend on the batch (`equal_shapes`);
    texts are padded to a few lengths.

    Args:
        dtype: default: ``float32``, everywhere. Half precision moves boxes by some pixels.
        threshold: least score of a box.
        batch_size: images of a batch; default: 2 on a CPU, 8 (or what the memory allows) elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.
    """

    dtype: str | None = "float32"
    threshold: float = 0.3
    batch_size: int | None = None

    modalities = frozenset({Modality.IMAGE})

    def __post_init__(self) -> None:
        """Load the model."""
        super().__post_init__()
        processor = self._load_processor(self._library.AutoProcessor)
        if not isinstance(processor, self._library.GroundingDinoProcessor):
            raise ModelError(f"{self.path}: {type(processor).__name__} is not Grounding DINO's")
        self._images: Any = processor.image_processor
        self._tokenizer: Any = processor.tokenizer
        self._model = self._load(self._library.GroundingDinoForObjectDetection)
        self._longest = min(self._model.config.max_text_len, self._tokenizer.model_max_length)
        self._stop = self._tokenizer.convert_tokens_to_ids(".")
        self._batch_rows = self._rows(2, 8)
        self._batches: EqualShapes[tuple[torch.Tensor, torch.Tensor]] = EqualShapes(
            self._detect, self._model, self._batch_rows
        )

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        """Find what each image's own phrases speak of; ``spans`` are what was ``found``, and may be none.

        A phrase without a word that the tokenizer knows has scores of NaN, as has one of another pass over the same
        image.

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
                sizes[row] = as_images(item)[0].size
            except PairError as error:
                results[row] = error
            else:
                looks.extend(self._passes(row, own))
        seen = self._batches(ahead(partial(self._prepare, items), looks, 1, 2 * self._batch_rows))
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
        image = self._images(images=as_images(items[look.item]), return_tensors="pt")
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
            boxes: ``(q, 4)`` centre x, centre y, width and height, as shares of the image's.
            tokens: ``(q, t)`` probability that a box shows what a token is part of.
            size: width and height of the image in pixels.
        """
        scores = torch.full((len(boxes), so_far.scores.shape[1]), float("nan"))
        for phrase, (first, end) in look.places.items():
            scores[:, phrase] = tokens[:, first:end].amax(dim=1)
        kept = scores.nan_to_num(-1).amax(dim=1) >= self.threshold
        x, y, w, h = (boxes[kept].double() * torch.tensor(size * 2)).unbind(dim=1)
        spans = torch.stack([x - w / 2, y - h / 2, w, h], dim=1)
        return Grounded(torch.cat([so_far.spans, spans]), torch.cat([so_far.scores, scores[kept]]), found=True)


PICKLE_ENDINGS = tuple(pattern.removeprefix("*") for pattern in PICKLES)


class MomentRetriever(Protocol):
    """What is used of a predictor of lighthouse 1.1 (https://github.com/line/lighthouse).

    One of ``encode_audio(path)`` and ``encode_video(path)``, whose result ``predict`` takes.
    """

    def predict(self, query: str, inputs: Any) -> Mapping[str, Any] | None:
        """Return ``pred_relevant_windows``: ``[start, end, score]`` in seconds of the file; None for none."""
        ...


class MomentGrounder:
    """Finds the moments of recordings that phrases speak of.

    The interface takes a file and one query at a time: a recording is encoded once, and asked for each of its phrases.
    Audio goes in as WAV. A video goes in as the frames that were sampled of it, without loss, which is what features
    of a frame every other second need (``clip``); features of motion (``slowfast``) would need more than there are.

    Args:
        predictor: import path of its class, such as ``lighthouse.models:CGDETRPredictor``.
        arguments: the class's own, without ``device``.
        modality: ``audio`` or ``video``.
        name: what the configuration calls it; default: ``predictor``.
        device: where it runs.
        threshold: least score of a moment.
        max_seconds: a longer recording has an error; lighthouse's models end at 150.
        allow_pickle: open checkpoints that are pickles, as lighthouse's are. They can run code: only where you trust
            whoever made them.

    Raises:
        ModelError: a checkpoint that is a pickle, or a class without that interface.
    """

    modalities: frozenset[str] = frozenset({Modality.AUDIO, Modality.VIDEO})
    """What the class can take; an instance, the one that it is told."""

    def __init__(
        self,
        predictor: str,
        arguments: Mapping[str, Any],
        modality: str,
        name: str | None = None,
        device: str = "cpu",
        threshold: float = 0.5,
        max_seconds: float = 150.0,
        allow_pickle: bool = False,
    ) -> None:
        if modality not in self.modalities:
            takes = sorted(self.modalities)
            raise ModelError(f"modality is audio or video, not {modality!r}{nearest(modality, takes)}")
        self.name = name or predictor
        self.modalities = frozenset({modality})
        self.revision = self.revision_of(arguments)
        for key, value in arguments.items():
            if not allow_pickle and isinstance(value, str) and value.endswith(PICKLE_ENDINGS):
                raise ModelError(f"{self.name}: {key} is a pickle, which can run code: allow_pickle says that it may")
        self._threshold = threshold
        self._max_seconds = max_seconds
        self._retriever: MomentRetriever = loader.find_class(predictor)(**{"device": device, **arguments})
        self._encode: Any = getattr(self._retriever, f"encode_{modality}", None)
        for method in (f"encode_{modality}", "predict"):
            if not callable(getattr(self._retriever, method, None)):
                raise ModelError(f"{predictor} has no {method}()")

    @staticmethod
    def revision_of(arguments: Mapping[str, Any], **_: Any) -> str:
        """Return a digest of the files that the arguments name."""
        digest = hashlib.sha256()
        for key, value in sorted(arguments.items()):
            if isinstance(value, str) and Path(value).is_file():
                with Path(value).open("rb") as file:
                    digest.update(f"{key} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()[:16]

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        """Find the moments; ``spans`` are what was ``found``, in seconds of the recording, and may be none.

        Raises:
            ModelError: a modality that it was not made for.
        """
        support(self, modality)
        found, errors = attempt(self._ground, enumerate(zip(items, phrases, strict=True)))
        return [errors[row] if row in errors else found[row] for row in range(len(items))]

    def _ground(self, asked: tuple[Item, Sequence[str]]) -> Grounded:
        item, phrases = asked
        if not isinstance(item, Audio | Video):
            raise ModelError(f"audio or a video is expected, not {type(item).__name__}")
        if item.duration > self._max_seconds:
            raise EmbeddingError(f"{item.duration:,.0f} s are more than {self.name} takes ({self._max_seconds:,.0f})")
        spans: list[list[float]] = []
        scores: list[list[float]] = []
        with TemporaryDirectory(prefix="moments-") as folder:
            if isinstance(item, Audio):
                path, start = Path(folder) / "sound.wav", item.start
                path.write_bytes(wav(item.samples, item.rate))
            else:
                path = Path(folder) / "video.mkv"
                start = _write_video(path, item)
            inputs = self._encode(str(path))
            for number, phrase in enumerate(phrases):
                found = (self._retriever.predict(phrase, inputs) or {}).get("pred_relevant_windows", [])
                for first, last, score in found:
                    begin, end = max(0.0, float(first)), min(float(last), item.duration)
                    if score >= self._threshold and begin < end:
                        spans.append([start + begin, start + end])
                        scores.append(
                            [float(score) if other == number else float("nan") for other in range(len(phrases))]
                        )
        return Grounded(
            torch.tensor(spans, dtype=torch.float64).reshape(-1, 2),
            torch.tensor(scores).reshape(len(spans), len(phrases)),
            found=True,
        )


def _write_video(path: Path, video: Video) -> float:
    """Write the frames of ``video`` at their pace, without loss; return the second that the file begins at."""
    import av

    count = len(video.frames)
    step = (video.times[-1] - video.times[0]) / (count - 1) if count > 1 else video.duration
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(1 / step).limit_denominator(1000))
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return max(0.0, float(video.times[0] - step / 2))
