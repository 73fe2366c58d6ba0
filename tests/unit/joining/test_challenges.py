"""What a worker signs: made by the server, by the server's clock alone."""

import pytest

from gpustack.kit.errors import InvalidInput, Unavailable
from gpustack.kit.signing import new_key, public_key, sign
from gpustack.schemas import WorkerProof, WorkerRegistration
from gpustack.server.auth.challenges import LIFETIME, Challenges
from support.records import a_registration

KEY = new_key()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def signed(challenge: str, key: str = KEY, **fields: object) -> WorkerRegistration:
    wanted = a_registration(**fields)
    proof = WorkerProof(
        public_key=public_key(key), challenge=challenge, signature=sign(key, wanted.signed(challenge))
    )
    return wanted.model_copy(update={"proof": proof})


def test_one_of_another_server_with_the_same_token_counts() -> None:
    clock = Clock()

    Challenges("token", clock=clock).check(signed(Challenges("token", clock=clock).make()))


def test_none_is_like_another() -> None:
    challenges = Challenges("token")

    assert len({challenges.make() for _ in range(100)}) == 100


@pytest.mark.parametrize("seconds", [LIFETIME + 1, -LIFETIME - 1])
def test_an_old_one_is_over(seconds: float) -> None:
    clock = Clock()
    challenges = Challenges("token", clock=clock)
    registration = signed(challenges.make())
    clock.now += seconds

    with pytest.raises(Unavailable, match="ask for another"):
        challenges.check(registration)


@pytest.mark.parametrize("challenge", ["", "rubbish", "ä", "A" * 54])
def test_one_that_this_server_did_not_make_is_over(challenge: str) -> None:
    with pytest.raises(Unavailable, match="ask for another"):
        Challenges("token").check(signed(challenge))


def test_one_of_a_server_with_another_token_is_over() -> None:
    with pytest.raises(Unavailable):
        Challenges("token").check(signed(Challenges("other").make()))


@pytest.mark.parametrize(
    "change",
    [
        {"worker_uuid": "another-uuid"},
        {"start": "another"},
        {"home": "another"},
        {"boot": "another"},
        {"hostname": "another"},
        {"ip": "10.9.9.9"},
        {"port": 1},
        {"door_token": "another-door-token"},
    ],
)
def test_who_changes_where_the_worker_is_breaks_the_signature(change: dict[str, object]) -> None:
    challenges = Challenges("token")
    registration = signed(challenges.make()).model_copy(update=change)

    with pytest.raises(InvalidInput, match="not signed by the key"):
        challenges.check(registration)


def test_a_registration_without_proof_is_none_of_its_business() -> None:
    Challenges("token").check(a_registration())
