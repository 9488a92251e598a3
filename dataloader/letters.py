"""Words that are the same in any spelling."""


def letters_of(word: str) -> str:
    """A word without what spellings differ in: cases, blanks, dashes, underscores."""
    return "".join(letter for letter in word.lower() if letter.isalnum())
