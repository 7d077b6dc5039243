"""specserve: distributed speculative decoding on Ray.

Importing the package loads nothing heavy; the client needs grpc alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from specserve.transport.client import AsyncClient, Client, Gap, Generation

__all__ = ["AsyncClient", "Client", "Gap", "Generation", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client", "Gap", "Generation"):
        from specserve.transport import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
