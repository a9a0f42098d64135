"""Letters with accents, ligatures and the like as ASCII, so that "ação" is found as "acao".

After Lucene's ASCIIFoldingFilter, which Qdrant follows, but worked out from Unicode's own
decompositions and names in place of a table: letters of phonetic alphabets and medieval
manuscripts, which Lucene has too, stay as they are.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_LETTER = re.compile(r"LATIN (SMALL|CAPITAL) (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .*)?")
_OTHERS = {"ß": "ss", "ẞ": "SS", "þ": "th", "Þ": "TH"} | dict(
    zip("ðÐŋŊıəɛɔ\u2018\u2019\u201c\u201d\u201e\u2013\u2014", 'dDnNiaeo\'\'"""--', strict=True)
)


def fold(text: str) -> str:
    """``text`` with what has an equivalent in ASCII replaced by it, and the rest as it is."""
    return text if text.isascii() else "".join(map(_folded, text))


@lru_cache(maxsize=4_096)
def _folded(character: str) -> str:
    if character in _OTHERS:
        return _OTHERS[character]
    name = unicodedata.name(character, "")
    if name.startswith(("LATIN", "FULLWIDTH")) or character.isdigit():
        decomposed = unicodedata.normalize("NFKD", character)
        base = "".join(one for one in decomposed if not unicodedata.combining(one))
        if base.isascii():
            return base
    if letter := _LETTER.fullmatch(name):
        return letter[2].lower() if letter[1] == "SMALL" else letter[2]
    return character
