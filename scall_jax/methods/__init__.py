"""Methods: how a budget is spent, segment by segment, and what a segment is trained and ranked with.

A method that plans sizes is written against three modules: `planner` (`SizePlanner`, what it must provide), `context`
(`SegmentContext`, what it is given) and `allocators` (rules without memory). `phases` is the interface below them,
which methods without embeddings implement too, and `registry` gives every method its name.
"""
