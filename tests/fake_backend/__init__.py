"""The fake backend, held to the contract of every backend."""
