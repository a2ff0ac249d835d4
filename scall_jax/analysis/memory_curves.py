"""Quality over memory: areas under curves, value per megabyte, and corrected p-values for many rivals."""

from collections.abc import Sequence

import numpy as np


def area(megabytes: Sequence[float], quality: Sequence[float], logarithmic: bool = False) -> float:
    """Mean quality over a range of memory: the trapezoid area by the length of the range.

    With the mean over segments as quality this is AUC-A of Zhou et al., ICLR 2023 (arXiv 2205.13218), with the last
    segment's AUC-L, each divided by the range. `logarithmic`: over log memory, in which quality saturates less.

    Raises:
      ValueError: fewer than two budgets, or not ascending and positive.
    """
    memory, quality = np.asarray(megabytes, float), np.asarray(quality, float)
    if len(memory) < 2 or len(memory) != len(quality) or (np.diff(memory) <= 0).any() or memory[0] <= 0:
        raise ValueError(f"megabytes {list(megabytes)}: give at least two, ascending and positive, a quality each")
    x = np.log(memory) if logarithmic else memory
    return float(((quality[1:] + quality[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def per_megabyte(megabytes: Sequence[float], quality: Sequence[float]) -> tuple[float, float]:
    """Quality per megabyte at the smallest and at the largest budget.

    APM-S and APM-E of arXiv 2205.13218, which gives them in percent per megabyte: 100 times this.
    """
    return quality[0] / megabytes[0], quality[-1] / megabytes[-1]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for their number by the step-down rule of Holm (1979); f64[m], in the order given."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
