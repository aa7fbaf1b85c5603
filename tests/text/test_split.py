# ruff: noqa: RUF001 (full-width marks are meant)
from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.sns import block_spans, sentence_spans, split_sentences
from nemo_mm_rank.text.split import merge_neighbours

PROSE = st.text(st.sampled_from("ab .!?\n\r\t。！”é🙂ם"), max_size=60)
CODE = st.text(st.sampled_from("ab=:\n \t(){}[]\"'`#/*\\@"), max_size=80)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n\t ", []),
        ("A dog runs.", ["A dog runs."]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("No space after.this dot", ["No space after.this dot"]),
        ("Version 3.11 is out.  It is fast.", ["Version 3.11 is out.", "It is fast."]),
        ("first line\nsecond line\r\n\r\n third ", ["first line", "second line", "third"]),
        ("What?! Really...  Yes.", ["What?!", "Really...", "Yes."]),
        ("今天下雨。我们回家！好吗？", ["今天下雨。", "我们回家！", "好吗？"]),
        ("他说“走吧。”然后离开。", ["他说“走吧。”然后离开。"]),
        ("הכלב רץ. הוא שמח!", ["הכלב רץ.", "הוא שמח!"]),
        ("🐕🐕. 🎉!", ["🐕🐕.", "🎉!"]),
    ],
)
def test_sentences_exactly(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(PROSE)
def test_sentences_are_stripped_ordered_and_lose_nothing_but_white_space(text: str) -> None:
    spans = sentence_spans(text)
    sentences = split_sentences(text)
    assert [text[start:end] for start, end in spans] == sentences
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert "".join("".join(sentences).split()) == "".join(text.split())


@given(st.text(st.sampled_from("ab .!?\n\r\t"), max_size=60))
def test_sentences_of_ascii_text_are_those_of_the_definition(text: str) -> None:
    ends = "".join(char + "\0" if re.match(r"[.!?]\s", text[i : i + 2]) else char for i, char in enumerate(text))
    parts = [part.strip() for line in re.split(r"[\n\r]", ends) for part in line.split("\0")]
    assert split_sentences(text) == [part for part in parts if part]


@given(PROSE)
def test_splitting_a_sentence_again_changes_nothing(text: str) -> None:
    assert all(split_sentences(sentence) == [sentence] for sentence in split_sentences(text))


def test_a_megabyte_is_split() -> None:
    assert len(split_sentences("A dog runs over the grass. " * 40_000)) == 40_000
    assert split_sentences("a" * 1_000_000) == ["a" * 1_000_000]
    assert split_sentences(" " * 1_000_000) == []


def blocks(code: str) -> list[str]:
    return [code[start:end] for start, end in block_spans(code)]


def test_blocks_of_python() -> None:
    code = (
        "import os\nimport sys\n\n\n# Adds.\n@cache\ndef add(a,\n        b):\n    c = a\n\n    return c + b\n"
        "class A:\n    pass\nif x:\n    y = '''\nz = 1\n'''\nelse:\n    y = 2\nprint(y)\n"
    )
    assert blocks(code) == [
        "import os\nimport sys",
        "# Adds.\n@cache\ndef add(a,\n        b):\n    c = a\n\n    return c + b",
        "class A:\n    pass",
        "if x:\n    y = '''\nz = 1\n'''\nelse:\n    y = 2",
        "print(y)",
    ]


def test_blocks_of_languages_with_braces() -> None:
    code = (
        '#include <stdio.h>\n\nint one(void) { return 1; }\n\nint main()\n{\nprintf("}");\nreturn 0; // {\n}\n'
        "/* a\n\nb */\nstatic int x;\n"
    )
    assert blocks(code) == [
        "#include <stdio.h>\n\nint one(void) { return 1; }",
        'int main()\n{\nprintf("}");\nreturn 0; // {\n}',
        "/* a\n\nb */\nstatic int x;",
    ]


@pytest.mark.parametrize(
    "code",
    [
        "x = 1",
        "sorted(d.items(), key=lambda kv: kv[1])  # by value",
        "a = 1\nb = 2",
        "SELECT a,\n  b\nFROM t\nWHERE a = 1;",
        "    indented = 1\n    twice = 2",
        "f(\n1,\n\n2\n)",
        "x = 1 + \\\n\n2",
        "# only a comment",
        "try:\n    a\nexcept E:\n    b\nfinally:\n    c",
    ],
)
def test_what_is_one_block(code: str) -> None:
    assert blocks(code) == [code.strip()]


def test_blank_lines_part_blocks() -> None:
    assert blocks("a\n\nb\n \nc") == ["a", "b", "c"]
    assert blocks("") == blocks(" \n\n") == []
    assert blocks("    a\n\n    b") == ["a", "b"]


@given(CODE)
def test_blocks_are_stripped_ordered_and_lose_nothing_but_white_space(code: str) -> None:
    spans = block_spans(code)
    parts = [code[start:end] for start, end in spans]
    assert all(part and part == part.strip() for part in parts)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert "".join("".join(parts).split()) == "".join(code.split())


@pytest.mark.parametrize("char", ['"', "'", "`", "/*", "(", "#", "\\", "\n", '"""', "a\n\n", "'\"", "@\n"])
def test_hostile_code_takes_linear_time(char: str) -> None:
    code = char * (200_000 // len(char))
    assert len(blocks(code)) in (0, 1, 200_000 // 3)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 10))
def test_merged_neighbours_cover_the_same_text(lengths: list[int], most: int) -> None:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    merged = merge_neighbours(spans, most)
    assert len(merged) <= most
    assert (merged[0][0], merged[-1][1]) == (0, ends[-1])
    assert all(one[1] == other[0] for one, other in itertools.pairwise(merged))
    assert len(spans) > most or merged == spans
