"""Between Curator's audio tasks and pairs: into a batch of pairs, and scored one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from nemo_curator.tasks import AudioTask

from nemo_mm_rank.curator.pairs import Bridge, Found, GatheredPairsStage, plain_value
from nemo_mm_rank.curator.scorer import Scorer
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.media.encode import wav
from nemo_mm_rank.schema import AGREEMENT, DATA, DATA_BYTES, DATA_SPANS, ERROR, POOL, SPANS, Modality

AUDIO_FIELDS = {"data": "audio_filepath", "annotation": "text"}


def audio_rows(items: Sequence[Mapping[str, Any]], path: str = "audio_filepath", segments: str | None = None) -> Found:
    """Return entries of audio manifests as rows: the file, or the waveform of an entry without one.

    >>> entry = {"audio_filepath": "a.wav", "text": "Rain.", "parts": [{"start": 1, "end": 2.5}]}
    >>> rows = audio_rows([entry], segments="parts")
    >>> rows.columns["text"], rows.added["sns_data_spans"].to_pylist()
    (['Rain.'], [[[1.0, 2.5]]])

    Args:
        items: what `AudioTask.data` holds; tensors and arrays do not become columns.
        path: the key of the file.
        segments: the key of a list of ``{"start", "end"}`` in seconds: the parts of the recording that count.
    """
    keys = dict.fromkeys(key for item in items for key in item)
    columns: dict[str, Any] = {
        key: [plain_value(item.get(key)) for item in items]
        for key in keys
        if key not in ("waveform", segments) and any(plain_value(item.get(key)) is not None for item in items)
    }
    found = Found(columns)
    content: list[bytes | None] = []
    for row, item in enumerate(items):
        try:
            content.append(_content(item) if plain_value(item.get(path)) is None else None)
        except (MediaError, TypeError, ValueError) as error:
            content.append(None)
            found.faults[row] = ("waveform", "samples and their rate", str(error))
    if any(content):
        columns[DATA_BYTES] = pa.array(content, pa.large_binary())
    if segments is not None:
        spans: list[Any] = []
        for row, item in enumerate(items):
            try:
                spans.append(_spans(item.get(segments)))
            except (KeyError, TypeError, ValueError, OverflowError):
                spans.append(None)
                found.faults[row] = (segments, "a list of {start, end} in seconds", shown(item[segments]))
        found.added[DATA_SPANS] = pa.array(spans, SPANS)
    return found


def _content(item: Mapping[str, Any]) -> bytes | None:
    if item.get("waveform") is None or not item.get("sample_rate"):
        return None
    return wav(np.asarray(item["waveform"], dtype=np.float32), int(item["sample_rate"]))


def _spans(segments: Any) -> list[list[float]] | None:
    if not segments:
        return None
    spans = [[float(segment["start"]), float(segment["end"])] for segment in segments]
    if not all(0 <= start < end < math.inf for start, end in spans):
        raise ValueError
    return sorted(spans)


@dataclass(kw_only=True, repr=False)
class AudioRows(Bridge):
    """How a stage reads audio tasks.

    Args:
        fields: our names -> keys of the task, as in a pool's field map.
        segments: the key of a list of ``{"start", "end"}`` in seconds, the parts of the recording that count; the run
            that scores such pairs trims nothing.
    """

    kind = AudioTask
    modality = Modality.AUDIO

    fields: Mapping[str, str] = field(default_factory=lambda: dict(AUDIO_FIELDS))
    segments: str | None = None

    def _fields(self) -> dict[str, str]:
        return {**AUDIO_FIELDS, **self.fields}

    def rows(self, tasks: Sequence[AudioTask]) -> Found:
        """See `audio_rows`."""
        found = audio_rows([task.data for task in tasks], self._fields()[DATA], self.segments)
        if self._fields().get(POOL, POOL) not in found.columns:
            found.columns[POOL] = [task.dataset_name or None for task in tasks]
        return found


@dataclass(kw_only=True, repr=False)
class AudioPairsStage(AudioRows, GatheredPairsStage):
    """Makes one batch of pairs of many audio tasks: see `PairColumnsStage` for what comes out."""

    name: str = "audio_pairs"


@dataclass(kw_only=True, repr=False)
class AudioScoreStage(AudioRows, Scorer):
    """Writes agreement and score into each audio task, so that `PreserveByValueStage` can choose among them.

    A task that cannot be scored has NaN for a score, which no comparison holds of, and the reason as ``error``; with
    ``quarantine``, it goes.
    """

    name: str = "audio_score"
    batch_size: int = 64

    def process(self, task: AudioTask) -> AudioTask | None:
        """Return ``task`` with its score.

        Raises:
            ConfigError: a task of another kind.
        """
        return self.process_batch([task])[0]

    def process_batch(self, tasks: list[AudioTask]) -> list[AudioTask | None]:
        """Return ``tasks`` with their scores, None for one that went into the quarantine.

        Raises:
            ConfigError: a task of another kind.
        """
        if not tasks:
            return []
        columns = self.scored(tasks).select(dict.fromkeys([AGREEMENT, self.column, ERROR])).to_pydict()
        done: list[AudioTask | None] = []
        for row, task in enumerate(tasks):
            values = {name: column[row] for name, column in columns.items()}
            error = values.pop(ERROR)
            task.data.update({name: math.nan if value is None else value for name, value in values.items()})
            if error is not None:
                task.data[ERROR] = error
            done.append(task if error is None or self.keeps_failed else None)
        return done
