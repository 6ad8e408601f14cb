"""What a user can do wrong, told in one paragraph: what happened, where, and how to mend it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what was given: a file, a name, an option. Commands print it and exit 2."""


class ExportError(InputError):
    """A model that cannot leave, or a file that was written and answers wrongly."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return how to end "There is no X 'name'": the nearest names, or all where none is near."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(name, known, count, 0.5)
    if near:
        return "; did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return f"; there are {', '.join(known)}." if 0 < len(known) <= 40 else "."


def one_of(what: str, value: object, allowed: Iterable) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        InputError: it is not; the message has the allowed values, of many the nearest.
    """
    allowed = list(allowed)
    if value not in allowed:
        if len(allowed) > 4:
            raise InputError(f"{what}={value!r} is unknown{nearest(str(value), allowed)}")
        raise InputError(f"{what}={value!r} must be {' or '.join(map(repr, allowed))}.")
