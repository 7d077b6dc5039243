"""Attention: shared keys and packed rows give what the stock code gives on padded rows with repeated keys."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from specserve.engine.attention import attend, packing


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)])
def test_equals_the_stock_code_padded_and_packed(heads: int, groups: int):
    torch.manual_seed(0)
    lengths, queries, kv, width = [3, 1, 5], 5, 9, 8
    module = torch.nn.Module()
    module.num_key_value_groups = heads // groups
    query = torch.randn(3, heads, queries, width)
    key, value = torch.randn(2, 3, groups, kv, width)
    mask = torch.rand(3, 1, queries, kv) < 0.5
    mask[..., 0] = True
    want, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    got, _ = attend(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(got, want)

    real = torch.tensor([[i >= queries - n for i in range(queries)] for n in lengths])
    places = real.reshape(-1).nonzero()[:, 0]
    spread = torch.zeros(3 * queries, dtype=torch.long)
    spread[places] = torch.arange(len(places))
    flat = query.transpose(1, 2)[real].transpose(0, 1)[None]
    keys, values = (seen.transpose(0, 1).reshape(1, groups, 3 * kv, width) for seen in (key, value))
    with packing((spread, places)):
        got, _ = attend(module, flat, keys, values, mask, scaling=0.3)
    torch.testing.assert_close(got[0], want[real])
