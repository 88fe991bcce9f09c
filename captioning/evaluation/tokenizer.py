"""A caption -> the words that the official tool scores, without Java.

The official tool (`pycocoevalcap`, after coco-caption) sends all captions in one file through Stanford CoreNLP 3.4.1's
`PTBTokenizer -preserveLines -lowerCase`, then drops punctuation. Here each caption is tokenised by itself, as though
another sentence followed, so no caption can shift or change another, whatever is in it.

Written anew from how the Java program answers: about each character of the Basic Multilingual Plane (`Shapes`), and
about captions (`RULES`). As in its lexer, the longest match wins, and of equally long ones the first rule. Where a
pattern has a group, the group is what becomes tokens, but the match counts as long as it is whole: the rest is what
must follow.
"""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

# What the Java program answered about each character of the Basic Multilingual Plane that is not ASCII, in ranges of
# hexadecimal codes; all others are dropped, and so are the supplementary planes. How it was asked is in
# `test_every_character_is_what_java_takes_it_for`. Its letters are those of Unicode 6.1, whatever Python's are.
LETTERS_AND_DIGITS = """
    aa b5 ba c0-d6 d8-f6 f8-2c1 2c6-2d1 2e0-2e4 2ec 2ee 370-374 376-377 37a-37d 386 388-38a 38c 38e-3a1 3a3-3f5
    3f7-481 48a-527 531-556 559 561-587 5d0-5ea 5f0-5f2 620-64a 660-669 66e-66f 671-6d3 6d5 6e5-6e6 6ee-6fc 6ff
    710 712-72f 74d-7a5 7b1 7c0-7ea 7f4-7f5 7fa 800-815 81a 824 828 840-858 8a0 8a2-8ac 904-939 93d 950 958-961
    966-96f 971-977 979-97f 985-98c 98f-990 993-9a8 9aa-9b0 9b2 9b6-9b9 9bd 9ce 9dc-9dd 9df-9e1 9e6-9f1 a05-a0a
    a0f-a10 a13-a28 a2a-a30 a32-a33 a35-a36 a38-a39 a59-a5c a5e a66-a6f a72-a74 a85-a8d a8f-a91 a93-aa8 aaa-ab0
    ab2-ab3 ab5-ab9 abd ad0 ae0-ae1 ae6-aef b05-b0c b0f-b10 b13-b28 b2a-b30 b32-b33 b35-b39 b3d b5c-b5d b5f-b61
    b66-b6f b71 b83 b85-b8a b8e-b90 b92-b95 b99-b9a b9c b9e-b9f ba3-ba4 ba8-baa bae-bb9 bd0 be6-bef c05-c0c
    c0e-c10 c12-c28 c2a-c33 c35-c39 c3d c58-c59 c60-c61 c66-c6f c85-c8c c8e-c90 c92-ca8 caa-cb3 cb5-cb9 cbd cde
    ce0-ce1 ce6-cef cf1-cf2 d05-d0c d0e-d10 d12-d3a d3d d4e d60-d61 d66-d6f d7a-d7f d85-d96 d9a-db1 db3-dbb dbd
    dc0-dc6 e01-e30 e32-e33 e40-e46 e50-e59 e81-e82 e84 e87-e88 e8a e8d e94-e97 e99-e9f ea1-ea3 ea5 ea7 eaa-eab
    ead-eb0 eb2-eb3 ebd ec0-ec4 ec6 ed0-ed9 edc-edf f00 f20-f29 f40-f47 f49-f6c f88-f8c 1000-102a 103f-1049
    1050-1055 105a-105d 1061 1065-1066 106e-1070 1075-1081 108e 1090-1099 10a0-10c5 10c7 10cd 10d0-10fa
    10fc-1248 124a-124d 1250-1256 1258 125a-125d 1260-1288 128a-128d 1290-12b0 12b2-12b5 12b8-12be 12c0
    12c2-12c5 12c8-12d6 12d8-1310 1312-1315 1318-135a 1380-138f 13a0-13f4 1401-166c 166f-167f 1681-169a
    16a0-16ea 1700-170c 170e-1711 1720-1731 1740-1751 1760-176c 176e-1770 1780-17b3 17d7 17dc 17e0-17e9
    1810-1819 1820-1877 1880-18a8 18aa 18b0-18f5 1900-191c 1946-196d 1970-1974 1980-19ab 19c1-19c7 19d0-19d9
    1a00-1a16 1a20-1a54 1a80-1a89 1a90-1a99 1aa7 1b05-1b33 1b45-1b4b 1b50-1b59 1b83-1ba0 1bae-1be5 1c00-1c23
    1c40-1c49 1c4d-1c7d 1ce9-1cec 1cee-1cf1 1cf5-1cf6 1d00-1dbf 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d
    1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb
    1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2071 207f 2090-209c 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128
    212a-212d 212f-2139 213c-213f 2145-2149 214e 2183-2184 2c00-2c2e 2c30-2c5e 2c60-2ce4 2ceb-2cee 2cf2-2cf3
    2d00-2d25 2d27 2d2d 2d30-2d67 2d6f 2d80-2d96 2da0-2da6 2da8-2dae 2db0-2db6 2db8-2dbe 2dc0-2dc6 2dc8-2dce
    2dd0-2dd6 2dd8-2dde 2e2f 3005-3006 3031-3035 303b-303c 3041-3096 309d-309f 30a1-30fa 30fc-30ff 3105-312d
    3131-318e 31a0-31ba 31f0-31ff 3400-4db5 4e00-9fcc a000-a48c a4d0-a4fd a500-a60c a610-a62b a640-a66e
    a67f-a697 a6a0-a6e5 a717-a71f a722-a788 a78b-a78e a790-a793 a7a0-a7aa a7f8-a801 a803-a805 a807-a80a
    a80c-a822 a840-a873 a882-a8b3 a8d0-a8d9 a8f2-a8f7 a8fb a900-a925 a930-a946 a960-a97c a984-a9b2 a9cf-a9d9
    aa00-aa28 aa40-aa42 aa44-aa4b aa50-aa59 aa60-aa76 aa7a aa80-aaaf aab1 aab5-aab6 aab9-aabd aac0 aac2
    aadb-aadd aae0-aaea aaf2-aaf4 ab01-ab06 ab09-ab0e ab11-ab16 ab20-ab26 ab28-ab2e abc0-abe2 abf0-abf9
    ac00-d7a3 d7b0-d7c6 d7cb-d7fb f900-fa6d fa70-fad9 fb00-fb06 fb13-fb17 fb1d fb1f-fb28 fb2a-fb36 fb38-fb3c
    fb3e fb40-fb41 fb43-fb44 fb46-fbb1 fbd3-fd3d fd50-fd8f fd92-fdc7 fdf0-fdfb fe70-fe74 fe76-fefc ff10-ff19
    ff21-ff3a ff41-ff5a ff66-ffbe ffc2-ffc7 ffca-ffcf ffd2-ffd7 ffda-ffdc
"""
# Accents, vowel signs and their neighbours: letters too, but not in compounds (1st, well-known, O'Malley).
MARKS = """
    2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7
    615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955
    962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2
    bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd
"""
# Tokens of their own, or parts of the few tokens that hold them.
SYMBOLS = """
    a1-a3 a5-a9 ac ae-b4 b6-b9 bc-bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c 614 61b 61e-61f
    66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 201a 201e-2023 2030-2038 203b 203e-2042 2044 2070
    2074-207e 2080-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e
    213a-213b 2140-2144 214a-214d 214f 2153-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40
    ff5b-ff65 ffe0-ffe1 ffe5-ffe6
"""

# What stands for all characters of a kind in the rules' patterns.
CAPITAL, OTHER_LETTER, DIGIT, MARK, WIDE_SPACE, DROPPED = "À", "à", "٠", "\u0301", "\u2003", "\0"


def _class(ranges: str) -> str:
    """The ranges as a class of a regular expression."""
    return "[" + re.sub(r"([0-9a-f]+)\s*", lambda code: rf"\u{code[1]:>04}", ranges.strip()) + "]"


_KIND = re.compile(
    f"({_class(LETTERS_AND_DIGITS)})|({_class(MARKS)})|{_class(SYMBOLS)}|[\xad\u058a\u2010\u2011\u066b\u066c]"
)


class Shapes(dict[int, str]):
    """Character -> the one by which the rules know it, as `str.translate` asks; computed once for each.

    ASCII and symbols are known by themselves, some by one that they are a form of, and all else by its kind.

    >>> "a—Éé5😀".translate(SHAPES)
    'a–Àà5\\x00'
    """

    def __missing__(self, code: int) -> str:
        """The shape of a character that is met for the first time."""
        self[code] = shape = _shape(chr(code))
        return shape


def _shape(character: str) -> str:
    if character == "\t" or " " <= character <= "~":
        return character
    if "\u2000" <= character <= "\u200a" or character == "\u3000":
        return WIDE_SPACE
    kind = _KIND.match(character)
    if kind is None:
        return DROPPED
    if kind[1]:
        if character.isdecimal():
            return DIGIT
        # Unicode 8 made capitals of Cherokee's letters
        return CAPITAL if character.isupper() and not "Ꭰ" <= character <= "Ᏼ" else OTHER_LETTER
    return MARK if kind[2] else character


# Characters that are known by another's name: windows-1252's come as themselves too.
SHAPES = Shapes(
    (ord(form), forms[0])
    for forms in ("–—―\x96\x97", "‘‛\x91", "’\x92", "“«\x93", "”»\x94", "€¤₠\x80", "‹", "›", "…", "\xa0")
    for form in forms
)

ACCENTED = "&(?i:[aeiou](?:acute|grave|uml));"
PLAIN = f"[A-Za-z{CAPITAL}{OTHER_LETTER}]"
PLAIN_OR_DIGIT = rf"[A-Za-z\d{CAPITAL}{OTHER_LETTER}]"
LETTER = f"(?:[A-Za-z{CAPITAL}{OTHER_LETTER}{MARK}\xad]|{ACCENTED})"
LETTER_OR_DIGIT = rf"(?:[A-Za-z\d{CAPITAL}{OTHER_LETTER}{MARK}\xad]|{ACCENTED})"
WORD = f"{LETTER}{LETTER_OR_DIGIT}*"
DOTTED = rf"{WORD}(?:[.!?]{WORD})*"  # end.Next is one word, and so is www.example
QUOTE, QUOTE_OR_TICK = "['’]", "['’`]"
SPACE = f"[ \t\xa0{WIDE_SPACE}]"
NO_SPACE = r" \t\xa0"
HYPHEN = "[-_\u058a\u2010\u2011]"
# d'Angelo, O'Malley, l'orange; also behind a hyphen
PART = f"(?:[dDoOlL]{QUOTE_OR_TICK}{PLAIN_OR_DIGIT})?{PLAIN_OR_DIGIT}+"
COMPOUND = f"{PART}(?:{HYPHEN}{PART})*"
ENDS = "(?:[^A-Za-z0-9]|$)"
INITIALS = r"[A-Za-z](?:\.[A-Za-z])"
COMPANY = "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"  # AT&T
PATH = r"(?:/[^ \t\"<>|()]+[^ \t\"<>|.!?(){},-])?"

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
    **dict(zip("‘‹’›“”–…", ("`", "`", "'", "'", "``", "''", "--", "..."), strict=True)),
    **dict(zip("€£¢", ("$", "#", "cents"), strict=True)),
    **dict(zip("¼½¾⅓⅔", ("1/4", "1/2", "3/4", "1/3", "2/3"), strict=True)),
    **dict.fromkeys("\u058a\u2010\u2011\u066b\u066c", ""),  # hyphens and separators of digits that stand alone
}


def _any_of(words: str) -> str:
    return f"(?:{'|'.join(sorted(words.split(), key=len, reverse=True))})"


TAG = (
    r"<(?:[!?][A-Za-z-][^>]*|/[A-Za-z][A-Za-z0-9_:.-]*"
    r"|[A-Za-z][A-Za-z0-9_:.-]*(?: +[A-Za-z][A-Za-z0-9_:.-]*(?: *= *(?:'[^']*'|\"[^\"]*\"))?)* */? *)>"
)
CAPITAL_OR_TAG = f"(?:{SPACE}*$|{SPACE}(?:{SPACE}|[A-Z{CAPITAL}Ⓐ-Ⓩ]|{TAG}))"
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
    return [text.replace("’", "'").replace("\x92", "'")]


def _as_it_is(text: str) -> list[str]:
    return [text]


def _without_soft_hyphens(text: str) -> list[str]:
    return [text.replace("\xad", "") or "-"]


def _after(count: int) -> Callable[[str], list[str]]:
    return lambda text: [text[:count], text[count:]]


def _always(token: str) -> Callable[[str], list[str]]:
    return lambda text: [token]


class Rule(NamedTuple):
    """A pattern of shapes, those that it may begin with (a class), and what the caption's own text there becomes."""

    pattern: re.Pattern[str]
    first: re.Pattern[str]
    action: Callable[[str], list[str]]


def _rule(first: str, pattern: str, action: Callable[[str], list[str]] = _without_soft_hyphens) -> Rule:
    return Rule(re.compile(pattern), re.compile(first), action)


FIRST_LETTER = f"[A-Za-z{CAPITAL}{OTHER_LETTER}{MARK}\xad&]"
FIRST_LETTER_OR_DIGIT = rf"[A-Za-z\d{CAPITAL}{OTHER_LETTER}{MARK}\xad&]"

RULES = (
    # Words and what apostrophes make of them
    _rule("[A-Za-z]", "(?i:cannot|gonna|gotta|gimme|lemme|wanna)", _after(3)),
    _rule("'", "('[tT])(?i:is|was)"),
    _rule(FIRST_LETTER, DOTTED),
    _rule("[A-Za-z]", f"([A-Za-z]*[A-MO-Za-mo-z])[nN]{QUOTE_OR_TICK}[tT]"),
    _rule("[A-Za-z]", f"([A-Za-z]+){QUOTE}(?i:s|m|d|re|ve|ll)"),
    _rule("[nN]", f"[nN]{QUOTE_OR_TICK}[tT]", _straight),
    _rule("'", "('(?i:s|m|d|re|ve|ll))(?:[^A-Za-z]|$)"),
    _rule("’", "’(?i:s|m|d|re|ve|ll)", _straight),
    _rule("['’]", f"{QUOTE}(?:[nN]{QUOTE}?|(?i:em|till?|cause)|[0-9]0[sS])|({QUOTE}[0-9][0-9])(?:{SPACE}|$)"),
    _rule("[dDlLjJ]", f"[dDlLjJ]{QUOTE}"),
    _rule("[yY]", f"([yY]{QUOTE}){PLAIN}"),
    _rule("[A-Za-z]", f"(?i:dunkin|somethin|ol){QUOTE}|(?i:s'mores|c'mon|cap['’]n|e'er|li'l)"),
    _rule("[A-HJ-XZn]", f"[A-HJ-XZn]{QUOTE_OR_TICK}{PLAIN}{{2,}}"),  # O'Malley's relatives
    _rule("[A-Za-z]", f"[A-Za-z]+[aeiouyAEIOUY]{QUOTE_OR_TICK}[aeiouA-Z][A-Za-z]*"),  # ma'am, McO'Neil
    # Abbreviations and initials
    _rule("[A-Za-z]", rf"({LAST}\.){CAPITAL_OR_TAG}", _and_stop),
    _rule("[A-Za-z]", rf"({LAST}\.).(?:.|$)"),
    _rule("[A-Za-z]", rf"{LAST}\.|(?i:{_any_of(NEVER_LAST)})\."),
    _rule("[A-Za-z]", rf"((?i:{_any_of(BEFORE_NUMBERS)})\.){SPACE}?\d"),
    _rule(FIRST_LETTER_OR_DIGIT, rf"((?:{DOTTED}|{COMPANY}|{COMPOUND})\.)[,;:、]"),
    _rule("[A-Za-z]", rf"([A-Za-z])\.{NEW_SENTENCE}"),
    _rule("[A-Za-z]", rf"({INITIALS}+\.){NEW_SENTENCE}", _and_stop),
    _rule("[A-Za-z]", rf"{INITIALS}*\."),
    # Compounds
    _rule(FIRST_LETTER_OR_DIGIT, COMPOUND),
    _rule("[A-Za-z0-9]", rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{INITIALS}+\.|[A-Za-z0-9\xad]+))+"),
    _rule("[A-Za-z0-9]", r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    _rule("[A-Z]", COMPANY, lambda text: [text.replace("&amp;", "&")]),
    _rule("[A-Za-z]", r"(?i:c\+\+)|[CcFf]#|[Ss]&[Pp]-500|[A-Z]+\$"),
    # Numbers
    _rule(r"[\d.:,\xad\u066b\u066c+-]", r"[-+]?(?:\d+(?:[.:,\xad\u066b\u066c]\d+)*|(?:[.:,\xad\u066b\u066c]\d+)+)"),
    _rule(r"\d", r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}", _joined),
    _rule("[⁺⁻₊₋²³¹⁰⁴-⁹₀-₉]", "[⁺⁻₊₋]?(?:[²³¹⁰⁴-⁹]+|[₀-₉]+)"),
    _rule(
        r"[0-9+(]",
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        _joined,  # a telephone number
    ),
    # The internet, files and markup
    _rule(
        FIRST_LETTER_OR_DIGIT,
        rf"({LETTER_OR_DIGIT}+(?:\.{LETTER_OR_DIGIT}+)*\.(?i:{_any_of(FILES)}))(?:[{NO_SPACE}.?!,\"'<]|$)",
        _as_it_is,
    ),
    _rule("[Hh]", r"(?i:https?)://[^ \t\"<>|(){}]+[^ \t\"<>|.!?(){},-]", _as_it_is),
    _rule("[Ww]", rf"(?i:www)\.(?:[^ \t\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{PATH}", _as_it_is),
    _rule("[^ ]", rf"(?:[^ \t\"`'<>|!?(){{}},-_$]+\.)+(?:com|net|org|edu){PATH}", _as_it_is),  # ,-_ as in Java
    _rule(
        "[A-Za-z0-9<]",
        rf"<?[A-Za-z0-9][^{NO_SPACE}\"<>|(){{}}]*@(?:[^{NO_SPACE}\"<>|().{{}}]+\.)*[^{NO_SPACE}\"<>|().{{}}]+>?",
        _as_it_is,
    ),
    _rule("[@#]", f"@[A-Za-z_][A-Za-z0-9_]*|#{LETTER}+", _as_it_is),
    _rule("<", TAG, _joined),
    _rule("&", "(?i:&(?:m|n)dash;|&md;)", _always("--")),
    _rule("&", "(?i:&lt;)", _always("<")),
    _rule("&", "(?i:&gt;)", _always(">")),
    _rule("&", "(?i:&amp;)", _always("&")),
    _rule("&", "&#[0-9]+;|(?i:&(?:ur|lr|qc|ql|qr|odq|cdq);|&quot;|&apos;)"),
    _rule("[<>:;=]", rf"([<>]?[:;=]['o*-]?[()\[\]{{|\\DdPpO@]|:3){ENDS}", lambda text: [_without_brackets(text)]),
    _rule("[-^=~<>']", "[-^=~<>']_[-^=~<>']"),
    # Quotation marks, opening or closing
    _rule("'", rf"(')[A-Za-z][^{NO_SPACE}]", _always("`")),
    _rule("'", "''?"),
    _rule("`", "``?"),
    _rule('"', '(")[A-Za-z0-9$]', _always("``")),
    _rule('"', '"', _always("''")),
    _rule("[‘’“”‹›‚„‟]", "[‘’“”‹›‚„‟]{2}", lambda text: ["".join(SINGLE.get(q, q) for q in text.translate(SHAPES))]),
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


VERSION = "PTB 3.4.1 (-preserveLines -lowerCase), punctuation dropped; reproduced in Python, revision 2"

# The official tool's list. It compares after lower-casing, so -LRB- and its like are never met and brackets stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_NO_TOKEN = f" \t\xa0{WIDE_SPACE}{DROPPED}"
_LINE_ENDS = re.compile(r"[\n-\r\x1c-\x1f\x85\u2028\u2029]")
# What may stand between spaces without regard to its neighbours: no digits (22 3/4), no full stop (Main St. A ...), no
# markup. The last piece has no neighbour behind it, so it may hold full stops.
_ALONE = re.compile(r"[A-Za-z'\",;:!?()/*-]+")
_ALONE_LAST = re.compile(r"[A-Za-z'\",;:!?()/*-]+\.?")
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
    pieces = caption.split() if caption.isascii() else [""]
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
    text = _LINE_ENDS.sub(" ", caption).replace("&quot;", '"').replace("&apos;", "’")
    return _line_tokens(_SPACE_ENTITY.sub(" ", text))


@lru_cache(maxsize=1 << 17)  # captions share their words
def _piece_tokens(piece: str) -> tuple[str, ...]:
    return tuple(_line_tokens(piece))


def _line_tokens(text: str) -> list[str]:
    shapes = text.translate(SHAPES)
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if shapes[position] in _NO_TOKEN:
            position += 1
            continue
        position, found = _longest(text, shapes, position)
        tokens += found
    return [_lower(token) for token in tokens if token]


def _longest(text: str, shapes: str, position: int) -> tuple[int, list[str]]:
    """Where the text ends that the longest match at this position takes, and its tokens."""
    shape = shapes[position]
    longest = taken_to = position
    action = None
    for pattern, _, action_of_rule in rules_for(shape):
        match = pattern.match(shapes, position)
        if match and match.end() > longest:
            longest, taken_to = match.end(), match.end(match.lastindex or 0)
            action = action_of_rule
    if action is None:
        return position + 1, [SINGLE.get(shape, text[position])]
    return taken_to, action(text[position:taken_to])


def _lower(token: str) -> str:
    """Lower case as Java has it: a capital sigma is a final one if a letter is before it, and none after it in all."""
    head, sigma, tail = token.rpartition("Σ")
    if not sigma:
        return token.lower()
    is_final = head.lower() != head.upper() and tail.lower() == tail.upper()
    return head.replace("Σ", "σ").lower() + ("ς" if is_final else "σ") + tail.lower()
