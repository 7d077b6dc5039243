import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from specserve.train.artefact import Report
from specserve.train.corpus import Document
from specserve.train.regenerate import Written, prompts, write

SOURCE = '''import os


async def first(
    a, b=2
) -> int:
    """One.

    Two.
    """
    return a


def second(x):
    return x
'''


def test_prompts_end_behind_a_function_head_or_a_line(target: Report):
    tokenizer = Tokenizer.from_file(str(target.out / "tokenizer.json"))
    documents = [Document("a", SOURCE), Document("b", "no functions here\nonly lines\n")]
    starts = prompts(documents, tokenizer, 200, longest=500, random=np.random.default_rng(0))
    texts = {tokenizer.decode(ids) for ids in starts}
    assert SOURCE[: SOURCE.index("    return a")] in texts
    assert "def second(x):\n" in texts
    assert all(text.endswith("\n") for text in texts)


def test_prompts_are_cut_to_their_last_tokens(target: Report):
    tokenizer = Tokenizer.from_file(str(target.out / "tokenizer.json"))
    starts = prompts([Document("a", SOURCE)], tokenizer, 20, longest=7, random=np.random.default_rng(0))
    assert max(map(len, starts)) == 7


def test_a_padded_batch_goes_on_as_each_prompt_alone(target: Report):
    model = AutoModelForCausalLM.from_pretrained(target.out, dtype=torch.float32)
    starts = [[5, 6, 7, 8, 9], [10, 11], [12]]
    together = write(model, starts, new=8, temperature=0.0, seed=0)
    for row, start in enumerate(starts):
        alone = model.generate(torch.tensor([start]), do_sample=False, max_new_tokens=8)[0].tolist()
        assert together.ids[row, : together.end[row]].tolist() == alone


def test_sampling_depends_on_the_seed_alone_and_leaves_the_global_state(target: Report):
    model = AutoModelForCausalLM.from_pretrained(target.out, dtype=torch.float32)
    before = torch.get_rng_state()
    one, same, other = (write(model, [[5, 6]], new=16, temperature=1.0, seed=seed).ids for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert torch.equal(before, torch.get_rng_state())


def test_the_mask_marks_positions_whose_next_token_is_text():
    text = Written(np.array([[7, 8, 9, 0], [7, 0, 0, 0]]), prompt=np.array([2, 1]), end=np.array([3, 1]))
    rows = np.array([0, 1])
    assert text.mask(rows).tolist() == [[True, True, False], [False, False, False]]
    assert text.mask(rows, continuation=True).tolist() == [[False, True, False], [False, False, False]]
