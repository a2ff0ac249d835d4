"""Quality over memory: areas under curves, and quality per megabyte."""

from collections.abc import Sequence

import chex
import numpy as np


def area(megabytes: Sequence[float], quality: Sequence[float], logarithmic: bool = False) -> float:
    """Mean quality over a range of memory: the trapezoid area under the curve, divided by the length of the range.

    With the mean over segments as quality this is AUC-A of Zhou et al., ICLR 2023 (arXiv 2205.13218), with the last
    segment's quality it is AUC-L, each divided by the range.

    Args:
      megabytes: f64[B], budgets in 10^6 bytes, ascending and positive.
      quality: f64[B], a metric at each budget.
      logarithmic: integrate over the logarithm of memory, in which quality saturates less.

    Returns:
      The mean, in the unit of `quality`.

    Raises:
      ValueError: fewer than two budgets, or budgets that are not ascending and positive.

    >>> round(area([1, 2, 4], [0.10, 0.20, 0.30]), 4)
    0.2167
    >>> round(area([1, 2, 4], [0.10, 0.20, 0.30], logarithmic=True), 4)
    0.2
    """
    memory, values = np.asarray(megabytes, float), np.asarray(quality, float)
    chex.assert_rank([memory, values], 1)
    if len(memory) < 2 or len(memory) != len(values) or (np.diff(memory) <= 0).any() or memory[0] <= 0:
        raise ValueError(f"megabytes {list(megabytes)}: give at least two, ascending and positive, a quality each")
    x = np.log(memory) if logarithmic else memory
    return float(((values[1:] + values[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def per_megabyte(megabytes: Sequence[float], quality: Sequence[float]) -> tuple[float, float]:
    """Quality per megabyte at the smallest and at the largest budget.

    These are APM-S and APM-E of Zhou et al., ICLR 2023 (arXiv 2205.13218), which gives them in percent: 100 times this.

    Args:
      megabytes: f64[B], budgets in 10^6 bytes, ascending and positive.
      quality: f64[B], a metric at each budget.

    Returns:
      Quality per megabyte at the first and at the last budget.

    >>> per_megabyte([1, 2, 4], [0.125, 0.20, 0.25])
    (0.125, 0.0625)
    """
    return quality[0] / megabytes[0], quality[-1] / megabytes[-1]
