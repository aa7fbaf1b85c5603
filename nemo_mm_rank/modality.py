"""What data is made of: one object per modality, found by its name, and the names of sets of modalities.

The objects of the built-in modalities, and those of a user's own, are named by import path and made when first asked
for, so that names can be compared where no decoder is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal

from nemo_mm_rank.errors import ConfigError, nearest
from nemo_mm_rank.imports import find_class
from nemo_mm_rank.schema import Modality

if TYPE_CHECKING:
    from nemo_mm_rank.config import MediaSettings
    from nemo_mm_rank.media.preview import Preview
    from nemo_mm_rank.media.segment import Segment, Span


class Medium:
    """Everything about one modality; derive from it to add a modality of your own.

    What has to be written is `decode`, and what it returns: any object with ``key``, a string that is equal for equal
    content (`media.segment.content_key`), and ``nbytes``, its size in memory. Encoders that list the modality are
    handed such objects. The rest is written where it is wanted: `extensions`, to tell members of WebDataset tars and
    files by; `parts`, `extent` and `cut`, for trimming by SNS; `fingerprint`, for near duplicates; `preview`, for the
    report. The configuration names the class by import path::

        modalities: {point-cloud: "my_module:PointCloud"}

    and from then on the name stands wherever that of a built-in modality may: in manifests, quotas, mixes, experts
    and classes of several parts. In Python alone, `register` does the same.

    >>> import io
    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> from nemo_mm_rank.config import MediaSettings
    >>> from nemo_mm_rank.errors import MediaError
    >>> from nemo_mm_rank.media.segment import content_key
    >>> class PointCloud(Medium):
    ...     extensions = "xyz"
    ...     def decode(self, file, settings, spans=None):
    ...         points = np.loadtxt(file, dtype=np.float32, ndmin=2, max_rows=100_000)
    ...         if points.shape[1] != 3:
    ...             raise MediaError(f"has {points.shape[1]} numbers a line, not 3")
    ...         return SimpleNamespace(key=content_key(file), points=points, nbytes=points.nbytes)
    >>> cloud = PointCloud("point-cloud").decode(io.BytesIO(b"0 0 0\\n1 0 2\\n"), MediaSettings())
    >>> cloud.points.shape, cloud.nbytes
    ((2, 3), 24)

    Args:
        name: what the configuration calls it.
    """

    is_text: ClassVar[bool] = False
    """Whether ``data`` is the content itself rather than a reference to a file (see `text.split.Text`)."""
    extensions: ClassVar[str] = ""
    """Of its files, in lower case, without the dot, separated by spaces; the usual one first."""
    parts: ClassVar[Literal["boxes", "windows"] | None] = None
    """What a segment can be cut to: ``[x, y, w, h]`` in pixels, ``[start, end]`` in seconds; None: it stays whole."""
    version: ClassVar[str] = "1"
    """Changed where the same file is decoded to something else: what was made of it is then made anew."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def word(self) -> str:
        """What it is called in prompts."""
        return self.name.replace("-", " ")

    def decode(self, file: IO[bytes], settings: MediaSettings, spans: Sequence[Span] | None = None) -> Segment:
        """Decode an open file, or the parts of it that ``spans`` keep.

        Args:
            file: seekable, at its start, of ``settings.max_bytes`` at most; it may come from anybody, so what it
                claims of itself is to be checked before memory is taken for it.
            settings: bounds, rate and sampling.
            spans: as `parts` says; None keeps all. Nobody asks for parts where there are none.

        Raises:
            MediaError: it cannot be decoded, and why, without its name; OSError and ValueError are taken for that too.
        """
        raise NotImplementedError

    def extent(self, segment: Any) -> tuple[float, float]:
        """Return what `parts` lie in: width and height in pixels, or start and end in seconds."""
        raise NotImplementedError

    def cut(self, segment: Any, spans: Sequence[Span]) -> Segment:
        """Return what ``spans`` keep of a segment: what lies in all boxes together, or the windows end to end."""
        raise NotImplementedError

    def fingerprint(self, segment: Any) -> int:
        """Return 64 bits, few of which differ between near duplicates; of themselves equal contents alone are equal."""
        return int(segment.key[:16], 16)

    def shown(self, spans: Sequence[Span] | None) -> Sequence[Span] | None:
        """Return which spans `preview` wants decoded, where ``spans`` were kept; None is all."""
        return None

    def preview(self, segment: Any, spans: Sequence[Span] | None) -> Preview:
        """Return a small copy that a page can carry (`media.preview.image_preview` makes one of an image).

        Args:
            segment: what `shown` asked for.
            spans: what was kept, to be marked.
        """
        return {"missing": f"there is no preview of a {self.word}"}


MODALITY_CODES: dict[str, int] = {
    Modality.TEXT: 1,
    Modality.IMAGE: 2,
    Modality.VIDEO: 4,
    Modality.AUDIO: 8,
    Modality.CODE: 16,
}
"""One bit each; a set is the sum of its members'. Text, image and video as in UNITE's code (arXiv 2505.19650); audio
and code are ours, and those of other modalities are given out as they are declared, the same in one process."""

_BUILT_IN: dict[str, str] = {
    Modality.TEXT: "nemo_mm_rank.text.split:Text",
    Modality.CODE: "nemo_mm_rank.text.split:Code",
    Modality.IMAGE: "nemo_mm_rank.media.builtin:ImageMedium",
    Modality.AUDIO: "nemo_mm_rank.media.builtin:AudioMedium",
    Modality.VIDEO: "nemo_mm_rank.media.builtin:VideoMedium",
}
_NAMES = tuple(map(str, Modality))
_declared: dict[str, str] = {}
"""Name -> import path of modalities of the user's own, which may be anybody's: nothing is imported for it."""
_registered: dict[str, str] = {}
"""Those of them that may be imported."""
_made: dict[str, Medium] = {}


def declare(modalities: Mapping[str, str]) -> None:
    """Let names of further modalities be known in settings; their classes are not imported before `register`.

    Raises:
        ValueError: a name that is none or taken, or no import path.
    """
    if not isinstance(modalities, Mapping):
        raise ValueError("modalities: write names with import paths such as 'package.module:Class'")
    for name, path in modalities.items():
        if name in _BUILT_IN:
            raise ValueError(
                f"modalities: {str(name)!r} is the name of a built-in modality; choose another name for yours"
            )
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise ValueError(f"modalities: {name!r} cannot be used as a name; use small letters, digits and single -")
        if not isinstance(path, str) or ":" not in path:
            raise ValueError(f"modalities: {name!r} is an import path like 'package.module:Class', not {path!r}")
    for name, path in modalities.items():
        MODALITY_CODES.setdefault(name, 2 * max(MODALITY_CODES.values()))
        _declared[name] = path


def register(modalities: Mapping[str, str]) -> None:
    """Make further modalities known to this process; what it sends to workers knows them there.

    Args:
        modalities: name -> import path of a class that derives from `Medium`.

    Raises:
        ConfigError: a name or path that is none, or a class that is not a modality.
    """
    try:
        declare(modalities)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name, path in modalities.items():
        found = find_class(path, "modality")
        if not issubclass(found, Medium) or (found.decode is Medium.decode and not found.is_text):
            raise ConfigError(
                f"modality {name!r}: {path} is not a modality: it must derive from {__name__}.Medium and have decode()"
            )
        _made[name] = found(name)
        _registered[name] = path
    by_extension.cache_clear()


def registered() -> dict[str, str]:
    """Return the modalities of the user's own that this process may import: name -> import path."""
    return dict(_registered)


def take_up(modalities: Mapping[str, str]) -> None:
    """Know what another process has registered; a class is imported when it is first asked for."""
    declare(modalities)
    for name, path in modalities.items():
        if _registered.get(name) != path:
            _made.pop(name, None)
            _registered[name] = path
    by_extension.cache_clear()


def names() -> tuple[str, ...]:
    """Return the names of all modalities that are known, the built-in ones first."""
    return (*_NAMES, *sorted(_declared)) if _declared else _NAMES


def of(name: str) -> Medium:
    """Return the object of a modality.

    Raises:
        ConfigError: there is none, or it is a run's own and nobody has said that its class may be imported.
    """
    if name not in _made:
        path = _BUILT_IN.get(name) or _registered.get(name)
        if path is None and name in _declared:
            raise ConfigError(f"modality {name!r} is the class {_declared[name]!r}, which this process may not import")
        if path is None:
            raise ConfigError(f"{name!r} is not a modality: there are {', '.join(names())}{nearest(name, names())}")
        _made[str(name)] = find_class(path, "modality")(str(name))
    return _made[name]


def is_media(name: str) -> bool:
    """Whether ``data`` of a modality is a reference to a file rather than the content itself."""
    if name in _BUILT_IN:
        return name not in (Modality.TEXT, Modality.CODE)
    return name in _declared and not (name in _registered and of(name).is_text)


def media_names() -> list[str]:
    """Return the names of the modalities that come as files."""
    return [name for name in names() if is_media(name)]


@lru_cache(maxsize=1024)
def by_extension(extension: str) -> str | None:
    """Return the modality whose files have an extension (lower case, without the dot), None where it says none."""
    readable = (name for name in media_names() if name in _BUILT_IN or name in _registered)
    return next((name for name in readable if extension in of(name).extensions.split()), None)


def identity(classes: Iterable[str]) -> str:
    """Return what the decoding of data of some classes depends on besides settings; "" for built-in modalities."""
    used = {part for name in classes for part in name.split("+") if part in _registered}
    return " ".join(f"{name}={_registered[name]}@{of(name).version}" for name in sorted(used))


def combined(modalities: Iterable[str]) -> str:
    """Return what data of several parts is called, whatever their order: a class of its own, such as ``text+image``.

    Raises:
        ValueError: a modality that there is none of.
    """
    there = set(modalities)
    if unknown := sorted(there - set(names())):
        raise ValueError(f"{unknown[0]!r} is not a modality")
    return "+".join(name for name in names() if name in there)


def modalities_of(name: str) -> tuple[str, ...]:
    """Return what data of a class is made of: one modality, or those of its parts.

    Raises:
        ValueError: it is no class of data.
    """
    found = tuple(name.split("+"))
    if combined(found) != name:
        raise ValueError(f"{name!r} is not a class of data: {combined(found)!r} is")
    return found


def known_class(name: str) -> bool:
    """Whether data can be of this class."""
    try:
        return bool(modalities_of(name))
    except ValueError:
        return False


def one_of(name: object) -> str:
    """Say that a name is not a modality, and which there are."""
    return f"modality {name!r} is not one of {', '.join(names())}"


def code_of(label: str | Iterable[str]) -> int:
    """Return the code of a set: ``"image"``, ``"text, image"``, ``"image+text"`` or a collection of names.

    Raises:
        ValueError: a name that is unknown or empty, or no name at all.
    """
    names = label.replace("+", ",").split(",") if isinstance(label, str) else sorted(label)
    code = 0
    for name in (name.strip() for name in names):
        if name not in MODALITY_CODES:
            raise ValueError(f"unknown modality {name!r}{nearest(name, MODALITY_CODES)}" if name else "empty modality")
        code |= MODALITY_CODES[name]
    if not code:
        raise ValueError("empty modality")
    return code


def name_of(code: int) -> str:
    """Return the one name of a set (`combined`), such as ``"text+image"``; any other number as it is."""
    known = 0 < code < 2 * max(MODALITY_CODES.values())
    return combined(name for name, bit in MODALITY_CODES.items() if code & bit) if known else str(code)
