"""Quality operators: what can be said of a pair by itself, each a column ``quality__<operator>``, higher is better.

`steps` makes steps like all others of `OperatorSettings`. Scores are float32; null stands where an operator does not
apply to a modality.

| operators                                                    | of                    | needs                         |
|--------------------------------------------------------------|-----------------------|-------------------------------|
| blurry, dark, light, low_information, geometric              | image, video          |                               |
| resolution                                                   | image                 |                               |
| words, characters, character_repetition, word_repetition,    | annotation            |                               |
| caption_like, concrete_words                                 |                       |                               |
| language (and ``quality__language_label``)                   | annotation            | a fastText file               |
| concreteness, icc                                            | annotation            | norms of words, a model       |
| <name>, <name>_h, <name>_v (``agreement``: CLIP, CLAP ...)   | what the model takes  | an encoder that takes text    |
| <name>_count, _mean, _best, _coverage (``grounding``)        | what the model takes  | a grounder                    |
| agreement_<expert> (``experts``)                             | all                   | the expert's embeddings       |
| <name> (``others``: negCLIPLoss)                             | all                   | the same                      |
| <name> (``given``)                                           | all                   | a column that is there        |
| <name> (``own``)                                             | what the class takes  | a `PairScorer` of yours       |
| <name> (``own``, class ``visual-dependency``)                | image, video, audio   | a vision-language model       |
| datacomp_basic, _clip_score, _laion2b, _image_based          | image                 | language, scores, centroids   |

Of a video, scores are the mean over its frames; what looks at data decodes it once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.errors import ConfigError, nearest
from nemo_mm_rank.quality.operators.agreement import Agreement, Grounding
from nemo_mm_rank.quality.operators.columns import DATACOMP, ColumnsStep, SentenceStep, shared_experts, shared_spaces
from nemo_mm_rank.quality.operators.datacomp import BasicStep, DataCompStep
from nemo_mm_rank.quality.operators.fingerprints import ANNOTATION_KEY, DATA_KEY, Fingerprints
from nemo_mm_rank.quality.operators.images import ImageScores
from nemo_mm_rank.quality.operators.media import Judged, MediaStep, Operator, OwnOperator, PairScorer
from nemo_mm_rank.quality.operators.others import Batches, OthersStep
from nemo_mm_rank.quality.operators.settings import PREFIX, OperatorSettings, OthersSettings, column
from nemo_mm_rank.quality.operators.text import LANGUAGE_LABEL, TextScorer, TextStep
from nemo_mm_rank.schema import AGREEMENT
from nemo_mm_rank.steps import Step

__all__ = [
    "ANNOTATION_KEY",
    "DATACOMP",
    "DATA_KEY",
    "LANGUAGE_LABEL",
    "PREFIX",
    "Agreement",
    "BasicStep",
    "Batches",
    "ColumnsStep",
    "DataCompStep",
    "Fingerprints",
    "Grounding",
    "ImageScores",
    "Judged",
    "MediaStep",
    "Operator",
    "OperatorSettings",
    "OthersSettings",
    "OthersStep",
    "PairScorer",
    "SentenceStep",
    "TextScorer",
    "TextStep",
    "agreements",
    "column",
    "columns",
    "shared_experts",
    "shared_spaces",
    "steps",
]


def steps(
    settings: OperatorSettings, models: Mapping[str, ModelSpec] | None = None, media: MediaSettings | None = None
) -> list[Step]:
    """Return the steps that compute what the settings ask for; what the pool has already (``given``) is left out.

    Args:
        settings: which operators.
        models: the configuration's models by name, for operators that name one.
        media: how media are opened.

    Raises:
        ConfigError: an operator names a model that the configuration does not have.
    """
    models, media = models or {}, media or MediaSettings()
    _check_models(settings, models)
    columns_given = frozenset(settings.given)
    operators: list[Operator] = [
        ImageScores([name for name in settings.images if name not in columns_given], media.threads),
        *(Agreement(name, own, models, columns_given) for name, own in settings.agreement.items()),
        *(Grounding(name, own, models, columns_given) for name, own in settings.grounding.items()),
        *(OwnOperator(name, spec) for name, spec in settings.own.items() if name not in columns_given),
    ]
    if settings.fingerprints:
        operators.append(Fingerprints(media.threads))
    looking = MediaStep([operator for operator in operators if operator.provides], media)
    all_steps: list[Step] = [
        TextStep(settings, models, media),
        looking,
        ColumnsStep(settings),
        OthersStep({name: one for name, one in settings.others.items() if name not in columns_given}),
        DataCompStep(settings.datacomp),
        SentenceStep(settings, models, media),
    ]
    return [step for step in all_steps if step.provides]


def agreements(settings: OperatorSettings) -> list[str]:
    """Return the columns that say how well data and annotation fit, in the order in which they are to be asked.

    `dedup.DuplicateSettings.by` takes them: the first that a pair has decides which duplicate stays.
    """
    names = [name for name in settings.given if name in (*DATACOMP, AGREEMENT)]
    return [column(name) for name in dict.fromkeys((*names, *settings.agreement, *settings.experts))]


def _check_models(settings: OperatorSettings, models: Mapping[str, ModelSpec]) -> None:
    named = {name: agreement.model for name, agreement in settings.agreement.items()}
    named |= {name: grounding.model for name, grounding in settings.grounding.items()}
    named |= {name: expert.model for name, expert in settings.weakest.items()}
    if settings.concreteness and settings.concreteness.model:
        named["icc"] = settings.concreteness.model
    for operator, model in named.items():
        if model not in models:
            raise ConfigError(f"operators: {operator!r}: there is no model {model!r}{nearest(model, models)}")


def columns(found: list[Step]) -> list[str]:
    """Return the names of the scores that ``found`` steps add (float32): without labels and keys."""
    return [
        name
        for step in found
        for name, dtype in step.provides.items()
        if name.startswith(PREFIX) and pa.types.is_floating(dtype)
    ]
