"""External APIs, each by its provider's own SDK."""
