"""SCALL (Qu et al., CIKM 2024, arXiv 2407.15411): a policy searches for the action that shapes the sizes."""
