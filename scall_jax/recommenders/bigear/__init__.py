"""BiGeaR: a recommender that ranks by signs, and is trained to."""
