"""Rule `traversal`: from the leaves up. A chain gives `block`.   (Weng et al., 2505.12398)"""

from __future__ import annotations

from specserve.verify.chain import keep
from specserve.verify.law import Coin, Emission, Tree, Weights, without


def traversal(tree: Tree, coin: Coin, replacement: bool = True) -> Emission:
    """Judge subtrees in order; what the rejection of one leaves over is what the next is judged with.

    visit(node, a): for each child x, visit it with min(1, a·p(x)/q(x)); if it was rejected, S = Σ(a·p - q)+,
    a ← S/(S + 1 - a), p ← norm((a·p - q)+) and, without replacement, q(x) ← 0, q ← norm(q). At last accept the node
    with probability a and emit from p, or hand the rejection to the parent.

    Chains with equal beginnings share a branch, visited with all their continuations. It counts as often as it was
    drawn: a rejected one has a·p(x) ≤ q(x), so when met again it has weight 0 and only updates what is left over.
    """

    def visit(node: int, a: float, path: tuple[int, ...]) -> Emission | None:
        fork = tree.forks.get(node)
        if fork is None:
            return Emission(path) if coin(a) else None
        law = fork.law
        drawn: dict[int, Weights] = {}
        for child in fork.children:
            q = drawn.get(child.source, child.q)
            weight = min(1.0, a * law.weights[child.at] / q[child.at])
            if found := visit(child.node, weight, (*path, child.node)):
                return found
            mass, law = law.residual(q, a)
            a = keep(mass, a)
            drawn[child.source] = q if replacement else without(q, child.at)
        return Emission(path, law) if coin(a) else None

    return visit(-1, 1.0, ()) or Emission(())
