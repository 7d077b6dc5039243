"""A causal language model over a token pool: open, forward a batch of trees, commit, close."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from specserve.engine.cache import Pools, ShapeProbe
from specserve.engine.chain import Chain
from specserve.engine.hidden import unembedding
from specserve.engine.layout import Layout, Row, lay_out, pack
from specserve.engine.load import facts_of, load_config, load_model, mask_plans, parse_device, parse_dtype
from specserve.engine.program import Program
from specserve.engine.selfcheck import Mismatch, selfcheck
from specserve.engine.slots import Slots, Table
from specserve.errors import ConfigError, InvalidRequest
from specserve.types import ModelFacts, TokenIds


@dataclass(frozen=True, slots=True)
class Scores:
    """Result of one forward pass.

    `logits` is [N, V] in the model's dtype: for every row that asked, in order, the law after its last
    committed token and then the law after each node. `seconds` is the time in the model, device finished.
    `hidden` [N, d] is what the unembedding read for each of these rows, where the engine keeps it.
    """

    logits: Tensor
    seconds: float
    hidden: Tensor | None = None


class Engine:
    """Any AutoModelForCausalLM of attention layers, from a local directory, by its stock modelling code.

    Not thread-safe: one thread owns an engine. It knows committed tokens by number only; ids are the caller's.

    Args:
        model_dir: a Hugging Face model directory.
        device: torch device, e.g. "cpu", "cuda", "cuda:1".
        dtype: "float32", "bfloat16" or "float16".
        slots: tokens that all sessions together can hold, drafts included.
        max_nodes: the largest draft of one session, in nodes; each reservation includes it.
        trace: record the forward pass once and replay it, which drops its Python; exactness is checked
            against the plain pass at start, and the plain pass is used where they differ.
        hidden: keep the last hidden states of each pass, for drafters that read them.

    Raises:
        ConfigError: the directory, architecture, device or dtype cannot be used; the message says why.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        slots: int = 8192,
        max_nodes: int = 64,
        trace: bool = True,
        hidden: bool = False,
    ) -> None:
        if max_nodes < 1 or slots < 64 + max_nodes:
            raise ConfigError(
                f"slots must be at least 64 + max_nodes and max_nodes at least 1; got {slots}, {max_nodes}"
            )
        self.device = parse_device(device)
        config = load_config(model_dir)
        self.max_nodes, self._hidden = max_nodes, hidden
        self._sessions: dict[int, Table] = {}
        self._slots = Slots(slots)
        with torch.inference_mode():
            self._model = load_model(model_dir, config, parse_dtype(dtype), self.device)
            probe = ShapeProbe()
            try:
                logits = self._model(
                    torch.zeros(1, 2, dtype=torch.long, device=self.device), past_key_values=probe
                ).logits
                shapes = probe.shapes()
            except Exception as error:  # whatever stock code raises here, it cannot run over our cache
                raise ConfigError(
                    f"{config.model_type} does not run over a key-value cache of ours: {error}"
                ) from error
            self._facts = facts_of(self._model, int(logits.shape[-1]), Path(model_dir).resolve().name)
            self._pools = Pools(slots, shapes, self._model.dtype, self.device)
            self._program = self._choose_program(trace)

    def facts(self) -> ModelFacts:
        """Name, size of the output vocabulary, positions, end-of-sequence ids."""
        return self._facts

    def unembedding(self) -> Tensor:
        """The weight of the model's output embeddings, [V, d]. Raises ConfigError when it has none."""
        return unembedding(self._model)

    @property
    def traced(self) -> bool:
        """Whether the forward pass is replayed from a trace."""
        return self._program.traced

    @property
    def packs(self) -> bool:
        """Whether a batch costs what its tokens cost, padding left out."""
        return self._program.packs

    @property
    def sessions(self) -> set[int]:
        """Open sessions."""
        return set(self._sessions)

    def check_fits(self, max_len: int) -> None:
        """Raises InvalidRequest when `max_len` can never fit, however empty the pool."""
        limit = min(self._facts.context_len, self._slots.total - self.max_nodes)
        if not 1 <= max_len <= limit:
            why = f"the model's context is {self._facts.context_len}, the pool {self._slots.total} slots"
            raise InvalidRequest(
                "max_len", f"must be between 1 and {limit} ({why}, {self.max_nodes} for drafts)", max_len
            )

    def room(self, max_len: int) -> bool:
        """Whether `open` would find room now."""
        return self._slots.reserved + max_len + self.max_nodes <= self._slots.total

    def open(self, session: int, max_len: int) -> None:
        """Reserve room for `max_len` committed tokens and a draft.

        Raises:
            Overloaded: no room now.
            InvalidRequest: it can never fit, or needs positions that the model does not have.
        """
        assert session not in self._sessions, f"session {session} is open"
        self.check_fits(max_len)
        self._sessions[session] = Table(self._slots, max_len, self.max_nodes)

    def held(self, session: int) -> int:
        """Committed tokens of the session whose keys and values are in the pool."""
        return self._sessions[session].length

    def forward(self, rows: Sequence[Row]) -> Scores:
        """Take in each row's pending tokens, and score its draft.

        Afterwards `held` has grown by the pending tokens, and rows with a draft wait for `commit` (or `truncate`).
        When it raises, every row is as it was before.
        """
        tables = [self._sessions[row.session] for row in rows]
        before = [table.length for table in tables]
        try:
            for row, table in zip(rows, tables, strict=True):
                assert row.tokens, "a row without pending tokens has nothing to score"
                self._check_positions(row, table.length)
                table.extend(len(row.tokens), len(row.draft))
            layout = lay_out(rows, tables, self._program.windows, self._pools.zero, self._pools.trash)
            if len(rows) > 1 and self._program.packs:
                layout = pack(layout, self._pools.trash)
            with torch.inference_mode():
                return self._run(layout)
        except BaseException:
            for table, length in zip(tables, before, strict=True):
                table.truncate(length)
            raise

    def commit(self, session: int, accepted: TokenIds) -> None:
        """Keep the nodes of the accepted path (root to leaf) as committed tokens; free the others. Copies nothing."""
        self._sessions[session].commit(accepted)

    def truncate(self, session: int, length: int) -> None:
        """Forget the draft, and all committed tokens from position `length` on."""
        self._sessions[session].truncate(length)

    def chain(self, sessions: Sequence[int], steps: int) -> Chain:
        """Decode `steps` tokens for these sessions in lock-step, one token each per step (see Chain)."""
        tables = [self._sessions[session] for session in sessions]
        return Chain(self._program, self._pools, tables, steps, self._facts.context_len)

    def close(self, session: int) -> None:
        """Free all the session has. Closing what is not open does nothing."""
        table = self._sessions.pop(session, None)
        if table is not None:
            table.close()

    def stats(self) -> dict[str, float]:
        """Sessions; slots in all, owned and unpromised; bytes of the pool."""
        return {
            "sessions": len(self._sessions),
            "slots": self._slots.total,
            "slots_used": self._slots.used,
            "slots_free": self._slots.total - self._slots.reserved,
            "pool_bytes": self._pools.slot_bytes * (self._slots.total + 2),
        }

    def check_integrity(self) -> None:
        """Assert that every owned slot has exactly one owner, and that the promises add up."""
        tables = self._sessions.values()
        ids = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *(table.ids for table in tables)]))
        owned = self._slots.owned()
        assert np.array_equal(ids, owned), (
            f"sessions hold {len(ids)} slots, {len(owned)} are taken, or one is held twice"
        )
        promised = sum(table.capacity for table in tables)
        assert promised == self._slots.reserved, (
            f"{self._slots.reserved} slots promised, sessions account for {promised}"
        )
        assert all(len(table.ids) <= table.capacity for table in tables)

    def _check_positions(self, row: Row, held: int) -> None:
        deepest, limit = held + len(row.tokens) + len(row.draft), self._facts.context_len
        if deepest > limit and held + len(row.tokens) + max(row.draft.depths(), default=0) > limit:
            raise InvalidRequest("tokens", f"must leave the draft within the context of {limit} positions", deepest)

    def _run(self, layout: Layout) -> Scores:
        batch, queries = layout.tokens.shape
        start = time.perf_counter()
        parts = [layout.tokens.reshape(-1), layout.positions.reshape(-1), layout.write - layout.run.start, layout.keep]
        parts += [part for part in (layout.read, layout.pick, layout.spread, layout.places) if part is not None]
        sent = torch.from_numpy(np.concatenate(parts)).to(self.device, non_blocking=True)
        split = sent.split_with_sizes([len(part) for part in parts])
        tokens, positions = split[0].view(batch, queries), split[1].view(batch, queries)
        read = None if layout.read is None else split[4]
        keys, values = self._pools.keys, self._pools.values
        if read is None:
            keys = [pool[layout.run.start : layout.run.stop] for pool in keys]
            values = [pool[layout.run.start : layout.run.stop] for pool in values]
        masks = {w: self._program.mask(torch.from_numpy(m).to(self.device)) for w, m in layout.masks.items()}
        packing = None if layout.places is None else (split[-2], split[-1])
        found = self._program(tokens, positions, split[2], read, masks, split[3], keys, values, packing)
        rows = [part.flatten(0, 1) for part in found]
        if layout.pick is not None:
            rows = [part.index_select(0, split[-1]) for part in rows]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Scores(rows[0], time.perf_counter() - start, *rows[1:])

    def _choose_program(self, trace: bool) -> Program:
        """The fastest way to run the model that agrees with the model by itself."""
        reason: Exception | None = None
        plans = mask_plans(self._model.config)
        for traced, plan in [(t, p) for t in ((True, False) if trace else (False,)) for p in plans]:
            self._program = Program(self._model, self._pools, plan, trace=traced, hidden=self._hidden)
            if traced and not self._program.traced:
                continue
            try:
                selfcheck(self, self._model)
                return self._program
            except Mismatch as error:
                reason = reason or error
            except Exception as error:  # stock code that does not take our masks, positions or cache raises anything
                reason = error
            finally:
                for session in list(self._sessions):
                    self.close(session)
        kind = self._model.config.model_type
        raise ConfigError(
            f"{kind} does not compute through the token pool what it computes by itself, so its text would "
            f"change: {reason}. It may use a position scheme or mask that its modelling code builds internally."
        ) from reason
