"""The data plane's messages <-> types. Both directions are hot: one call each per batch, plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specserve.types import (
    Close,
    Command,
    Constraint,
    Draft,
    DraftContext,
    Failed,
    Features,
    Fill,
    Filled,
    Gap,
    InfillSpec,
    Piece,
    Proposal,
    Propose,
    Reply,
    Sampling,
    SessionLost,
    SessionSpec,
    SparseLaw,
    TokenLogprobs,
    Verdict,
    Verify,
)
from specserve.worker.v1 import worker_pb2 as pb


def encode_commands(commands: Sequence[Command]) -> pb.WorkRequest:
    """One message for one replica. A session's close never overtakes its other commands: it is its last."""
    request = pb.WorkRequest()
    for command in commands:
        if isinstance(command, Verify):
            verify = request.verify.add(
                session=command.session,
                base_len=command.base_len,
                tokens=command.tokens,
                next_tokens=command.next_tokens,
            )
            if command.draft.tokens:
                _put_draft(verify.draft, command.draft)
            if command.spec is not None:
                _put_spec(verify.spec, command.spec)
        elif isinstance(command, Propose):
            propose = request.propose.add(
                session=command.session,
                base_len=command.base_len,
                tokens=command.tokens,
                max_tokens=command.max_tokens,
                max_nodes=command.max_nodes,
                price=command.price,
            )
            if command.spec is not None:  # drafters follow no grammar
                _put_spec(propose.spec, replace(command.spec, constraint=None))
            if command.context is not None:
                context = command.context
                propose.context.reference.extend(context.reference)
                propose.context.tenant, propose.context.private = context.tenant, context.private
            if command.features is not None:
                _put_features(propose.features, command.features)
        elif isinstance(command, Fill):
            fill = request.fill.add(session=command.session, base_len=command.base_len, tokens=command.tokens)
            if command.spec is not None:
                _put_infill_spec(fill.spec, command.spec)
        else:
            request.close.append(command.session)
    return request


def decode_commands(request: pb.WorkRequest) -> list[Command]:
    """Inverse of `encode_commands`."""
    commands: list[Command] = []
    for v in request.verify:
        draft = _get_draft(v.draft) if v.HasField("draft") else Draft()
        spec = _get_spec(v.spec) if v.HasField("spec") else None
        commands.append(Verify(v.session, v.base_len, tuple(v.tokens), draft, spec, v.next_tokens))
    for p in request.propose:
        spec = _get_spec(p.spec) if p.HasField("spec") else None
        context = None
        if p.HasField("context"):
            context = DraftContext(tuple(p.context.reference), p.context.tenant, p.context.private)
        features = _get_features(p.features) if p.HasField("features") else None
        wish = p.max_tokens, spec, p.max_nodes, p.price, context, features
        commands.append(Propose(p.session, p.base_len, tuple(p.tokens), *wish))
    for f in request.fill:
        filling = _get_infill_spec(f.spec) if f.HasField("spec") else None
        commands.append(Fill(f.session, f.base_len, tuple(f.tokens), filling))
    commands.extend(Close(session) for session in request.close)
    return commands


def encode_replies(replies: Sequence[Reply]) -> pb.WorkResponse:
    """One message for one router."""
    response = pb.WorkResponse()
    for reply in replies:
        if isinstance(reply, Verdict):
            verdict = response.verdicts.add(
                session=reply.session,
                at=reply.at,
                accepted=reply.accepted,
                token=reply.token,
                forward_s=reply.forward_s,
                batch=reply.batch,
                positions=reply.positions,
                draft_s=reply.draft_s,
            )
            if reply.draft.tokens:
                _put_draft(verdict.draft, reply.draft)
            if reply.features is not None:
                _put_features(verdict.features, reply.features)
            for entry in reply.logprobs:
                ids, processed, raw = zip(*entry.top, strict=True) if entry.top else ((), (), ())
                verdict.logprobs.add(
                    logprob=entry.logprob, raw=entry.raw, top_ids=ids, top_logprobs=processed, top_raw=raw
                )
        elif isinstance(reply, Proposal):
            proposal = response.proposals.add(session=reply.session, at=reply.at, compute_s=reply.compute_s)
            _put_draft(proposal.draft, reply.draft)
            proposal.measured.update(reply.measured)
        elif isinstance(reply, Filled):
            response.filled.add(**{name: getattr(reply, name) for name in Filled.__slots__})
        elif isinstance(reply, SessionLost):
            response.lost.add(session=reply.session, held=reply.held)
        else:
            response.failed.add(session=reply.session, kind=reply.kind, message=reply.message)
    return response


def decode_replies(response: pb.WorkResponse, drafter: str = "") -> list[Reply]:
    """Inverse of `encode_replies`; `drafter` names the pool the stream belongs to, for attribution."""
    replies: list[Reply] = []
    for v in response.verdicts:
        logprobs = tuple(
            TokenLogprobs(e.logprob, e.raw, tuple(zip(e.top_ids, e.top_logprobs, e.top_raw, strict=True)))
            for e in v.logprobs
        )
        cost = v.forward_s, v.batch, v.positions
        draft = _get_draft(v.draft, drafter) if v.HasField("draft") else Draft()
        features = _get_features(v.features) if v.HasField("features") else None
        replies.append(
            Verdict(v.session, v.at, tuple(v.accepted), v.token, logprobs, *cost, draft, v.draft_s, features)
        )
    for p in response.proposals:
        replies.append(Proposal(p.session, p.at, _get_draft(p.draft, drafter), p.compute_s, dict(p.measured)))
    for d in response.filled:
        counts = d.passes, d.drafted, d.accepted
        replies.append(Filled(d.session, d.at, tuple(d.tokens), *counts, d.forward_s, d.batch))
    for s in response.lost:
        replies.append(SessionLost(s.session, s.held))
    for f in response.failed:
        replies.append(Failed(f.session, f.kind, f.message))
    return replies


def _put_draft(out: pb.Draft, draft: Draft) -> None:
    out.tokens.extend(draft.tokens)
    if draft.parents != tuple(range(-1, len(draft.tokens) - 1)):
        out.parents.extend(draft.parents)
    if draft.laws is not None:
        for law in draft.laws:
            out.laws.add(ids=law.ids, probs=law.probs)
    for chain in draft.chains:
        out.chains.add(nodes=chain)


def _get_draft(draft: pb.Draft, drafter: str = "") -> Draft:
    tokens = tuple(draft.tokens)
    parents = tuple(draft.parents) or tuple(range(-1, len(tokens) - 1))
    laws = tuple(SparseLaw(tuple(law.ids), tuple(law.probs)) for law in draft.laws) or None
    chains = tuple(tuple(path.nodes) for path in draft.chains)
    return Draft(tokens, parents, (drafter,) * len(tokens), laws, chains)


def _put_features(out: pb.Features, features: Features) -> None:
    out.first, out.data = features.first, features.data
    out.layers.extend(features.layers)


def _get_features(features: pb.Features) -> Features:
    return Features(features.first, tuple(features.layers), features.data)


# Sampling's fields that workers need, by the same name on both sides.
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def _put_spec(out: pb.SessionSpec, spec: SessionSpec) -> None:
    out.prompt_len, out.max_len, out.rule = spec.prompt_len, spec.max_len, spec.rule
    out.branches, out.max_draft_nodes = spec.branches, spec.max_draft_nodes
    out.features.extend(spec.features)
    for name in _SAMPLING:
        setattr(out, name, getattr(spec.sampling, name))
    for token, bias in spec.sampling.logit_bias.items():
        out.logit_bias[token] = bias
    if spec.sampling.logprobs is not None:
        out.logprobs = spec.sampling.logprobs
    constraint = spec.constraint
    if constraint is None:
        return
    if constraint.json_schema is not None:
        out.constraint.json_schema = constraint.json_schema
    elif constraint.regex is not None:
        out.constraint.regex = constraint.regex
    else:
        out.constraint.choice.choices.extend(constraint.choice or ())


def _get_spec(spec: pb.SessionSpec) -> SessionSpec:
    sampling = Sampling(
        **{name: getattr(spec, name) for name in _SAMPLING},
        logit_bias=dict(spec.logit_bias),
        logprobs=spec.logprobs if spec.HasField("logprobs") else None,
    )
    return SessionSpec(
        sampling,
        spec.prompt_len,
        spec.max_len,
        spec.rule,
        spec.branches,
        spec.max_draft_nodes,
        _get_constraint(spec.constraint) if spec.HasField("constraint") else None,
        tuple(spec.features),
    )


def _get_constraint(constraint: pb.Constraint) -> Constraint:
    kind = constraint.WhichOneof("kind")
    if kind == "json_schema":
        return Constraint(json_schema=constraint.json_schema)
    if kind == "regex":
        return Constraint(regex=constraint.regex)
    return Constraint(choice=tuple(constraint.choice.choices))


def _put_infill_spec(out: pb.InfillSpec, spec: InfillSpec) -> None:
    for piece in spec.pieces:
        if isinstance(piece, Gap):
            out.pieces.add(gap=piece.tokens, may_stop=not piece.exact)
        else:
            out.pieces.add(given=piece)
    sampling = spec.sampling
    out.temperature, out.top_p, out.top_k, out.seed = (
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed,
    )  # fmt: skip
    out.drafter, out.draft_tokens = spec.drafter, spec.draft_tokens


def _get_infill_spec(spec: pb.InfillSpec) -> InfillSpec:
    pieces: tuple[Piece, ...] = tuple(
        Gap(piece.gap, not piece.may_stop) if piece.gap else tuple(piece.given) for piece in spec.pieces
    )
    sampling = Sampling(temperature=spec.temperature, top_p=spec.top_p, top_k=spec.top_k, seed=spec.seed)
    return InfillSpec(pieces, sampling, spec.drafter, spec.draft_tokens)
