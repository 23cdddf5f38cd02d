"""A running server, used as the library is: the same handles, verbs, answers and errors, over HTTP.

For what runs in several processes beside one GPU: workers of a web service, Celery, notebooks.
"""

from taskrouter.client.blocking import BlockingClient
from taskrouter.client.client import Client, connect
from taskrouter.client.handles import RemoteModel
from taskrouter.client.leases import RemoteLease
from taskrouter.client.pipelines import RemotePipeline

__all__ = ["BlockingClient", "Client", "RemoteLease", "RemoteModel", "RemotePipeline", "connect"]
