"""Tokens are those of the official tokeniser: known words, the conformance kit, and random text against Java itself."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showtell import ArgumentError, ptb_tokenize
from showtell.metrics import ptb_scanner
from showtell.metrics.jar import java_problem

PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:;", "-", "--", "..."}

# Observed from the official tokeniser, the words joined by |.
KNOWN = {
    "A man's dog can't jump!": "a|man|'s|dog|ca|n't|jump",
    "They CANNOT stop, I'm gonna wanna go.": "they|can|not|stop|i|'m|gon|na|wan|na|go",
    "won't don’t we'll you're I've he'd": "wo|n't|do|n't|we|'ll|you|'re|i|'ve|he|'d",
    "rock 'n' roll in the '90s at 5 o'clock": "rock|'n'|roll|in|the|'90s|at|5|o'clock",
    "A St. Bernard in Washington, D.C. at 5 p.m.": "a|st.|bernard|in|washington|d.c.|at|5|p.m.",
    "Mr. Smith vs. the U.S. team etc.": "mr.|smith|vs.|the|u.s.|team|etc.",
    "She reads K. The dog sleeps.": "she|reads|k|the|dog|sleeps",
    "Vitamin K. is good": "vitamin|k.|is|good",
    "no. 5 and no. Five": "no.|5|and|no|five",
    "a $5.00 50% £3 €4 10¢ thing": "a|$|5.00|50|%|#|3|$|4|10|cents|thing",
    "23 3/4 inches, 1½ cups, 555-1212": "23\xa03/4|inches|1|1/2|cups|555-1212",
    "black-and-white t-shirt, mid -- air": "black-and-white|t-shirt|mid|air",
    "wow!! really?! yes… no . . . end": "wow|!!|really|?!|yes|no|end",
    "(a small) [dog] {here}": "-lrb-|a|small|-rrb-|-lsb-|dog|-rsb-|-lcb-|here|-rcb-",
    "AT&T, R&amp;B and C++ / C#": "at&t|r&b|and|c++|/|c#",
    "colour of café naïve 中国": "colour|of|café|naïve|中国",
    "a <unk> dog <b>runs</b>": "a|<unk>|dog|<b>|runs|</b>",
    "see www.example.com/a_b or me@example.org #fun @home": "see|www.example.com/a_b|or|me@example.org|#fun|@home",
    "a dog 😀 runs\u200bfast\ufeff here": "a|dog|runs|fast|here",
    "soft\xadhyphen and non\xa0break": "softhyphen|and|non|break",
    "his/her w/o 24/7": "his/her|w/o|24/7",
    "dog.The cat": "dog.the|cat",
    "<unk>": "<unk>",
    "it's its Its IT'S": "it|'s|its|its|it|'s",
}


@pytest.mark.parametrize("caption", KNOWN)
def test_known_captions_give_the_official_words(caption: str) -> None:
    assert "|".join(ptb_tokenize(caption)) == KNOWN[caption]


@pytest.mark.parametrize("caption", ["", " ", "\n", "...", ". . .", "?", " - -- ", "\u200b", "😀", "\ud800", "\x00"])
def test_text_without_words_has_none(caption: str) -> None:
    assert ptb_tokenize(caption) == []


@pytest.mark.parametrize("space", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\u2028", "\u2029", "\t", "   "])
def test_line_breaks_are_spaces(space: str) -> None:
    assert ptb_tokenize(f"a dog{space}runs.{space}") == ["a", "dog", "runs"]


@pytest.mark.parametrize("wrong", [None, 5, b"a dog", ["a dog"], float("nan")])
def test_what_is_no_string_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(ArgumentError, match=type(wrong).__name__):
        ptb_tokenize(wrong)  # type: ignore[arg-type]


@given(st.text(max_size=60))
def test_any_text_gives_small_words_without_spaces(caption: str) -> None:
    for token in ptb_tokenize(caption):
        assert token
        assert token not in PUNCTUATION
        assert len(token.split(" ")) == 1


def test_the_short_way_for_plain_words_gives_what_the_rules_give(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [caption(random.Random(seed)) for seed in range(3000)]
    short = list(map(ptb_tokenize, captions))
    monkeypatch.setattr(ptb_scanner, "_RUN", ptb_scanner.re.compile("(?!)"))
    assert short == list(map(ptb_tokenize, captions))


# --- the conformance kit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stratum", ["hard", "uniform"])
def test_every_row_of_the_kit_is_right(shared: Path, stratum: str) -> None:
    rows = json.loads((shared / "metrics" / "tokens.json").read_text(encoding="utf-8"))["rows"]
    rows = [row[2:] for row in rows if row[0] == stratum]
    assert len(rows) > 900
    assert [text for text, tokens in rows if " ".join(ptb_tokenize(text)) != tokens] == []


def test_every_text_of_the_kits_scored_images_is_right(shared: Path) -> None:
    suites = json.loads((shared / "metrics" / "cases.json").read_text(encoding="utf-8"))["suites"]
    wrong, texts = [], 0
    for image in (image for suite in suites for image in suite["images"]):
        for text, tokens in zip([image["cand"], *image["refs"]], [image["cand_tok"], *image["refs_tok"]], strict=True):
            texts += 1
            if " ".join(ptb_tokenize(text)) != tokens:
                wrong.append(text)
    assert texts > 3000
    assert wrong == []


# --- random text against the official tokeniser itself ----------------------------------------------------------------

PIECES = (  # noqa: SIM905
    "a|the|dog|man|woman|runs|sitting|red|black-and-white|t-shirt|A|The|In|He|Dog|U.S.|p.m.|a.m.|St.|Mr.|Ms.|Mrs.|"
    "Ave.|No.|no.|Jan.|Sept.|Inc.|Dr.|K.|J.R.|Ph.D.|Blvd.|ft.|Co.|Miss.|La.|etc.|vs.|e.g.|1|10|100|1,000|3.5|.5|1/2|"
    "3/4|10:30|12/25/2010|1990s|'90s|4th|22nd|6'2\"|50mm|3pm|24/7|B-52|$5|$5.99|£5|€7|5%|#1|½|2x4|555-1212|(555)|"
    "1-800-555-1212|don't|can't|won't|I'm|they'll|couldn't've|y'all|ma'am|o'clock|O'Neil|'n'|'em|'til|'tis|cannot|"
    "gonna|gimme|ain't|boys'|boy's|let's|mustn't|#sale|@home|www.example.com|http://a.com/b?c=d|foo@bar.com|file.jpg|"
    "<unk>|<b>|<br />|&amp;|&lt;|&quot;|AT&T|B&W|Q&A|C++|C#|w/|w/o|and/or|a/b/c|word_word|*word*|mid-air|co-|-ish|"
    "grass.The|!|?|!!|?!|...|. . .|…|--|---|–|—|“|”|‘|’|''|``|\"|'|(|)|[|]|{|}|:|;|,|.|/|\\|~|^|+|=|°|™|★|é|ñ|中|"
    "\u200b|\xad|\xa0|\u3000|😀|:)|:-)|<3|^_^|/|-|&|*|_|@|%"
).split("|")


def caption(draw: random.Random) -> str:
    """Words, signs and odd things, some of them without a space between."""
    parts = (draw.choice(PIECES) + draw.choice(["", " ", " ", " "]) for _ in range(draw.randrange(1, 9)))
    return "".join(parts)


def official_tokens(captions: Sequence[str]) -> list[list[str]]:
    """What the Java tokeniser makes of captions; skips where it can't be had."""
    package = pytest.importorskip("pycocoevalcap", reason="needs the extra coco (pycocoevalcap)")
    if problem := java_problem():
        pytest.skip(problem)
    (jar,) = (Path(package.__path__[0]) / "tokenizer").glob("stanford-corenlp-*.jar")
    lines = "\n".join(line for text in captions for line in (text, "zzz"))  # it looks at the next line: a dull one
    found = subprocess.run(
        ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"],
        input=lines.encode(),
        capture_output=True,
        check=True,
        timeout=300,
    )
    official = found.stdout.decode().split("\n")[: 2 * len(captions)]
    assert official[1::2] == ["zzz"] * len(captions)
    return [[word for word in line.rstrip().split(" ") if word and word not in PUNCTUATION] for line in official[::2]]


def wrong(captions: Sequence[str]) -> list[tuple[str, list[str], list[str]]]:
    pairs = zip(captions, official_tokens(captions), strict=True)
    return [(text, expected, found) for text, expected in pairs if (found := ptb_tokenize(text)) != expected]


@pytest.mark.slow
def test_ten_thousand_random_captions_give_the_tokens_of_the_official_tokeniser() -> None:
    assert wrong([caption(random.Random(seed)) for seed in range(10_000)]) == []


@pytest.mark.slow
def test_every_caption_of_flickr8k_gives_the_tokens_of_the_official_tokeniser(shared: Path) -> None:
    photos = json.loads((shared / "flickr8k" / "dataset_flickr8k.json").read_text(encoding="utf-8"))["images"]
    captions = {" ".join(s["raw"].splitlines()) for photo in photos for s in photo["sentences"]}
    assert len(captions) > 35_000
    assert wrong(sorted(captions)) == []


ENDLESS = """
from showtell import ptb_tokenize
for piece in " |a|a.|a-|a'|1 |1/|<a |<!|a@|a.b.|K. |&amp;|'s|\u2044|\xe9".split("|"):
    ptb_tokenize(piece * (200_000 // len(piece)))
"""


@pytest.mark.slow
def test_no_caption_takes_longer_than_in_proportion_to_its_length() -> None:
    # Some 30 s in all; a single piece for which time grew with the square would take minutes.
    subprocess.run([sys.executable, "-c", ENDLESS], check=True, timeout=180)
