"""Transformers in a process of its own: one child for each model, which hosts the very backend that runs in-process."""
