"""How annotations read: repetition against its definition run by run, plain marks, norms, and a real language file."""

from __future__ import annotations

from collections import Counter
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.errors import ConfigError, ModelError
from nemo_mm_rank.quality.operators.settings import TEXTS
from nemo_mm_rank.quality.operators.text import (
    SCORES,
    caption_like,
    concrete_words,
    identify,
    mean_ratings,
    read_norms,
    words,
)

LID = Path(__file__).parents[4] / "shared" / "models" / "lid.176.ftz"


def runs(symbols: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(symbols[start : start + 10]) for start in range(len(symbols) - 9))


def character_repetition(text: str) -> float:
    """As Data-Juicer has it."""
    counts = sorted(runs(list(text)).values(), reverse=True)
    again = min(isqrt(len(counts)), sum(count > 1 for count in counts))
    return 1 - sum(counts[:again]) / max(1, sum(counts))


def word_repetition(text: str) -> float:
    counts = runs(text.lower().split()).values()
    return 1 - sum(count for count in counts if count > 1) / max(1, sum(counts))


few_letters = st.text(alphabet="ab \n", max_size=90) | st.text(max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.lists(few_letters, max_size=6))
def test_repetition_is_what_its_definition_says(texts: list[str]) -> None:
    for name, expected in (("character_repetition", character_repetition), ("word_repetition", word_repetition)):
        np.testing.assert_allclose(SCORES[name](texts), [expected(text) for text in texts], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(few_letters, min_size=1, max_size=6))
def test_a_text_is_judged_by_itself(texts: list[str]) -> None:
    for name in TEXTS:
        together = SCORES[name](texts)
        assert together.tolist() == [SCORES[name]([text])[0] for text in texts], name
        assert np.isfinite(together).all()


def test_words_are_counted_as_datacomp_does() -> None:
    assert words(["", "  two\u2003words ", "a-b c.d"]).tolist() == [0, 2, 2]


GOOD = ["A black cat with a hat on the ground.", "Zwei Hunde laufen über eine nasse Wiese.", "Dos niños en la playa."]
BAD = {
    "IMG_20190412.jpg": "a file's name",
    "Click here to buy now - free shipping!!!": "boilerplate",
    "https://example.org/a/b": "an address",
    "SALE SALE SALE SALE": "shouting, and four times the same",
    "12/04/2019 18:22": "a date",
    "<b>x</b>": "markup",
}


def test_captions_look_like_captions() -> None:
    assert caption_like(GOOD).tolist() == [1.0] * len(GOOD)
    assert (caption_like(list(BAD)) < 0.85).all(), caption_like(list(BAD))


def test_concrete_words_are_a_proxy() -> None:
    scores = concrete_words(["a red apple", "the meaning of happiness and democracy is freedom", ""])
    assert scores[0] == pytest.approx(2 / 3)
    assert scores[1] < scores[0]
    assert scores[2] == 0


def test_norms(tmp_path: Path) -> None:
    path = tmp_path / "norms.csv"
    path.write_text("Word,Bigram,Conc.M\nApple,0,5\nidea,0,1.5\n", encoding="utf-8")
    found = mean_ratings(["An APPLE, an idea.", "apple apple idea", "nothing of it"], read_norms(str(path)))
    np.testing.assert_allclose(found, [3.25, 11.5 / 3, np.nan])


@pytest.mark.parametrize(
    ("content", "said"),
    [("a,b\nx,1\n", "needs columns 'word' and 'rating'"), ("word,rating\nx,much\n", "line 2")],
)
def test_a_file_that_holds_no_norms_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "norms.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_norms(str(tmp_path / "norms.csv"))


def test_a_file_that_is_none_of_fasttext_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fasttext", reason="needs the extra 'curator'")
    (tmp_path / "lid.ftz").write_bytes(b"no model")
    with pytest.raises(ModelError, match="is not a fastText classifier"):
        identify(["a"], str(tmp_path / "lid.ftz"))


@pytest.mark.skipif(not LID.is_file(), reason="the folder of small models is not beside the project")
def test_languages() -> None:
    pytest.importorskip("fasttext", reason="needs the extra 'curator'")
    texts = ["A dog runs over\nthe wet grass.", "Ein Hund läuft über das nasse Gras.", "犬が濡れた草の上を走る。"]
    labels, probabilities = identify(texts, str(LID))
    assert labels == ["en", "de", "ja"]
    assert (probabilities > 0.7).all()
    assert identify([], str(LID))[0] == []
    upper = ["A DOG RUNS OVER THE WET GRASS."]
    assert identify(upper, str(LID), lowercase=True)[0] == ["en"]
