"""How the sequential steps are run: one module per way, each with a forward and a backward."""
