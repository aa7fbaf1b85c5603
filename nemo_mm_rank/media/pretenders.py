"""Files that are not what their names say, told by their first bytes, each with the way on."""

from __future__ import annotations

import codecs

_WEB_PAGE = "an HTML page, most likely the answer of a server instead of the file; download it again"
_OTHER_UTF = "UTF-{0}: save it as UTF-8, e.g. with `iconv -f UTF-{0} -t UTF-8`"

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"<svg": "SVG, which is a drawing without pixels: convert it, e.g. with `rsvg-convert -o x.png x.svg`",
    b"<?xml": "XML: either the answer of a server instead of the file (download it again), or a drawing "
    "(convert it to PNG)",
    b"%pdf-": "a PDF: convert its pages to images, e.g. with `pdftoppm -png`",
}
_HEIC = "HEIC, which Pillow does not decode: convert it to JPEG, e.g. with `heif-convert x.heic x.jpg`"
_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def pretender(head: bytes, text: bool = False) -> str | None:
    """Return what a file is that was taken for something else, and what to do; None where its beginning says nothing.

    Args:
        head: its first 64 bytes.
        text: whether it was taken for a text.
    """
    if text and head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # one begins as UTF-16 does
        return _OTHER_UTF.format(32)
    if text and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _OTHER_UTF.format(16)
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return _HEIC
    begins = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return next((what for beginning, what in _BEGINNINGS.items() if begins.startswith(beginning)), None)
