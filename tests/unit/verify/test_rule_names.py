"""The names that requests use are the rules that exist."""

from specserve import types
from specserve.verify import RULES
from specserve.verify.tossed import Tossed


def test_every_named_rule_exists_and_every_rule_is_named() -> None:
    assert tuple(RULES) == types.RULES
    assert {name for name, rule in RULES.items() if isinstance(rule, Tossed)} == types.LAW_RULES
