"""Methods: how a budget is spent, segment by segment, and what a segment trains and ranks with."""
