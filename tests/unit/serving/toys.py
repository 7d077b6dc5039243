"""Backends with a toy language: the next token is a pure function of history and seed. No model, no clock."""

from collections.abc import Callable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from specserve.types import (
    Close,
    Command,
    Draft,
    Failed,
    ModelFacts,
    Proposal,
    Propose,
    Reply,
    Sampling,
    SessionLost,
    SessionSpec,
    Verdict,
    Verify,
)

EOS = 256
FACTS = ModelFacts("toy", 257, 4096, (EOS,))

Target = Callable[[list[int], SessionSpec], int]


def byte_tokenizer() -> Tokenizer:
    """Token i is byte i; 256 is the end of the sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (ord(c) > 255, ord(c)))
    printable = {b: chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
    others = iter(c for c in alphabet if ord(c) > 255)
    vocab = {printable[b] if b in printable else next(others): b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return tokenizer


def babble(tokens: list[int], spec: SessionSpec) -> int:
    """Depends on every token before, and on the seed: whatever is lost, repeated or altered shows."""
    return hash((sum(tokens), len(tokens), tuple(tokens[-3:]), spec.sampling.seed)) % 256


def says(text: str | bytes, end: int = EOS) -> Target:
    """A target that says `text`, then `end` for ever."""
    script = text.encode() if isinstance(text, str) else text

    def target(tokens: list[int], spec: SessionSpec) -> int:
        i = len(tokens) - spec.prompt_len
        return script[i] if i < len(script) else end

    return target


def plain(target: Target, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """What the target alone writes, up to max_tokens or the end of the sequence."""
    spec = SessionSpec(sampling, len(prompt), len(prompt) + sampling.max_tokens)
    tokens = list(prompt)
    while len(tokens) < spec.max_len:
        tokens.append(target(tokens, spec))
        if tokens[-1] == EOS and not sampling.ignore_eos:
            break
    return tokens[len(prompt) :]


class _Toy:
    """The cache that every backend keeps, and its faults: `faults[n]` goes wrong at the n-th command, once, even
    where several replicas share the faults."""

    def __init__(self, target: Target, faults: dict[int, str] | None = None) -> None:
        self.target = target
        self.faults = {} if faults is None else faults
        self.garbled: dict[int, str] = {}
        self.sessions: dict[int, tuple[list[int], SessionSpec]] = {}
        self.seen = 0
        self.on_fault: Callable[[str], None] = lambda fault: None  # of faults that are the replica's
        self.queue: list[Verify | Propose] = []
        self.batches: list[int] = []

    def submit(self, command: Command) -> Sequence[Reply]:
        if isinstance(command, Close):
            self.sessions.pop(command.session, None)
            self.queue = [c for c in self.queue if c.session != command.session]
            return ()
        assert all(c.session != command.session for c in self.queue), "two commands of one session"
        fault = self.faults.pop(self.seen, None)
        self.seen += 1
        if fault in ("die", "hang", "late", "tardy"):
            self.on_fault(fault)
            if fault == "hang":
                return ()
        elif fault == "lose":
            self.sessions.pop(command.session, None)
        elif fault == "fail":
            return (Failed(command.session, "EngineError", "a scripted failure"),)
        elif fault == "full":
            return (Failed(command.session, "Overloaded", "no room"),)
        elif fault == "sick":
            return (Failed(command.session, "WorkerDied", "a scripted death"),)
        elif fault in ("garbage", "astray"):
            self.garbled[command.session] = fault
        if command.base_len == 0:
            assert command.spec is not None
            self.sessions[command.session] = ([], command.spec)
        held = len(self.sessions[command.session][0]) if command.session in self.sessions else 0
        if held != command.base_len:
            return (SessionLost(command.session, held),)
        self.queue.append(command)
        return ()

    @property
    def busy(self) -> bool:
        return bool(self.queue)

    def step(self) -> Sequence[Reply]:
        batch, self.queue = self.queue, []
        self.batches.append(len(batch))
        replies = []
        for command in batch:
            tokens, spec = self.sessions[command.session]
            tokens += command.tokens
            assert len(tokens) <= spec.max_len
            replies.append(self.answer(command, tokens, spec, len(batch)))
        return replies

    def answer(self, command, tokens: list[int], spec: SessionSpec, batch: int) -> Reply:
        raise NotImplementedError

    def stats(self) -> dict[str, float]:
        return {"sessions": float(len(self.sessions))}


class ToyVerifier(_Toy):
    """Walks the tree while a child is what the target says. `forward_s` is what its verdicts report."""

    def __init__(self, target: Target, faults: dict[int, str] | None = None, forward_s: float = 0.01) -> None:
        super().__init__(target, faults)
        self.forward_s = forward_s

    def answer(self, command: Verify, tokens: list[int], spec: SessionSpec, batch: int) -> Reply:
        draft, at, accepted, node = command.draft, len(tokens), [], -1
        assert at + max(draft.depths(), default=0) < spec.max_len, "a draft deeper than what may be emitted"
        while True:
            token = self.target(tokens, spec)
            children = [n for n, parent in enumerate(draft.parents) if parent == node and draft.tokens[n] == token]
            if not children:
                break
            node = children[0]
            accepted.append(node)
            tokens.append(token)
        tokens.append(token)
        return Verdict(command.session, at, tuple(accepted), token, forward_s=self.forward_s, batch=batch)


class ToyDrafter(_Toy):
    """Right with probability `accuracy` at each depth, as a function of position and salt; `rows` branches."""

    def __init__(
        self, target: Target, faults: dict[int, str] | None = None, accuracy: float = 0.7, rows: int = 1, salt: int = 0
    ) -> None:
        super().__init__(target, faults)
        self.accuracy, self.rows, self.salt = accuracy, rows, salt
        self.asked: list[int] = []

    def answer(self, command: Propose, tokens: list[int], spec: SessionSpec, batch: int) -> Reply:
        at = len(tokens)
        self.asked.append(command.max_tokens)
        ids: list[int] = []
        parents: list[int] = []
        for row in range(self.rows):
            text, parent = list(tokens), -1
            for _ in range(command.max_tokens):
                token = self.target(text, spec)
                if hash((len(text), self.salt, row)) % 1000 >= 1000 * self.accuracy:
                    token = (token + 1 + row) % 256
                text.append(token)
                ids.append(token)
                parents.append(parent)
                parent = len(ids) - 1
        draft = Draft(tuple(ids), tuple(parents), ("toy",) * len(ids))
        fault = self.garbled.pop(command.session, None)
        if fault == "astray":
            at += 50
        elif fault == "garbage":
            draft = Draft((*ids, 9999, -5), (*parents, len(ids), 77), ("toy",))
        return Proposal(command.session, at, draft)
