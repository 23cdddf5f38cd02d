"""Engines: servers that speak the OpenAI API, run as supervised child processes with interpreters of their own."""
