"""The code in docs/ runs as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import METHODS, Config
from scall_jax.config import SizesConfig

PAGE = Path(__file__).parent.parent / "docs" / "adding_a_rival.md"


def test_the_rival_of_the_page_holds_the_budget_and_fades(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 60
    named = {}
    exec(compile(code, str(PAGE), "exec"), named)
    assert re.search(r"Recall@20 0\.[0-9]+ in \d+ bytes", capsys.readouterr().out)
    lines, stream = named["lines"], named["stream"]
    assert len(lines) == len(stream) == 4 and "fading" not in METHODS
    for t, line in enumerate(lines):
        entities = sum(stream.known(stream.bounds[t].train))
        allowed = 4 * int(4.3 * entities)
        assert allowed - 4 < line["bytes_at_rest"] == 4 * line["allocated_parameters"] + entities + 2 <= allowed

    config = Config(sizes=SizesConfig(maximum=30))
    segment = jax.tree.map(jnp.asarray, stream.segment(3))
    allocate = jax.jit(named["fading"](config))
    num_active = int(segment.users + segment.items)
    for total in (1, 50, num_active, 3 * num_active + 1, 29 * num_active, 10**6):
        got = np.asarray(allocate(jax.random.key(0), segment, jnp.int32(total)))
        assert got.sum() == min(total, 30 * num_active)
    total, recency = np.asarray(segment.total, float), np.asarray(segment.recency)
    got = np.asarray(allocate(jax.random.key(0), segment, jnp.int32(6 * num_active)))
    value = total * 2.0 ** ((recency - recency.max()) / named["HALF_LIFE"])
    order = np.argsort(-value)[: np.count_nonzero(total)]
    assert (np.diff(got[order]) <= 0).all() and got[order[0]] > 3 * got[order[-1]]
    # whoever has as many rows as another and was seen later gets no less, and once at least more
    pairs = [(a, b) for a in order for b in order if total[a] == total[b] and recency[a] > recency[b]]
    assert all(got[a] >= got[b] for a, b in pairs) and any(got[a] > got[b] for a, b in pairs)
