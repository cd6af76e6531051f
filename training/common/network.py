"""Which errors are the network's, and which the Hub's answers."""

from __future__ import annotations

# Libraries that talk to the Hub; their errors need be no OSError, and huggingface_hub changes library.
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp")


def of_network(error: BaseException) -> bool:
    """Whether a library that talks to the Hub raised it."""
    return type(error).__module__.partition(".")[0] in NETWORK
