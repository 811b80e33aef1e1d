"""Documents in parts of bounded size, so that one giant line costs bounded memory and near linear time.

A part ends before white space where it can. There byte-level BPE ends a word anyway, so that its tokens are
those of the whole document; only a stretch of :data:`PART_BYTES` without white space is cut within.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: Longest part.
PART_BYTES = 2**16
#: Longest word that BPE is trained on as one: merging within a word takes time quadratic in its length.
WORD_LENGTH = 256

# A break is before the first white space after something else.
_BREAK = re.compile(rb"(?<![\t\n\v\f\r ])[\t\n\v\f\r ]")
_LONG_WORD = re.compile(rf"\S{{{WORD_LENGTH + 1}}}|\s{{{WORD_LENGTH + 1}}}")
_WORDS = re.compile(
    rf"(?:\s{{1,{WORD_LENGTH}}}+(?!\s)|\S{{1,{WORD_LENGTH}}}+(?!\S))+|\s{{{WORD_LENGTH}}}|\S{{{WORD_LENGTH}}}"
)


def cut_document(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a document into parts of at most :data:`PART_BYTES`: before white space, or between characters.

    Args:
        chunks: The document in pieces of any size; where the parts end does not depend on them.

    Yields:
        Its bytes in order, none of the parts empty.
    """
    held = b""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > PART_BYTES:
            end = _part_end(held, start)
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _part_end(text: bytes, start: int) -> int:
    """Return where the part that begins at ``start`` ends; the text goes on for more than a part."""
    end = start + PART_BYTES
    # Only the last quarter is searched: parts stay long.
    breaks = [match.start() for match in _BREAK.finditer(text, start + 3 * PART_BYTES // 4, end + 1)]
    if breaks:
        return breaks[-1]
    # A character has at most 4 bytes; what looks longer is no UTF-8.
    return next((at for at in range(end, end - 4, -1) if text[at] & 0xC0 != 0x80), end)


def cut_words(text: str) -> list[str]:
    """Cut within words, and within white space, of more than :data:`WORD_LENGTH` characters."""
    return _WORDS.findall(text) if _LONG_WORD.search(text) else [text]
