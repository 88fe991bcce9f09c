"""A caption -> the words that the official tool scores, without Java.

The official tool (`pycocoevalcap`, after coco-caption) sends all captions in one file through Stanford CoreNLP 3.4.1's
`PTBTokenizer -preserveLines -lowerCase`, then drops punctuation. Here each caption is tokenised by itself, as though
another sentence followed, so no caption can shift or change another, whatever is in it.
"""

import re
from functools import lru_cache

from captioning.evaluation.characters import read_as
from captioning.evaluation.rules import SINGLE, rules_for

VERSION = "PTB 3.4.1 (-preserveLines -lowerCase), punctuation dropped; reproduced in Python, revision 1"

# The official tool's list. It compares after lower-casing, so -LRB- and its like are never met and brackets stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_SPACES = " \xa0"
# What may stand between spaces without regard to its neighbours: no digits (22 3/4), no full stop (Main St. A ...), no
# markup. The last piece has no neighbour behind it, so it may hold full stops.
_ALONE = re.compile(r"[A-Za-z'\",;:!?()/*-]+")
_ALONE_LAST = re.compile(r"[A-Za-z'\",;:!?()/*-]+\.?")
_SOFT_HYPHEN = re.compile(r"(?<=\w)\xad|\xad(?=\w)")
_SPACE_ENTITY = re.compile("&nbsp;", re.IGNORECASE)


def tokenize(caption: str) -> str:
    """The caption's words, lower case, joined by single spaces; "" if nothing is left.

    A word may hold U+00A0 (`22 3/4`, telephone numbers, markup), as the Java program's do; BLEU and CIDEr split there.

    >>> tokenize("A man's dog can't read the \\"No Dogs\\" sign (at the gate).")
    "a man 's dog ca n't read the no dogs sign -lrb- at the gate -rrb-"
    """
    return " ".join([token for token in ptb_tokens(caption) if token not in PUNCTUATION])


def ptb_tokens(caption: str) -> list[str]:
    """All tokens, punctuation too, lower case, as `PTBTokenizer -preserveLines -lowerCase` prints them for one line.

    >>> ptb_tokens("A dog.\\u2028Wait...")
    ['a', 'dog', '.', 'wait', '...']
    """
    pieces = caption.split()
    tokens: list[str] = []
    for piece in pieces[:-1]:
        if not _ALONE.fullmatch(piece):
            break
        tokens += _piece_tokens(piece)
    else:
        if not pieces:
            return []
        if _ALONE_LAST.fullmatch(pieces[-1]):
            return [*tokens, *_piece_tokens(pieces[-1])]
    return _line_tokens(_plain_text(caption))


@lru_cache(maxsize=1 << 17)  # captions share their words
def _piece_tokens(piece: str) -> tuple[str, ...]:
    return tuple(_line_tokens(piece))


def _plain_text(caption: str) -> str:
    """The caption on one line, of characters and entities that the rules know."""
    text = caption.replace("&quot;", '"').replace("&apos;", "’")
    text = _SPACE_ENTITY.sub(" ", "".join(map(read_as, text)))
    return _SOFT_HYPHEN.sub("", text)


def _line_tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if text[position] in _SPACES:
            position += 1
            continue
        taken, found = _longest(text, position)
        position += len(taken)
        tokens += found
    return [token.lower() for token in tokens if token]


def _longest(text: str, position: int) -> tuple[str, list[str]]:
    """The text that the longest match at this position takes, and its tokens."""
    longest = position
    taken, action = text[position], None
    for pattern, _, action_of_rule in rules_for(taken):
        match = pattern.match(text, position)
        if match and match.end() > longest:
            longest = match.end()
            taken, action = match[match.lastindex or 0], action_of_rule
    if longest == position:
        return taken, [SINGLE.get(taken, taken)]
    return taken, action(taken) if action else [taken]
