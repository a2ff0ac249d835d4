"""SAROS: vectors trained in the order of time, an update for each block of clicks and non-clicks (`recommender`)."""
