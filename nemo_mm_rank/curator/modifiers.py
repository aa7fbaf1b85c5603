"""Modifiers for Curator scripts made of ``Modify``: trimming without a stage of ours.

Curator hands a modifier one row at a time and has no place for what failed: what cannot be judged stays as it is, with
a warning in the log. `SNSStage` trims whole batches at a time, and keeps the reasons.

``Modify`` has no set-up of its own, so models load with the first row, once per process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from loguru import logger
from nemo_curator.stages.text.modifiers import DocumentModifier

from nemo_mm_rank import frames, schema
from nemo_mm_rank.config import CLASSICAL_EXPERTS, MediaSettings, ModelSpec, SNSSettings, parse
from nemo_mm_rank.curator.stages import Experts, Models, checked, classical_models
from nemo_mm_rank.errors import ConfigError, MissingColumnError, UserError, nearest
from nemo_mm_rank.media.rows import annotation_text
from nemo_mm_rank.sns.step import SNSStep

Output = Literal["annotation", "sns_annotation_spans", "sns_data_spans", "sns_reason"]

_READ = (schema.MODALITY, schema.DATA, schema.ANNOTATION, schema.MEDIA_ROOT)


def _value(value: Any) -> Any:
    """Return a value of a pandas row, None for pandas' several words for nothing."""
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value


def _trimmed(step: SNSStep, row: Mapping[str, str | None]) -> dict[str, Any]:
    """Put one pair through ``step``; return its columns by name."""
    table = pa.table({name: pa.array([row.get(name)], pa.string()) for name in (*schema.CANONICAL, schema.MEDIA_ROOT)})
    columns: dict[str, Any] = frames.to_table(step(frames.from_table(table))).to_pylist()[0]
    if columns[schema.ERROR] is not None:
        logger.warning(f"left as it is: {columns[schema.ERROR]}")
        columns[schema.SNS_REASON] = columns[schema.ERROR]
    return columns


class SNSModifier(DocumentModifier):
    """Trims pairs, for ``Modify(SNSModifier(...), input_fields=[[...]], output_fields=...)``.

    Reads ``modality``, ``data``, ``annotation`` and, for media, ``media_root``: these are the input fields.

    Args:
        sns: which side, and how boldly.
        output: what to return: the annotation as it is trimmed, the spans kept of it or of the data (None: the whole),
            or the reason in words.
        fields: names of the input fields where they are not ours: ours -> yours.
        experts: see `SNSStage`.
        models: see `SNSStage`.
        media: how media are opened.

    Raises:
        ConfigError: settings that cannot be meant.
    """

    def __init__(
        self,
        sns: SNSSettings | Mapping[str, Any],
        output: Output = "annotation",
        fields: Mapping[str, str] | None = None,
        experts: Experts = CLASSICAL_EXPERTS,
        models: Models | None = None,
        media: MediaSettings | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        outputs = (schema.ANNOTATION, schema.ANNOTATION_SPANS, schema.DATA_SPANS, schema.SNS_REASON)
        if output not in outputs:
            raise ConfigError(f"SNSModifier: there is no output {output!r}{nearest(output, outputs)}")
        for ours in fields or {}:
            if ours not in _READ:
                raise ConfigError(f"SNSModifier: there is no field {ours!r}{nearest(ours, _READ)}")
        models = classical_models() if models is None else models
        config = checked(sns=sns, experts=experts, models=models, media=media or {}, anchor=next(iter(models), ""))
        self._output: str = output
        self._ours = {(fields or {}).get(name, name): name for name in _READ}
        self._step = SNSStep(config.sns, config.sns_expert, config.models, config.media)

    def modify_document(self, **values: Any) -> Any:
        """Return the output for one pair, given as keyword arguments by the names of its columns.

        Raises:
            MissingColumnError: a field that it reads is not among the input fields, or one that it does not read is.
        """
        for name in values:
            if name not in self._ours:
                raise MissingColumnError(f"SNSModifier reads no field {name!r}{nearest(name, self._ours)}")
        missing = [name for name, ours in self._ours.items() if name not in values and ours != schema.MEDIA_ROOT]
        if missing:
            raise MissingColumnError(f"SNSModifier: the input fields lack {', '.join(map(repr, missing))}")
        row = {self._ours[name]: _value(value) for name, value in values.items()}
        columns = _trimmed(self._step, row)
        if self._output != schema.ANNOTATION:
            return columns[self._output]
        return _kept(row[schema.ANNOTATION], columns, self._step)


class AnnotationSentenceModifier(DocumentModifier):
    """Keeps the sentences of a text that fit another text: backward SNS on one field.

    The other text is an objective, the same for all, or a field beside it that says what the data are: a description,
    a transcript, a title. So nothing of the data itself is opened.

    ``Modify(AnnotationSentenceModifier(objective="..."), input_fields="caption")`` or
    ``Modify(AnnotationSentenceModifier(against="description"), [["annotation", "description"]], "annotation")``.

    Args:
        objective: what sentences have to fit.
        against: or the field with what they have to fit.
        annotation: the field that is trimmed, where there are two.
        sns: how boldly; the mode is always ``backward``.
        model: what embeds text.

    Raises:
        ConfigError: not exactly one of ``objective`` and ``against``, or settings that cannot be meant.
    """

    def __init__(
        self,
        objective: str | None = None,
        against: str | None = None,
        annotation: str = schema.ANNOTATION,
        sns: SNSSettings | Mapping[str, Any] | None = None,
        model: ModelSpec | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (objective is None) == (against is None):
            raise ConfigError(
                "AnnotationSentenceModifier: give either an objective or the field that sentences are compared with"
            )
        settings = parse(SNSSettings, sns or {}).model_copy(update={"mode": "backward", "expert": None})
        expert = {"name": "judge", "kind": "text-based", "encoder": "judge"}
        models = {"judge": {"class": "hashed-text"} if model is None else model}
        config = checked(sns=settings, experts=[expert], models=models, anchor="judge")
        self._objective, self._against, self._annotation = objective, against, annotation
        self._step = SNSStep(config.sns, config.sns_expert, config.models, config.media)

    def modify_document(self, text: Any = None, /, **values: Any) -> str | None:
        """Return what is kept of one text: given alone, or with the other by the names of their columns.

        Raises:
            UserError: the input fields are not those that it reads.
        """
        other: Any = self._objective
        if self._against is not None:
            if set(values) != {self._annotation, self._against}:
                raise UserError(
                    f"AnnotationSentenceModifier: the input fields are {self._annotation!r} and {self._against!r}, "
                    f"not {', '.join(map(repr, values)) or 'a single one'}"
                )
            text, other = values[self._annotation], values[self._against]
        elif values:
            raise UserError("AnnotationSentenceModifier: with an objective there is one input field")
        row = {schema.MODALITY: str(schema.Modality.TEXT), schema.DATA: _value(other), schema.ANNOTATION: _value(text)}
        return _kept(row[schema.ANNOTATION], _trimmed(self._step, row), self._step)


def _kept(text: str | None, columns: Mapping[str, Any], step: SNSStep) -> str | None:
    """Return the parts of an annotation that were kept, joined; the whole where nothing was cut."""
    spans = columns[schema.ANNOTATION_SPANS]
    return text if spans is None else annotation_text(text, spans, step.media.max_text_chars)
