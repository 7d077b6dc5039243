"""`specserve bench router`: the sleepers behind it, and the figures it gives."""

from click.testing import CliRunner

from specserve.bench import router as bench
from specserve.bench.sleepers import SleepingDrafter, SleepingVerifier, token
from specserve.cli.bench import command
from specserve.types import Close, Draft, Proposal, Propose, Sampling, SessionLost, SessionSpec, Verdict, Verify

SPEC = SessionSpec(Sampling(), 4, 100)


def test_a_sleeping_verifier_accepts_what_it_would_have_said_itself() -> None:
    verifier = SleepingVerifier(0.0)
    assert verifier.submit(Verify(1, 0, (5, 5, 5, 5), spec=SPEC)) == ()
    assert verifier.step() == [Verdict(1, 4, (), token(4), positions=1)]
    verifier.submit(Verify(1, 5, (), Draft.chain((token(5), token(6), 0))))
    verdict = verifier.step()[0]
    assert isinstance(verdict, Verdict)
    assert (verdict.at, verdict.accepted, verdict.token) == (5, (0, 1), token(7))
    assert verifier.submit(Verify(1, 6, ())) == (SessionLost(1, 8),)
    verifier.submit(Close(1))
    assert verifier.stats()["sessions"] == 0


def test_a_sleeping_drafter_is_wrong_at_every_fourth_position() -> None:
    drafter = SleepingDrafter(0.0)
    drafter.submit(Propose(1, 0, (5, 5, 5, 5), 4, SPEC))
    proposal = drafter.step()[0]
    assert isinstance(proposal, Proposal)
    assert [t == token(4 + i) for i, t in enumerate(proposal.draft.tokens)] == [True, True, True, False]


def test_one_router_is_measured_on_the_real_data_plane() -> None:
    results = bench.run((2,), seconds=0.2, verifiers=1, drafters=1, verify_ms=2, openings=16, idle=8)
    level = results["levels"]["2"]
    assert level["rounds_per_s"] > 0
    assert 1 < level["tokens_per_s"] / level["rounds_per_s"] <= 4  # three drafts right, then the target's own
    assert results["sessions_opened_per_s"] > 0
    table = bench.markdown(results)
    assert "| 2 |" in table
    assert "memory of an idle session" in table


def test_the_command_names_its_options() -> None:
    text = CliRunner().invoke(command, ["router", "--help"]).output
    assert "--sessions" in text
    assert "--verify-ms" in text
