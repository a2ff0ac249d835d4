"""The methods that flags name, the flags of each, and its configuration."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import jax

from scall_jax import streams
from scall_jax.cli.flags import Main
from scall_jax.cli.nearest import advice
from scall_jax.config import Config
from scall_jax.methods.registry import METHODS
from scall_jax.run import auto, make_run, placement
from scall_jax.run.processes import ALONE

F = TypeVar("F", bound=Main)

GROUPS = {"popularity": tuple(m for m in METHODS if m.startswith("popularity-"))}
"""Names that stand for several methods."""

_CHOSEN_BY_AUTO = ("recommender", "table", "bias", "charge")
"""Flags that the candidates of auto have values of their own for."""


def by_data(flags: F) -> F:
    """Put in the methods for a file of one's own where none are given.

    >>> by_data(Main(data="clicks.csv")).method, len(by_data(Main()).method)
    (('auto',), 7)
    """
    if flags.data in streams.EMBEDDED or flags.method != type(flags)().method:
        return flags
    return dataclasses.replace(flags, method=(auto.NAME,))


def expand(names: tuple[str, ...]) -> list[str]:
    """Spell out groups of methods.

    >>> expand(("uniform", "popularity"))
    ['uniform', 'popularity-all', 'popularity-segment', 'popularity-decayed']
    """
    return [method for name in names for method in GROUPS.get(name, (name,))]


def for_method(flags: F, spelled: str) -> tuple[F, str]:
    """The flags of one method, with what is spelled after its name put in.

    Args:
      flags: of all methods.
      spelled: a method, and after an @ the flags that differ for it: name=value, separated by commas.

    Returns:
      Flags of the same class, and the method's name.

    Raises:
      ValueError: an unknown flag, or a value that it cannot have.

    >>> flags, method = for_method(Main(), "uniform@table=packed_int4,budget.mean-size=2")
    >>> method, flags.table, flags.budget.mean_size
    ('uniform', 'packed_int4', 2.0)
    """
    method, _, options = spelled.partition("@")
    for option in filter(None, options.split(",")):
        name, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"method {spelled!r}: {option!r} is not of the form flag=value, such as table=packed_int4")
        path = name.removeprefix("--").replace("-", "_").split(".")
        flags = _replaced(flags, path, text, f"method {spelled!r}: --{name}")
    return flags, method


def _replaced(flags: Any, path: list[str], text: str, where: str) -> Any:
    """A dataclass with the field at a path replaced by a value that is spelled as text."""
    field = path[0]
    names = [f.name for f in dataclasses.fields(flags)] if dataclasses.is_dataclass(flags) else []
    if field not in names:
        near = [x.replace("_", "-") for x in difflib.get_close_matches(field, names, n=1)]
        raise ValueError(f"{where} is no flag" + "".join(f": did you mean {x}?" for x in near))
    if len(path) > 1:
        value = _replaced(getattr(flags, field), path[1:], text, where)
    else:
        allowed = get_type_hints(type(flags))[field]
        value = _spelled(text, [kind for kind in get_args(allowed) if kind is not ...] or (allowed,), where)
        if get_origin(allowed) is tuple:
            # Commas separate flags here, so that there is one value.
            value = (value,)
    changed: Any = flags
    return dataclasses.replace(changed, **{field: value})


_SPELLED: dict[type, Callable[[str], Any]] = {
    type(None): {"None": None, "none": None}.__getitem__,
    bool: {"True": True, "true": True, "False": False, "false": False}.__getitem__,
    int: int,
    float: float,
    str: str,
}


def _spelled(text: str, allowed: Sequence[Any], where: str) -> Any:
    for kind, parse in _SPELLED.items():
        if kind in allowed:
            try:
                return parse(text)
            except (KeyError, ValueError):
                continue
    raise ValueError(f"{where}={text}: a value of type {' or '.join(getattr(a, '__name__', str(a)) for a in allowed)}")


def check_auto(flags: Main, spelled: str) -> None:
    """Check that no flag asks for what the method auto chooses by itself.

    Args:
      flags: as given on the command line; what `by_protocol` puts in is not asked for.
      spelled: a method, with flags of its own as `for_method` reads them.

    Raises:
      ValueError: the method is auto, and a flag that it would not heed differs from its default.
    """
    flags, method = for_method(flags, spelled)
    if method != auto.NAME:
        return
    for name in _CHOSEN_BY_AUTO:
        value = getattr(flags, name)
        # Its budget pays for all that serving needs, so that asking for this is heeded.
        if value != getattr(type(flags)(), name) and (name, value) != ("charge", "serving"):
            raise ValueError(
                f"--{name} {value}: method auto chooses recommender, table and bias, and charges for all that serving "
                f"needs: name another --method, such as uniform, or give the flag to one alone: uniform@{name}={value}"
            )


def make_config(flags: Main, method: str) -> Config:
    """The configuration of one method.

    Args:
      flags: of all methods.
      method: one of `scall_jax.METHODS`, with flags of its own as `for_method` reads them.

    Returns:
      Config.

    Raises:
      ValueError: unknown method, a value out of its range, or a flag after an @ that methods cannot differ by.
    """
    if flags.processes != ALONE and type(flags) is not Main:
        raise ValueError("--processes.*: only `scall-jax run` can be several processes; leave them out")
    shared, (flags, method) = flags, for_method(flags, method)
    own = {f.name for f in dataclasses.fields(Config)} - {"method"}
    # A method cannot have a stream, a seed or a folder of its own: the runs are made of what is common to all.
    for field in sorted({f.name for f in dataclasses.fields(Main)} - own):
        here, there = getattr(flags, field), getattr(shared, field)
        # What is no number equals nothing, itself included; it is refused where it is used.
        if here is not there and here != there:
            raise ValueError(f"--{field.replace('_', '-')} after an @: it is the same for all methods; give it alone")
    if not 0 <= flags.seed < 2**32:
        raise ValueError(f"seed {flags.seed}: must lie between 0 and 2^32 - 1")
    if method not in (*METHODS, auto.NAME):
        raise ValueError(f"unknown method {method!r}: {advice(method, [*METHODS, auto.NAME, *GROUPS])}")
    return Config(
        method=method,
        budget=flags.budget.budget(),
        sizes=flags.sizes,
        warm_start=flags.warm_start,
        fit=flags.fit,
        recommender=flags.recommender,
        ials=flags.ials,
        saros=flags.saros,
        gains=flags.gains,
        search=flags.search,
        policy=flags.policy,
        observe=flags.observe,
        shared_memory=flags.shared_memory,
        mixed_precision=flags.mixed_precision,
        pruned=flags.pruned,
        eviction=flags.eviction,
        memo=flags.memo,
        reid=flags.reid,
        s2pnm=flags.s2pnm,
        bigear=flags.bigear,
        mesh=flags.mesh,
        table=flags.table,
        charge=flags.charge,
        bias=flags.bias or ("decayed" if flags.data in streams.EMBEDDED else "none"),
        candidates="segment" if flags.cut.published else "all",
    )


def check_run(config: Config, stream: streams.Stream) -> None:
    """Check that the method can use its budget on this stream; nothing is computed.

    Args:
      config, stream: of a run.

    Raises:
      ValueError: it cannot; the message names method and budget.
    """
    try:
        trace_init(config, stream)
    except ValueError as error:
        raise ValueError(f"{config.method}, {config.budget}: {error}") from None


def trace_init(config: Config, stream: streams.Stream) -> None:
    """As `check_run`, with a message that does not name method and budget."""
    placement.check_devices(config.mesh)
    if config.method == auto.NAME:
        auto.feasible(auto.candidates(config), stream)
    else:
        jax.eval_shape(lambda key: make_run(config).init(key, stream), jax.random.key(0))
