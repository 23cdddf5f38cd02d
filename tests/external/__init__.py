"""Tests of the providers: their real SDKs, over real sockets, against servers that speak their protocols."""
