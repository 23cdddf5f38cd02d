"""The Transformers backend on tiny checkpoints made on the spot."""
