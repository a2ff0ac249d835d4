"""Advice for a name that nobody knows: the nearest one, or all that there are."""

import difflib
from collections.abc import Iterable


def advice(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """What to write instead of an unknown name.

    Args:
      name: as it was given.
      names: known ones.
      cutoff: least similarity, from 0 to 1, at which a name is proposed.

    Returns:
      A question with the nearest name, or the list of all names where none is near.

    >>> advice("frequncy", ["uniform", "frequency"]), advice("magic", ["uniform", "frequency"])
    ('did you mean frequency?', 'choose one of uniform, frequency')
    """
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
