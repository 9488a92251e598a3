"""The one exception for an input that cannot be used as asked; every command turns it into one line and exit code 2."""


class InputError(Exception):
    """A file, record or option of the user cannot be used as asked.

    The message is one sentence for a tired person: what was found, where (file, key, frame), what was expected,
    what to do.
    """

    exit_code = 2
