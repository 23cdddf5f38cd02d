"""Memory: what devices have, what checkpoints need, what models were measured to take."""
