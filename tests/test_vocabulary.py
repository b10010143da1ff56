"""Vocabulary: splitting, ids, round trips, growth, and the strict reading of tokenizer.json."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from showtell.errors import ArgumentError, FormatError, ShowtellError
from showtell.tokenizer_json import BYTES
from showtell.vocabulary import MAX_TEXT, Vocabulary

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
CAPTIONS = [
    "A black dog's red ball .",
    "A dog doesn't jump over the t-shirt .",
    "The black dog jumps .",
    "Two dogs (brown and white) run !",
]


def words_of(*captions: str, **options: Any) -> Vocabulary:
    return Vocabulary.build(captions or CAPTIONS, **{"min_count": 1, **options})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs.", "a dog runs ."),
        ("don't can't won't DIDN'T", "do n't ca n't wo n't did n't"),
        ("couldn't've he'd she'll they're I'm we've", "could n't 've he 'd she 'll they 're i 'm we 've"),
        ("dog's dogs' 'tis o'clock", "dog 's dogs ' ' tis o'clock"),
        ("cannot", "cannot"),
        ("well-known black-and-white t-shirt - x--y", "well-known black-and-white t-shirt - x -- y"),
        ("3.5 1,000 10:30 1/2 2.5m 7.", "3.5 1,000 10:30 1/2 2.5m 7 ."),
        ("$5 50% #3 a&b", "$ 5 50 % # 3 a & b"),
        ("the u.s. at 5 a.m. x.y.zoo", "the u.s. at 5 a.m. x . y . zoo"),
        ('(one) [two], "three"; four: five?!', '( one ) [ two ] , " three " ; four : five ? !'),
        ("well ... wait!!!", "well ... wait !!!"),
        ("“don’t” ‘stop’", "\" do n't \" ' stop '"),
        ("a\tb\u00a0c\u3000d\ne\x00f", "a b c d e f"),
        ("zero\u200bwidth so\u00adft", "zerowidth soft"),
        ("CAF\u00c9 cafe\u0301", "café café"),
        ("ﬁre Ａ", "fire a"),
        ("❤️ 😀", "❤️ 😀"),
        ("", ""),
        (" . ", "."),
    ],
)
def test_english_is_split_as_people_expect(text: str, expected: str) -> None:
    assert words_of(punctuation="keep").split(text) == expected.split()


def test_punctuation_is_dropped_unless_it_is_asked_for() -> None:
    text = "A man's dog (brown), 3.5 years & 50% wet ... isn't \"it\" <here> !"
    assert " ".join(words_of().split(text)) == "a man 's dog brown 3.5 years & 50 % wet is n't it here"
    assert words_of("Hm!", "Hm?", punctuation="keep").words[4:] == ("hm", "!", "?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # as spaCy 3.8 splits them, spacy.blank("en"), in lower case
        ("A t-shirt, and the dog's ball!", "a t - shirt , and the dog 's ball !"),
        ("a 2-year-old boy", "a 2 - year - old boy"),
        ("black-and-white 5-10 x--y two - three", "black - and - white 5 - 10 x -- y two - three"),
        ("It's 3.5 o'clock, don't.", "it 's 3.5 o'clock , do n't ."),
        ('dogs\' "yes" (x) #1 $5 50%', 'dogs \' " yes " ( x ) # 1 $ 5 50 %'),
    ],
)
def test_hyphens_can_stand_apart_as_spacy_has_them(text: str, expected: str) -> None:
    words = words_of(text, punctuation="keep", hyphens="apart")
    assert words.split(text) == expected.split()
    assert words.encode(words.decode(words.encode(text))) == words.encode(text)


def test_words_with_hyphens_apart_are_written_together_again() -> None:
    text = "a t-shirt for a 2-year-old boy."
    assert (kept := words_of(text, punctuation="keep", hyphens="apart")).decode(kept.encode(text)) == text
    assert words_of(text, hyphens="apart").split("a t-shirt") == ["a", "t", "shirt"]
    assert Vocabulary.from_json(kept.to_json()) == kept
    assert Vocabulary.from_json(kept.to_json()).split("x-y") == ["x", "-", "y"]
    assert kept.grown(["a b-c"], min_count=1).split("b-c") == ["b", "-", "c"]
    assert kept.to_json() != words_of(text, punctuation="keep").to_json()


def test_lower_casing_and_normalization_can_be_switched_off() -> None:
    assert words_of(lowercase=False).split("A Dog Isn't ISN'T") == ["A", "Dog", "Is", "n't", "IS", "N'T"]
    assert words_of(normalization=None).split("ﬁre") == ["ﬁre"]
    assert words_of(normalization="NFC").split("ﬁre cafe\u0301") == ["ﬁre", "café"]


def test_ids_follow_the_count_and_then_the_alphabet() -> None:
    vocabulary = words_of("b a a", "c b a", "d c")
    assert vocabulary.words == (*SPECIALS, "a", "b", "c", "d")
    assert (vocabulary.pad_id, vocabulary.start_id, vocabulary.end_id, vocabulary.unk_id) == (0, 1, 2, 3)
    assert [vocabulary.id_of(word) for word in (*SPECIALS, "a", "zebra")] == [0, 1, 2, 3, 4, None]
    assert [vocabulary.token_of(number) for number in range(len(vocabulary))] == list(vocabulary.words)


def test_the_counts_agree_with_a_plain_count(shared: Path) -> None:
    images = json.loads((shared / "flickr8k" / "dataset_flickr8k.json").read_text())["images"]
    raw = [sentence["raw"] for image in images[:600] for sentence in image["sentences"]]
    plain = [c for c in raw if c.replace(" ", "").replace(".", "").isalpha()]
    assert len(plain) > 1500
    counts = Counter(word for caption in plain for word in caption.lower().replace(".", " ").split())
    expected = sorted((w for w, n in counts.items() if n >= 5), key=lambda w: (-counts[w], w))
    assert list(Vocabulary.build(plain).words[4:]) == expected


def test_the_order_of_captions_does_not_matter() -> None:
    mixed = CAPTIONS * 3
    random.Random(0).shuffle(mixed)
    assert words_of(*mixed).to_json() == words_of(*CAPTIONS * 3).to_json()


def test_rare_words_and_words_beyond_the_limit_become_unknown() -> None:
    vocabulary = words_of("a b", "a b", "a c", min_count=2)
    assert vocabulary.words == (*SPECIALS, "a", "b")
    assert vocabulary.encode("a c") == [4, 3]
    assert words_of("a b", "a b", "a c", max_size=5).words == (*SPECIALS, "a")


def test_extra_words_are_kept_whatever_their_count() -> None:
    vocabulary = words_of("a b", "a b", "a", min_count=2, max_size=6, extra=["zebra"])
    assert vocabulary.words == (*SPECIALS, "a", "zebra")
    with pytest.raises(ArgumentError, match=r"splits into \['two', 'words'\]"):
        words_of(extra=["two words"])
    with pytest.raises(ArgumentError, match="max_size=5 is too small"):
        words_of(extra=["one", "two"], max_size=5)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_special_tokens_typed_by_a_user_are_ordinary_text(kind: Any) -> None:
    typed = "<pad> <start> <end> <unk> ＜end＞ x<end>y"
    for options in ({"punctuation": "keep"}, {}):
        vocabulary = Vocabulary.build([typed], kind=kind, min_count=1, **options)
        ids = vocabulary.encode(typed)
        assert ids
        assert min(ids) > 3
        opened = Tokenizer.from_str(vocabulary.to_json())
        assert opened.encode(typed).ids == ids


def test_encoding_many_equals_encoding_one_by_one() -> None:
    vocabulary = words_of()
    assert vocabulary.encode_batch(CAPTIONS) == [vocabulary.encode(caption) for caption in CAPTIONS]
    assert vocabulary.encode("") == []
    assert vocabulary.decode([]) == ""


def test_encoding_looks_up_what_split_returns() -> None:
    vocabulary = words_of(punctuation="keep")
    for caption in CAPTIONS:
        assert vocabulary.encode(caption) == [vocabulary.id_of(word) for word in vocabulary.split(caption)]


def test_decoding_stops_at_the_end_and_leaves_specials_out() -> None:
    vocabulary = words_of("a dog")
    assert vocabulary.decode([1, 4, 0, 5, 3, 2, 4, 4]) == "a dog <unk>"
    for wrong in (-1, 6):
        with pytest.raises(ArgumentError, match=r"in 0\.\.5"):
            vocabulary.decode([wrong])


@pytest.mark.parametrize(
    "text",
    [
        "the dog's owner doesn't run",
        "they're (all) here, aren't they? yes!",
        'a "stop" sign, $5 and 50% off: 3.5 miles.',
        "it costs $5.",
    ],
)
def test_decoding_attaches_clitics_and_punctuation(text: str) -> None:
    vocabulary = words_of(text, punctuation="keep")
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_words_that_would_merge_are_kept_apart() -> None:
    vocabulary = words_of("... . o'clock n't 's a", punctuation="keep")
    for words in (["...", "."], ["o'clock", "n't"], ["n't", "n't", "a"], [".", "...", ".", "a", "'s", "'s"]):
        ids = [vocabulary.id_of(word) for word in words]
        assert vocabulary.encode(vocabulary.decode([i for i in ids if i is not None])) == ids


CLUMSY = st.lists(
    st.sampled_from(
        [*"aXé'’\"“-–.,!?()[]{}$%&#@<>/0½…İßſΣςﬁ\u0301\u200d\ufe0f", "n't", "'s", " ", "\t", "1,000", "u.s."]
    ),
    max_size=25,
).map("".join)
SHAPES = st.fixed_dictionaries(
    {
        "punctuation": st.sampled_from(["drop", "keep"]),
        "lowercase": st.booleans(),
        "normalization": st.sampled_from(["NFKC", "NFC", None]),
    }
)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(CLUMSY, st.text(max_size=40)), options=SHAPES)
def test_whatever_is_known_survives_decoding_and_encoding(text: str, options: dict[str, Any]) -> None:
    try:
        vocabulary = Vocabulary.build([text, "a"], min_count=1, **options)
    except ArgumentError:
        return
    ids = vocabulary.encode(text)
    assert 3 not in ids
    assert vocabulary.encode(vocabulary.decode(ids)) == ids
    assert vocabulary.encode(" ".join(vocabulary.split(text))) == ids
    assert Tokenizer.from_str(vocabulary.to_json()).encode(text.encode("utf-8", "replace").decode()).ids == ids


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(CLUMSY, st.text(max_size=40)), options=SHAPES)
def test_splitting_at_spaces_first_gives_the_words_that_tokenizers_finds_in_the_whole(
    text: str, options: dict[str, Any]
) -> None:
    vocabulary = words_of(**options)
    whole = Tokenizer.from_str(vocabulary.to_json())
    normal = whole.normalizer.normalize_str(text.encode("utf-8", "replace").decode())
    words = [word for word, _ in whole.pre_tokenizer.pre_tokenize_str(normal)]
    assert vocabulary.split(text) == words
    assert vocabulary.unknown([text]).total == len(words)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids_that_a_decoder_picks_survive(data: st.DataObject) -> None:
    vocabulary = words_of("a dog's \"x\" ( . , n't $ 5 % ... - -- ' u.s. o'clock t-shirt", punctuation="keep")
    ids = data.draw(st.lists(st.integers(4, len(vocabulary) - 1), max_size=12))
    assert vocabulary.encode(vocabulary.decode(ids)) == ids


def test_byte_pairs_know_every_text_and_give_it_back() -> None:
    vocabulary = Vocabulary.build(CAPTIONS * 4, kind="bpe", min_count=2, max_size=300)
    assert len(vocabulary) == 300
    assert vocabulary.words[:4] == SPECIALS
    for text in ("a black dog", "the zebra's naïve 東京 😀 <end>", "x"):
        assert vocabulary.decode([1, *vocabulary.encode(text), 2]) == text
        assert Tokenizer.from_str(vocabulary.to_json()).encode(text).ids == vocabulary.encode(text)
    assert len(vocabulary.encode("a black dog")) < len("ablackdog")
    assert vocabulary.unknown(["zebra crossing"]).count == 0
    assert vocabulary.split("A Zebra") == ["a", "zebra"]
    assert vocabulary == Vocabulary.build(CAPTIONS * 4, kind="bpe", min_count=2, max_size=300)
    assert Vocabulary.from_json(vocabulary.to_json()).encode("a dog") == vocabulary.encode("a dog")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_byte_pairs_are_exact(text: str) -> None:
    ids = _BPE.encode(text)
    assert _BPE.encode(_BPE.decode(ids)) == ids
    assert min(ids, default=4) > 3


_BPE = Vocabulary.build(CAPTIONS * 4, kind="bpe", max_size=290)


def test_the_256_bytes_are_those_of_tokenizers() -> None:
    assert len(BYTES) == 256
    assert set(BYTES) == set(pre_tokenizers.ByteLevel.alphabet())


def test_unknown_words_are_counted() -> None:
    report = words_of("a dog").unknown(["a cat", "a cat and a dog"])
    assert (report.count, report.total, report.rate) == (3, 7, 3 / 7)
    assert report.common == (("cat", 2), ("and", 1))
    assert words_of().unknown([]).rate == 0.0


def test_a_grown_vocabulary_keeps_every_id() -> None:
    old = words_of("a dog", "a cat")
    new = old.grown(["a zebra runs", "a zebra", "an emu"], min_count=1, max_size=10)
    assert new.words == (*old.words, "zebra", "an", "emu")
    assert old.grown(["a zebra"]) == old
    with pytest.raises(ArgumentError, match="does not grow"):
        _BPE.grown(["a zebra"])


def test_json_is_canonical_and_the_fingerprint_follows_the_content() -> None:
    vocabulary = words_of()
    loose = json.dumps(json.loads(vocabulary.to_json()), indent=3)
    again = Vocabulary.from_json(loose)
    assert again == vocabulary
    assert hash(again) == hash(vocabulary)
    assert again.to_json() == vocabulary.to_json()
    assert again.fingerprint() == vocabulary.fingerprint()
    assert len(again.fingerprint()) == 64
    assert words_of(lowercase=False) != vocabulary
    assert words_of(lowercase=False).fingerprint() != vocabulary.fingerprint()
    assert vocabulary != "vocabulary"


def test_it_can_be_pickled_and_copied() -> None:
    vocabulary = words_of()
    for copied in (pickle.loads(pickle.dumps(vocabulary)), copy.deepcopy(vocabulary), copy.copy(vocabulary)):
        assert copied == vocabulary
        assert copied.encode(CAPTIONS[0]) == vocabulary.encode(CAPTIONS[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": []}, "there were none"),
        ({"captions": "a dog"}, "list of texts, not one text"),
        ({"captions": ["a", None]}, r"captions\[1\] must be text, not NoneType"),
        ({"captions": ["a" * (MAX_TEXT + 1)]}, "at most 100,000"),
        ({"captions": ["a dog"]}, "lower min_count"),
        ({"captions": ["...", "!"], "min_count": 1}, "lower min_count"),
        ({"min_count": 0}, "min_count"),
        ({"max_size": 4}, "max_size"),
        ({"kind": "char"}, "kind must be one of"),
        ({"normalization": "NFD"}, "normalization must be one of"),
        ({"lowercase": 1}, "lowercase must be true or false"),
        ({"punctuation": "some"}, "punctuation must be one of"),
        ({"hyphens": "some"}, "hyphens must be one of"),
        ({"kind": "bpe", "hyphens": "apart"}, "hyphens must be one of 'inside'"),
        ({"kind": "bpe", "punctuation": "drop"}, "punctuation must be one of 'keep'"),
        ({"kind": "bpe", "max_size": 259}, r"in 260\.\."),
        ({"kind": "bpe", "extra": ["zebra"]}, 'belong to kind="word"'),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Vocabulary.build(**{"captions": CAPTIONS, **options})


def test_lone_surrogates_and_giant_words_do_no_harm() -> None:
    assert words_of().encode("a \ud800 dog")[0] == words_of().encode("a")[0]
    vocabulary = words_of("a " + "x" * 201)
    assert vocabulary.words == (*SPECIALS, "a")
    with pytest.raises(ArgumentError, match="must be text, not int"):
        vocabulary.encode(3)  # type: ignore[arg-type]


def changed(path: str, value: Any, kind: Any = "word") -> str:
    document = json.loads((words_of("a dog") if kind == "word" else _BPE).to_json())
    *parents, last = path.split("/")
    place = document
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return json.dumps(document)


HUGE_PADDING = {
    "strategy": {"Fixed": 10**12},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
IDS = {word: number for number, word in enumerate(SPECIALS)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        "\ud800",
        '{"version":"1.0","version":"1.0"}',
        '{"model":{"type":"WordLevel","vocab":NaN}}',
        '{"a":' * 50_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 60 + "1" + "}" * 60,
        '{"a":' + "9" * 5000 + "}",
        changed("padding", HUGE_PADDING),
        changed("truncation", {"max_length": 10**12, "strategy": "LongestFirst", "stride": 0}),
        changed("added_tokens", [{"id": 2, "content": "<end>", "special": True}]),
        changed("post_processor", {"type": "ByteLevel"}),
        changed("version", "2.0"),
        changed("surplus", 1),
        changed("normalizer/normalizers/0/type", "NFD"),
        changed("normalizer/normalizers/2/pattern", {"Regex": "(a*)*b"}),
        changed("pre_tokenizer", None),
        changed("pre_tokenizer", {"type": "Whitespace"}),
        changed("decoder", {"type": "ByteLevel"}),
        changed("model/type", "Unigram"),
        changed("model/unk_token", "a"),
        changed("model/vocab", []),
        changed("model/vocab", {"<pad>": 0}),
        changed("model/vocab", {**IDS, "a": 5}),
        changed("model/vocab", {**IDS, "a": 3}),
        changed("model/vocab", {**IDS, "a": 4.0}),
        changed("model/vocab", {**IDS, "a": -1}),
        changed("model/vocab", {**IDS, "<pad>": False}),
        changed("model/vocab", {**IDS, "a": 2**70}),
        changed("model/vocab", {**IDS, "": 4}),
        changed("model/vocab", {**IDS, "two words": 4}),
        changed("model/vocab", {**IDS, "\x1b[2J": 4}),
        changed("model/vocab", {**IDS, "\ud800": 4}),
        changed("model/vocab", {**IDS, "x" * 201: 4}),
        changed("model/vocab", {**IDS, "<pad>": 1, "<start>": 0}),
        changed("model/merges", [["a"]], "bpe"),
        changed("model/merges", [["a", "東"]], "bpe"),
        changed("model/merges", ["a b"], "bpe"),
        changed("model/merges", {}, "bpe"),
        changed("model/merges", [["<pad>", "a"]], "bpe"),
        changed("model/dropout", 0.5, "bpe"),
        changed("model/vocab", IDS, "bpe"),
    ],
)
def test_a_strange_tokenizer_json_is_refused_before_tokenizers_sees_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("showtell.vocabulary.Tokenizer", None)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        Vocabulary.from_json(text)


def test_a_tokenizer_json_of_64_mib_is_refused_unread() -> None:
    with pytest.raises(FormatError, match="67,108,865 characters long"):
        Vocabulary.from_json(" " * (64 * 2**20 + 1))
    with pytest.raises(ArgumentError, match="as text, not bytes"):
        Vocabulary.from_json(b"{}")  # type: ignore[arg-type]


def test_a_panic_of_tokenizers_becomes_a_format_error(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words_of().to_json()

    class Panic(BaseException):
        pass

    class Fake:
        @staticmethod
        def from_str(_: str) -> None:
            raise Panic("index out of range")

    monkeypatch.setattr("showtell.vocabulary.Tokenizer", Fake)
    with pytest.raises(FormatError, match="index out of range"):
        Vocabulary.from_json(text)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_tokenizer_json_ends_in_a_vocabulary_or_a_format_error(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([words_of("a dog").to_json(), _BPE.to_json()]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 4)) :]
    try:
        vocabulary = Vocabulary.from_json(text)
    except ShowtellError:
        return
    assert isinstance(vocabulary.decode(vocabulary.encode("a dog")), str)
