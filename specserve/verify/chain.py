"""Rules for one drafted chain: `rejection` judges token by token, `block` the block as a whole."""

from __future__ import annotations

from specserve.verify.law import Coin, Emission, Law, Tree


def rejection(tree: Tree, coin: Coin) -> Emission:
    """Accept x with probability min(1, p(x)/q(x)); at the first rejection emit from norm((p - q)+).

    (Leviathan et al., 2211.17192; Chen et al., 2302.01318)
    """
    path: list[int] = []
    node = -1
    while fork := tree.forks.get(node):
        child = fork.children[0]
        if not coin(fork.p[child.at] / child.q[child.at]):
            return Emission(tuple(path), fork.law.residual(child.q)[1])
        node = child.node
        path.append(node)
    return Emission(tuple(path))


def block(tree: Tree, coin: Coin) -> Emission:
    """Block verification: optimal for one chain, never below `rejection`.   (Sun et al., 2403.10444)

    P_0 = 1, P_i = min(1, P_{i-1}·p_i(x_i)/q_i(x_i)); the longest prefix i whose coin h_i comes is accepted, with
    h_i = S/(S + 1 - P_i), S = Σ(P_i·p_{i+1} - q_{i+1})+, and h_L = P_L. Then emit from norm((P_τ·p_{τ+1} - q_{τ+1})+).
    """
    path: list[int] = []
    stops: list[tuple[float, Law | None]] = []  # per prefix: its coin and what is emitted after it
    node, prefix = -1, 1.0
    while fork := tree.forks.get(node):
        child = fork.children[0]
        mass, law = fork.law.residual(child.q, prefix)
        stops.append((keep(mass, prefix), law))
        prefix = min(1.0, prefix * fork.p[child.at] / child.q[child.at])
        node = child.node
        path.append(node)
    stops.append((prefix, None))
    # Every prefix has its own coin, and the longest that comes is wanted: toss from the longest down.
    length = next((i for i in range(len(path), 0, -1) if coin(stops[i][0])), 0)
    return Emission(tuple(path[:length]), stops[length][1])


def keep(mass: float, prefix: float) -> float:
    """S/(S + 1 - P), the probability to stop at a prefix of weight P that was not continued; 0/0 is 1."""
    total = mass + 1.0 - prefix
    return mass / total if total > 0.0 else 1.0
