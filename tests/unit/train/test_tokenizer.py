from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from specserve import zoo
from specserve.train.artefact import Report

SHIPPED = Tokenizer.from_file(str(zoo.path("target") / "tokenizer.json"))


@given(st.text())
def test_any_unicode_text_round_trips(text: str):
    text = text.replace("<|endoftext|>", "")
    ids = SHIPPED.encode(text).ids
    assert SHIPPED.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids


def test_indentation_is_one_token_and_no_special_token_is_added():
    tokens = SHIPPED.encode("if x:\n        return [x]\n").tokens
    assert "Ġ" * 7 in tokens
    assert "<|endoftext|>" not in tokens


def test_auto_tokenizer_agrees_with_the_file(target: Report):
    for folder in (target.out, zoo.path("target"), zoo.path("ar")):
        text = "  def f(x):\n\treturn 'naïve 漢字 🙂'  # <|endoftext|>\n"
        auto = AutoTokenizer.from_pretrained(folder)
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
        assert auto(text)["input_ids"] == ids
        assert auto.decode(ids) == text
        assert auto.eos_token_id == 0
