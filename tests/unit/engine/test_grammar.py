"""Constrained output: every text fits, drafts change nothing but speed, and the law is the masked one."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tinymodels import ARCHITECTURES, build, text
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from specserve.constraint import check_constraint
from specserve.engine import Engine, Verifier
from specserve.engine.grammar import Grammar, Grammars, prunes
from specserve.errors import EngineError, InvalidRequest
from specserve.serving.local import LocalPort
from specserve.serving.router import Router
from specserve.serving.settings import Settings
from specserve.serving.worker import WorkerLoop
from specserve.types import (
    Close,
    Constraint,
    Draft,
    Failed,
    FinishReason,
    GenerationRequest,
    ModelFacts,
    Sampling,
    SessionSpec,
    SparseLaw,
    Verdict,
    Verify,
)
from specserve.verify import Case, decide, process

EOS = 2
NO_DRAFT = Draft()
PROMPT = tuple(text(6))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a", "both", "none"]},
        "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "count", "kind", "flags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
REGEX = r"[a-c]{2,4}-[0-9]{1,3}(\.|\?!)"
CHOICES = ("yes", "yes, but", 'no: "never"\n', "né€😀")


def fits_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["name", "count", "kind", "flags"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 4
        and type(value["count"]) is int
        and 0 <= value["count"] <= 99
        and value["kind"] in ("a", "both", "none")
        and 1 <= len(value["flags"]) <= 2
        and all(type(flag) is bool for flag in value["flags"])
    )


KINDS: dict[str, tuple[Constraint, Callable[[str], Any]]] = {
    "json_schema": (Constraint(json_schema=json.dumps(SCHEMA)), fits_schema),
    "regex": (Constraint(regex=REGEX), lambda text: re.fullmatch(REGEX, text)),
    "choice": (Constraint(choice=CHOICES), CHOICES.__contains__),
}


def tokenizer_of(*words: str) -> Tokenizer:
    """Byte-level; ids 0 to 2 are special, then the given words, in order."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<pad>", "<s>", "</s>"]
    vocab = {name: i for i, name in enumerate(special)}
    for word in words:
        vocab.setdefault(spell.pre_tokenize_str(word)[0][0], len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = spell, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """All bytes and some longer tokens, so that a text has many tokenisations."""
    tokenizer = tokenizer_of(*"\n", '{"', '":', "true", "aa", "ab", "abc", "-1", "12", ".", "yes", ", but", "né", " ")
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    for char in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(char, len(vocab))
    whole = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    whole.pre_tokenizer, whole.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    whole.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "<s>", "</s>")])
    return whole


TOKENIZER = byte_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a tokenizer."""
    path = tmp_path_factory.mktemp("constrained")
    build(path, "LlamaConfig", {**ARCHITECTURES["llama"][1], "vocab_size": VOCAB})
    TOKENIZER.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def engine(home: Path) -> Iterator[Engine]:
    engine = Engine(home, slots=6000, max_nodes=16, trace=False)
    yield engine
    engine.check_integrity()
    assert engine.sessions == set()


@pytest.fixture(scope="module")
def grammars(home: Path, engine: Engine) -> Grammars:
    return Grammars(home / "tokenizer.json", engine.facts())


@pytest.fixture
def verifier(engine: Engine, grammars: Grammars) -> Iterator[Verifier]:
    verifier = Verifier(engine, grammars=grammars, max_batch_tokens=4096)
    yield verifier
    verifier.check_integrity()
    for session in list(verifier._seats):
        verifier.submit(Close(session))


def begin(session: int, tokens: Sequence[int], constraint: Constraint, draft: Draft = NO_DRAFT, **more: Any) -> Verify:
    rule = more.pop("rule", "coupled")
    spec = SessionSpec(Sampling(**more), len(PROMPT), 160, rule, constraint=constraint)
    return Verify(session, 0, tuple(tokens), draft, spec)


Drafts = Callable[[int, int], Draft]  # (session, tokens emitted so far)


def none(session: int, emitted: int) -> Draft:
    return Draft()


def write(
    verifier: Verifier, constraint: Constraint, seeds: range, drafts: Drafts = none, **more: Any
) -> list[list[int]]:
    """Each seed's output up to its end; one session each, all at once."""
    got: dict[int, list[int]] = {seed: [] for seed in seeds}
    sent = {seed: drafts(seed, 0) for seed in seeds}
    for seed in seeds:
        assert not verifier.submit(begin(seed, PROMPT, constraint, sent[seed], seed=seed, **more))
    while verifier.busy:
        for reply in verifier.step():
            assert isinstance(reply, Verdict), reply
            out, draft = got[reply.session], sent[reply.session]
            assert draft.path(reply.accepted[-1] if reply.accepted else -1) == reply.accepted
            out += [*(draft.tokens[node] for node in reply.accepted), reply.token]
            if EOS in out:
                verifier.submit(Close(reply.session))
                continue
            sent[reply.session] = drafts(reply.session, len(out))
            verifier.submit(Verify(reply.session, len(PROMPT) + len(out), (), sent[reply.session]))
    return [tokens[: tokens.index(EOS) + 1] for tokens in got.values()]


def said(tokens: Sequence[int]) -> str:
    assert tokens[-1] == EOS
    return str(TOKENIZER.decode(list(tokens[:-1])))


def forest(rng: random.Random, right: Sequence[int]) -> Draft:
    """A tree with the right tokens in it, or some, or none, behind and among others that are mostly forbidden."""
    tokens, parents, spine = [rng.randrange(VOCAB)], [-1], -1
    for token in right[: rng.randint(0, 5)]:
        for wrong in rng.sample(range(VOCAB), rng.randint(0, 2)):
            tokens.append(wrong)
            parents.append(rng.choice([spine, len(tokens) - 2]))
        tokens.append(token)
        parents.append(spine)
        spine = len(tokens) - 1
    return Draft(tuple(tokens[:16]), tuple(parents[:16]), ("x",) * len(tokens[:16]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.5, "top_p": 0.5}])
def test_the_output_fits_and_is_the_same_with_and_without_drafts(kind, options, verifier):
    """Every seed's text fits; right, wrong and forbidden drafts leave it token for token as it was."""
    constraint, fits = KINDS[kind]
    seeds = range(12 if options["temperature"] else 1)
    plain = write(verifier, constraint, seeds, **options)
    assert all(fits(said(tokens)) for tokens in plain)
    if options["temperature"] == 1:
        assert len({said(tokens) for tokens in plain}) > 2
    rng = random.Random(7)
    drafted = write(verifier, constraint, seeds, lambda s, n: forest(rng, plain[s][n:]), **options)
    assert drafted == plain


@pytest.mark.parametrize("rule", ["trie", "rejection", "kseq", "traversal"])
def test_other_rules_fit_too(rule, verifier):
    """Drafts with laws that know nothing of the grammar."""
    constraint, fits = KINDS["regex"]
    law = SparseLaw(tuple(range(3, 63)), (1 / 60,) * 60)
    rng = random.Random(3)

    def drafts(session: int, emitted: int) -> Draft:
        tokens = tuple(rng.choice(law.ids) for _ in range(3))
        return Draft(tokens, (-1, 0, 1), ("q",) * 3, (law,) * 3, ((0, 1, 2),))

    texts = write(verifier, constraint, range(12), drafts, temperature=1.0, rule=rule)
    assert all(fits(said(tokens)) for tokens in texts)


def test_forbidden_nodes_never_reach_the_model_unless_the_rule_judges_by_laws(verifier):
    constraint = Constraint(choice=("yes", "yes, but"))
    yes, comma, end = TOKENIZER.token_to_id("yes"), TOKENIZER.token_to_id(","), EOS
    draft = Draft((5, yes, 7, comma, end, 9), (-1, -1, 0, 1, 1, 4), ("q",) * 6)
    law = SparseLaw((5, yes, 7, comma, end, 9), (1 / 6,) * 6)
    drawn = Draft((*draft.tokens,), (-1, 0, 1, 2, 3, 4), draft.drafters, (law,) * 6, ((0, 1, 2, 3, 4, 5),))
    sizes = []
    for session, (wish, options) in enumerate(
        [
            (draft, {"temperature": 1.0}),
            (draft, {"temperature": 1.0, "rule": "trie"}),
            (drawn, {"temperature": 0.0, "rule": "kseq"}),
            (drawn, {"temperature": 1.0, "rule": "kseq"}),
        ]
    ):
        before = verifier.stats()["tokens_seen"]
        verifier.submit(begin(session, PROMPT, constraint, wish, **options))
        verifier.step()
        sizes.append(verifier.stats()["tokens_seen"] - before - len(PROMPT))
    assert sizes == [3, 3, 0, 6]


def open_small(folder: Path, words: Sequence[str], regex: str) -> Grammar:
    """A grammar over a handful of tokens, ids from 3 on."""
    path = folder / "small.json"
    tokenizer_of(*words).save(str(path))
    facts = ModelFacts("small", 3 + len(words), 64, (EOS,))
    return Grammars(path, facts).open(Constraint(regex=regex))


def bits(row: torch.Tensor, size: int) -> list[int]:
    return [v for v in range(size) if row[v // 8] >> (v % 8) & 1]


@pytest.mark.parametrize(
    ("pattern", "language", "outputs"),
    [
        ("(ab|b){1,2}c?", {a + b + c for a in ("ab", "b") for b in ("", "ab", "b") for c in ("", "c")}, 35),
        ("ababc", {"ababc"}, 17),  # forced from the beginning, but not in which tokens
    ],
)
def test_the_law_at_every_position_is_the_masked_one_renormalised(pattern, language, outputs, tmp_path):
    """Against the definition, over every output that can be written with five tokens, in each tokenisation.

    A token is allowed when some word of the language goes on with it, the end when the output is a word. Processed
    log-probabilities are those of the masked and renormalised law, raw ones those of the model.
    """
    words = ("a", "b", "ab", "ba", "c")
    says = ["", "", "", *words]
    generator = torch.Generator().manual_seed(0)
    spec = SessionSpec(Sampling(temperature=0.8, top_p=0.9, presence_penalty=0.4, logprobs=20, seed=5), 1, 64)
    seen, todo = 0, [()]
    while todo:
        output = todo.pop()
        grammar = open_small(tmp_path, words, pattern)
        grammar.advance(output)
        prefix = "".join(says[t] for t in output)
        want = [t for t in range(3, 8) if any(word.startswith(prefix + says[t]) for word in language)]
        want += [EOS] * (prefix in language)
        masks = grammar.scan(Draft(), True).masks
        assert bits(masks[0], 8) == sorted(want), prefix
        logits = torch.randn(1, 8, generator=generator, dtype=torch.float64)
        case = Case(spec, [0, *output], Draft(), masks)
        found = decide(logits, [case])[0].logprobs[0]
        masked = torch.full_like(logits, -torch.inf)
        masked[0, want] = logits[0, want]
        law = process(masked, [spec], [case.tokens]).log_softmax(-1)[0]
        assert {e[0] for e in found.top} == set(law.isfinite().nonzero()[:, 0].tolist()) <= set(want)
        for token, processed, raw in found.top:
            assert processed == pytest.approx(float(law[token]), abs=1e-12)
            assert raw == pytest.approx(float(logits.log_softmax(-1)[0, token]), abs=1e-12)
        todo += [(*output, t) for t in want if t != EOS]
        seen += 1
    assert seen == outputs


def test_a_scan_of_a_tree_sees_at_each_node_what_a_walk_there_sees(tmp_path):
    """Masks belong to their nodes, pruned or not, and a scan leaves the state where it was."""
    words = ("a", "b", "ab", "ba", "c")
    grammar = open_small(tmp_path, words, "(ab|b){2,5}c?")
    rng = random.Random(1)
    for _ in range(20):
        n = rng.randint(1, 9)
        tree = Draft(
            tuple(rng.randrange(2, 8) for _ in range(n)), tuple(rng.randint(-1, i - 1) for i in range(n)), ("x",) * n
        )
        want: dict[int, list[int]] = {}
        for node in range(-1, n):
            walk = open_small(tmp_path, words, "(ab|b){2,5}c?")
            try:
                walk.advance([tree.tokens[i] for i in tree.path(node)])
            except EngineError:
                continue
            want[node] = bits(walk.scan(Draft(), True).masks[0], 8)
        whole, pruned = grammar.scan(tree, False), grammar.scan(tree, True)
        assert whole.draft == tree
        assert pruned.kept == tuple(i for i in range(n) if i in want)
        assert pruned.draft.tokens == tuple(tree.tokens[i] for i in pruned.kept)
        assert [pruned.draft.path(i) for i in range(len(pruned.kept))] == [
            tuple(pruned.kept.index(j) for j in tree.path(i)) for i in pruned.kept
        ]
        for row, node in enumerate((-1, *pruned.kept)):
            assert bits(pruned.masks[row], 8) == bits(whole.masks[1 + node], 8) == want[node]
        assert all(whole.masks[1 + i].eq(255).all() for i in range(n) if i not in want)


@pytest.mark.parametrize("size", [VOCAB, 288, 319, 320, 321])
def test_ends_of_sequence_are_allowed_when_the_output_is_whole_and_alone_from_then_on(size, home):
    """Several ids, one of which is also text, and ids beyond the tokenizer's."""
    facts = ModelFacts("m", size, 64, (EOS, TOKENIZER.token_to_id("b")))
    grammar = Grammars(home / "tokenizer.json", facts).open(Constraint(regex="[ab]{2}c?"))
    a, b, c = (TOKENIZER.token_to_id(x) for x in "abc")
    assert bits(grammar.scan(Draft(), True).masks[0], size) == sorted(
        (a, TOKENIZER.token_to_id("aa"), TOKENIZER.token_to_id("ab"), TOKENIZER.token_to_id("abc"))
    )
    grammar.advance([a, a])
    assert bits(grammar.scan(Draft(), True).masks[0], size) == sorted((EOS, b, c))
    scan = grammar.scan(Draft.chain((c, EOS, b, a), "x"), True)
    assert scan.kept == (0, 1, 2)
    assert [bits(row, size) for row in scan.masks[1:]] == [sorted((EOS, b))] * 3
    grammar.advance([b])
    assert bits(grammar.scan(Draft(), True).masks[0], size) == sorted((EOS, b))
    with pytest.raises(EngineError):
        grammar.advance([a])


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_session_rebuilt_from_its_tokens_goes_on_with_the_same_text(cut, verifier, engine, grammars):
    constraint, _ = KINDS["json_schema"]
    [whole] = write(verifier, constraint, range(3, 4), temperature=1.0)
    other = Verifier(engine, grammars=grammars)
    out = whole[:cut]
    command = begin(
        99, (*PROMPT, *out), constraint, Draft.chain(tuple(whole[cut : cut + 2]), "x"), temperature=1.0, seed=3
    )
    other.submit(command)
    while EOS not in out:
        [verdict] = other.step()
        drafted = command.draft.tokens[: len(verdict.accepted)]
        out = [*out, *drafted, verdict.token]
        command = Verify(99, len(PROMPT) + len(out), ())
        other.submit(command)
    other.submit(Close(99))
    assert out[: out.index(EOS) + 1] == whole


def test_logprobs_are_of_the_masked_law_and_of_the_models_own(verifier):
    constraint, _ = KINDS["choice"]
    verifier.submit(begin(1, PROMPT, constraint, temperature=1.0, logprobs=20))
    verifier.submit(begin(2, PROMPT, Constraint(regex="(?s:.*)"), temperature=1.0, logprobs=20))
    held, free = (reply.logprobs[0] for reply in verifier.step())
    allowed = {id for id, _, _ in held.top}
    assert all(any(c.startswith(TOKENIZER.decode([id])) for c in CHOICES) or id > 16 for id in allowed)
    assert sum(2.718281828**law for _, law, _ in held.top) == pytest.approx(1, abs=1e-4)
    assert all(law > raw for _, law, raw in held.top)
    assert len(free.top) == 20


def test_a_dead_end_fails_its_session_alone_and_at_the_same_token_with_and_without_drafts(engine, tmp_path):
    """A vocabulary without the letter that must come."""
    tokenizer_of("a").save(str(tmp_path / "t.json"))
    verifier = Verifier(engine, grammars=Grammars(tmp_path / "t.json", ModelFacts("m", VOCAB, 64, (EOS,))))
    wish = Constraint(regex="aab")
    assert not verifier.submit(begin(1, PROMPT, wish))
    assert not verifier.submit(begin(2, PROMPT, wish, Draft.chain((3, 3, 4), "x")))
    assert not verifier.submit(Verify(3, 0, PROMPT, Draft(), SessionSpec(Sampling(), len(PROMPT), 160)))
    one, two, three = verifier.step()
    assert isinstance(three, Verdict)
    assert (one.accepted, one.token, two.accepted, two.token) == ((), 3, (0,), 3)
    assert not verifier.submit(Verify(1, len(PROMPT) + 1, ()))
    verifier.step()
    for session in (1, 2):
        [failed] = verifier.submit(Verify(session, len(PROMPT) + 2, ()))
        assert isinstance(failed, Failed)
        assert failed.kind == "EngineError"
        assert failed.message.startswith(f"session {session}: the constraint cannot be followed at output token 3: no ")
    [at_once] = verifier.submit(begin(4, PROMPT, Constraint(regex="b")))
    assert "at output token 1" in at_once.message
    assert engine.sessions == {3}
    verifier.submit(Close(3))


def test_logits_that_are_no_numbers_are_seen_through_the_mask(verifier, monkeypatch):
    """Also at a token that the grammar forbids: a broken forward pass must not look like a law."""
    forward = verifier.engine.forward

    def broken(rows):
        scores = forward(rows)
        logits = scores.logits.clone()
        logits[0, 0] = float("nan")
        return type(scores)(logits, scores.seconds)

    monkeypatch.setattr(verifier.engine, "forward", broken)
    verifier.submit(begin(1, PROMPT, *KINDS["regex"][:1], temperature=1.0))
    verifier.submit(begin(2, PROMPT, *KINDS["regex"][:1], temperature=1.0))
    bad, good = verifier.step()
    assert bad.message == "session 1: logits at position 6 are not finite"
    assert isinstance(good, Verdict)


def test_a_dead_end_in_a_draft_costs_its_branch_alone(tmp_path):
    """The library's matcher never leaves an error; drafts beside it and the committed state are as before."""
    grammar = open_small(tmp_path, ("a", "b"), "(ax|ba)a{3}")  # no token says x
    tree = Draft((3, 4, 3, 3, 4), (-1, -1, 0, 1, 3), ("q",) * 5)
    want = [[3, 4], [3], [3]]
    for prune, kept, rows in ((True, (1, 3), (0, 1, 2)), (False, (0, 1, 2, 3, 4), (0, 2, 4))):
        scan = grammar.scan(tree, prune)
        assert scan.kept == kept
        assert [bits(scan.masks[row], 5) for row in rows] == want
    assert [int(scan.masks[row].min()) for row in (1, 3, 5)] == [255] * 3
    grammar.advance([4, 3, 3, 3, 3, EOS])


BAD = [
    (Constraint(regex="a("), "constraint.regex must compile: error: unclosed group; got 'a('"),
    (Constraint(regex="a(?=b)"), "look-around, including look-ahead and look-behind, is not supported"),
    (Constraint(json_schema="{"), "constraint.json_schema must compile: no JSON: Expecting property name"),
    (Constraint(json_schema='{"type": "object"}, "x": 1'), "no JSON: Extra data"),
    (Constraint(json_schema="true\nother: /x/"), "no JSON: Extra data"),
    (Constraint(json_schema="[1]"), "schema must be an object or boolean"),
    (Constraint(json_schema='{"type": "text"}'), "constraint.json_schema must compile: Invalid type: text"),
    (Constraint(json_schema='{"not": {}}'), 'Unimplemented keys: ["not"]'),
    (Constraint(json_schema='{"$ref": "http://localhost/x"}'), "http://localhost/x"),
    (Constraint(json_schema='{"a":' * 9000 + "1" + "}" * 9000), "recursion"),
    (Constraint(regex="(" * 9000 + ")" * 9000), "constraint.regex must compile: error: "),
]


@pytest.mark.parametrize(("constraint", "message"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_compiled_is_refused_with_the_compilers_message(constraint, message, grammars, verifier):
    """The same words at the router, which has no tokenizer, and at the verifier."""
    with pytest.raises(InvalidRequest) as at_router:
        check_constraint(constraint)
    with pytest.raises(InvalidRequest) as at_verifier:
        grammars.open(constraint)
    assert str(at_router.value) == str(at_verifier.value)
    assert message in str(at_router.value)
    assert len(str(at_router.value)) < 400
    [failed] = verifier.submit(begin(1, PROMPT, constraint))
    assert (failed.kind, failed.message) == ("InvalidRequest", str(at_router.value))


def test_grammars_are_compiled_once_and_the_least_recently_asked_for_is_forgotten(home, engine):
    grammars = Grammars(home / "tokenizer.json", engine.facts(), capacity=2)
    one, two, three = (Constraint(regex=x) for x in ("a+", "b+", "c+"))
    first, _, again = (grammars.open(c) for c in (one, two, one))
    assert (grammars.hits, grammars.misses, len(grammars)) == (1, 2, 2)
    first.advance([TOKENIZER.token_to_id("a")])
    assert (len(first), len(again)) == (1, 0), "two sessions of one grammar stand where they stand"
    grammars.open(three)
    grammars.open(one)
    assert (grammars.hits, grammars.misses, len(grammars)) == (2, 3, 2)
    grammars.open(two)
    assert (grammars.hits, grammars.misses) == (2, 4)


def test_a_model_that_cannot_be_constrained_says_why(engine, tmp_path):
    wish = Constraint(regex="a")
    endless = ModelFacts("m", VOCAB, 64, ())
    with pytest.raises(InvalidRequest, match=r"constraint must be unset: this model has no end-of-sequence token"):
        Grammars(tmp_path / "none.json", endless).open(wish)
    with pytest.raises(InvalidRequest, match=r"this model's tokenizer cannot be constrained .*none.json"):
        Grammars(tmp_path / "none.json", engine.facts()).open(wish)
    [failed] = Verifier(engine).submit(begin(1, PROMPT, wish))
    assert "constraint must be unset: this verifier has no tokenizer" in failed.message


def test_only_rules_that_look_at_tokens_alone_prune():
    def spec(rule: str, temperature: float) -> SessionSpec:
        return SessionSpec(Sampling(temperature=temperature), 1, 9, rule)

    assert [prunes(spec(r, 1.0)) for r in ("coupled", "trie", "rejection", "kseq")] == [
        True,
        True,
        False,
        False,
    ]
    assert prunes(spec("rejection", 0.0))


async def test_requests_end_when_the_output_is_whole_and_bad_ones_start_nothing(engine, grammars):
    """Through a router: STOP with the whole text, LENGTH in the middle, and a refusal before the first event."""
    worker = WorkerLoop(Verifier(engine, grammars=grammars), "verifier")
    worker.start()
    router = Router(LocalPort({"verifier": worker}), engine.facts(), TOKENIZER, Settings())

    async def ask(constraint: Constraint, max_tokens: int) -> tuple[str, FinishReason]:
        wish = GenerationRequest(PROMPT, Sampling(max_tokens, temperature=1.0, seed=4), constraint=constraint)
        events = [event async for event in router.generate(wish)]
        return "".join(getattr(event, "text", "") for event in events), events[-1].reason

    try:
        for constraint, fits in KINDS.values():
            whole, reason = await ask(constraint, 150)
            assert fits(whole)
            assert reason is FinishReason.STOP
            part, reason = await ask(constraint, 2)
            assert whole.startswith(part.rstrip("\N{REPLACEMENT CHARACTER}"))
            assert reason is FinishReason.LENGTH or part == whole
        before = router.stats.requests
        with pytest.raises(InvalidRequest, match="unclosed group"):
            await ask(Constraint(regex="("), 9)
        assert router.stats.requests == before
    finally:
        await router.close()
        await worker.close()
