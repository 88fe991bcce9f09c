"""The rules of Stanford's PTB tokenizer 3.4.1, written anew from how the Java program answers.

As in its lexer, the longest match wins, and of equally long ones the first of `RULES`. Where a pattern has a group,
the group is what becomes tokens, but the match counts as long as it is whole: the rest is what must follow.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

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
