"""A caption -> the words that the official tool scores, without Java.

The official tool (`pycocoevalcap`, after coco-caption) sends all captions in one file through Stanford CoreNLP 3.4.1's
`PTBTokenizer -preserveLines -lowerCase`, then drops punctuation. Here each caption is tokenised by itself, as though
another sentence followed, so no caption can shift or change another, whatever is in it.

Written anew from how the Java program answers: about each character of the Basic Multilingual Plane (`read_as`), and
about captions (`RULES`). As in its lexer, the longest match wins, and of equally long ones the first rule. Where a
pattern has a group, the group is what becomes tokens, but the match counts as long as it is whole: the rest is what
must follow.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

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


# Python's \w holds numbers that are no digits (½, ②, ²), which the Java program takes for signs.
NUMBERS = "\xb2\xb3\xb9\xbc-\xbe\u2070-\u2079\u2080-\u2089\u2150-\u215f\u2460-\u24ff\u2776-\u2793"
ACCENTED = "&(?i:[aeiou](?:acute|grave|uml));"
LETTER = rf"(?:[^\W\d_{NUMBERS}]|[\u0300-\u036f]|{ACCENTED})"
LETTER_OR_DIGIT = rf"(?:[^\W_{NUMBERS}]|[\u0300-\u036f]|{ACCENTED})"
WORD = f"{LETTER}{LETTER_OR_DIGIT}*"
DOTTED = rf"{WORD}(?:[.!?]{WORD})*"  # end.Next is one word, and so is www.example
QUOTE, QUOTE_OR_TICK = "['’]", "['’`]"
SPACE = "[ \xa0]"
NO_SPACE = r"\s\xa0"
HYPHEN = "[-_\u058a\u2010\u2011]"
# d'Angelo, O'Malley, l'orange; also behind a hyphen
PART = f"(?:[dDoOlL]{QUOTE_OR_TICK}{LETTER_OR_DIGIT})?{LETTER_OR_DIGIT}+"
COMPOUND = f"{PART}(?:{HYPHEN}{PART})*"
ENDS = "(?:[^A-Za-z0-9]|$)"
INITIALS = r"[A-Za-z](?:\.[A-Za-z])"
COMPANY = "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"  # AT&T
PATH = rf"(?:/[^{NO_SPACE}\"<>|()]+[^{NO_SPACE}\"<>|.!?(){{}},-])?"

# Abbreviations keep their full stop. After one of MAY_BE_LAST a sentence may end, and that stop counts twice then.
MAY_BE_LAST = """al ala apr ariz assn aug bhd bldg blvd bros calif co colo corp cos ct dak dec esq est etc ext feb fla
    fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc pte
    pty rd rt sep sept seq sq sr sys tenn thu thurs tue tues univ va vt wed wis wisc wyo ph\\.d ed\\.d"""
MAY_BE_LAST_CAPITALISED = "ark az conn del ill la mass miss ore pa tel tex wash"
NEVER_LAST = """adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen
    gov govs hon insp jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof pvt rep reps rev
    sen sens sfc sgt spc st ste supt supts treas vs wm"""
BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
FIRST_WORDS = """a about according additionally after an as at but earlier he her here however if in it last many more
    now once one other our she since so some such that the their then there these they this we what when while yet
    you"""
FILES = """bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py
    sql tar txt wav x xml zip"""
BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}

# What one character becomes where no rule takes more.
SINGLE = {
    **BRACKETS,
    **dict(zip("‘’“”–…", ("`", "'", "``", "''", "--", "..."), strict=True)),
    **dict(zip("€£¢", ("$", "#", "cents"), strict=True)),
    **dict(zip("¼½¾⅓⅔", ("1/4", "1/2", "3/4", "1/3", "2/3"), strict=True)),
    "\xad": "-",
    **dict.fromkeys("\u058a\u2010\u2011", ""),  # hyphens that stand alone
}


def _any_of(words: str) -> str:
    return f"(?:{'|'.join(sorted(words.split(), key=len, reverse=True))})"


CAPITAL_OR_TAG = f"(?:{SPACE}*$|{SPACE}+(?:[A-ZÀ-ÖØ-Þ]|<[A-Za-z!?/]))"
# A caption is taken to be followed by another one, as in the official tool's one long file: the stop of "vitamin C." at
# its end is the sentence's.
NEW_SENTENCE = f"(?:{SPACE}*$|{SPACE}+(?=[A-Z])(?i:{_any_of(FIRST_WORDS)})(?:{SPACE}|$))"
LAST = f"(?:(?i:{_any_of(MAY_BE_LAST)})|(?=[A-Z])(?i:{_any_of(MAY_BE_LAST_CAPITALISED)}))"


def _joined(text: str) -> list[str]:
    return [_without_brackets(text).replace(" ", "\xa0")]


def _without_brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _and_stop(text: str) -> list[str]:
    return [text, "."]


def _straight(text: str) -> list[str]:
    return [text.replace("’", "'")]


def _after(count: int) -> Callable[[str], list[str]]:
    return lambda text: [text[:count], text[count:]]


def _always(token: str) -> Callable[[str], list[str]]:
    return lambda text: [token]


class Rule(NamedTuple):
    """A pattern, the characters that it may begin with (a class), and what its text becomes (itself if None)."""

    pattern: re.Pattern[str]
    first: re.Pattern[str]
    action: Callable[[str], list[str]] | None


def _rule(first: str, pattern: str, action: Callable[[str], list[str]] | None = None) -> Rule:
    return Rule(re.compile(pattern), re.compile(first), action)


LETTERS = r"[^\W\d_]|[\u0300-\u036f]|&"
ALPHANUMERIC = r"[^\W_]|[\u0300-\u036f]|&"

RULES = (
    # Words and what apostrophes make of them
    _rule("[A-Za-z]", "(?i:cannot|gonna|gotta|gimme|lemme|wanna)", _after(3)),
    _rule("'", "('[tT])(?i:is|was)"),
    _rule(LETTERS, DOTTED),
    _rule("[A-Za-z]", f"([A-Za-z]*[A-MO-Za-mo-z])[nN]{QUOTE_OR_TICK}[tT]"),
    _rule("[A-Za-z]", f"([A-Za-z]+){QUOTE}(?i:s|m|d|re|ve|ll)"),
    _rule("[nN]", f"[nN]{QUOTE_OR_TICK}[tT]", _straight),
    _rule("'", "('(?i:s|m|d|re|ve|ll))(?:[^A-Za-z]|$)"),
    _rule("’", "’(?i:s|m|d|re|ve|ll)", _straight),
    _rule("['’]", f"{QUOTE}(?:[nN]{QUOTE}?|(?i:em|till?|cause)|[0-9]0s)|({QUOTE}[0-9][0-9])(?:{SPACE}|$)"),
    _rule("[dDlLjJ]", f"[dDlLjJ]{QUOTE}"),
    _rule("[yY]", f"([yY]{QUOTE})[A-Za-z]"),
    _rule("[A-Za-z]", f"(?i:dunkin|somethin|ol){QUOTE}|(?i:s'mores|c'mon|cap['’]n|e'er|li'l)"),
    _rule("[A-HJ-XZn]", f"[A-HJ-XZn]{QUOTE_OR_TICK}{LETTER}{LETTER}+"),  # O'Malley's relatives
    _rule("[A-Za-z]", f"[A-Za-z]+[aeiouyAEIOUY]{QUOTE_OR_TICK}[aeiouA-Z][A-Za-z]*"),  # ma'am, McO'Neil
    # Abbreviations and initials
    _rule("[A-Za-z]", rf"({LAST}\.){CAPITAL_OR_TAG}", _and_stop),
    _rule("[A-Za-z]", rf"({LAST}\.).(?:.|$)"),
    _rule("[A-Za-z]", rf"{LAST}\.|(?i:{_any_of(NEVER_LAST)})\."),
    _rule("[A-Za-z]", rf"((?i:{_any_of(BEFORE_NUMBERS)})\.){SPACE}*[0-9]"),
    _rule(ALPHANUMERIC, rf"((?:{DOTTED}|{COMPANY}|{COMPOUND})\.)[,;:]"),
    _rule("[A-Za-z]", rf"([A-Za-z])\.{NEW_SENTENCE}"),
    _rule("[A-Za-z]", rf"({INITIALS}+\.){NEW_SENTENCE}", _and_stop),
    _rule("[A-Za-z]", rf"{INITIALS}*\."),
    # Compounds
    _rule(ALPHANUMERIC, COMPOUND),
    _rule("[A-Za-z0-9]", rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{INITIALS}+\.|[A-Za-z0-9]+))+"),
    _rule("[A-Za-z0-9]", r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    _rule("[A-Z]", COMPANY, lambda text: [text.replace("&amp;", "&")]),
    _rule("[A-Za-z]", r"(?i:c\+\+)|[CcFf]#|[Ss]&[Pp]-500|[A-Z]+\$"),
    # Numbers
    _rule(r"[\d.:,\u066b\u066c+-]", r"[-+]?(?:\d+(?:[.:,\u066b\u066c]\d+)*|(?:[.:,\u066b\u066c]\d+)+)"),
    _rule("[0-9]", r"(?:[0-9]{1,4}[- \xa0])?[0-9]{1,4}(?:\\?/|⁄)[0-9]{1,4}", _joined),
    _rule(
        r"[0-9+(]",
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        _joined,  # a telephone number
    ),
    # The internet, files and markup
    _rule("[A-Za-z0-9]", rf"([A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*\.(?i:{_any_of(FILES)}))(?:[{NO_SPACE}.?!,\"'<]|$)"),
    _rule("[Hh]", rf"(?i:https?)://[^{NO_SPACE}\"<>|()]+[^{NO_SPACE}\"<>|.!?(){{}},-]"),
    _rule("[Ww]", rf"(?i:www)\.(?:[^{NO_SPACE}\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{PATH}"),
    _rule(r"[^\s\d]", rf"(?:[^{NO_SPACE}\d\"`'<>|.!?(){{}}\[\]\\/:;,_$=-]+\.)+(?:com|net|org|edu){PATH}"),
    _rule("[A-Za-z0-9<]", rf"<?[A-Za-z0-9][^{NO_SPACE}\"<>|()]*@(?:[^{NO_SPACE}\"<>|().]+\.)*[^{NO_SPACE}\"<>|().]+>?"),
    _rule("[@#]", f"@[A-Za-z_][A-Za-z0-9_]*|#{LETTER}+"),
    _rule(
        "<",
        r"<(?:[!?][A-Za-z-][^>]*|/[A-Za-z][A-Za-z0-9_:.-]*"
        r"|[A-Za-z][A-Za-z0-9_:.-]*(?: +[A-Za-z][A-Za-z0-9_:.-]*(?: *= *(?:'[^']*'|\"[^\"]*\"))?)* */? *)>",
        _joined,
    ),
    _rule("&", "(?i:&(?:m|n)dash;|&md;)", _always("--")),
    _rule("&", "(?i:&lt;)", _always("<")),
    _rule("&", "(?i:&gt;)", _always(">")),
    _rule("&", "(?i:&amp;)", _always("&")),
    _rule("&", "&#[0-9]+;|(?i:&(?:ur|lr|qc|ql|qr|odq|cdq);|&quot;|&apos;)"),
    _rule("[<>:;=]", rf"([<>]?[:;=]['o-]?[()\[\]{{|\\DdPpO0@]|:3){ENDS}", lambda text: [_without_brackets(text)]),
    _rule("[-^=~<>']", "[-^=~<>']_[-^=~<>']"),
    # Quotation marks, opening or closing
    _rule("'", rf"(')[A-Za-z][^{NO_SPACE}]", _always("`")),
    _rule("'", "''?"),
    _rule("`", "``?"),
    _rule('"', '(")[A-Za-z0-9$]', _always("``")),
    _rule('"', '"', _always("''")),
    _rule("[‘’“”]", "[‘’“”]{2,}", lambda text: ["".join(SINGLE[quote] for quote in text)]),
    # Rows of signs
    _rule(r"\.", rf"\.{{3,5}}|(?:\.{SPACE}){{2,}}\.", _always("...")),
    _rule("-", "-(?i:[LR][RCS]B)-|-----+"),
    _rule("-", "--(?:--?)?", _always("--")),
    _rule(r"[_*#@!?]", r"_+|\*+|#+|@+|[!?]+"),
    _rule("[<>]", "<<|>>"),
)


@cache
def rules_for(character: str) -> tuple[Rule, ...]:
    """The rules that may begin with this character."""
    return tuple(rule for rule in RULES if rule.first.match(character))


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
