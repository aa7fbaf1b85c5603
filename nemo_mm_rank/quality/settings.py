"""What the text-only baseline can be told: thresholds by Curator's names for its filters, and Curator's defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from nemo_mm_rank.quality.minhash import NearDuplicateSettings
from nemo_mm_rank.config import OFF, Settings, Share

Off = Literal["off"]
Ratio = Annotated[Share | Off, OFF]
Length = Annotated[int, Field(ge=2, le=100)]
"""Words in an n-gram."""


class Range(Settings):
    """The least and the greatest value that a filter keeps."""

    least: float = Field(ge=0)
    most: float = Field(ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.least > self.most:
            raise ValueError(f"nothing lies between {self.least:g} and {self.most:g}")
        return self


class FilterSettings(Settings):
    """Thresholds of Curator's English cascade, in its order; ``off`` leaves a filter out.

    Ratios are shares of the text's own characters, words or lines.
    """

    alpha_numeric: Ratio = Field(0.25, description="at most; of characters that are no letters, digits or .,!?")
    symbol_to_word: Ratio = Field(0.1, description="at most; of words that are # or an ellipsis")
    numbers_ratio: Ratio = Field(0.15, description="at most; of characters that are digits")
    urls_ratio: Ratio = Field(0.2, description="at most; of characters that belong to URLs")
    white_space: Ratio = Field(0.25, description="at most; of characters that are white space")
    parentheses_ratio: Ratio = Field(0.1, description="at most; of characters that are brackets")
    boilerplate_string_ratio: Ratio = Field(0.4, description="at most; of paragraphs that are boilerplate")
    repeated_lines: Ratio = Field(0.7, description="at least; of lines that are left without repeated ones")
    repeated_paragraphs: Ratio = Field(0.7, description="at least; of paragraphs, likewise")
    repeated_lines_char: Ratio = Field(0.8, description="at least; of characters left without repeated lines")
    repeated_paragraphs_char: Ratio = Field(0.8, description="at least; of characters, likewise")
    word_count: Annotated[Range | Off, OFF] = Range(least=50, most=100_000)
    punctuation: Ratio = Field(0.85, description="at most; of lines that end without a mark")
    words_without_alphabets: Ratio = Field(0.8, description="at least; of words with a letter")
    common_english_words: Annotated[int | Off, Field(description="at least this many"), OFF] = 2
    mean_word_length: Annotated[Range | Off, OFF] = Range(least=3, most=10)
    max_word_length: Annotated[int | Off, Field(description="at most this many characters"), OFF] = 1000
    ellipsis: Ratio = Field(0.3, description="at most; of lines that end with an ellipsis")
    repeating_top_ngrams: Annotated[dict[Length, Share] | Off, OFF] = Field(
        {2: 0.2, 3: 0.18, 4: 0.16}, description="n -> at most; of characters in the most frequent n-gram"
    )
    repeating_dup_ngrams: Annotated[dict[Length, Share] | Off, OFF] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="n -> at most; of characters in n-grams that were there before",
    )
    bullet_ratio: Ratio = Field(0.9, description="at most; of lines that begin with a bullet")


def existing_file(path: str) -> str:
    """Return ``path`` made absolute; `ValueError` where no file is there."""
    found = Path(path).expanduser().absolute()  # workers may stand elsewhere
    if not found.is_file():
        raise ValueError(f"no such file: {path}")
    return str(found)


class LanguageSettings(Settings):
    """Language identification by a fastText file of yours (Curator has none of its own)."""

    model: Annotated[str, AfterValidator(existing_file)] = Field(description="path, for example of lid.176.ftz")
    lang: str | None = Field(None, description="keep only this language; default: any that is recognised")
    min_score: Share = Field(0.3, description="least confidence")


class TraditionalSettings(Settings):
    """The text-only baseline."""

    filters: FilterSettings = FilterSettings()
    language: LanguageSettings | None = None
    exact_duplicates: bool = True
    near_duplicates: Annotated[NearDuplicateSettings | Off, OFF] = NearDuplicateSettings()

    @model_validator(mode="after")
    def _something(self) -> TraditionalSettings:
        filters = any(value != "off" and value != {} for _, value in self.filters)
        if not (filters or self.language or self.exact_duplicates or self.near_duplicates != "off"):
            raise ValueError("everything is off, and nothing is left to choose by")
        return self
