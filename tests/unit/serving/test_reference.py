"""A request's reference, tenant and privacy reach the drafters that copy, once, and nobody else."""

import asyncio
from dataclasses import replace

import pytest
from scripted import Pool, ScriptedPort
from toys import FACTS, ToyDrafter, babble
from world import TOKENIZER, World, drafter, play, verifier

from specserve.errors import InvalidRequest
from specserve.serving.router import Router
from specserve.serving.settings import DrafterPool, Settings
from specserve.serving.validate import check_request
from specserve.types import (
    DraftContext,
    GenerationRequest,
    Propose,
    Sampling,
    Speculation,
    SpeculationMode,
    Verify,
)

ON = SpeculationMode.ON
WISH = Speculation(ON, reference="to copy", tenant="a", private=True)


class Copying(World):
    """Pool `copy` copies, pool `draft` does not; every command that reaches a backend is kept."""

    def __init__(self):
        pools = (verifier(), drafter("copy"), drafter("draft"))
        self.port, self.seen = ScriptedPort(*pools), {pool.name: [] for pool in pools}
        for pool in pools:
            for replica in pool.replicas:
                self._watch(replica.backend, self.seen[pool.name])
        known = (DrafterPool("copy", "copy", 8, copies=True), DrafterPool("draft", "draft", 8))
        settings = Settings(drafters=known, clock=asyncio.get_running_loop().time)
        self.router = Router(self.port, FACTS, TOKENIZER, settings)

    @staticmethod
    def _watch(backend, seen):
        submit = backend.submit

        def watched(command):
            seen.append(command)
            return submit(command)

        backend.submit = watched


def test_the_context_goes_with_the_opening_propose_of_copying_drafters_only():
    async def story(world):
        await world.send(GenerationRequest((1, 2, 3), Sampling(max_tokens=20), WISH))
        copied = [c for c in world.seen["copy"] if isinstance(c, Propose)]
        assert copied[0].context == DraftContext(tuple(b"to copy"), "a", True)
        assert [c.context for c in copied[1:]] == [None] * (len(copied) - 1)
        assert all(c.context is None for c in world.seen["draft"] if isinstance(c, Propose))
        shown = [token for c in world.seen["verifier"] for token in _tokens(c)]
        assert bytes(shown).find(b"to copy") < 0, "the target never sees it"

    play(Copying, story)


def _tokens(command):
    return command.tokens if isinstance(command, Verify) and command.base_len == 0 else ()


def test_only_copying_drafters_are_told_nodes_and_prices():
    async def story(world):
        await world.send(GenerationRequest((1, 2, 3), Sampling(max_tokens=20), Speculation(ON)))
        asks = [c for c in world.seen["copy"] if isinstance(c, Propose) and c.max_tokens]
        assert asks
        assert all(c.price > 0 and c.max_nodes == 64 and c.context is None for c in asks)
        others = [c for c in world.seen["draft"] if isinstance(c, Propose) and c.max_tokens]
        assert others
        assert all(c.price == 0 == c.max_nodes for c in others)

    play(Copying, story)


def test_what_was_measured_is_told_with_what_was_counted():
    async def story(world):
        await world.send(GenerationRequest((1, 2, 3), Sampling(max_tokens=30), Speculation(ON)))
        told = world.router.measurements()
        assert told["rounds"] > 0
        assert "copy_nodes_per_draft" in told

    play(Copying, story)


def test_what_a_replica_measures_of_itself_is_told_under_its_pools_name():
    async def story(world):
        await world.send(GenerationRequest((1, 2, 3), Sampling(max_tokens=30), Speculation(ON)))
        told = world.router.measurements()
        assert told["copy.rows_per_draft"] == 2.5

    play(lambda: World(verifier(), Pool("copy", lambda: Telling(babble))), story)


class Telling(ToyDrafter):
    def answer(self, *asked):
        return replace(super().answer(*asked), measured={"rows_per_draft": 2.5})


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            Speculation(reference="x" * 300_000),
            "speculation.reference must be at most 262144 bytes of UTF-8; got 300000",
        ),
        (Speculation(tenant="x" * 129), "speculation.tenant must be at most 128 bytes of UTF-8; got 129"),
        (Speculation(reference="x"), "speculation.reference must be unset: this server has no drafter that copies"),
    ],
)
def test_a_bad_wish_is_refused(wish, message):
    settings = Settings(drafters=(DrafterPool("ar", "ar", copies=len(wish.reference) > 1),))
    with pytest.raises(InvalidRequest, match=message):
        check_request(GenerationRequest((1,), speculation=wish), FACTS, settings)
