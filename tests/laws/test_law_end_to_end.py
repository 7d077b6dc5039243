"""The whole way, from a request to its tokens: router, sessions, real gRPC, real engines. The law must still be exact.

A random model of 16 tokens is small enough that the law of its first three is known exactly, all 4,096 cells. Every
sample is a request of its own with its own pinned seed; half of them draft one token deep, so that the third token is
often a bonus. Which drafts come in time is the scheduler's: the law must not depend on it, though p does a little.
χ² over cells pooled to at least 5 expected; an alarm is p < 1e-5: over the 14 runs of this file a false one in 1.4e-4.
A drafter that lies about its law dies at p < 1e-12.

SPECSERVE_LAW_SAMPLES sets the samples per run: 20,000 is the full proof, the default is what a minute allows.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, LlamaConfig

from specserve.draft.ar import ArDrafter
from specserve.draft.heads.drafting import HeadsDrafting
from specserve.draft.heads.model import Heads, Shape
from specserve.draft.heads.worker import HeadsDrafter
from specserve.draft.ngram import NgramDrafter
from specserve.engine import Engine, Verifier
from specserve.serving.backend import Backend
from specserve.serving.router import Router
from specserve.serving.settings import DrafterPool, Settings
from specserve.serving.worker import WorkerLoop
from specserve.transport.dataplane import DataPlaneServer, GrpcChannel
from specserve.types import (
    RULES,
    Chunk,
    Command,
    DrafterUsage,
    Finished,
    GenerationRequest,
    Grant,
    ModelFacts,
    Proposal,
    Reply,
    Sampling,
    SparseLaw,
    Speculation,
    SpeculationMode,
    Usage,
)

SAMPLES = int(os.environ.get("SPECSERVE_LAW_SAMPLES", "1000"))
VOCAB, WANTED, CONTEXT = 16, 3, 64
PROMPT = (3, 9, 1, 12, 6, 0, 14, 5, 10, 2, 15, 8, 4, 13, 7, 11, 3, 9)  # every token once: n-grams always match
ALARM, DEAD = 1e-5, 1e-12
AT_ONCE = 256
SECRET = "a secret"


@dataclass(frozen=True)
class Run:
    """A rule, its drafters, chains or children at most, and the sampling parameters."""

    rule: str
    drafters: tuple[str, ...] = ("ar",)
    branches: int = 1
    temperature: float = 1.0
    top_k: int = 0


RUNS = [
    Run("coupled", ("ngram", "ar"), 3),
    Run("coupled", temperature=0.8, top_k=6),
    Run("rejection"),
    Run("rejection", temperature=1.3, top_k=5),
    Run("block"),
    Run("kseq", branches=3),
    Run("kseq", branches=2, temperature=0.7),
    Run("recursive", branches=3),
    Run("recursive-wor", branches=3),
    Run("traversal", branches=3),
    Run("traversal-wor", branches=3),
    Run("trie", ("ngram", "ar")),
    Run("rejection", ("inside",)),
    Run("kseq", ("heads",), 3),
]


# --- the models, and their law by enumeration ---


@dataclass(frozen=True)
class Models:
    """Directories of a target and of a drafter that is the target, shaken; and backends over them."""

    target: Path
    backends: dict[str, Backend]

    def law(self, run: Run) -> np.ndarray:
        """Probability of every sequence of three tokens, [16³], by the stock model itself in fp64."""
        model = AutoModelForCausalLM.from_pretrained(self.target, dtype=torch.float64).eval()
        texts = list(itertools.product(range(VOCAB), repeat=WANTED - 1))
        with torch.inference_mode():
            ids = torch.tensor([(*PROMPT, *text) for text in texts])
            logits = model(input_ids=ids).logits[:, -WANTED:] / run.temperature
        if run.top_k:
            logits = logits.masked_fill(logits < logits.topk(run.top_k).values[..., -1:], -torch.inf)
        p = logits.softmax(-1).numpy()  # [16², 3, 16]: of what precedes row (a, b) the laws of a, of b, and after both
        cells = [p[i, 0, a] * p[i, 1, b] * p[i, 2] for i, (a, b) in enumerate(texts)]
        return np.concatenate(cells)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    path = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.25,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(path / "target")
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.08 * torch.randn_like(weight))
        model.save_pretrained(path / "drafter")
        heads = Heads(Shape(config.hidden_size, VOCAB, 4, 2, 4))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    verifier = Engine(path / "target", slots=AT_ONCE * CONTEXT, max_nodes=12, hidden=True)
    inside, outside = (HeadsDrafting(heads, verifier.unembedding(), name=name) for name in ("inside", "heads"))
    drafter = Engine(path / "drafter", slots=AT_ONCE * CONTEXT, max_nodes=12)
    yield Models(
        path / "target",
        {
            "verifier": Verifier(verifier, max_batch_tokens=8192, drafter=inside),
            "heads": HeadsDrafter(outside, VOCAB, config.hidden_size),
            "ar": ArDrafter(drafter, max_tokens=4, max_batch_tokens=8192),
            "ngram": NgramDrafter(rows=2, max_tokens=4),
        },
    )
    torch.set_num_threads(threads)


# --- the way through ---


class Lease:
    """The hold on the pool's only replica."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant

    async def died(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        return


class GrpcPort:
    """Leases are there for the asking; channels are the real ones."""

    def __init__(self, grants: Mapping[str, Grant]) -> None:
        self._grants = grants

    async def lease(self, pool: str) -> Lease:
        return Lease(self._grants[pool])

    async def connect(self, grant: Grant) -> GrpcChannel:
        return await GrpcChannel.connect(grant, router="router", secret=SECRET)


@asynccontextmanager
async def serving(backends: Mapping[str, Backend]) -> AsyncIterator[Router]:
    """A router with a gRPC stream to each backend; at the end nobody holds a session."""
    loops = {name: WorkerLoop(backend, name) for name, backend in backends.items()}
    servers = {name: DataPlaneServer(loop, secret=SECRET, incarnation=1) for name, loop in loops.items()}
    grants = {}
    for name, server in servers.items():
        loops[name].start()
        grants[name] = Grant(name, name, await server.start("127.0.0.1"), 1)
    drafters = (
        *(
            DrafterPool(name, name, 4, laws=name != "ngram", features=(-1,) if name == "heads" else ())
            for name in backends
            if name != "verifier"
        ),
        DrafterPool("inside", "", 3, laws=True, inside=True),
    )
    facts = ModelFacts("tiny", VOCAB, CONTEXT, ())
    settings = Settings(drafters=drafters, max_nodes=12, max_sessions=AT_ONCE, draft_deadline_s=60.0)
    router = Router(GrpcPort(grants), facts, letters(), settings)
    try:
        yield router
    finally:
        await router.close()
        async with asyncio.timeout(10):
            for loop in loops.values():
                while (await loop.stats())["sessions"]:
                    pass
        for name, server in servers.items():
            await server.stop()
            assert loops[name].healthy
            await loops[name].close()


def letters() -> Tokenizer:
    """Token i is the i-th letter."""
    tokenizer = Tokenizer(models.BPE(vocab={chr(ord("a") + i): i for i in range(VOCAB)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


async def first_tokens(router: Router, run: Run, seed: int) -> tuple[tuple[int, ...], Usage]:
    """What one request with this seed writes."""
    request = GenerationRequest(
        PROMPT,
        Sampling(max_tokens=WANTED + 1, temperature=run.temperature, top_k=run.top_k, seed=seed, ignore_eos=True),
        Speculation(SpeculationMode.ON, run.drafters, 1 + seed % 2, run.rule, run.branches, 12),
    )
    ids: list[int] = []
    usage = Usage()
    async for event in router.generate(request):
        if isinstance(event, Chunk):
            ids += [token.id for token in event.tokens]
        elif isinstance(event, Finished):
            usage = event.usage
    return tuple(ids[:WANTED]), usage


async def sample(backends: Mapping[str, Backend], run: Run, seeds: Sequence[int]) -> tuple[np.ndarray, Usage]:
    """How often each sequence of three tokens was written, [16³], and the usage of all requests together."""
    counts, whole = np.zeros(VOCAB**WANTED), Usage()
    waiting = iter(seeds)
    async with serving(backends) as router:

        async def client() -> None:
            for seed in waiting:
                ids, usage = await first_tokens(router, run, seed)
                counts[np.ravel_multi_index(ids, (VOCAB,) * WANTED)] += 1
                whole.rounds += usage.rounds
                whole.emitted_tokens += usage.emitted_tokens
                for name, of in usage.drafters.items():
                    mine = whole.drafters.setdefault(name, DrafterUsage())
                    mine.drafted += of.drafted
                    mine.accepted += of.accepted

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return counts, whole


def p_value(seen: np.ndarray, law: np.ndarray) -> float:
    """χ² over neighbouring cells (they share their first tokens) pooled until at least 5 are expected."""
    if seen[law == 0].any():
        return 0.0
    observed, expected = [0.0], [0.0]
    for count, want in zip(seen, law * seen.sum(), strict=True):
        if expected[-1] >= 5:
            observed.append(0.0)
            expected.append(0.0)
        observed[-1] += count
        expected[-1] += want
    last = (observed.pop(), expected.pop())
    observed[-1] += last[0]
    expected[-1] += last[1]
    assert len(expected) > 50, "too few cells to test anything"
    return float(stats.chisquare(observed, expected).pvalue)


# --- the promises ---


def _name(run: Run) -> str:
    return f"{run.rule}-{run.branches}-T{run.temperature}-k{run.top_k}-{'+'.join(run.drafters)}"


@pytest.mark.parametrize("run", RUNS, ids=_name)
async def test_the_first_three_tokens_follow_the_target(tiny: Models, run: Run) -> None:
    backends = {name: tiny.backends[name] for name in ("verifier", *run.drafters) if name != "inside"}
    counts, usage = await sample(backends, run, range(SAMPLES))
    p = p_value(counts, tiny.law(run))
    print(f"{run}: p = {p:.3g}, {usage}")
    assert p > ALARM
    for name in run.drafters:  # else nothing was tested but plain decoding
        assert usage.drafters[name].accepted > 0.02 * SAMPLES
        assert usage.drafters[name].accepted < usage.drafters[name].drafted


class Liar:
    """A drafter that says it drew every token uniformly among the ids of its law."""

    def __init__(self, drafter: Backend) -> None:
        self._drafter = drafter

    def submit(self, command: Command) -> Sequence[Reply]:
        return self._drafter.submit(command)

    def step(self) -> Sequence[Reply]:
        return [_lie(reply) for reply in self._drafter.step()]

    @property
    def busy(self) -> bool:
        return self._drafter.busy

    def stats(self) -> dict[str, float]:
        return self._drafter.stats()


def _lie(reply: Reply) -> Reply:
    if not isinstance(reply, Proposal) or reply.draft.laws is None:
        return reply
    laws = tuple(SparseLaw(law.ids, (1 / len(law.ids),) * len(law.ids)) for law in reply.draft.laws)
    return replace(reply, draft=replace(reply.draft, laws=laws))


@pytest.mark.parametrize("rule", ["rejection", "kseq"])
async def test_a_drafter_that_lies_about_its_law_is_killed(tiny: Models, rule: str) -> None:
    run = Run(rule, branches=3 if rule == "kseq" else 1)
    backends = {"verifier": tiny.backends["verifier"], "ar": Liar(tiny.backends["ar"])}
    counts, _ = await sample(backends, run, range(SAMPLES))
    assert p_value(counts, tiny.law(run)) < DEAD


def test_every_rule_is_run_at_temperature_1() -> None:
    assert {run.rule for run in RUNS if run.temperature == 1.0} == set(RULES)
