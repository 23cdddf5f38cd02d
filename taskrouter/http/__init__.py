"""The server: an OpenAI-compatible API, a task API for every verb, an admin API, health and metrics, over one manager.

``app.create_app(manager)`` is an ASGI application; ``serving.serve`` is ``taskrouter serve``.
"""
