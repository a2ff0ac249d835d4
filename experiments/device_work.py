"""What each device of a run does: operations, and bytes that it puts together with the others, by count.

A segment is run under JAX's profiler, whose trace of a CPU has an event for each instruction of a compiled program that
a device executes. What an instruction does follows from the program's text, so that loops whose length is known only
while they run are counted as often as they went round, except for small ones that are compiled into one instruction
without a length: these count once. How busy the machine is does not matter.

Counted are the multiplications and additions of products and solves, and for everything else one operation for each
number that an arithmetic instruction makes. Numbers that are only moved are not counted, but for those that devices
exchange.
"""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scall_jax import Config, make_run
from scall_jax.run import placement
from scall_jax.run.phases import CompiledPhases
from scall_jax.streams import Graph, Stream


class Work(NamedTuple):
    """Of one device, or of one instruction."""

    products: float = 0.0
    """Multiplications and additions of products and solves."""
    other: float = 0.0
    """Numbers made by other arithmetic."""
    summed: float = 0.0
    """Bytes of sums over the devices (all-reduce), each counted once."""
    gathered: float = 0.0
    """Bytes of what a device is given of others' parts, and of its own (all-gather, collective-permute)."""
    exchanges: float = 0.0
    """How often devices wait for each other."""

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """The sum with so many times another."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


_ARITHMETIC = (
    "add subtract multiply divide remainder maximum minimum power sqrt rsqrt cbrt exponential exponential-minus-one "
    "log log-plus-one logistic tanh sine cosine tan erf abs negate sign floor ceil round-nearest-even clamp compare "
    "select and or not xor shift-left shift-right-logical shift-right-arithmetic"
)
"""Instructions that make each of their numbers by an operation."""

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8, "c64": 8}
"""Of a number; 4 where nothing else is said."""

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class _Instruction(NamedTuple):
    kind: str
    shapes: list[tuple[str, tuple[int, ...]]]
    """Type and dimensions of each result."""
    rest: str
    """Operands and attributes, as they are written."""

    def numbers(self) -> int:
        return sum(math.prod(dims) for _, dims in self.shapes)

    def size(self) -> int:
        return sum(_BYTES.get(kind, 4) * math.prod(dims) for kind, dims in self.shapes)

    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def attribute(self, name: str) -> str:
        found = re.search(rf"{name}=%?([\w.\-]+|\{{[\d,]*\}}|\"[^\"]*\")", self.rest)
        return found[1].strip('"{}') if found else ""


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(int(n) for n in dims.split(",") if n)) for kind, dims in _SHAPE.findall(text)]


class Program:
    """The instructions of a compiled program, and what each of them does."""

    def __init__(self, text: str, entries: float = 0.0):
        """Read a program.

        Args:
          text: of the program as it is executed (`jax.stages.Compiled.as_text`).
          entries: of the graph that a sparse product reads, on one device; they do not follow from its shapes, which
            have room for more.
        """
        self._entries = entries
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self._of: dict[str, str] = {}
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if opened := _COMPUTATION.match(line):
                name, current = opened[1], {}
                self._computations[name] = current
            elif made := _INSTRUCTION.match(line):
                current[made[1]] = _Instruction(made[3], _shapes(made[2]), made[4])
                self._of[made[1]] = name

    def work(self, name: str) -> Work:
        """What an instruction does when it is executed once.

        Args:
          name: of the instruction; what one that holds others does is counted with those, unless they are compiled
            into it.
        """
        return self._work(self._of[name], name) if name in self._of else Work()

    def _work(self, computation: str, name: str) -> Work:
        made = self._computations[computation][name]
        if made.kind in ("all-reduce", "all-reduce-start"):
            return Work(summed=made.size(), exchanges=1)
        if made.kind in ("all-gather", "all-gather-start", "collective-permute", "collective-permute-start"):
            return Work(gathered=made.size(), exchanges=1)
        if made.kind == "dot":
            return Work(products=2.0 * made.numbers() * self._contracted(computation, made))
        if made.kind == "custom-call":
            return Work(products=self._of_library(computation, made))
        if made.kind in ("reduce", "reduce-window"):
            return Work(other=self._numbers(computation, made.operands()[0]))
        if made.kind == "sort":
            length = max(made.shapes[0][1])
            return Work(other=math.prod(made.shapes[0][1]) * math.log2(max(length, 2)))
        if made.kind == "fusion":
            return self._inside(made.attribute("calls"))
        if made.kind == "call" and "xla_cpu_small_call" in made.rest:
            return self._inside(made.attribute("to_apply"))
        return Work(other=made.numbers()) if made.kind in _ARITHMETIC.split() else Work()

    def _inside(self, computation: str) -> Work:
        """What is compiled into one instruction."""
        total = Work()
        for name, made in self._computations[computation].items():
            if made.kind == "while":
                # Such loops are short; where the length is not written, they count once.
                rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', made.rest)
                total = total.plus(self._inside(made.attribute("body")), int(rounds[1]) if rounds else 1)
            else:
                total = total.plus(self._work(computation, name))
        return total

    def _numbers(self, computation: str, name: str) -> int:
        return self._computations[computation][name].numbers()

    def _contracted(self, computation: str, made: _Instruction) -> int:
        """How many products a number of a dot is the sum of."""
        ((_, dims), *_) = self._computations[computation][made.operands()[0]].shapes
        return math.prod(dims[int(axis)] for axis in made.attribute("lhs_contracting_dims").split(",") if axis)

    def _of_library(self, computation: str, made: _Instruction) -> float:
        """Operations of a call into a library: factors, triangular systems, sparse products."""
        target, dims = made.attribute("custom_call_target"), made.shapes[0][1]
        if "potrf" in target:
            return math.prod(dims) * dims[-1] / 3
        if "trsm" in target:
            return float(math.prod(dims) * self._computations[computation][made.operands()[0]].shapes[0][1][-1])
        return 2.0 * self._entries * dims[-1] if "csr_sparse_dense" in target else 0.0


def executed(folder: Path) -> Counter[tuple[str, str, int]]:
    """How often devices have executed instructions.

    Args:
      folder: that `jax.profiler.trace` has written to.

    Returns:
      By module, instruction and number of the device.
    """
    found: Counter[tuple[str, str, int]] = Counter()
    for path in folder.glob("plugins/profile/*/*.xplane.pb"):
        for event in _events(path):
            stats = dict(event.stats)
            # An instruction has a second event where it ends, with another name.
            if event.name == stats.get("hlo_op"):
                found[stats["hlo_module"], event.name, stats["device_ordinal"]] += 1
    return found


def _events(path: Path) -> Iterator[Any]:
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            yield from line.events


def _entries(graph: Graph, devices: int) -> list[int]:
    """Entries that each device's products read: of the rows whose first one lies in its part (`graph.own_rows`)."""
    indptr, part = np.asarray(graph.indptr), -(-len(graph.indices) // devices)
    bounds = np.searchsorted(indptr, part * np.arange(devices + 1))
    return np.diff(indptr[np.minimum(bounds, len(indptr) - 1)]).tolist()


def of_segment(config: Config, stream: Stream, number: int = 0) -> Mapping[str, list[Work]]:
    """What the devices do in a segment that is run from the start of a run.

    Args:
      config: of a run whose programs are `prepare`, `fit` and `evaluate`.
      stream: has the segment.
      number: of the segment.

    Returns:
      By program, the work of each device.
    """
    run, mesh = make_run(config), config.mesh
    placement.check_devices(mesh)
    segment, state = stream.segment(number), run.init(jax.random.key(0), stream)
    phases = CompiledPhases(run, state, placement.segment_shapes(mesh, segment))
    entries = _entries(segment.graph, mesh.devices)
    state, segment = placement.put(mesh, state), placement.put_segment(mesh, segment)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(phases.run_segment(state, segment))
        counts = executed(Path(folder))
    found = {}
    for name, program in phases.programs.items():
        text = program.as_text() or ""
        read, work = [Program(text, count) for count in entries], [Work()] * mesh.devices
        for (module, instruction, device), times in counts.items():
            if text.startswith(f"HloModule {module},"):
                work[device] = work[device].plus(read[device].work(instruction), times)
        found[name] = work
    return found
