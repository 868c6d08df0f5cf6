"""The mechanism of an arm, with what its table `privacy` leaves open, and what it makes of a method."""

from fedistill.config.schema import AnyAccumulate, Arm
from fedistill.config.training import ResolvedTrain
from fedistill.errors import ExperimentError, TrainingError
from fedistill.methods.labels.voting import Voting
from fedistill.methods.participants import Client
from fedistill.methods.registry import AnyMethod
from fedistill.privacy.accounting import noise_for
from fedistill.privacy.central import NoisyMajority
from fedistill.privacy.mechanisms import DpSgd, Mechanism, NoisyVotes
from fedistill.privacy.registry import privacy_of

MAJORITY = "majority"


def privacy_in(arm: Arm) -> Mechanism | None:
    """Return the mechanism of an arm as its settings have it, or None.

    Raises:
        ExperimentError: there is no such mechanism, or one of its settings is invalid.
    """
    try:
        return privacy_of(arm.privacy)
    except ExperimentError as error:
        raise ExperimentError(f"arm {arm.name!r}: {error}") from None


def with_noise(mechanism: Mechanism | None, train: ResolvedTrain, rounds: int) -> Mechanism | None:
    """Return a mechanism with the noise that its budget allows, if it leaves that open.

    The budget is that of a client who takes part in every round: who is drawn less often spends less.

    Raises:
        ExperimentError: no noise is enough; or Opacus is not installed.
    """
    if not isinstance(mechanism, DpSgd) or mechanism.noise is not None:
        return mechanism
    assert mechanism.epsilon is not None
    found = noise_for(mechanism.epsilon, mechanism.rate, rounds * mechanism.steps(train), mechanism.delta)
    return mechanism.model_copy(update={"noise": found})


def with_noisy_votes(method: AnyMethod, mechanism: Mechanism | None, arm: str) -> AnyMethod:
    """Return an arm's method with noise in its majorities, if the mechanism adds some and it has them."""
    if not isinstance(mechanism, NoisyVotes) or not takes_noisy_votes(method):
        return method
    noisy = NoisyMajority(noise=mechanism.noise, arm=arm)
    return type(method)(method.settings.model_copy(update={"aggregation": noisy}))


def takes_noisy_votes(method: AnyMethod) -> bool:
    """Whether all that a method's server makes of votes is the class that has most of them."""
    # Of a class that is derived from it, nobody knows what else it makes of them.
    if type(method) is not Voting:
        return False
    assert isinstance(method, Voting)
    return method.settings.aggregation.name in (MAJORITY, NoisyMajority.model_fields["name"].default)


def check_steps(mechanism: Mechanism, client: Client) -> None:
    """Check that a client has trained with noise for no more steps than are counted.

    Raises:
        TrainingError: it has trained for more, as a method of somebody's own may.
    """
    if not isinstance(mechanism, DpSgd):
        return
    taken, counted = sum(client.noisy_steps), mechanism.steps(client.train)
    if taken > counted:
        raise TrainingError(
            f"the method has taken {taken} steps on private data where the privacy budget counts"
            f" {counted}: it"
            " must call `train_private` once in a round, without epochs of its own"
        )


def counts_rounds(accumulate: AnyAccumulate) -> bool:
    """Whether it is known before a run in which rounds something crosses."""
    return isinstance(accumulate, int)
