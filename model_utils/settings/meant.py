"""Which option of a command a word means that is none of its names."""

from collections.abc import Sequence
from difflib import get_close_matches

from dataloader.letters import letters_of
from model_utils.settings.synonyms import ANSWERS, SYNONYMS


def _by_word() -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = {}
    for ours, theirs in SYNONYMS.items():
        for word in theirs:
            words[word] = (*words.get(word, ()), ours)
    return words


OURS_FOR = _by_word()


def known_word(word: str, names: Sequence[str]) -> str | None:
    """The option of a command that a word surely means.

    Args:
        word: with underscores, however it was typed.
        names: of the command's options.

    Returns:
        A name of the command's, or a sentence where no flag does it; None where
        the word is not known.
    """
    by_letters = {letters_of(name): name for name in names}
    for spelling in (word, word.removeprefix("no_")):
        if letters_of(spelling) in by_letters:
            return by_letters[letters_of(spelling)]
        if (known := _of_the_table(spelling.lower(), names)) is not None:
            return known
    return None


def nearest(word: str, names: Sequence[str]) -> str | None:
    """The option of a command whose name, or another word for which, is
    most like a mistyped one.
    """
    near = get_close_matches(word, names, n=1)
    if near:
        return near[0]
    similar = get_close_matches(word.lower(), OURS_FOR, n=1, cutoff=0.85)
    return _of_the_table(similar[0], names) if similar else None


def _of_the_table(word: str, names: Sequence[str]) -> str | None:
    theirs = next((name for name in OURS_FOR.get(word, ()) if name in names), None)
    return theirs or ANSWERS.get(word)
