"""Two real streams that come with the package."""

import dataclasses
from importlib import resources
from typing import Any

from scall_jax.streams.interactions import Interactions
from scall_jax.streams.read import read

EMBEDDED = ("online-retail", "movietweetings")
"""Names of the streams that `load` knows."""


def load(name: str = "online-retail", **options: Any) -> Interactions:
    """Load an embedded stream.

    `online-retail`: 736,880 purchases, 5,851 customers, 4,336 products, 2009-2011 (Chen 2012, Online Retail II, and
    Chen 2015, Online Retail; UCI Machine Learning Repository, CC BY 4.0). `movietweetings`: 141,695 ratings tweeted in
    2013, 21,081 users, 12,611 films (Dooms, De Pessemier, Martens 2013, MIT licence). The licence texts lie beside the
    data.

    Args:
      name: one of `EMBEDDED`.
      options: as `read` takes them; movietweetings has ratings for `min_rating`.

    Returns:
      Interactions in source order.

    Raises:
      ValueError: unknown name; as `read`.

    >>> len(load("movietweetings"))
    141695
    """
    if name not in EMBEDDED:
        raise ValueError(f"no embedded stream {name!r}: choose one of {', '.join(EMBEDDED)}, or read a file")
    with resources.as_file(resources.files("scall_jax.streams") / "data" / f"{name.replace('-', '_')}.parquet") as path:
        return dataclasses.replace(read(path, **options), source=name)
