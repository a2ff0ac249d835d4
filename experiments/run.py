"""The main job: a stream in, a recommender within its budget out, several methods side by side.

    python -m experiments.run                                        # online-retail, mean size 8
    python -m experiments.run --data clicks.csv --columns.user uid --budget.megabytes 4 --out runs/clicks

The same as the console command `scall-jax run`. Writes a folder per method: config.json, metrics.jsonl (a line per
segment), summary.json (last: its presence marks a finished run), sizes/, users/ (each test user's metrics),
checkpoints/ and plots; beside them table.md and quality.png.
Cost: the default run takes 6 minutes on two slow CPU cores; compiling and the searches take almost 2 each. Expect
Recall@20 of .085 to .087 for uniform, frequency and scall on LightGCN, .082 for frequency in one bit at a sixteenth of
the bytes, .119 for uniform and scall on least squares in four bits, and .073 for the best popularity floor (one seed).
"""

from scall_jax.cli.commands import run_command

if __name__ == "__main__":
    run_command(description=__doc__)
