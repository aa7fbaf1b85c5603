"""SNS, the Symmetric Nucleus Sub-sampler, as a step: finds what to keep of each pair, and says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.arrays import Vectors
from nemo_mm_rank.config import ExpertSpec, MediaSettings, ModelSpec, SNSSettings
from nemo_mm_rank.errors import PairError, TextError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import file_digest
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import Apart, annotation_texts, by_class, iter_data, take_apart, with_several
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.modality import is_media, modalities_of, of
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoder, Grounder, support
from nemo_mm_rank.models.batching import calls_at_once
from nemo_mm_rank.models.expert import Expert, build
from nemo_mm_rank.models.grounders import PartsGrounder
from nemo_mm_rank.schema import ANNOTATION_SPANS, CANONICAL, DATA_SPANS, SNS_REASON, SPANS, WHERE, Modality
from nemo_mm_rank.sns.decide import AFTER, BEFORE, Decisions
from nemo_mm_rank.sns.parts import Parts, cosines, embed_parts
from nemo_mm_rank.sns.selection import gate
from nemo_mm_rank.sns.sides import Cut, Selector, Side
from nemo_mm_rank.sns.standards import ANNOTATION_SIDE, DATA_SIDE, Standards, key, standards_of
from nemo_mm_rank.sns.trimming import Texts, media_side
from nemo_mm_rank.steps import Added, Step
from nemo_mm_rank.text.phrases import components, load_parser, parser_revision
from nemo_mm_rank.text.split import CharSpan, sentence_spans, text_medium


def together(apart: Apart, sides: Sequence[Side], annotations: Vectors, settings: SNSSettings) -> Side:
    """Return the data side of pairs from those of its parts.

    A part's cut stands where what is left of it passes the gate against the whole annotation, as it would in a pair
    of its own. The data's vector, whole or trimmed, is the mean of those of its parts, normalised; its spans are
    theirs, the number of the part before each (`schema.SPANS`).

    Args:
        apart: what the parts are.
        sides: of each part, ``n`` pairs.
        annotations: ``(n, d)`` float32, of the whole annotations.
        settings: of the gate.
    """
    before = np.stack([cosines(side.whole, annotations) for side in sides])
    after = np.stack([cosines(side.trimmed, annotations) for side in sides])
    stands = gate(before, after, settings.gate_ratio, settings.gate_eps)
    whole = np.stack([side.whole for side in sides])
    trimmed = mean(np.where(stands[..., None], np.stack([side.trimmed for side in sides]), whole))
    trimmed[~stands.any(axis=0)] = np.nan
    errors: dict[int, PairError] = {}
    for number, side in enumerate(sides):
        for row, error in side.errors.items():
            errors.setdefault(row, apart.named(number, error))
    cuts = [_cut(apart, [side.cuts[row] for side in sides], stands[:, row]) for row in range(whole.shape[1])]
    return Side(mean(whole), cuts, trimmed, errors)


def mean(vectors: npt.NDArray[np.float32]) -> Vectors:
    """Return the normalised means over the first dimension: ``(p, n, d)`` -> ``(n, d)``; NaN where one is NaN."""
    sums = vectors.mean(axis=0)
    lengths = np.sqrt(cosines(sums, sums))[:, None]
    return np.asarray(np.divide(sums, lengths, out=np.full_like(sums, np.nan), where=lengths > 0))


def side_by_side(parts: Sequence[Parts]) -> Parts:
    """Return what the annotations' sentences are held against: the parts' own parts, pair by pair."""
    owner = np.concatenate([own.owner for own in parts])
    order = np.argsort(owner, kind="stable")
    counts = np.stack([own.counts for own in parts]).sum(axis=0)
    return Parts(np.concatenate([own.vectors for own in parts])[order], counts)


def _cut(apart: Apart, cuts: Sequence[Cut], stands: npt.NDArray[np.bool_]) -> Cut:
    """Return what the cuts of a pair's parts come to."""
    spans = [[float(number), *span] for number, cut in enumerate(cuts) if stands[number] for span in cut.spans or ()]
    what = [
        f"{kind}: {cut.what if stands[number] or not cut.spans else 'refused by the gate'}"
        for number, (kind, cut) in enumerate(zip(apart.kinds, cuts, strict=True))
        if (stands[number] or not spans) and cut.what
    ]
    return Cut(spans or None, ", ".join(what))


DENSITY = 2
"""Frames of a video looked at to find what to keep, as a multiple of those that experts see."""


@dataclass
class SNSStep(Step):
    """Adds the spans to keep of data and annotation (null: the whole), a reason, and the pair's similarity.

    Forward keeps the parts of the data that the annotation's components find; backward keeps the sentences of the
    annotation that the data supports; bidirectional does both, each from the original pair. A candidate has to pass
    the gate: the data that is left against the whole annotation, the whole data against the annotation that is left,
    and what is left of both against each other. Where the last is refused the better single direction stands, where
    none passes the pair stays as it is. Of data of several parts each is trimmed by itself first. Media
    are not rewritten: decoders apply the spans.

    ``sns_before`` and ``sns_after`` are the cosine of data and annotation in the expert's space, of the original
    and of what was kept. A pair whose data or annotation has no vector is quarantined.

    Args:
        settings: which side, and how boldly.
        expert: whose space judges. Data of a modality that it does not embed beside text stays whole.
        models: the configuration's models by name.
        media: how media are opened.
    """

    settings: SNSSettings
    expert: ExpertSpec
    models: Mapping[str, ModelSpec]
    media: MediaSettings = field(default_factory=MediaSettings)
    name: str = "sns"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The canonical columns."""
        return CANONICAL

    @property
    def uses(self) -> tuple[str, ...]:
        """Where media are to be found."""
        return WHERE

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Spans of both sides, the reason, and the similarity before and after."""
        return {
            DATA_SPANS: SPANS,
            ANNOTATION_SPANS: SPANS,
            SNS_REASON: pa.string(),
            BEFORE: pa.float32(),
            AFTER: pa.float32(),
        }

    def setup(self, device: str | None = None) -> None:
        """Load the expert's models, the grounders and the spaCy pipeline (nothing where this process has them)."""
        if self.settings.mode == "off":
            return
        self._standards = Standards({}, {}, {})
        self._device = loader.pick_device(device)
        self._expert: Expert = build(self.expert, self.models, self._device)
        self._parser = load_parser(self.settings.spacy_model) if self.settings.spacy_model else None
        self._grounders = {
            modality: _load_grounder(name, modality, self.models, self._device)
            for modality, name in self.settings.grounders.items()
        }
        if self.settings.cuts is not None:
            self._standards = standards_of(self.settings.cuts, file_digest(self.settings.cuts))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the loaded models."""
        loaded = ("_device", "_expert", "_parser", "_grounders", "_standards")
        return {name: value for name, value in self.__dict__.items() if name not in loaded}

    def identity(self) -> dict[str, Any]:
        """Settings, expert, models with their revisions, and how media are decoded."""
        spec = self.expert
        used = spec.models | set(self.settings.grounders.values())
        parser = self.settings.spacy_model
        cuts = self.settings.cuts
        return {
            "step": self.name,
            "settings": {**self.settings.model_dump(mode="json"), "cuts": cuts and file_digest(cuts)},
            "expert": spec.model_dump(mode="json"),
            "models": loader.identities({name: self.models[name] for name in sorted(used)}),
            "spacy": parser_revision(parser) if parser else None,
            "media": self.media.identity(),
        }

    def process(self, rows: Frame) -> Added:
        """Trim ``rows``, modality by modality; media are decoded once, ahead in threads."""
        decisions = Decisions(len(rows))
        annotations = annotation_texts(rows, self.media, use_spans=False)
        several = set(with_several(rows))
        for modality, every in by_class(rows, decisions.errors):
            positions = [row for row in every if row not in several]
            if self.settings.mode == "off":
                decisions.leave(every, "mode is off")
                continue
            decisions.leave(several.intersection(every), "its data has several media of one modality")
            if (encoder := self._shared_encoder(modality)) is None:
                decisions.leave(positions, f"expert {self.expert.name} has no space for {modality} and text")
            elif len(modalities_of(modality)) > 1:
                self._trim_parts(rows, modality, positions, annotations, encoder, decisions)
            else:
                self._trim(rows, modality, positions, annotations, encoder, decisions)
        return decisions.added()

    def _shared_encoder(self, modality: str) -> Encoder | None:
        """Return the encoder that puts ``modality`` (all of its parts) and text into one space, where there is one."""
        found = {self._expert.encoder(part) for part in modalities_of(modality)}
        encoder = found.pop()
        return encoder if encoder is not None and not found and Modality.TEXT in encoder.modalities else None

    def _trim(
        self,
        rows: Frame,
        modality: str,
        positions: Sequence[int],
        annotations: Sequence[str | TextError],
        encoder: Encoder,
        decisions: Decisions,
    ) -> None:
        """Trim the pairs of one modality at ``positions``."""
        pairs = [(row, text) for row in positions if isinstance(text := annotations[row], str)]
        decisions.errors.update((row, error) for row in positions if isinstance(error := annotations[row], TextError))
        opener = Opener(self.media, frames=DENSITY * self.media.video_frames)
        decoded = iter_data(rows, opener, [row for row, _ in pairs], use_spans=False, threads=self.media.threads)
        documents: list[str] = []
        if not is_media(modality):
            data = list(zip(pairs, decoded, strict=True))
            decisions.errors.update((row, item) for (row, _), item in data if isinstance(item, PairError))
            pairs = [pair for pair, item in data if isinstance(item, str)]
            documents = [item for _, item in data if isinstance(item, str)]
        if not pairs:
            return

        texts = [text for _, text in pairs]
        sentences = self._sentences(texts, encoder)
        items: Iterable[Item | PairError] = decoded if is_media(modality) else documents
        data_side, parts = self._cut_data(items, texts, modality, encoder)
        annotation_side = self._cut_annotations(sentences, parts, modality, encoder)
        decisions.take([row for row, _ in pairs], data_side, annotation_side, self.settings)

    def _trim_parts(
        self,
        rows: Frame,
        modality: str,
        positions: Sequence[int],
        annotations: Sequence[str | TextError],
        encoder: Encoder,
        decisions: Decisions,
    ) -> None:
        """Trim the pairs of one class of several parts at ``positions``: each part by itself, then all together."""
        decisions.errors.update((row, error) for row in positions if isinstance(error := annotations[row], TextError))
        apart = take_apart(rows, modality, [row for row in positions if row not in decisions.errors])
        decisions.errors.update(apart.errors)
        if not apart.rows:
            return
        opener = Opener(self.media, frames=DENSITY * self.media.video_frames)
        # Texts are read before anything is embedded: where one cannot be, there is no pair to trim.
        documents = {
            number: list(iter_data(apart.frames[number], opener, use_spans=False))
            for number, kind in enumerate(apart.kinds)
            if not is_media(kind)
        }
        for number, read in documents.items():
            for row, item in zip(apart.rows, read, strict=True):
                if isinstance(item, PairError):
                    decisions.errors.setdefault(row, apart.named(number, item))
        kept = [at for at, row in enumerate(apart.rows) if row not in decisions.errors]
        if not kept:
            return
        chosen = [apart.rows[at] for at in kept]
        texts = [str(annotations[row]) for row in chosen]
        sentences = self._sentences(texts, encoder)
        sides: list[Side] = []
        parts: list[Parts] = []
        for number, kind in enumerate(apart.kinds):
            frame, threads = apart.frames[number], self.media.threads
            items: Iterable[Item | PairError] = (
                iter_data(frame, opener, kept, use_spans=False, threads=threads)
                if is_media(kind)
                else [documents[number][at] for at in kept]
            )
            side, own = self._cut_data(items, texts, kind, encoder)
            sides.append(side)
            parts.append(own)
        data_side = together(apart, sides, sentences.whole, self.settings)
        annotation_side = self._cut_annotations(sentences, side_by_side(parts), modality, encoder)
        decisions.take(chosen, data_side, annotation_side, self.settings)

    def _sentences(self, texts: Sequence[str], encoder: Encoder) -> Texts:
        return Texts.embed(texts, sentence_spans if self._backward else _unsplit, encoder, Modality.TEXT)

    def _selector(self, modality: str, side: str) -> Selector:
        """Return what decides on one side of a modality's pairs."""
        settings = self.settings
        tau = settings.tau_backward if side == ANNOTATION_SIDE else settings.tau.get(modality, settings.tau_forward)
        if settings.chosen_by != "pool":
            return Selector(settings, tau)
        found, name = self._standards, key(modality, side)
        standard = found.standards.get(name)
        if standard is None or standard.line is None:
            return Selector(settings, tau, standard)
        return Selector(settings, tau, standard, found.banks.get(name), found.phrases.get(name, ()))

    def _cut_annotations(self, sentences: Texts, parts: Parts, modality: str, encoder: Encoder) -> Side:
        """Keep the sentences that the data's parts support."""
        if not self._backward:
            return sentences.untrimmed()
        select = self._selector(modality, ANNOTATION_SIDE)
        return sentences.trim(parts, False, select, "annotation sentences", " ", encoder, Modality.TEXT)

    def _cut_data(
        self, items: Iterable[Item | PairError], annotations: Sequence[str], modality: str, encoder: Encoder
    ) -> tuple[Side, Parts]:
        """Keep what the annotations find of data of one modality; return that, and what the data consists of."""
        select = self._selector(modality, DATA_SIDE)
        if is_media(modality):
            side = self._cut_media(items, annotations, modality, encoder, select)
            return side, Parts(side.whole, np.ones(len(annotations), dtype=np.int64))
        texts = [item for item in items if isinstance(item, str)]
        document = Texts.embed(texts, text_medium(modality).split, encoder, modality)
        return self._cut_texts(document, annotations, modality, encoder, select), document.parts

    def _cut_media(
        self,
        decoded: Iterable[Item | PairError],
        annotations: Sequence[str],
        modality: str,
        encoder: Encoder,
        select: Selector,
    ) -> Side:
        settings = self.settings
        if not self._forward or of(modality).parts is None:
            return media_side(decoded, [[]] * len(annotations), modality, encoder, None, select)
        phrases = components(annotations, settings.components, self._parser)
        grounder, at_once = self._grounders.get(modality), 1
        if grounder is None:
            at_once = calls_at_once(self._device)
            grounder = PartsGrounder(encoder, settings.region_grid, settings.window)
            # In one call, which the encoder remembers, instead of one a chunk.
            embed_parts([*phrases, *select.phrases], encoder)
        else:
            select = replace(select, phrases=())  # looking for more may cost more
        return media_side(decoded, phrases, modality, encoder, grounder, select, at_once)

    def _cut_texts(
        self, document: Texts, annotations: Sequence[str], modality: str, encoder: Encoder, select: Selector
    ) -> Side:
        if not self._forward:
            return document.untrimmed()
        # What is one part cannot be cut, and needs nothing to look for.
        counts = document.parts.counts
        sought = [text if count > 1 else "" for text, count in zip(annotations, counts, strict=True)]
        phrases = embed_parts(components(sought, self.settings.components, self._parser), encoder)
        return document.trim(phrases, True, select, text_medium(modality).noun, "\n", encoder, modality)

    @property
    def _forward(self) -> bool:
        return self.settings.mode in ("forward", "bidirectional")

    @property
    def _backward(self) -> bool:
        return self.settings.mode in ("backward", "bidirectional")


def _load_grounder(name: str, modality: str, models: Mapping[str, ModelSpec], device: str) -> Grounder:
    spec = models[name]
    grounder = loader.as_grounder(name, loader.load(name, spec.class_, spec.arguments, device))
    support(grounder, modality)
    return grounder


def _unsplit(text: str) -> list[CharSpan]:
    return []
