"""Small frozen values that cross boundaries. Pure Python: every floor may import them.

Lengths and positions count tokens of the whole sequence (prompt and emitted), from 0.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TokenIds = tuple[int, ...]

RULES = (
    "coupled",
    "rejection",
    "block",
    "kseq",
    "recursive",
    "recursive-wor",
    "traversal",
    "traversal-wor",
    "trie",
)
"""Verification rules, as requests name them."""
LAW_RULES = frozenset(RULES) - {"coupled", "trie"}
"""Those that judge a sampled draft by the law it was drawn from: they take one drafter, and it must send that law."""

NGRAM_STRATEGIES = ("context", "suffix", "bigram", "recycled", "unigram")
"""What a drafter without a model can draft from; see specserve.draft.ngram.rows."""


class SpeculationMode(enum.Enum):
    """AUTO speculates where it pays, ON in every round, OFF never."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class FinishReason(enum.Enum):
    """Why a generation ended."""

    LENGTH = "length"  # max_tokens emitted
    STOP = "stop"  # a stop string, a stop id or the model's own end-of-sequence token
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class Origin(enum.Enum):
    """How an emitted token came to be."""

    ACCEPTED = "accepted"  # drafted, and kept by the target
    RECOVERED = "recovered"  # the target's own, after a rejection
    BONUS = "bonus"  # the target's own, after full acceptance (or with nothing drafted)


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling transform and the limits of one request.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and penalties 0 / 0 / 1 are off.
    logprobs None is off; n ≥ 0 asks for the emitted token's log-probability and the n largest.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: TokenIds = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Speculation:
    """What the caller wants drafted. No drafters named means: the server's own choice; None: the drafter's.

    branches: chains drawn i.i.d. per round, or most children of a node where the rule takes trees.
    max_draft_nodes: most drafted tokens of one round, all branches together.
    reference: text that drafters may copy from; the target never sees it.
    tenant: whose past outputs may be drafted from, and to whose this output will belong.
    private: nothing of this request outlives it.
    """

    mode: SpeculationMode = SpeculationMode.AUTO
    drafters: tuple[str, ...] = ()
    max_draft_tokens: int | None = None
    rule: str | None = None
    branches: int | None = None
    max_draft_nodes: int | None = None
    reference: str = ""
    tenant: str = ""
    private: bool = False


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole output must be; exactly one is set.

    json_schema: a JSON Schema, as JSON text.
    regex: a regular expression of the whole output, in the syntax of Rust's regex crate.
    choice: the output is one of these strings.
    """

    json_schema: str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of what is set."""
        return tuple(name for name in ("json_schema", "regex", "choice") if getattr(self, name) is not None)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request. The prompt is text (str) or token ids."""

    prompt: str | TokenIds
    sampling: Sampling = Sampling()
    speculation: Speculation = Speculation()
    timeout_s: float | None = None
    request_id: str = ""
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions to be filled: exactly `tokens` of them, or where `exact` is false at most so many.

    A gap of up to n tokens ends at the stop token that the model has learnt, which is no part of the answer.
    """

    tokens: int
    exact: bool = True


Piece = TokenIds | Gap
INFILL_DRAFTERS = ("self", "ngram", "none")
"""Who drafts when gaps are filled: the model itself, the bigrams of the text, or nobody (one token a pass)."""


@dataclass(frozen=True, slots=True)
class InfillRequest:
    """Segments in order: text, token ids, or a gap. Only seed, temperature, top_k and top_p of `sampling` count.

    draft_tokens: most tokens drafted in one round.
    """

    segments: tuple[str | TokenIds | Gap, ...]
    sampling: Sampling = Sampling(temperature=1.0)
    drafter: str = "self"
    draft_tokens: int = 5
    timeout_s: float | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class InfillSpec:
    """What a worker must know of a filling besides the tokens that are final. `pieces` as in `InfillRequest`."""

    pieces: tuple[Piece, ...]
    sampling: Sampling = Sampling(temperature=1.0)
    drafter: str = "self"
    draft_tokens: int = 5


@dataclass(frozen=True, slots=True)
class InfillFacts:
    """What a router must know of an any-subset model. Ids that it lacks are None.

    stop_token_id ends a gap of up to n tokens; mask_token_id is never written.
    """

    name: str
    vocab_size: int
    context_len: int
    bos_token_id: int | None = None
    stop_token_id: int | None = None
    mask_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class FilledToken:
    """One final token: the segment it belongs to, which of its tokens it is, and whether it is a gap's stop token."""

    segment: int
    offset: int
    id: int
    stop: bool = False


@dataclass(frozen=True, slots=True)
class FilledSegment:
    """A segment of the answer: as it was given, or a gap with what was written, without its stop token."""

    index: int
    filled: bool
    text: str
    token_ids: TokenIds


@dataclass(slots=True)
class InfillUsage:
    """Counts of one filling; written tokens include the stop tokens of gaps."""

    given_tokens: int = 0
    written_tokens: int = 0
    model_passes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class InfillStarted:
    """The filling was admitted."""

    request_id: str
    given_tokens: int


@dataclass(frozen=True, slots=True)
class InfillChunk:
    """Tokens that became final together, in the order in which they were written; the gaps complete with them."""

    tokens: tuple[FilledToken, ...]
    segments: tuple[FilledSegment, ...] = ()


@dataclass(frozen=True, slots=True)
class InfillFinished:
    """Nothing follows. All segments, in order."""

    segments: tuple[FilledSegment, ...]
    usage: InfillUsage


InfillEvent = InfillStarted | InfillChunk | InfillFinished


@dataclass(frozen=True, slots=True)
class SparseLaw:
    """A truncated, renormalised law, exactly as it was sampled from: at most 64 ids, probabilities sum to 1."""

    ids: TokenIds
    probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of drafted tokens that hangs on the last committed token.

    tokens[i] is node i; parents[i] < i is its parent node, -1 the last committed token.
    drafters[i] names who proposed node i. laws[i], where a rule needs it, is the law node i was drawn from
    (of siblings drawn without replacement: the law before any of them was taken away).
    chains, where sequences were drawn i.i.d. and then merged: the nodes of each one in the order drawn, so that
    multiplicity and order survive the merging. Empty: every node was drawn once, siblings in the order of their index.
    """

    tokens: TokenIds = ()
    parents: TokenIds = ()
    drafters: tuple[str, ...] = ()
    laws: tuple[SparseLaw, ...] | None = None
    chains: tuple[TokenIds, ...] = ()

    @staticmethod
    def chain(tokens: TokenIds, drafter: str = "") -> Draft:
        """One branch: each token hangs on the one before."""
        n = len(tokens)
        return Draft(tokens, tuple(range(-1, n - 1)), (drafter,) * n)

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> TokenIds:
        """Depth of every node; children of the last committed token have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    def path(self, node: int) -> TokenIds:
        """Node indices from the root's child down to `node`."""
        path: list[int] = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return tuple(reversed(path))


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of one emitted token.

    `logprob` is of the processed law (after constraint, penalties, bias, temperature and truncation: the law that was
    sampled; at temperature 0 the processed law before the argmax), `raw` of the model's own softmax.
    `top` holds (token id, processed, raw) of the n most probable under the processed law.
    """

    logprob: float
    raw: float
    top: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Features:
    """Hidden states of the target, for drafters that read them.

    Row i belongs to the committed token at position `first + i`; `data` is bfloat16, little-endian, [rows, layers,
    width]. Layer -1 is what the unembedding reads.
    """

    first: int
    layers: TokenIds
    data: bytes


# What a worker is told. `base_len` is how many committed tokens the worker should already hold;
# `tokens` are the committed tokens that follow. base_len 0 opens the session anew and carries `spec`.


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a worker must know of a session besides its tokens."""

    sampling: Sampling
    prompt_len: int
    max_len: int  # no committed sequence will be longer: the slots to reserve
    rule: str = "coupled"
    branches: int = 0  # as in Speculation; 0 is the drafter's own choice
    max_draft_nodes: int = 0
    constraint: Constraint | None = None
    features: TokenIds = ()  # layers whose hidden states go with every verdict


@dataclass(frozen=True, slots=True)
class Verify:
    """Score the draft after the committed tokens and give a verdict. Prefill is a Verify without a draft.

    next_tokens: deepest draft for the round after it that the verdict is to carry, where the verifier can draft.
    """

    session: int
    base_len: int
    tokens: TokenIds
    draft: Draft = Draft()
    spec: SessionSpec | None = None
    next_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What a drafter that copies may know beyond the session's own tokens; see Speculation."""

    reference: TokenIds = ()
    tenant: str = ""
    private: bool = False


@dataclass(frozen=True, slots=True)
class Propose:
    """Draft at most `max_tokens` deep after the committed tokens; 0 only takes the tokens in (prefill).

    max_nodes: most nodes of the draft; 0 is the drafter's own choice.
    price: expected tokens that a node must bring to be worth its verification; 0: nodes are free.
    context: with base_len 0, for drafters that copy.
    features: for drafters that read them, of the token before the last committed one.
    """

    session: int
    base_len: int
    tokens: TokenIds
    max_tokens: int
    spec: SessionSpec | None = None
    max_nodes: int = 0
    price: float = 0.0
    context: DraftContext | None = None
    features: Features | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Forget the session. No reply."""

    session: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Run one round of a filling. `base_len` counts final tokens that the worker should already hold, `tokens` are the
    final ones that follow, in order of rank. base_len 0 opens the session anew and carries `spec`."""

    session: int
    base_len: int
    tokens: TokenIds
    spec: InfillSpec | None = None


Command = Verify | Propose | Fill | Close

# What a worker answers. `at` is the committed length the answer speaks about (base_len + len(tokens)).


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted path (node indices, root to leaf) and one more token of the target's own.

    draft: where asked for, the verifier's own for the next round; it hangs on `token`.
    features: where asked for, of the last token that `token` was drawn after.
    """

    session: int
    at: int
    accepted: TokenIds
    token: int
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per emitted token, where asked for
    forward_s: float = 0.0  # seconds in the target's forward pass of this batch
    batch: int = 1  # sessions verified in that pass
    positions: int = 1  # tokens of all sessions in that pass
    draft: Draft = Draft()
    draft_s: float = 0.0  # seconds of making the drafts of this batch
    features: Features | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """The draft for one round."""

    session: int
    at: int
    draft: Draft
    compute_s: float = 0.0  # seconds the drafter worked on this batch
    measured: Mapping[str, float] = field(default_factory=dict)  # now and then: of the replica, units in the names


@dataclass(frozen=True, slots=True)
class Filled:
    """What one round of a filling made final, in order of rank, and what it took."""

    session: int
    at: int
    tokens: TokenIds
    passes: int = 1  # forward passes of the model
    drafted: int = 0
    accepted: int = 0
    forward_s: float = 0.0  # seconds in those passes
    batch: int = 1  # most sessions that shared one


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The worker holds `held` committed tokens, not `base_len`: send again from 0 (`held` is for the log)."""

    session: int
    held: int


@dataclass(frozen=True, slots=True)
class Failed:
    """This session cannot go on at this worker. `kind` is the name of a class in `specserve.errors`."""

    session: int
    kind: str
    message: str


Reply = Verdict | Proposal | Filled | SessionLost | Failed


@dataclass(frozen=True, slots=True)
class Grant:
    """What an open lease says about its replica."""

    pool: str
    replica: str
    endpoint: str
    incarnation: int
    max_draft_tokens: int = 0  # deepest draft the replica makes or takes


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the router must know of the target to check requests."""

    name: str
    vocab_size: int
    context_len: int
    eos_token_ids: TokenIds


@dataclass(slots=True)
class DrafterUsage:
    """Counts of one drafter in one request. A token counts as drafted when it was sent for verification
    and was not cut by a stop; as accepted when it was emitted."""

    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Usage:
    """Counts of one request, emitted tokens only."""

    prompt_tokens: int = 0
    emitted_tokens: int = 0
    rounds: int = 0
    drafters: dict[str, DrafterUsage] = field(default_factory=dict)

    @property
    def drafted_tokens(self) -> int:
        return sum(d.drafted for d in self.drafters.values())

    @property
    def accepted_tokens(self) -> int:
        return sum(d.accepted for d in self.drafters.values())


@dataclass(frozen=True, slots=True)
class EmittedToken:
    """One token that reached the client."""

    id: int
    origin: Origin
    drafter: str = ""  # who drafted it, when accepted
    logprobs: TokenLogprobs | None = None
    text_end: int = 0  # characters of its chunk's text up to and with what it made printable


@dataclass(frozen=True, slots=True)
class Round:
    """How one round went, times in seconds. The round's overhead is what `wall_s` has beyond `forward_s`.

    `wall_s` runs from one verdict to the next (the first from admission), `draft_s` is the wait for drafts in it,
    `forward_s` the target's forward pass, shared by `batch` sessions; `nodes` were drafted, the deepest at `depth`.
    """

    wall_s: float
    forward_s: float
    draft_s: float = 0.0
    nodes: int = 0
    depth: int = 0
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream."""

    request_id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Newly emitted tokens; `text` is what became printable with them (it may lag by part of a character,
    or by the beginning of what may become a stop string)."""

    tokens: tuple[EmittedToken, ...]
    text: str
    round: Round | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a stream."""

    reason: FinishReason
    usage: Usage


Event = Started | Chunk | Finished


def merge(drafts: Iterator[Draft] | list[Draft]) -> Draft:
    """Join drafts into one tree; equal siblings become one node, credited to the first who proposed it."""
    tokens: list[int] = []
    parents: list[int] = []
    drafters: list[str] = []
    index: dict[tuple[int, int], int] = {}
    for draft in drafts:
        moved: list[int] = []
        for token, parent, drafter in zip(draft.tokens, draft.parents, draft.drafters, strict=True):
            at = moved[parent] if parent >= 0 else -1
            node = index.get((at, token))
            if node is None:
                node = index[at, token] = len(tokens)
                tokens.append(token)
                parents.append(at)
                drafters.append(drafter)
            moved.append(node)
    return Draft(tuple(tokens), tuple(parents), tuple(drafters))
