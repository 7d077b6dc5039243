"""What a tenant's requests leave behind for its later ones, all tenants together within one bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from specserve.draft.ngram.history import Ids
from specserve.draft.ngram.outputs import TOKEN_BYTES, Outputs
from specserve.draft.ngram.successors import Recycled


@dataclass(slots=True, eq=False)
class Tenant:
    """Nothing in here is ever reached but through its tenant's name."""

    outputs: Outputs
    recycled: Recycled

    @property
    def nbytes(self) -> int:
        return self.outputs.nbytes + self.recycled.nbytes


class Memory:
    """Tenants by name. When there is no room the one that has been quiet longest is forgotten whole.

    Args:
        limit_bytes: of all tenants together; 0 remembers nothing.
        seed: what a tenant's recycled successors begin as, see Recycled.
    """

    def __init__(self, limit_bytes: int, seed: Ids | None = None) -> None:
        self._limit, self._seed = limit_bytes, seed
        # One ring takes at most half, so that it can grow beside the smaller one that it replaces.
        self._ring = 1 << max(limit_bytes // (2 * TOKEN_BYTES), 1).bit_length() - 1
        self._tenants: dict[str, Tenant] = {}  # the quietest first
        self._nbytes = 0
        self.evicted = 0

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def stats(self) -> dict[str, float]:
        """Gauges; units in the names."""
        return {
            "tenants": float(len(self._tenants)),
            "tenants_evicted": float(self.evicted),
            "past_output_tokens": float(sum(tenant.outputs.held for tenant in self._tenants.values())),
            "memory_bytes": float(self._nbytes),
            "memory_limit_bytes": float(self._limit),
        }

    def look(self, name: str) -> Tenant | None:
        """What is remembered of a tenant, which counts as a sign of life; None when nothing is."""
        tenant = self._tenants.pop(name, None)
        if tenant is not None:
            self._tenants[name] = tenant
        return tenant

    def learn(self, name: str, tokens: list[int]) -> None:
        """Tokens of an output that goes on; the first is the one before them."""
        with self._changing(name) as tenant:
            if tenant is not None:
                tenant.recycled.learn(tokens)

    def keep(self, name: str, output: Ids) -> None:
        """An output has ended."""
        with self._changing(name) as tenant:
            if tenant is not None:
                self._make_room(tenant.outputs.nbytes_after(len(output)) - tenant.outputs.nbytes)
                tenant.outputs.add(output)

    @contextmanager
    def _changing(self, name: str) -> Iterator[Tenant | None]:
        """The tenant, made where there is none yet; None where it alone would be too much. Keeps the books."""
        tenant = self.look(name)
        if tenant is None:
            tenant = Tenant(Outputs(self._ring), Recycled(self._seed))
            if tenant.nbytes > self._limit:
                yield None
                return
            self._tenants[name] = tenant
            self._nbytes += tenant.nbytes
        before = tenant.nbytes
        yield tenant
        if self._tenants.get(name) is tenant:
            self._nbytes += tenant.nbytes - before
            self._make_room(0)

    def _make_room(self, more: int) -> None:
        while self._tenants and self._nbytes + more > self._limit:
            self._nbytes -= self._tenants.pop(next(iter(self._tenants))).nbytes
            self.evicted += 1
