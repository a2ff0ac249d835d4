"""Experiments: each module's docstring gives its command, cost and expected result."""
