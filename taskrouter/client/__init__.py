"""A running server, used as the library is: the same handles, verbs, answers and errors, over HTTP.

For what runs in several processes beside one GPU: workers of a web service, Celery, notebooks.
"""

from taskrouter.client.blocking import BlockingClient
from taskrouter.client.client import Client, connect
from taskrouter.client.handles import RemoteModel

__all__ = ["BlockingClient", "Client", "RemoteModel", "connect"]
