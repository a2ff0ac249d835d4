"""What a caller may say about files of interactions."""

import codecs
import dataclasses
from collections.abc import Sequence
from typing import Any

from scall_jax.streams.formats import FORMATS
from scall_jax.streams.ids import MISSING
from scall_jax.streams.times import TIME_UNITS
from scall_jax.streams.wording import option

OF_ROWS = (
    *("user", "item", "timestamp", "rating", "min_rating"),
    *("time_unit", "time_format", "missing", "skip_incomplete"),
)
"""Options that say which rows of a file count and what they mean; the others say in which form it has them."""


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """The options of `read`, which describes them.

    Raises:
      ValueError: an unknown format, unit or encoding, or options that exclude each other.
    """

    format: str = "auto"
    separator: str | None = None
    encoding: str | None = None
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    min_rating: float | None = None
    time_unit: str = "auto"
    time_format: str | None = None
    missing: Sequence[str] = MISSING
    skip_incomplete: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}: choose one of {', '.join(FORMATS)}")
        if self.time_unit != "auto" and self.time_unit not in TIME_UNITS:
            raise ValueError(f"{option('time_unit', self.time_unit)}: choose auto, {', '.join(TIME_UNITS)}")
        if self.time_format is not None and self.time_unit != "auto":
            raise ValueError(f"give one of {option('time_unit')}, for numbers, and {option('time_format')}, for dates")
        if self.separator is not None and self.format not in ("auto", "csv", "tsv"):
            raise ValueError(f"{option('separator')}: files of the format {self.format} have no separator to choose")
        if self.separator is not None and (not self.separator or set(self.separator) & set('\r\n"')):
            raise ValueError(f"{option('separator', self.separator)}: a character such as ; or a few such as ::")
        if isinstance(self.missing, str):
            raise ValueError(f"{option('missing')}: a sequence of texts, not the text {self.missing!r}")
        if self.min_rating is not None and not abs(self.min_rating) < float("inf"):
            raise ValueError(f"{option('min_rating')}: {self.min_rating} is no rating")
        _check_encoding(self.encoding)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that are not the default, as JSON holds them.

        >>> ReadOptions(min_rating=3, missing=("-",)).chosen
        {'min_rating': 3, 'missing': ['-']}
        """
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found |= {"missing": list(self.missing)}
        default = {field.name: field.default for field in dataclasses.fields(self)} | {"missing": list(MISSING)}
        return {name: value for name, value in found.items() if value != default[name]}

    @property
    def requested(self) -> dict[str, str | None]:
        """The name that each role's column has by request; ratings only where they are used."""
        names = {"user": self.user, "item": self.item, "timestamp": self.timestamp}
        return names | ({} if self.min_rating is None else {"rating": self.rating})


def _check_encoding(name: str | None) -> None:
    try:
        " ".encode(name or "utf-8")  # Python also has codecs that are none of text.
        codecs.getincrementaldecoder(name or "utf-8")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{option('encoding', name)}: {error}; utf-8, utf-16 or latin-1, for example") from None
