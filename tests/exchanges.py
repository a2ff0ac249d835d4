"""Which exchanges between devices of a compiled program may run in any order."""

import itertools
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


class _Instruction(NamedTuple):
    kind: str
    operands: tuple[str, ...]
    called: tuple[str, ...]


def _computations(text: str) -> dict[str, dict[str, _Instruction]]:
    """Instructions by computation, in the order of the text, where none stands before one that it reads."""
    found: dict[str, dict[str, _Instruction]] = {}
    now: dict[str, _Instruction] = {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            now = found.setdefault(line.removeprefix("ENTRY ").lstrip("%").split()[0], {})
        made = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = .*?[\]})] ([a-z][\w\-]*)\((.*)$", line)
        if made is None:
            continue
        name, kind, rest = made.groups()
        given, _, attributes = rest.partition(")")
        called = re.findall(r"(?:body|condition|to_apply|calls)=%([\w.\-]+)", attributes)
        branches = re.search(r"branch_computations=\{([^}]*)\}", attributes)
        called += re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
        called += re.findall(r"(?:true|false)_computation=%([\w.\-]+)", attributes)
        now[name] = _Instruction(kind.removesuffix("-start"), tuple(re.findall(r"%([\w.\-]+)", given)), tuple(called))
    return found


def unordered(text: str) -> tuple[int, list[tuple[str, str]]]:
    """The exchanges of a program, and those of them, or loops and branches with some, that do not wait for each other.

    Args:
      text: of a compiled program.

    Returns:
      (count of exchanges, pairs of names of instructions, neither of which reads the other's result in any way).
    """
    computations, exchanges = _computations(text), 0
    known: dict[str, bool] = {}

    def computation_has_some(name: str) -> bool:
        if name not in known:
            known[name] = any(instruction_has_some(x) for x in computations.get(name, {}).values())
        return known[name]

    def instruction_has_some(instruction: _Instruction) -> bool:
        return instruction.kind in KINDS or any(computation_has_some(name) for name in instruction.called)

    pairs = []
    for instructions in computations.values():
        exchanges += sum(x.kind in KINDS for x in instructions.values())
        of_interest = {name for name, x in instructions.items() if instruction_has_some(x)}
        read: dict[str, set[str]] = {}
        for name, x in instructions.items():
            read[name] = set().union(*[read.get(operand, set()) for operand in x.operands])
            read[name] |= of_interest & set(x.operands)
        two_of_them = itertools.combinations(sorted(of_interest), 2)
        pairs += [(a, b) for a, b in two_of_them if a not in read[b] and b not in read[a]]
    return exchanges, pairs
