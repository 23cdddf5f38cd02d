"""In-process Transformers, one idea a file: arguments, preflight, loading, calling, and giving the memory back."""
