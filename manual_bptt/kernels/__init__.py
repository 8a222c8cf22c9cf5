"""How the sequential steps are run: one module per way, each with the same two functions, forward and backward."""
