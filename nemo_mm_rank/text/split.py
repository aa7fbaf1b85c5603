"""Where one side of a pair can be cut: sentences of a text, blocks of code, as character spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.modality import Medium, of

CharSpan = tuple[int, int]

# White space after . ! ? ends a sentence, and so does a line. Scripts without spaces end theirs with a full stop of
# their own (ideographic, full-width, half-width), which needs none after it and stands before a closing quote.
_STOPS = r"\u3002\uff01\uff1f\uff61"
_SENTENCE_ENDS = re.compile(
    rf"(?<=[.!?])\s+|(?<=[{_STOPS}])(?![{_STOPS}\u300d\u300f\uff09\u201d\u2019])\s*|[\r\n\x85\u2028\u2029]+"
)

# Comments, and literals in which brackets and line ends mean nothing. What is never closed runs to the end, so that
# no character is looked at twice.
_OPAQUE = re.compile(
    r"(?P<comment>/\*[\s\S]*?(?:\*/|\Z)|(?:\#|//)[^\n]*)"
    r'|"""[\s\S]*?(?:"""|\Z)'
    r"|'''[\s\S]*?(?:'''|\Z)"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*'"
    r"|`[^`]*(?:`|\Z)"
)

# A line at top level that goes on with the statement before it. The capitals are SQL's.
_CONTINUES = re.compile(
    r"[{})\]]|</|(?:else|elif|except|finally|catch|end|endif|rescue|ensure|then|do|done|fi|esac)\b"
    r"|(?:FROM|WHERE|GROUP|ORDER|HAVING|LIMIT|JOIN|LEFT|RIGHT|INNER|OUTER|UNION|VALUES|SET|ON|AND|OR)\b"
)


def sentence_spans(text: str) -> list[CharSpan]:
    """Return ``(start, end)`` of each sentence, such that ``text[start:end]`` is what `split_sentences` gives."""
    cuts = [match.span() for match in _SENTENCE_ENDS.finditer(text)]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(text)]
    stripped = (_strip(text, start, end) for start, end in zip(starts, ends, strict=True))
    return [(start, end) for start, end in stripped if start < end]


def split_sentences(text: str) -> list[str]:
    """Return the sentences of ``text``, stripped, none of them empty.

    A sentence ends after ``.``, ``!`` or ``?`` that white space follows, at a line end, and after the full stops of
    Chinese and Japanese. An abbreviation's point ends one too: trimming compares parts, it need not parse.

    >>> split_sentences("A dog runs. It barks!")
    ['A dog runs.', 'It barks!']
    """
    return [text[start:end] for start, end in sentence_spans(text)]


@dataclass(frozen=True)
class _Line:
    start: int
    end: int
    text: str
    """Stripped, comments blanked, literals masked."""
    indent: int
    after_blank: bool


def block_spans(code: str) -> list[CharSpan]:
    """Return ``(start, end)`` of each block of ``code``, in whatever language it is written.

    A block is a definition or another statement that spans several lines, with the comments and decorators above
    it; or a run of one-line statements that no blank line parts. It starts at a line of the least indentation,
    outside of brackets, literals and comments. A one-liner is one block.
    """
    lines = _code_lines(code)
    if not lines:
        start, end = _strip(code, 0, len(code))
        return [(start, end)] if start < end else []
    top = min(line.indent for line in lines)
    firsts = _first_lines(lines, top)
    ends = [lines[first - 1].end for first in firsts[1:]] + [len(code)]
    starts = [0, *ends[:-1]]
    return [_strip(code, start, end) for start, end in zip(starts, ends, strict=True)]


def _first_lines(lines: Sequence[_Line], top: int) -> list[int]:
    """Return the positions of the lines that start a block."""
    firsts = [0]
    depth = 0
    has_body = False
    for i, line in enumerate(lines):
        before = lines[i - 1].text if i else ""
        plain = line.indent == top and depth == 0 and not _CONTINUES.match(line.text)
        if i and plain and not before.startswith("@") and not before.endswith("\\"):
            following = lines[i + 1] if i + 1 < len(lines) else None
            opens = following is not None and (following.indent > top or _CONTINUES.match(following.text) is not None)
            if line.after_blank or has_body or opens or line.text.startswith("@"):
                firsts.append(i)
                has_body = False
        has_body |= not plain
        depth = max(0, depth + sum(map(line.text.count, "([{")) - sum(map(line.text.count, ")]}")))
    return firsts


def _code_lines(code: str) -> list[_Line]:
    """Return the lines that hold code; one that a literal runs over counts with the line where the literal starts."""
    lines: list[_Line] = []
    start = 0
    after_blank = False
    for masked in _OPAQUE.sub(_mask, code).splitlines(keepends=True):
        end = start + len(masked)
        text = masked.strip()
        if text:
            expanded = masked.expandtabs(4)
            lines.append(_Line(start, end, text, len(expanded) - len(expanded.lstrip()), after_blank))
            after_blank = False
        elif not code[start:end].strip():
            after_blank = True
        start = end
    return lines


def _mask(match: re.Match[str]) -> str:
    if match["comment"] is not None:
        return re.sub(r"[^\r\n]", " ", match[0])
    return "x" * len(match[0])


def _strip(text: str, start: int, end: int) -> CharSpan:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def merge_neighbours(spans: Sequence[CharSpan], most: int) -> list[CharSpan]:
    """Join neighbouring spans, equally many each, so that at most ``most`` are left."""
    step = -(-len(spans) // most)
    if step <= 1:
        return list(spans)
    return [(spans[i][0], spans[min(i + step, len(spans)) - 1][1]) for i in range(0, len(spans), step)]


class Text(Medium):
    """Plain text, which is the content of the row itself; derive from it for another modality that is text."""

    is_text = True
    noun: ClassVar[str] = "sentences"
    """What its parts are called."""

    def split(self, text: str) -> list[CharSpan]:
        """Return the spans of the parts that it can be cut to."""
        return sentence_spans(text)


class Code(Text):
    """Program text, cut between statements of the top level."""

    noun = "blocks"

    def split(self, text: str) -> list[CharSpan]:
        """Return the spans of the blocks."""
        return block_spans(text)


def text_medium(name: str) -> Text:
    """Return the object of a modality that is text.

    Raises:
        ConfigError: it is none.
    """
    medium = of(name)
    if not isinstance(medium, Text):
        raise ConfigError(f"modality {name!r} is not a text")
    return medium
