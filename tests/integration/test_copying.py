"""Drafting by copying, through the whole service: what it may copy from, and what it says of itself."""

from collections.abc import Callable

from live import PROMPTS, Cluster, until


def test_a_reference_saves_rounds_and_changes_no_token(
    cluster: Cluster, reference: Callable[[str, int], list[int]]
) -> None:
    wish = {"max_tokens": 48, "mode": "on", "drafters": ["ngram"], "tenant": "nobody else", "private": True}
    with cluster.client() as client:
        without = client.generate(PROMPTS[1], **wish)
        known = client.generate(PROMPTS[1], **wish, reference=without.text)
    assert list(without.token_ids) == list(known.token_ids) == reference(PROMPTS[1], 48)
    assert known.usage.rounds < without.usage.rounds


def test_only_its_own_tenant_is_drafted_from_what_a_request_left(cluster: Cluster) -> None:
    def rounds(tenant: str, private: bool = False) -> int:
        with cluster.client() as client:
            options = {"max_tokens": 48, "mode": "on", "drafters": ["ngram"], "tenant": tenant, "private": private}
            return client.generate(PROMPTS[2], temperature=1.0, seed=3, **options).usage.rounds

    half = rounds("a", private=True) / 2
    assert rounds("a") > half, "a private request leaves nothing"
    until(lambda: rounds("a", private=True) < half, "the output is remembered once its request has been closed")
    assert rounds("b", private=True) > half


def test_what_drafting_measures_is_told(cluster: Cluster) -> None:
    with cluster.client() as client:

        def told() -> bool:
            client.generate(PROMPTS[0], max_tokens=32, drafters=["ngram"])
            return {"ngram.rows_per_draft", "ngram.context_drafted_tokens", "node_price_tokens"} <= set(
                client.info().stats
            )

        until(told, "the (k, w) of drafts, tokens by strategy and the price of a node")
        stats = client.info().stats
    assert any(name.startswith("verify_ms_at_") for name in stats)
    assert 0 < stats["ngram.memory_bytes"] <= stats["ngram.memory_limit_bytes"]
