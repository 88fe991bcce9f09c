"""The characters as Stanford's PTB tokenizer 3.4.1 sees them: letters, digits, what it drops and what it rewrites.

Observed of the Java program, by asking it about each character of the Basic Multilingual Plane.
"""

import unicodedata
from functools import cache

# Kept as tokens of their own (or as parts of the few tokens that hold them) though neither letters nor digits.
_SYMBOLS = (
    (0x20, 0x7E), (0xA1, 0xAC), (0xAE, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x37E, 0x37E),
    (0x387, 0x387), (0x589, 0x589), (0x5BE, 0x5BE), (0x5C0, 0x5C0), (0x5C3, 0x5C3), (0x5C6, 0x5C6), (0x5F3, 0x5F4),
    (0x600, 0x603), (0x606, 0x60C), (0x614, 0x614), (0x61B, 0x61B), (0x61E, 0x61F), (0x66A, 0x66A), (0x66D, 0x66D),
    (0x6D4, 0x6D4), (0x700, 0x70D), (0x7F6, 0x7F8), (0x964, 0x965), (0xE3F, 0xE3F), (0xE4F, 0xE4F), (0x1FBD, 0x1FBD),
    (0x2013, 0x2017), (0x2018, 0x2023), (0x2026, 0x2026), (0x2030, 0x2038), (0x2039, 0x203B), (0x203E, 0x2042),
    (0x2044, 0x2044), (0x2070, 0x2070), (0x2074, 0x207E), (0x2080, 0x208E), (0x20A0, 0x20A0), (0x20A4, 0x20A4),
    (0x20AC, 0x20AC), (0x2100, 0x2101), (0x2103, 0x2106), (0x2108, 0x2109), (0x2114, 0x2114), (0x2116, 0x2118),
    (0x211E, 0x2123), (0x2125, 0x2125), (0x2127, 0x2127), (0x2129, 0x2129), (0x212E, 0x212E), (0x213A, 0x213B),
    (0x2140, 0x2144), (0x214A, 0x214D), (0x214F, 0x214F), (0x2153, 0x215E), (0x2190, 0x2BFF), (0x3001, 0x3002),
    (0x3012, 0x3012), (0x30FB, 0x30FB), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65),
    (0xFFE0, 0xFFE1), (0xFFE5, 0xFFE6),
)  # fmt: skip

# Characters that are read as others, and those that are rewritten to several: windows-1252's come as themselves too.
_READ_AS = {
    **dict.fromkeys("\x96\x97–—―", "–"),
    **dict.fromkeys("\x91‘‛‹", "‘"),
    **dict.fromkeys("\x92’›", "’"),
    **dict.fromkeys("\x93«“", "“"),
    **dict.fromkeys("\x94»”", "”"),
    **dict.fromkeys("\x80¤₠€", "€"),
    "\xa0": "\xa0",
    "…": "…",
}


@cache
def read_as(character: str) -> str:
    """The character itself, the one that it is a form of, or a space where the tokenizer drops it.

    >>> read_as("a"), read_as("—"), read_as("😀"), read_as("\\u2028")
    ('a', '–', ' ', ' ')
    """
    code = ord(character)
    if character in _READ_AS:
        return _READ_AS[character]
    if character in "\xad\u058a\u2010\u2011" or any(first <= code <= last for first, last in _SYMBOLS):
        return character
    if code < 0x80 or code > 0xFFFF:  # controls; and Java's characters are of 16 bits, so the rest comes as two halves
        return " "
    in_words = character.isalpha() or unicodedata.category(character) in ("Nd", "Mn", "Mc", "Me")
    return character if in_words else " "
