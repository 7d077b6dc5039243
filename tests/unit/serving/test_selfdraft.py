"""A verifier that drafts itself: the verdict carries the next draft, and whatever happens the text stays the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from scripted import ScriptedPort
from toys import FACTS, ToyDrafter, ToyVerifier, babble, plain
from virtual import run
from world import TOKENIZER, Pool, Result, request

from specserve.serving.router import Router
from specserve.serving.selfdraft import shallow
from specserve.serving.settings import DrafterPool, Settings
from specserve.types import (
    Draft,
    Features,
    Propose,
    Reply,
    Sampling,
    SessionSpec,
    SparseLaw,
    SpeculationMode,
    Verdict,
    Verify,
)

PROMPT = (1, 2, 3)
INSIDE = DrafterPool("self", "", 5, laws=True, inside=True)


class Self(ToyVerifier):
    """A verifier whose drafts are right with probability `accuracy`; features say which position they are of."""

    accuracy = 0.8

    def __init__(self, asked: list[int], faults: dict[int, str] | None = None) -> None:
        super().__init__(babble, faults)
        self.asked = asked

    def answer(self, command: Verify, tokens: list[int], spec: SessionSpec, batch: int) -> Reply:
        verdict = super().answer(command, tokens, spec, batch)
        assert isinstance(verdict, Verdict)
        self.asked.append(command.next_tokens)
        depth = min(command.next_tokens, spec.max_len - len(tokens) - 1)
        drafter = ToyDrafter(babble, accuracy=self.accuracy)
        made = drafter.answer(Propose(command.session, 0, (), max(depth, 0)), tokens, spec, 1)
        features = Features(len(tokens) - 2, (-1,), b"ab") if spec.features else None
        return Verdict(
            verdict.session,
            verdict.at,
            verdict.accepted,
            verdict.token,
            (),
            0.01,
            batch,
            1,
            made.draft,
            0.001,
            features,
        )


def generate(
    pools: list[Pool],
    drafters: tuple[DrafterPool, ...],
    mode: SpeculationMode,
    depth: int | None = None,
    **sampling: Any,
) -> Result:
    """One request on a fresh router, which must leave nothing behind."""

    async def main() -> Result:
        port = ScriptedPort(*pools)
        router = Router(port, FACTS, TOKENIZER, Settings(drafters=drafters, clock=asyncio.get_running_loop().time))
        wish = request(PROMPT, mode, **sampling)
        wish = replace(wish, speculation=replace(wish.speculation, max_draft_tokens=depth))
        try:
            return Result([event async for event in router.generate(wish)])
        finally:
            await router.close()
            await asyncio.sleep(1)
            port.assert_nothing_left()

    result: Result = run(main())
    return result


def inside(asked: list[int], faults: dict[int, str] | None = None) -> Pool:
    return Pool("verifier", lambda: Self(asked, faults))


def test_the_draft_that_came_with_a_verdict_is_verified_in_the_next_round():
    asked: list[int] = []
    result = generate([inside(asked)], (INSIDE,), SpeculationMode.ON, max_tokens=40)
    assert result.ids == plain(babble, PROMPT, Sampling(max_tokens=40))
    assert result.usage.drafters["self"].accepted > 20
    assert result.usage.rounds < 20
    assert set(asked) == {5}


def test_a_request_that_bounds_the_depth_is_never_drafted_deeper_for():
    asked: list[int] = []
    result = generate([inside(asked)], (INSIDE,), SpeculationMode.ON, depth=2, max_tokens=20)
    assert set(asked) <= {0, 2}
    assert max(chunk.round.depth for chunk in result.chunks) == 2


@pytest.mark.parametrize("fault", ["lose", "sick", "die"])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_session_that_moves_goes_on_with_the_same_text(fault: str, at: int):
    asked: list[int] = []
    result = generate([inside(asked, {at: fault})], (INSIDE,), SpeculationMode.ON, max_tokens=40)
    assert result.ids == plain(babble, PROMPT, Sampling(max_tokens=40))
    assert result.usage.drafters["self"].accepted > 15


def test_while_its_drafts_do_not_pay_the_verifier_makes_few():
    asked: list[int] = []

    class Wrong(Self):
        accuracy = 0.0

    pool = Pool("verifier", lambda: Wrong(asked))
    result = generate([pool], (INSIDE,), SpeculationMode.AUTO, max_tokens=200)
    assert result.ids == plain(babble, PROMPT, Sampling(max_tokens=200))
    assert sum(depth > 0 for depth in asked[20:]) < 0.3 * len(asked[20:])


def test_a_pool_gets_the_states_that_its_verdict_carried():
    asked: list[int] = []
    sent: list[tuple[int, Features | None]] = []

    class Reader(ToyDrafter):
        def answer(self, command: Propose, tokens: list[int], spec: SessionSpec, batch: int) -> Reply:
            sent.append((len(tokens), command.features))
            return super().answer(command, tokens, spec, batch)

    pools = [inside(asked), Pool("pool", lambda: Reader(babble), step_s=0.002)]
    result = generate(pools, (DrafterPool("far", "pool", 5, features=(-1,)),), SpeculationMode.ON, max_tokens=40)
    assert result.ids == plain(babble, PROMPT, Sampling(max_tokens=40))
    assert set(asked) == {0}, "nothing is drafted inside for a pool's session"
    rounds = [(length, features) for length, features in sent if features is not None]
    assert len(rounds) > 5
    assert all(features == Features(length - 2, (-1,), b"ab") for length, features in rounds)


def test_a_draft_is_cut_by_depth_with_its_laws_and_chains():
    laws = tuple(SparseLaw((i,), (1.0,)) for i in range(5))
    draft = Draft((0, 1, 2, 3, 4), (-1, 0, 1, -1, 3), ("a",) * 5, laws, ((0, 1, 2), (3, 4)))
    cut = shallow(draft, 2)
    assert cut == Draft(
        (0, 1, 3, 4), (-1, 0, -1, 2), ("a",) * 4, (laws[0], laws[1], laws[3], laws[4]), ((0, 1), (2, 3))
    )
    assert shallow(draft, 3) is draft
