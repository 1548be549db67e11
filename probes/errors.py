"""The one error that is the person's to mend."""


class InputError(ValueError):
    """Something a person gave was wrong.

    The message says what was wrong, where (file, row, field) and what to do. Commands print it
    without a traceback and exit with code 2.
    """
