"""The protocol of SCALL's official code, as values of flags."""

import dataclasses
from typing import TypeVar

from scall_jax.cli.flags import Main
from scall_jax.config import SearchConfig, WarmStartConfig
from scall_jax.policies import ObserveConfig, PolicyConfig

F = TypeVar("F", bound=Main)

PUBLISHED_DIFFERS = (
    "sizes go up to --sizes.maximum, there to 256, and observations have --observe.groups windows, there 256",
    "a search makes at most --search.probes probes of --search.probe-steps steps, there of 200 until it has settled",
    "a fit has the steps, batch, learning rate and patience of --fit, there 10,000 triples a step, a rate from .03 "
    "down to .001, and three evaluations without a gain whose loss falls by less than 5%",
    "negatives are any known items, there items of the segment and its replay",
    "expected sizes are exact and so is the budget, there sizes are means of 100 samples, rounded, and probes may go "
    "over the budget",
    "replayed rows are drawn uniformly, there by a reservoir from a sample 1.1 times as large",
    "test pairs that were met in training are left out, there they count as missed",
    "the policy keeps 2,048 transitions, there 10,000",
)
"""In what a run by the published protocol differs from the official code of SCALL (commit 15d6eb8)."""

_PUBLISHED_L2 = 2e-4  # The official loss has 1e-4 of the whole squared norm, that of `FitConfig.l2` has half of it.


def by_protocol(flags: F) -> F:
    """Put in the settings of SCALL's official code where the protocol asks for them.

    Args:
      flags: as given on the command line.

    Returns:
      Flags of the same class.

    Raises:
      ValueError: unknown protocol.
    """
    if flags.protocol not in ("clean", "published"):
        raise ValueError(f"unknown protocol {flags.protocol!r}: choose clean or published")
    if flags.protocol == "clean":
        return flags
    search = {"probes": flags.search.planned_probes, "probe_steps": flags.search.probe_steps}
    return dataclasses.replace(
        flags,
        cut=dataclasses.replace(flags.cut, published=True),
        search=dataclasses.replace(SearchConfig.published(), **search),
        policy=PolicyConfig.published(),
        # A probe's reward is relative to the last fit after as many steps.
        fit=dataclasses.replace(flags.fit, eval_every=flags.search.probe_steps, l2=_PUBLISHED_L2),
        observe=ObserveConfig(groups=flags.observe.groups),
        warm_start=WarmStartConfig(shrink=1.0, rotation="none", init_std=0.01, grow_std=0.0),
        bias="none",
    )
