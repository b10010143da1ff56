"""Words that the caption tokeniser treats in a way of their own, as observed from the official one.

Which words keep their full stop was found by trying all words of up to five letters and the beginnings of 275,000
English words, each in front of other words and figures, in small letters, in capitals and mixed.
"""

from __future__ import annotations

__all__ = ["CONTRACTIONS", "STARTERS", "abbreviation", "keeps_stop_before_figure"]


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Two tokens each: can not, gon na ...
CONTRACTIONS = {"cannot": 3, "gimme": 3, "gonna": 3, "gotta": 3, "lemme": 3, "wanna": 3}

# After one letter and a full stop these open a new sentence, so that the full stop isn't the letter's.
STARTERS = _words(
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now "
    "Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)

# These may end a sentence: whatever two characters follow, the full stop stays with them.
_CLOSING = _words(
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri "
    "ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt "
    "sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
# The same, but ordinary words in small letters: "miss.", "la.", "ill.".
_CLOSING_CAPITAL = _words("ark az del ill la mass miss ore pa tex wash")
# And these have no form in capitals.
_CLOSING_SMALL = _words("pte ptes pty ptys ppte pptes ppty pptys")

# Titles and the like, which another word follows.
_LEADING = _words(
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen "
    "gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep "
    "reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"
)
_BEFORE_FIGURE = _words("art ca fig figs no nos op pp prop")


def abbreviation(word: str) -> str | None:
    """What kind of abbreviation a word is that a full stop follows: "closing", "leading" or None.

    Example:
        >>> abbreviation("etc"), abbreviation("St"), abbreviation("grass")
        ('closing', 'leading', None)

    `word` holds ASCII letters. Case matters where a word in small letters is an ordinary one: "Miss." is a state.
    """
    small = word.lower()
    if small in _CLOSING:
        return "closing"
    if small in _LEADING:
        return "leading"
    if small in _CLOSING_CAPITAL:
        return "closing" if word[0] != small[0] else None
    if small in _CLOSING_SMALL:  # the letter after the t is small: "pTy." and "PTy." but not "PTY."
        after_t = word[small.index("t") + 1]
        return "closing" if after_t.islower() else None
    if small in ("mfg", "mtg"):
        return "leading" if word[1].islower() else None
    return None


def keeps_stop_before_figure(word: str) -> bool:
    """Whether a word keeps the full stop that follows it if a figure comes next: "no. 5", "fig. 2".

    Example:
        >>> keeps_stop_before_figure("No"), keeps_stop_before_figure("road")
        (True, False)

    `word` holds ASCII letters, in any case.
    """
    return word.lower() in _BEFORE_FIGURE
