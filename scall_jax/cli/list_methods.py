"""The command `scall-jax methods`: what there is to choose, one line each."""

import dataclasses
from collections.abc import Sequence

from scall_jax.cli.cli import Positional, cli
from scall_jax.cli.method_flags import GROUPS, expand
from scall_jax.cli.nearest import advice
from scall_jax.methods.registry import BASELINES, METHODS, PROBED
from scall_jax.run import auto

TEXTS = {
    "uniform": "the same size for all",
    "fixed": "one split of the budget and one shape of sizes by frequency rank, for all segments",
    "frequency": "sizes proportional to a power of frequency",
    "shuffled": "the sizes of fixed in random order: a control",
    "random": "random sizes",
    "full": "the largest size for all, whatever the budget",
    "scall": "SCALL's actions searched by a Gaussian process (CIKM 2024, arXiv 2407.15411)",
    "dlints": "SCALL's actions searched by discounted linear Thompson sampling (arXiv 2202.03167)",
    "scall-sac": "SCALL with the policy of its paper, soft actor-critic",
    "scall-ddpg": "SCALL with deep deterministic policy gradient",
    "scall-gp": "the same as scall",
    "scall-dlints": "the same as dlints",
    "scall-random": "SCALL's actions drawn at random: the baseline of a search",
    "scall-grid": "SCALL's actions on a lattice",
    "scall-gain": "SCALL's search over prices of coordinates instead of shapes of sizes",
    "gain": "sizes from what each coordinate of each entity lowers the loss of a wide fit by",
    "gain-bits": "sizes and bits of each entity from what coordinates are worth and what rounding them costs",
    "waterfill": "sizes from the fall of a wide fit's spectrum",
    "spectral": "a coordinate more for the entity whose vectors hold the most energy on it",
    "bet": "sizes searched as sets of actions (BET, WSDM 2024)",
    "ciess": "an actor chooses each entity's size (CIESS, SIGIR 2023)",
    "ducb": "a bandit chooses among candidate sizes (stands in for DESS, arXiv 2308.07760)",
    "esapn": "a policy lets entities grow (ESAPN, SIGIR 2020)",
    "binary_hash": "vectors composed by binary codes (CIKM 2021, arXiv 2109.02471)",
    "binary_hash_skip": "the same, with codes that skip",
    "quotient_remainder": "vectors composed by quotient and remainder (KDD 2020)",
    "shared_memory": "vectors read from one shared memory at hashed places (LMA, arXiv 2103.06124)",
    "mixed_precision": "bits chosen by groups of entities (MPE, arXiv 2409.20305)",
    "pep": "coordinates pruned until the budget fits (PEP, ICLR 2021)",
    "evict_count": "a table of rows of one width that goes to the entities of the largest counts, as in industry",
    "evict_age": "the same by the time since an entity came last, with a time to live",
    "evict_score": "the same by a count that fades",
    "memo": "a block of columns more at each segment, older ones frozen (MEMO, ICLR 2023, arXiv 2205.13218)",
    "reid": "clusters of similar tail entities share a vector (by the neighbourhoods of arXiv 2307.14278)",
    "s2pnm": "no vectors of users: a network reads their last items (S2PNM, TKDE 2021, arXiv 2204.00752)",
    "bigear": "signs of each layer of the propagation, trained to rank (BiGeaR, KDD 2022, arXiv 2206.02115)",
    "lce": "vectors of items alone, users composed by the graph (after LCE, arXiv 2202.02427)",
    "popularity-all": "items by their count so far",
    "popularity-segment": "items by their count in the segment",
    "popularity-decayed": "items by a count that decays",
    auto.NAME: "several of these side by side within one budget; the one that leads on valid serves",
    "ease": "EASE, item to item weights in closed form (WWW 2019)",
}
"""Each method in one line; the sources in full are in docs/methods.md."""


@dataclasses.dataclass(frozen=True)
class Methods:
    """Flags of the list of methods."""

    names: Positional[tuple[str, ...]] = ()
    """Methods to show, or groups of them; all of them by default."""


def listing(names: Sequence[str] = ()) -> str:
    """The methods with a line each, in groups by what they cost.

    Args:
      names: methods to show, or groups of them; all where there are none.

    Raises:
      ValueError: an unknown name.
    """
    for name in names:
        if name not in TEXTS and name not in GROUPS:
            raise ValueError(f"unknown method {name!r}: {advice(name, [*TEXTS, *GROUPS])}")
    names = expand(tuple(names))
    outside = {*BASELINES, "full"}
    groups = {
        "a choice on valid, and the default for a file of one's own:": [auto.NAME],
        "within the budget, without probes:": [x for x in METHODS if x not in outside and x not in PROBED],
        "within the budget, with probes (short trainings before a segment's own):": list(PROBED),
        "outside the budget:": [x for x in METHODS if x in outside],
    }
    shown = {title: [x for x in group if not names or x in names] for title, group in groups.items()}
    blocks = [[title, *(f"  {x:20s}{TEXTS[x]}" for x in group)] for title, group in shown.items() if group]
    foot = "popularity stands for the three popularity-*; flags of one method follow an @: uniform@table=packed_int4"
    return "\n\n".join(["\n".join(block) for block in blocks] + ([] if names else [foot]))


def methods_command(arguments: Sequence[str] | None = None, program: str = "scall-jax methods") -> None:
    """The command line of `scall-jax methods`.

    Args:
      arguments: flags; None for those of the process.
      program: how the process was started, for help.

    Raises:
      SystemExit: with code 2 for an unknown method, and with code 0 after help.
    """
    cli(Methods, lambda flags: print(listing(flags.names)), "The methods, one line each.", arguments, program)
