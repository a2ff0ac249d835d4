"""The short help page: the flags that most people use, each with its text, unit and default, and the names to choose.

Texts are the docstrings below the fields of the dataclasses of flags, which `--help-all` shows too.
"""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

from scall_jax.cli.method_flags import GROUPS
from scall_jax.methods.registry import BASELINES, METHODS, PROBED
from scall_jax.run import auto
from scall_jax.sizes import FAMILIES
from scall_jax.streams import EMBEDDED, FORMATS
from scall_jax.tables import SIZED

_COLUMN = 28
_VALUES = {str: "TEXT", int: "N", float: "X", Path: "PATH", bool: "", types.NoneType: ""}


class Flag(typing.NamedTuple):
    """One flag of a command line."""

    name: str
    """Dotted name with hyphens, without the leading `--`."""
    value: str
    """Placeholder of the value: N (an integer), X (a number), TEXT or PATH; empty for a switch."""
    text: str
    """What it does, and the unit of its value."""
    default: Any
    """Value where the flag is not given."""


def all_flags(flags: Any, prefix: str = "") -> list[Flag]:
    """The flags of a dataclass.

    Args:
      flags: a dataclass or an instance of it; fields that are dataclasses have flags of their own.
      prefix: of the names.

    Returns:
      Flags in the order of the fields; None is the default of one that must be given.
    """
    cls = flags if isinstance(flags, type) else type(flags)
    hints, texts = typing.get_type_hints(cls), _texts(cls)
    found: list[Flag] = []
    for field in dataclasses.fields(cls):
        # A field without a default is no attribute of the class.
        name, default = prefix + field.name.replace("_", "-"), getattr(flags, field.name, None)
        if dataclasses.is_dataclass(default):
            found += all_flags(default, f"{name}.")
        else:
            found.append(Flag(name, _value(hints[field.name]), texts.get(field.name, ""), default))
    return found


def _texts(cls: type) -> dict[str, str]:
    """Docstrings below the fields of a dataclass and of its parents, in one line each."""
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(parent):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def _value(hint: Any) -> str:
    if hint in _VALUES:
        return _VALUES[hint]
    parts = [part for part in typing.get_args(hint) if part not in (types.NoneType, Ellipsis)]
    many = typing.get_origin(hint) is tuple
    return " ".join(filter(None, map(_value, parts[:1]))) + (" ..." if many else "")


def choices() -> dict[str, tuple[str, ...]]:
    """The names that flags take, by what they name."""
    outside = *BASELINES, "full"
    chosen = tuple(name for name in METHODS if name not in (*PROBED, *outside))
    return {
        "embedded streams (--data)": EMBEDDED,
        "file formats (--columns.format)": FORMATS,
        "methods (--method) within the budget": chosen,
        "methods that make probes first, which takes longer": PROBED,
        "methods outside the budget": outside,
        "a choice among methods on valid": (auto.NAME,),
        "groups of methods": tuple(GROUPS),
        "tables (--table)": tuple(SIZED),
        "families of sizes (--sizes.family, --search.family)": tuple(FAMILIES),
    }


def page(flags: type, program: str, description: str) -> str:
    """The text that `-h` and `--help` print.

    Args:
      flags: dataclass of flags. Its attribute `SHOWN` maps titles to names of flags; flags that a subclass adds to the
        class that has this attribute are shown too.
      program: how the process was started.
      description: shown at the top.

    Returns:
      The page, wrapped to the width of the terminal.
    """
    known = {flag.name: flag for flag in all_flags(flags)}
    base = next(cls for cls in flags.__mro__ if "SHOWN" in vars(cls))
    own = tuple(known.keys() - {flag.name for flag in all_flags(base)})
    groups = {"this experiment": tuple(name for name in known if name in own)} | vars(base)["SHOWN"]
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    parts = [f"usage: {program} [flags]", textwrap.dedent(description).strip()]
    for title, names in groups.items():
        if names:
            parts.append("\n".join([f"{title}:", *(_entry(known[name], width) for name in names)]))
    parts.append("\n".join(_filled(f"{title}: {', '.join(names)}", width, 2) for title, names in choices().items()))
    others = len(known) - sum(map(len, groups.values()))
    parts.append(f"--help-all shows these and {others} other flags; values: N an integer, X a number, ... several.")
    return "\n\n".join(parts)


def _entry(flag: Flag, width: int) -> str:
    """One flag: its name and value in a column of their own, then text and default."""
    head = f"  --{flag.name} {flag.value}".rstrip()
    text = flag.text if "default" in flag.text.lower() else f"{flag.text} (default: {_shown(flag.default)})"
    body = _filled(text, width, _COLUMN, _COLUMN)
    return head.ljust(_COLUMN) + body.lstrip() if len(head) < _COLUMN else f"{head}\n{body}"


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default is None else str(default)


def _filled(text: str, width: int, indent: int, first: int = 0) -> str:
    return textwrap.fill(
        text, width, initial_indent=" " * first, subsequent_indent=" " * indent, break_on_hyphens=False
    )
