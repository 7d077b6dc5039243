"""Exact: whatever drafts, whatever the batch, the text is the target's own."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from live import PROMPTS, Cluster

from specserve.errors import InvalidRequest
from specserve.types import Origin, SpeculationMode

Reference = Callable[[str, int], list[int]]


@pytest.mark.parametrize("max_draft_tokens", [1, 3, 8])
@pytest.mark.parametrize("drafters", [("ngram",), ("ar",), ("ngram", "ar")], ids="+".join)
def test_greedy_text_equals_generate(
    cluster: Cluster, reference: Reference, drafters: tuple[str, ...], max_draft_tokens: int
) -> None:
    with cluster.client() as client:
        for prompt in PROMPTS[:2]:
            answer = client.generate(
                prompt, max_tokens=48, drafters=drafters, mode="on", max_draft_tokens=max_draft_tokens
            )
            assert list(answer.token_ids) == reference(prompt, 48)
            assert answer.usage.rounds <= answer.usage.emitted_tokens == len(answer.token_ids)


@pytest.mark.parametrize("clients", [4, 16])
def test_greedy_text_equals_generate_when_many_clients_share_the_batch(
    cluster: Cluster, reference: Reference, clients: int
) -> None:
    ways = [("ngram",), ("ar",), ("ngram", "ar"), ()]

    def ask(i: int) -> tuple[str, list[int]]:
        prompt = PROMPTS[i % len(PROMPTS)]
        with cluster.client() as client:
            return prompt, list(client.generate(prompt, max_tokens=32, drafters=ways[i % 3]).token_ids)

    with ThreadPoolExecutor(clients) as pool:
        for prompt, ids in pool.map(ask, range(clients)):
            assert ids == reference(prompt, 32)


def test_one_seed_gives_one_text_whoever_drafts(cluster: Cluster) -> None:
    texts = set()
    with cluster.client() as client:
        for mode, drafters in (("off", ()), ("on", ("ngram",)), ("on", ("ar",)), ("on", ("ngram", "ar"))):
            answer = client.generate(PROMPTS[0], max_tokens=64, temperature=1.0, seed=5, mode=mode, drafters=drafters)
            texts.add(answer.text)
        other = client.generate(PROMPTS[0], max_tokens=64, temperature=1.0, seed=6)
    assert len(texts) == 1
    assert other.text not in texts


def test_every_chunk_says_where_its_tokens_come_from(cluster: Cluster) -> None:
    with cluster.client() as client:
        answer = client.generate(PROMPTS[2], max_tokens=64, mode="on", drafters=["ngram", "ar"])
    accepted = [t for t in answer.tokens if t.origin is Origin.ACCEPTED]
    assert accepted
    assert {t.drafter for t in accepted} <= {"ngram", "ar"}
    assert all(t.drafter == "" for t in answer.tokens if t.origin is not Origin.ACCEPTED)
    assert len(accepted) == answer.usage.accepted_tokens
    assert answer.usage.emitted_tokens == answer.usage.accepted_tokens + answer.usage.rounds


def test_off_means_plain_decoding(cluster: Cluster) -> None:
    with cluster.client() as client:
        usage = client.generate(PROMPTS[0], max_tokens=16, mode=SpeculationMode.OFF).usage
    assert (usage.drafted_tokens, usage.rounds) == (0, 16)


def test_a_stop_string_ends_the_text_mid_block_and_nothing_past_it_is_counted(
    cluster: Cluster, reference: Reference
) -> None:
    with cluster.client() as client:
        whole = client.generate(PROMPTS[2], max_tokens=64, mode="on").text
        stop = whole[20:24]
        answer = client.generate(PROMPTS[2], max_tokens=64, mode="on", stop=[stop])
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason.value == "stop"
    assert len(answer.token_ids) == answer.usage.emitted_tokens < 64


def test_a_constrained_text_is_the_same_with_and_without_drafts_and_keeps_to_its_constraint(cluster: Cluster) -> None:
    with cluster.client() as client:
        for way in ({"regex": r"x = \d{1,3}(, \d{1,3}){2}"}, {"choice": ["yes", "no", "maybe"]}):
            answers = {
                client.generate(PROMPTS[0], max_tokens=48, temperature=1.0, seed=3, mode=mode, **way).text
                for mode in ("off", "on")
            }
            assert len(answers) == 1
            text = answers.pop()
            assert text in way.get("choice", [text])
            assert re.fullmatch(way.get("regex", ".*"), text)
        with pytest.raises(InvalidRequest, match=r"constraint\.regex must compile"):
            client.generate(PROMPTS[0], regex="a(")


def test_logprobs_are_the_models_own(cluster: Cluster) -> None:
    with cluster.client() as client:
        drafted = client.generate(PROMPTS[0], max_tokens=24, logprobs=3, mode="on", drafters=["ar"])
        plain = client.generate(PROMPTS[0], max_tokens=24, logprobs=3, mode="off")
    assert drafted.token_ids == plain.token_ids
    for a, b in zip(drafted.tokens, plain.tokens, strict=True):
        assert a.logprobs is not None
        assert b.logprobs is not None
        assert a.logprobs.logprob == pytest.approx(b.logprobs.logprob, abs=1e-3)
        assert len(a.logprobs.top) == 3
        assert a.logprobs.top[0][0] == a.id  # greedy: the best is the emitted
