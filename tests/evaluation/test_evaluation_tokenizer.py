"""Our tokens are the Java program's: a table that was verified with it once, its real output, and hazards."""

import json
import re
import shutil
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from captioning.evaluation.tokenizer import PUNCTUATION, ptb_tokens, tokenize

METRICS = SHARED / "metrics"
needs_metrics = pytest.mark.skipif(not METRICS.is_dir(), reason=f"no real tokens at {METRICS}")

# A caption, and what PTBTokenizer of stanford-corenlp-3.4.1 makes of it with another caption after it.
EXAMPLES = [
    ("A man riding a wave on top of a surfboard.", "a man riding a wave on top of a surfboard ."),
    (
        "Two dogs running across patchy grass; one chasing the other.",
        "two dogs running across patchy grass ; one chasing the other .",
    ),
    (
        "A man's dog can't see the children's toys, but it doesn't mind.",
        "a man 's dog ca n't see the children 's toys , but it does n't mind .",
    ),
    (
        "They'll say they've seen what she'd do; I'm sure he's right.",
        "they 'll say they 've seen what she 'd do ; i 'm sure he 's right .",
    ),
    ("The players' bats aren't theirs, and ISN'T it odd?", "the players ' bats are n't theirs , and is n't it odd ?"),
    (
        "You cannot say: gonna, wanna, gotta, gimme, lemme.",
        "you can not say : gon na , wan na , got ta , gim me , lem me .",
    ),
    (
        "'Tis a rock 'n' roll bar from the '50s, with '80s music.",
        "'t is a rock 'n' roll bar from the '50s , with '80s music .",
    ),
    (
        "An o'clock sign, O'Malley's pub, hors d'oeuvres, ma'am and Hawai'i.",
        "an o'clock sign , o'malley 's pub , hors d'oeuvres , ma'am and hawai'i .",
    ),
    (
        "T'shirt, t'shirt, y'all, c'mon, s'mores, cap'n and 'em.",
        "t'shirt , t ` shirt , y' all , c'mon , s'mores , cap'n and 'em .",
    ),
    (
        "black'white dogs' bones, a 'stop' sign and a 'no peddling' sign",
        "black ` white dogs ' bones , a ` stop ' sign and a ` no peddling ' sign",
    ),
    (
        "A \"STOP\" sign, and \"Go By Train\" in ''quotes'' and ``these''",
        "a `` stop '' sign , and `` go by train '' in '' quotes '' and `` these ''",
    ),
    ('a "(dog)" and 6\'2" tall, 5" wide', "a '' -lrb- dog -rrb- '' and 6 ' 2 '' tall , 5 '' wide"),
    (
        "‘single’ and “double” «quotes» — and – dashes… don’t it’s dogs’",
        "` single ' and `` double '' `` quotes '' -- and -- dashes ... do n't it 's dogs '",
    ),
    (
        "Street signs of 8th ave. and 22 3/4 St. near Main St.",
        "street signs of 8th ave. and 22\u00a03/4 st. near main st.",
    ),
    (
        "Mr. and Mrs. Smith vs. Dr. Jones, Jr. at the U.S. Capitol at 5 p.m. today",
        "mr. and mrs. smith vs. dr. jones , jr. at the u.s. capitol at 5 p.m. today",
    ),
    ("The U.S. The dog. A T.V. A cat.", "the u.s. . the dog . a t.v. . a cat ."),
    (
        "Made by Smith & Co. for AT&T and A&W, not black&white",
        "made by smith & co. for at&t and a&w , not black & white",
    ),
    ("plan B. The end of vitamin C.", "plan b . the end of vitamin c ."),
    ("no. 5 and No. 7 are no. one, see fig. 3", "no. 5 and no. 7 are no . one , see fig. 3"),
    ("on Blvd. and Rd. or etc. and approx. ten", "on blvd. and rd. or etc. and approx . ten"),
    (
        "1,000 people at 12:30 with 3.5% of $20.50 or -5 or +7",
        "1,000 people at 12:30 with 3.5 % of $ 20.50 or -5 or +7",
    ),
    ("a1,000 x 5-6 dogs, 1.5-inch, 1/2-inch, 2-1/2, 50/50", "a1 ,000 x 5-6 dogs , 1.5-inch , 1/2-inch , 2-1/2 , 50/50"),
    (
        "call 555-1234 or (212) 555-1234 or 212 555 1234 on 12/25/2010",
        "call 555-1234 or -lrb-212-rrb-\u00a0555-1234 or 212\u00a0555\u00a01234 on 12/25/2010",
    ),
    ("10a.m. or 10 a.m. or 10:30am", "10a . m. or 10 a.m. or 10:30 am"),
    (
        "a well-known mother-in-law's jack-o-lantern and F.B.I.-like look",
        "a well-known mother-in-law 's jack-o-lantern and f.b.i.-like look",
    ),
    ("table/desk, and/or, a/b/c/d, red-white/blue-green", "table/desk , and/or , a/b/c / d , red-white/blue-green"),
    (
        "file_name.txt, image.jpg, 9file.jpg, node.js, end.Next",
        "file_name . txt , image.jpg , 9file.jpg , node.js , end.next",
    ),
    (
        "www.example.com, http://example.com/a?b=c&d=e, foo@bar.com and flickr.com/photos/1",
        "www.example.com , http://example.com/a?b=c&d=e , foo@bar.com and flickr.com/photos/1",
    ),
    ("@user #hashtag ##ing C++ c# a++ US$5 #1", "@user #hashtag ## ing c++ c# a + + us$ 5 # 1"),
    (":) :-) ;) =) :D :P :( ^_^ -_- <3 :-/", ":-rrb- :--rrb- ;-rrb- =-rrb- :d :p :-lrb- ^_^ -_- < 3 : - /"),
    (
        '<b>bold</b> <br /> <a href="x y">link</a> < b > <unk> <3> <|endoftext|> <!-- c -->',
        '<b> bold </b> <br\xa0/> <a\xa0href="x\xa0y"> link </a> < b > <unk> < 3 > < | endoftext | > <!--\xa0c\xa0-->',
    ),
    (
        "&amp; &lt; &gt; &quot;a&quot; &mdash; &nbsp; &eacute; &hellip; &#39; caf&eacute; AT&amp;T",
        "& < > `` a '' -- &eacute; & hellip ; &#39; caf&eacute; at&t",
    ),
    ("(a) [b] {c} -LRB- -RRB-", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- -lrb- -rrb-"),
    (
        ".. ... .... . . . -- --- ----- ?! !!! ** __ _a_ a_b = + ~ | \\ / % @ # ^",
        ". . ... ... ... -- -- ----- ?! !!! ** __ _ a _ a_b = + ~ | \\ / % @ # ^",
    ),
    ("½ cup, 2½ cups, £5, €20, 5¢, 20°C, ™ ® ⅛ m²", "1/2 cup , 2 1/2 cups , # 5 , $ 20 , 5 cents , 20 ° c , ™ ® ⅛ m ²"),
    ("café jalapeño Zürich ÀÉÎ привет 中文 İstanbul", "café jalapeño zürich àéî привет 中文 i\u0307stanbul"),
    ("co\u00adoperate well\u2011known a\u2010b", "cooperate well‑known a‐b"),
    ("a 😀 b 👍🏽 c\u200bd a b \ufffd", "a b c d a b"),
    ("एक कुत्ता दौड़ रहा है।", "एक कुत्ता दौड़ रहा है ।"),
    ("স্কুলে একটি কুকুর", "স্কুলে একটি কুকুর"),
    ("ஒரு நாய் ఒక కుక్క ഒരു നായ ഓടുന്നു ನಾಯಿ", "ஒரு நாய் ఒక కుక్క ഒരു നായ ഓടുന നു ನ ಯ"),
    ("สุนัขวิ่งบนหญ้า ឆ្កែកំពុងរត់ ခွေးပြေးနေသည်", "สุนัขวิ่งบนหญ้า ឆ ក ក ព ងរត ခ ပ န သည"),
    ("كَلْبٌ يَجْرِي. כֶּלֶב רָץ", "كَلْبٌ يَجْرِي . כֶּלֶב רָץ"),
    ("ᎩᏟ ΟΔΟΣ-ΤΟ ΟΔΟΣ", "ꭹꮯ οδοσ-το οδος"),
    ("1\u0301 2 x\u0488y a\u0e31b O'\u0e31a d'\u0301a y'été", "1 \u0301 2 x y a\u0e31b o ' \u0e31a d' \u0301a y' été"),
    ("x𝐀y x\u20ddy a\u1680b 𞤀𞤁 a.com/é?x=😀,", "x y x y a b a.com/é?x=😀 ,"),
    ("٣ كلاب و ١/٢ no. ٥ m² ⁺¹ 5%₂₃ '٥٥", "٣ كلاب و ١/٢ no. ٥ m ² ⁺¹ 5 % ₂₃ ' ٥٥"),
    ("\"é\" 'été' l'été etc. Été etc.  two, no.  5,", "'' é '' ' été ' l'été etc. . été etc. . two , no . 5 ,"),
    ("co\xadop \xad x-\xady 1\xad000 ‹‹a››", "coop - x-y 1000 `` a ''"),
    ("stairs.] with a red bow tie p;ayer", "stairs . -rsb- with a red bow tie p ; ayer"),
    ("<<a>> and ““a”” and “‘a’”", "<< a >> and ```` a '''' and ``` a '''"),
    ("ltd.a etc.-x vs.a ab., 1st.; x.y.z.", "ltd. a etc. - x vs.a ab. , 1st. ; x.y.z. ."),
    ("", ""),
    (" ", ""),
    (".", "."),
    ("a\tb", "a b"),
    ("a\u3000b", "a b"),
    ("a\u00a0b", "a b"),
    ("'", "'"),
    ('"', "''"),
    ("'a'", "` a '"),
    ("dogs'", "dogs '"),
]


@pytest.mark.parametrize(("caption", "tokens"), EXAMPLES)
def test_tokens_are_those_of_the_java_program(caption, tokens):
    assert " ".join(ptb_tokens(caption)) == tokens


def test_punctuation_is_dropped_and_brackets_stay():
    assert tokenize("A dog (brown), 'big' -- and \"old\"...") == "a dog -lrb- brown -rrb- big and old"


def in_java(captions: list[str], folder: Path) -> list[str]:
    """What the Java program makes of each, all in one file as the official tool has them; skips where it can't run."""
    package = pytest.importorskip("pycocoevalcap").__path__[0]
    if shutil.which("java") is None:
        pytest.skip("no java")
    (folder / "captions.txt").write_text("\n".join(captions), encoding="utf-8", newline="")
    command = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", folder / "captions.txt"]
    printed = subprocess.run(
        ["java", "-Dfile.encoding=UTF-8", "-cp", f"{package}/tokenizer/stanford-corenlp-3.4.1.jar", *command],
        capture_output=True,
        check=True,
    ).stdout.decode()
    return printed.split("\n")[: len(captions)]


@pytest.mark.slow
def test_every_character_is_what_java_takes_it_for(tmp_path):
    """In a word, at its ends, alone, among digits and doubled; the supplementary planes in words, 256 a caption."""
    ends_a_line = {*range(0xA, 0xE), 0x85, 0x2028, 0x2029}  # at which the official tool loses count
    basic = [chr(code) for code in range(0xFFFF) if code not in ends_a_line and not 0xD800 <= code <= 0xDFFF]
    frames = ["x?y z", "q ? q", "?x z", "x? z", "1?2 z", "?? z"]
    captions = [frame.replace("?", character) for frame in frames for character in basic]
    for first in range(0x10000, sys.maxunicode, 256):
        captions.append(" ".join(f"x{chr(code)}y" for code in range(first, first + 256)))
    theirs = in_java(captions, tmp_path)
    other = [row for row, tokens in zip(captions, theirs, strict=True) if " ".join(ptb_tokens(row)) != tokens]
    assert not other


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (METRICS / name).read_text(encoding="utf-8").split("\n") if line]


@needs_metrics
@pytest.mark.parametrize("name", ["tok_refs_full_200", "tok_human_200", "tok_noisy_200", "tok_languages", "tok_marks"])
def test_captions_in_all_languages_get_the_java_programs_tokens(name):
    for row in rows(f"{name}.jsonl"):
        expected = row["tok"] if "tok" in row else " ".join(row["tokens"])
        assert tokenize(row.get("raw", row.get("caption"))) == expected, row


@needs_metrics
def test_odd_strings_get_the_java_programs_tokens_unless_they_end_in_an_initial():
    other = [row["raw"] for row in rows("tok_edge.jsonl") if row["tok"] != tokenize(row["raw"])]
    assert all(re.search(r"\b[A-Za-z]\.$", caption) for caption in other), other  # another caption follows, for us


@needs_metrics
def test_what_misleads_the_official_tool_is_right_here():
    for name, hazard in json.loads((METRICS / "hazards.json").read_text(encoding="utf-8")).items():
        if "caption" in hazard:
            assert tokenize(hazard["caption"]) == tokenize(" ".join(hazard["caption"].split())), name
        elif "alone_first" in hazard and name != "plan B. / A dog":  # there the next caption ends the sentence
            assert [tokenize(hazard["captions"][0])] == hazard["alone_first"][0], name


@pytest.mark.parametrize(
    "separator", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\0"]
)
def test_what_ends_a_line_is_a_space(separator):
    assert tokenize(f"a b{separator}c d.") == "a b c d"


def test_full_stops_of_abbreviations_stay_and_of_a_last_initial_go():
    assert tokenize("a house on Main St.") == "a house on main st."
    assert tokenize("an ad for vitamin C.") == "an ad for vitamin c"


@given(st.text(alphabet=st.characters(), max_size=60))
def test_any_string_becomes_one_line_of_tokens(caption):
    tokens = tokenize(caption)
    assert not set(tokens.split(" ")) & PUNCTUATION
    assert "\n" not in tokens and tokens == tokens.strip()
    assert len(tokens.splitlines()) <= 1


@given(st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + " ", max_size=40))
def test_the_quick_way_gives_what_the_rules_give(caption):
    assert ptb_tokens(caption) == ptb_tokens(f"{caption}\u2028")  # a space that only the rules know


@pytest.mark.parametrize("piece", ["a", "a.", "a-", "<a b ", "<a  ", "a'", "~", "a@", "1:", "1 ", "A&", "(1", ". "])
def test_long_nonsense_takes_no_long_time(piece):
    start = time.process_time()
    ptb_tokens(piece * 3000)
    assert time.process_time() - start < 2


@pytest.mark.slow
def test_real_captions_get_the_java_programs_tokens_by_the_ten_thousand(shared_data, tmp_path):
    coco = json.loads((shared_data / "coco-full-text" / "captions_val2017.json").read_text(encoding="utf-8"))
    flickr = (shared_data / "flickr8k-full-text" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    captions = [row["caption"].replace("\n", " ") for row in coco["annotations"]]
    captions += [line.split("\t")[1] for line in flickr]
    lines = in_java(captions, tmp_path)
    theirs = [" ".join(token for token in line.split(" ") if token not in PUNCTUATION) for line in lines]
    same = sum(tokens == tokenize(caption) for tokens, caption in zip(theirs, captions, strict=True))
    print(f"{same} of {len(captions)} captions alike")
    assert same >= 0.9995 * len(captions)
