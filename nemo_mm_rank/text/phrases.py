"""What an annotation speaks of: its phrases, and the sentences of many annotations, each distinct one once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from nemo_mm_rank.errors import ConfigError, require
from nemo_mm_rank.text.split import split_sentences

Kind = Literal["phrases", "sentences", "whole"]

MAX_CHARS = 10_000
"""A longer annotation is looked up by its sentences: what a parser needs grows with the text."""

MAX_COMPONENTS = 64
"""More phrases than this are looked up as sentences, more sentences than this as the whole annotation."""

_WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*|[^\w\s]")

_ENGLISH = """
    a an the this that these those some any each every both all another such no
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves one ones someone something anyone anything
    who whom whose which what when where why how there here
    and or but nor so yet if then than because while although though as whether since unless until
    of in on at by to from with without into onto over under above below between among through during before after
    about against along across around behind beside besides beyond inside outside near next off out up down upon
    within toward towards via per like for
    am is are was were be been being has have had having do does did doing will would shall should can could may
    might must ought not isn aren wasn weren hasn haven hadn don doesn didn won wouldn shouldn couldn
    very too also just only quite rather really still even again
"""

FUNCTION_WORDS = frozenset(_ENGLISH.split())
"""English words that join phrases and are never part of one."""


def components(texts: Sequence[str], kind: Kind, parser: Any | None = None) -> list[list[str]]:
    """Return what each annotation speaks of.

    Args:
        texts: annotations.
        kind: ``phrases`` (by ``parser`` where there is one, by `rule_phrases` otherwise), ``sentences`` or ``whole``.
        parser: a spaCy pipeline, see `load_parser`.

    Returns:
        For each annotation its distinct components, in the order of the text. Where there are no phrases (a script
        that the rules cannot read, no content word, a text beyond bounds) its sentences; where those are none, or
        too many, the whole annotation; nothing for an empty one.
    """
    if kind != "phrases":
        return [_sentences_or_whole(text, kind) for text in texts]
    if parser is None:
        found = [rule_phrases(text) if len(text) <= MAX_CHARS else [] for text in texts]
    else:
        # One text a batch: what the pipeline's networks see of one must not depend on its neighbours.
        short = [text if len(text) <= MAX_CHARS else "" for text in texts]
        found = [parsed_phrases(document) for document in parser.pipe(short, batch_size=1)]
    return [
        phrases if 0 < len(phrases) <= MAX_COMPONENTS else _sentences_or_whole(text, "sentences")
        for text, phrases in zip(texts, found, strict=True)
    ]


def _sentences_or_whole(text: str, kind: Kind) -> list[str]:
    sentences = list(dict.fromkeys(split_sentences(text))) if kind == "sentences" else []
    if 0 < len(sentences) <= MAX_COMPONENTS:
        return sentences
    return [text.strip()] if text.strip() else []


def rule_phrases(text: str) -> list[str]:
    """Return runs of content words: function words and punctuation part them.

    Written for English; another language in Latin letters gives its clauses. Nothing is returned for other scripts.
    """
    if not _is_latin(text):
        return []
    phrases: list[str] = []
    run: list[str] = []
    for token in [*_WORD.findall(text), "."]:
        # "dog's" and "isn't" are judged by their first part.
        if re.match(r"\w", token) and re.split(r"['\u2019]", token.lower())[0] not in FUNCTION_WORDS:
            run.append(token)
        elif run:
            phrases.append(" ".join(run))
            run = []
    return list(dict.fromkeys(phrases))


def _is_latin(text: str) -> bool:
    """Whether at least half of the letters are Latin (digits and marks do not count)."""
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum(letter.isascii() or unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return bool(letters) and 2 * latin >= len(letters)


def parsed_phrases(document: Any) -> list[str]:
    """Return the noun and verb phrases of a spaCy document.

    A noun phrase is a noun chunk without its leading determiner; a chunk of a pronoun alone says nothing. A verb
    phrase is a verb with the auxiliaries, particles and adverbs around it, and the noun chunk of its object where
    that follows at once.
    """
    try:
        chunks = list(document.noun_chunks) if document.has_annotation("DEP") else []
    except NotImplementedError:  # a language for which spaCy has no noun chunks
        chunks = []
    chunk_at = {chunk.start: chunk for chunk in chunks}
    spans: list[tuple[int, int]] = []
    for chunk in chunks:
        start = chunk.start + (chunk[0].pos_ == "DET" and len(chunk) > 1)
        if any(token.pos_ not in ("PRON", "DET") for token in chunk):
            spans.append((start, chunk.end))
    i = 0
    while i < len(document):
        end = i
        while end < len(document) and document[end].pos_ in ("VERB", "AUX", "PART", "ADV"):
            end += 1
        group = document[i:end]
        if any(token.pos_ == "VERB" for token in group):
            following = chunk_at.get(end)
            is_object = following is not None and following.root.head in group
            spans.append((i, following.end if following is not None and is_object else end))
        i = max(end, i + 1)
    return list(dict.fromkeys(document[start:end].text.strip() for start, end in sorted(spans)))


@lru_cache(maxsize=2)
def load_parser(model: str) -> Any:
    """Load a spaCy pipeline by its package name or folder, once per process.

    Raises:
        ConfigError: where it is not installed or has no parser.
        UserError: where spaCy itself is not installed.
    """
    spacy = require("spacy", "models")
    try:
        parser = spacy.load(model, exclude=["ner", "lemmatizer"])
    except (OSError, ImportError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(
            f"sns.spacy_model: {model!r} cannot be loaded ({line}); install it, or leave this key out to "
            "use the built-in rules"
        ) from error
    return parser


def parser_revision(model: str) -> str:
    """Return the name and version of a spaCy pipeline (for fingerprints)."""
    meta = load_parser(model).meta
    return f"{meta['lang']}_{meta['name']}-{meta['version']}, spaCy {meta['spacy_version']}"
