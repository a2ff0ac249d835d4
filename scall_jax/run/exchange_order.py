"""One order of the exchanges between devices in a program, which a CPU keeps too.

Sums over devices and gathers of their parts are exchanges: each device waits in one until all have come to it. Two of
them that do not read each other may run in any order, or at the same time, and so may loops that have some within. XLA
begins them in one order on accelerators. On a CPU each device begins what is ready; devices that begin two exchanges in
different orders wait for each other until XLA ends the process, and since JAX gives all exchanges of a program one
number, by which devices meet, one may also be taken for the other, with wrong results. `ordered` makes each exchange
read the one before it, in the order in which the function asks for them, through loops, branches and `jax.shard_map`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import PartitionSpec

_EXCHANGES = frozenset({"all_gather", "pmax", "pmin", "psum"})
"""Primitives of JAX by which `ops.devices` exchanges."""
_BITS = 64
"""The most bits of a number that can be set. XLA does not know it, and so cannot leave a comparison with it out."""


def ordered(jaxpr: core.ClosedJaxpr, out_tree: Any) -> Callable[..., Any] | None:
    """A function that does what a traced one does, with its exchanges one after another.

    Args:
      jaxpr: of the traced function.
      out_tree: structure of what it returns.

    Returns:
      The function, from the same arguments to the same bits; None where the traced one exchanges nothing. Traced, it
      raises ValueError where there are exchanges of a kind, or within something, that no order can be given to.
      Exchanges that nothing reads are made, too. Errors and profiles name lines of this file.
    """
    if not _exchanges(jaxpr.jaxpr):
        return None

    def in_order(*arguments: Any) -> Any:
        _, found = _evaluate(jaxpr, jnp.bool_(True), jax.tree.leaves(arguments))
        return jax.tree.unflatten(out_tree, found)

    return in_order


def _exchanges(jaxpr: core.Jaxpr) -> bool:
    return any(_equation_exchanges(equation) for equation in jaxpr.eqns)


def _equation_exchanges(equation: core.JaxprEqn) -> bool:
    return _is_exchange(equation) or _has_exchanges(equation)


def _is_exchange(equation: core.JaxprEqn) -> bool:
    """Whether it names an axis of devices, other than to ask which device this is."""
    names: list[Any] = []
    for parameter in ("axes", "axis_name"):
        given = equation.params.get(parameter, ())
        names += given if isinstance(given, (tuple, list)) else [given]
    return equation.primitive.name != "axis_index" and any(isinstance(name, str) for name in names)


def _has_exchanges(equation: core.JaxprEqn) -> bool:
    return any(_exchanges(_open(inner)) for inner in core.jaxprs_in_params(equation.params))


def _open(jaxpr: Any) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _evaluate(jaxpr: core.ClosedJaxpr, came: jax.Array, arguments: Sequence[Any]) -> tuple[jax.Array, list[Any]]:
    """Trace a program again, with its exchanges in order.

    Args:
      jaxpr: the program.
      came: bool[] that is True, and known once the last exchange is over.
      arguments: of the program.

    Returns:
      (came, results): of the last exchange of the program, or the given one where it has none.
    """
    program = jaxpr.jaxpr
    values = dict(zip((*program.constvars, *program.invars), (*jaxpr.consts, *arguments), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in program.eqns:
        given = [read(variable) for variable in equation.invars]
        name = str(equation.source_info.name_stack)
        with equation.ctx.manager, jax.named_scope(name) if name else contextlib.nullcontext():
            if _equation_exchanges(equation):
                came, found = _in_turn(equation, came, given)
            else:
                found = _bind(equation, given)
        values.update(zip(equation.outvars, found, strict=True))
    return came, [read(variable) for variable in program.outvars]


def _bind(equation: core.JaxprEqn, given: Sequence[Any]) -> Sequence[Any]:
    found = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
    return found if equation.primitive.multiple_results else [found]


def _in_turn(equation: core.JaxprEqn, came: jax.Array, given: list[Any]) -> tuple[jax.Array, Sequence[Any]]:
    name = equation.primitive.name
    if _is_exchange(equation):
        if name not in _EXCHANGES:
            raise ValueError(f"devices exchange by {name}, which has no place in an order: use what ops.devices has")
        return _exchange(equation, came, given)
    if name not in _WITHIN:
        raise ValueError(f"a {name} has exchanges between devices within: they need loops, branches or jit around them")
    came, *found = _WITHIN[name](equation.params, came, given)
    return came, found


def _exchange(equation: core.JaxprEqn, came: jax.Array, given: Iterable[Any]) -> tuple[jax.Array, list[Any]]:
    """One exchange for each array, each after the one before."""
    found = []
    for x in given:
        # A choice keeps all bits, where a sum with 0 would lose the sign of a zero.
        found += _bind(equation, [jnp.where(came, x, _another(x))])
        came = _has_come(found[-1], came)
    return came, found


def _another(x: jax.Array) -> jax.Array:
    """Values that no compiler takes for those of x, since it would leave out a choice between equals."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.full_like(x, jnp.nan)
    return ~x


def _has_come(x: jax.Array, came: jax.Array) -> jax.Array:
    """True once an array is there, in a way that no compiler works out before."""
    if x.size == 0:
        return came
    first = x[(0,) * x.ndim]
    if first.dtype == jnp.bool_:
        first = first.astype(jnp.int32)
    if jnp.issubdtype(first.dtype, jnp.floating):
        first = jax.lax.bitcast_convert_type(first, jnp.dtype(f"uint{8 * first.dtype.itemsize}"))
    return jax.lax.population_count(first).astype(jnp.int32) <= _BITS


def _while(parameters: dict[str, Any], came: jax.Array, given: list[Any]) -> tuple[Any, ...]:
    condition, body = parameters["cond_jaxpr"], parameters["body_jaxpr"]
    if _exchanges(condition.jaxpr):
        raise ValueError("the condition of a loop exchanges between devices: ops.devices.loop does so in its step")
    of_condition, of_body, start = _split(given, parameters["cond_nconsts"], parameters["body_nconsts"])

    def unfinished(values: Sequence[Any]) -> jax.Array:
        return core.jaxpr_as_fun(condition)(*of_condition, *values)[0]

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        came, *before = carry
        last, found = _evaluate(body, came, [*of_body, *before])
        going = unfinished(before) if lanes else None
        return last, *[x if going is None else _by_lane(going, x, y) for x, y in zip(found, before, strict=True)]

    # A loop under vmap has a condition for each lane: it goes on while one of them does, and the others keep what they
    # have.
    lanes = condition.out_avals[0].ndim
    return jax.lax.while_loop(lambda carry: unfinished(carry[1:]).any(), step, (came, *start))


def _by_lane(going: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(going.reshape(*going.shape, *[1] * (new.ndim - going.ndim)), new, old)


def _scan(parameters: dict[str, Any], came: jax.Array, given: list[Any]) -> tuple[Any, ...]:
    count = parameters["num_carry"]
    constants, start, xs = _split(given, parameters["num_consts"], count)

    def step(carry: tuple[Any, ...], x: tuple[Any, ...]) -> tuple[Any, Any]:
        last, found = _evaluate(parameters["jaxpr"], carry[0], [*constants, *carry[1:], *x])
        return (last, *found[:count]), found[count:]

    options = {name: parameters[name] for name in ("length", "reverse", "unroll")}
    end, ys = jax.lax.scan(step, (came, *start), tuple(xs), **options)
    return *end, *ys


def _cond(parameters: dict[str, Any], came: jax.Array, given: list[Any]) -> tuple[Any, ...]:
    def branch(jaxpr: core.ClosedJaxpr, came: jax.Array, *arguments: Any) -> tuple[Any, ...]:
        last, found = _evaluate(jaxpr, came, arguments)
        return last, *found

    branches = [functools.partial(branch, jaxpr) for jaxpr in parameters["branches"]]
    return jax.lax.switch(given[0], branches, came, *given[1:])


def _jit(parameters: dict[str, Any], came: jax.Array, given: list[Any]) -> tuple[Any, ...]:
    last, found = _evaluate(parameters["jaxpr"], came, given)
    return last, *found


def _shard_map(parameters: dict[str, Any], came: jax.Array, given: list[Any]) -> tuple[Any, ...]:
    def on_one(came: jax.Array, *arguments: Any) -> tuple[Any, ...]:
        last, found = _evaluate(core.ClosedJaxpr(_open(parameters["jaxpr"]), ()), came, arguments)
        return last, *found

    spread = jax.shard_map(
        on_one,
        mesh=parameters["mesh"],
        in_specs=(PartitionSpec(), *parameters["in_specs"]),
        out_specs=(PartitionSpec(), *parameters["out_specs"]),
        axis_names=frozenset(parameters["newly_manual_axes"]),
        check_vma=parameters["check_vma"],
    )
    return spread(came, *given)


_WITHIN = {"while": _while, "scan": _scan, "cond": _cond, "jit": _jit, "shard_map": _shard_map}


def _split(given: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return given[:first], given[first : first + second], given[first + second :]
