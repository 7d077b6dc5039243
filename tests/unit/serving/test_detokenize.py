"""Streamed text is the tokenizer's own decoding, and no chunk ends inside a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from specserve.serving.detokenize import Detokenizers

TEXTS = ["The quick brown fox, größer als je: naïve façade — 東京 👩‍👩‍👧‍👦 ok?", "def f(x):\n    return x + 1\n"] * 8


def byte_level(**options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("  \t"), AddedToken("<tool é>"), "日本"])
    return tokenizer


def _with_byte_fallback(decoder, prefix=True):
    words = ["▁", "▁the", "▁fox", "t", "h", "e", "x", ".", "é", "東", "▁▁"]
    vocab = {"<unk>": 0, "<s>": 1, **{f"<0x{b:02X}>": b + 2 for b in range(256)}}
    vocab.update({word: len(vocab) + i for i, word in enumerate(words)})
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def llama():
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return _with_byte_fallback(decoders.Sequence(steps))


def gemma():
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return _with_byte_fallback(decoders.Sequence(steps), prefix=False)


def metaspace():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in "thefox.é東")], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##re": 2, "fox": 3, ".": 4, "é": 5}))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


TOKENIZERS = {make.__name__: make() for make in (byte_level, llama, gemma, metaspace, wordpiece)}


def stream(tokenizer, prompt, ids):
    detokenizer = Detokenizers(tokenizer).new(prompt)
    return [detokenizer.push(i) for i in ids], detokenizer.flush()


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_chunks_join_to_the_full_decoding_of_any_tokens(name, data):
    """Any ids at all: broken bytes, special tokens and tokens that no text encodes to included."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    prompt = tokenizer.encode("the fox").ids
    chunks, rest = stream(tokenizer, prompt, ids)
    whole, begun = tokenizer.decode(prompt + ids), tokenizer.decode(prompt)
    assert begun + "".join(chunks) + rest == whole


@pytest.mark.parametrize("name", ["byte_level", "llama", "gemma"])
@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=30))
def test_any_text_comes_back_and_no_chunk_ends_inside_a_character(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    chunks, rest = stream(tokenizer, tokenizer.encode("the").ids, ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in chunk for chunk in chunks)
    joined = "".join(chunks) + rest
    # The text starts anew here, so tokenizers that prepend a space do so.
    assert joined in (text, " " + text) or "▁" in text


def test_a_character_of_several_tokens_comes_with_its_last():
    tokenizer = TOKENIZERS["byte_level"]
    ids = [tokenizer.encode("x", add_special_tokens=False).ids[0]]
    emoji = [tokenizer.token_to_id(c) for c in ("ð", "Ł", "ĺ", "Ģ")]
    assert tokenizer.decode(emoji) == "😀"
    chunks, rest = stream(tokenizer, ids, [*ids, *emoji, *ids])
    assert (chunks, rest) == (["x", "", "", "", "😀", "x"], "")


def test_a_first_word_keeps_its_leading_space():
    tokenizer = TOKENIZERS["llama"]
    the, fox = tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁fox")
    assert stream(tokenizer, [the], [fox]) == ([" fox"], "")


def test_each_push_costs_the_same_however_long_the_text():
    """Calls into the tokenizer are counted: at most two per token, of at most three ids."""

    class Counting:
        def __init__(self, tokenizer):
            self.inner, self.ids = tokenizer, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def decode(self, ids):
            self.ids += len(ids)
            return self.inner.decode(ids)

    counting = Counting(TOKENIZERS["llama"])
    detokenizer = Detokenizers(counting).new((258,))
    for _ in range(1000):
        detokenizer.push(259)
    assert counting.ids <= 3 * 1000
