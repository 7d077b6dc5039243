"""Tiny random XLNets, and the stock forward pass as an oracle for ours."""

import itertools

import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from specserve.filling import Filling
from specserve.infill.decode import Decoder
from specserve.infill.model import AnySubsetModel
from specserve.types import Gap, InfillSpec, Sampling

VOCAB, MASK, STOP = 3, 3, 4  # three words, the mask token, the stop token


def stock(vocab=VOCAB + 2, width=16, seed=0, scale=0.5, dtype=torch.float64) -> XLNetLMHeadModel:
    """A random model whose laws depend on everything that it sees."""
    torch.manual_seed(seed)
    config = XLNetConfig(
        vocab_size=vocab, d_model=width, n_layer=2, n_head=2, d_inner=2 * width, dropout=0.0, bos_token_id=0,
        pad_token_id=None, initializer_range=scale,
    )  # fmt: skip
    config.gap_stop_token_id = STOP
    model = XLNetLMHeadModel(config).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim < 2:  # norms and biases start as 1 and 0
            torch.nn.init.normal_(parameter, std=scale)

    def waves(qlen, klen, bsz=None, device=None):  # as in the stock model, which has them in fp32 only
        distances = torch.arange(klen, -qlen, -1, dtype=dtype)
        angles = distances[:, None] / 10_000 ** (torch.arange(0, width, 2, dtype=dtype) / width)
        return torch.cat([angles.sin(), angles.cos()], -1)[:, None].expand(-1, bsz, -1)

    model.transformer.relative_positional_encoding = waves
    return model


def tiny(context=16, **options) -> AnySubsetModel:
    return AnySubsetModel(stock(**options), context=context, mask=MASK)


def spec(*pieces, drafter="self", k=4, temperature=1.0, seed=0, **sampling) -> InfillSpec:
    return InfillSpec(pieces, Sampling(temperature=temperature, seed=seed, **sampling), drafter, k)


def decoder(**options) -> Decoder:
    return Decoder(tiny(**options), seats=8)


def perm_mask(filling: Filling) -> torch.Tensor:
    """The oracle mask, [1, L, L]: 1 where row i may not see column j. What is not written ranks last."""
    rank = torch.full((filling.length,), 10**6)
    for r, (position, _) in enumerate(filling.content):
        rank[position] = r
    ban = (rank[:, None] <= rank[None, :]).double()
    given = [position for position, _ in filling.given]
    for i, j in itertools.product(given, given):
        ban[i, j] = 0
    return ban[None]


def conditional(model, filling: Filling) -> torch.Tensor:
    """The stock model's law of the next place, given what is written, mask and stop tokens banned as they must be."""
    ids = torch.zeros(1, filling.length, dtype=torch.int64)
    for position, token in filling.content:
        ids[0, position] = token
    place = filling.places[filling.next]
    ban = perm_mask(filling)
    known = {position for position, _ in filling.content}
    ban[..., [i for i in range(filling.length) if i not in known]] = 1  # not written yet, or left by a stop token
    target = torch.zeros(1, 1, filling.length, dtype=torch.float64)
    target[0, 0, place.position] = 1
    with torch.no_grad():
        logits = model(ids, perm_mask=ban, target_mapping=target, use_mems=False).logits[0, 0]
    logits[MASK] = -torch.inf
    if not place.may_stop:
        logits[STOP] = -torch.inf
    return logits.softmax(-1)


__all__ = ["MASK", "STOP", "VOCAB", "Gap", "conditional", "decoder", "perm_mask", "spec", "stock", "tiny"]
