# ruff: noqa: RUF001 (full-width marks are meant)
from __future__ import annotations

from pathlib import Path

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc

from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.text.phrases import MAX_COMPONENTS, components, load_parser, parser_revision, rule_phrases

GRAMMAR = {
    # word: part of speech, dependency, offset of its head
    "A": ("DET", "det", 2),
    "brown": ("ADJ", "amod", 1),
    "dog": ("NOUN", "nsubj", 3),
    "has": ("AUX", "aux", 2),
    "quickly": ("ADV", "advmod", 1),
    "caught": ("VERB", "ROOT", 0),
    "the": ("DET", "det", 2),
    "red": ("ADJ", "amod", 1),
    "frisbee": ("NOUN", "dobj", -3),
    "in": ("ADP", "prep", -4),
    "mud": ("NOUN", "pobj", -1),
    "it": ("PRON", "nsubj", 1),
    "barks": ("VERB", "ROOT", 0),
    ".": ("PUNCT", "punct", -1),
}


@Language.component("nemo_mm_rank_test_grammar")
def grammar(document: Doc) -> Doc:
    """Parse the one sentence that the test knows, by its table."""
    known = [GRAMMAR[token.text] for token in document]
    return Doc(
        document.vocab,
        words=[token.text for token in document],
        spaces=[bool(token.whitespace_) for token in document],
        pos=[pos for pos, _, _ in known],
        deps=[dep for _, dep, _ in known],
        heads=[i + offset for i, (_, _, offset) in enumerate(known)],
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spaCy model on disk, as an installed one would be."""
    pipeline = spacy.blank("en")
    pipeline.add_pipe("nemo_mm_rank_test_grammar")
    folder = tmp_path_factory.mktemp("spacy") / "en_tiny"
    pipeline.to_disk(folder)
    return str(folder)


def test_spacy_finds_noun_and_verb_phrases(model: str) -> None:
    texts = ["A brown dog has quickly caught the red frisbee in the mud.", "", "it barks."]
    texts[0] = texts[0].replace("in the mud", "in mud")
    assert components(texts, "phrases", load_parser(model)) == [
        ["brown dog", "has quickly caught the red frisbee", "red frisbee", "mud"],
        [],
        ["barks"],
    ]


def test_spacy_model_is_named_and_kept(model: str) -> None:
    assert load_parser(model) is load_parser(model)
    assert parser_revision(model).startswith("en_pipeline-0.0.0, spaCy ")


def test_spacy_without_a_parser_falls_back_to_sentences() -> None:
    assert components(["A dog. It barks."], "phrases", spacy.blank("en")) == [["A dog.", "It barks."]]
    assert components(["Hunden gøer."], "phrases", spacy.blank("xx")) == [["Hunden gøer."]]


def test_a_spacy_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sns.spacy_model: 'no_such_model' cannot be loaded .* leave this key out"):
        load_parser("no_such_model")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_parser(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("A dog is running on the grass with a red ball.", ["dog", "running", "grass", "red ball"]),
        ("The man's hat isn't big, but it's well-worn!", ["man's hat", "big", "well-worn"]),
        ("Two dogs; two dogs.", ["Two dogs", "two dogs"]),
        ("dogs and dogs", ["dogs"]),
        ("How do I sort a dict by 3 keys?", ["sort", "dict", "3 keys"]),
        ("Ein Hund läuft, und er bellt.", ["Ein Hund läuft", "und er bellt"]),
        ("It is.", []),
        ("", []),
        ("🐕 !?", []),
        ("一只狗在草地上跑。", []),
        ("الكلب يركض", []),
    ],
)
def test_rules_exactly(text: str, phrases: list[str]) -> None:
    assert rule_phrases(text) == phrases


def test_fallbacks() -> None:
    texts = ["一只狗。它跑！", "It is. They are!", "", "🐕🐕", "הכלב רץ. הוא שמח!"]
    assert components(texts, "phrases") == [
        ["一只狗。", "它跑！"],
        ["It is.", "They are!"],
        [],
        ["🐕🐕"],
        ["הכלב רץ.", "הוא שמח!"],
    ]
    assert components(["A dog. It barks."], "sentences") == [["A dog.", "It barks."]]
    assert components([" A dog. It barks. "], "whole") == [["A dog. It barks."]]


def test_components_are_bounded() -> None:
    many_phrases = "".join(f"cat{i} and " for i in range(MAX_COMPONENTS + 1)) + ". Twice."
    many_sentences = "".join(f"Cat {i}. " for i in range(MAX_COMPONENTS + 1)).strip()
    long = "dog " * 300_000
    assert components([many_phrases, many_sentences, long], "phrases") == [
        [many_phrases.removesuffix(". Twice.") + ".", "Twice."],
        [many_sentences],
        [long.strip()],
    ]


@given(st.lists(st.text(max_size=40), max_size=4), st.sampled_from(["phrases", "sentences", "whole"]))
def test_every_text_with_anything_in_it_has_components(texts: list[str], kind: str) -> None:
    found = components(texts, kind)  # type: ignore[arg-type]
    assert [bool(parts) for parts in found] == [bool(text.strip()) for text in texts]
    assert all(part.strip() and len(set(parts)) == len(parts) <= MAX_COMPONENTS for parts in found for part in parts)
    assert found == [components([text], kind)[0] for text in texts]  # type: ignore[arg-type]
