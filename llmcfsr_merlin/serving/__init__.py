"""Serving with Triton: export, the ensemble's steps, a server, a client and the served-versus-offline check."""


def __getattr__(name: str) -> type:
    """Imports `Client` and `Server` on first use, so that the steps inside Triton import neither."""
    if name == "Client":
        from llmcfsr_merlin.serving.client import Client

        return Client
    if name == "Server":
        from llmcfsr_merlin.serving.server import Server

        return Server
    raise AttributeError(name)
