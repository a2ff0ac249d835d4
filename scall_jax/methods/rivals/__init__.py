"""Methods to compare SCALL with at the same bytes, each after the paper that its module names."""
