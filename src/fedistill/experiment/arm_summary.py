"""What an arm of a run did, as the Python API has it: with each seed, and over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedistill.deployment.classifier import Classifier
from fedistill.experiment.results import (
    AnyArmJson,
    RoundJson,
    SeedJson,
    Status,
    counted,
    last_views,
    of_seeds,
)
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.saved_models import open_saved
from fedistill.experiment.spread import Spread


@dataclass(frozen=True)
class SeedSummary:
    """What an arm of a run did with one seed.

    Attributes:
        arm: the arm's name; ``folder``: of the run with this seed.
        status: ``done``, ``stopped`` or ``failed``; of the last, ``error`` says why.
        rounds: as in results.json, the first is round 1.
        views: accuracy (0 to 1) by view when it was last evaluated.
        bytes_total: of all frames, set-up included, summed over clients; ``bytes_public``: of the public
            set, one copy for each client that needs one.
    """

    arm: str
    folder: Path
    seed: int
    status: Status
    error: str | None
    rounds: list[RoundJson]
    views: dict[str, float]
    bytes_total: int
    bytes_public: int

    def server_model(self) -> Classifier:
        """Return the server's model after the last complete round, with its preprocessing.

        Raises:
            ExperimentError: the arm has no server model, or no complete round; or the model's own code is
                missing.
        """
        return open_saved(RunFolder(self.folder), self.arm, "server")

    def client_model(self, client: int) -> Classifier:
        """Return the same of a client's own model; clients count from 0.

        Raises:
            ExperimentError: as `server_model`.
        """
        return open_saved(RunFolder(self.folder), self.arm, f"client-{client}")


@dataclass(frozen=True)
class ArmSummary:
    """One arm of a run; without `seeds` in the experiment, what it did with its one seed.

    Attributes:
        status: ``failed`` if it is with any seed, ``done`` if it is with all of them, else ``stopped``.
        error: why the first seed that failed did.
        seeds: what it did with each seed, in order; with several, those that have begun.
        counted: those that the figures below are about: all that are done; or, if none is, all that have
            played a round.
        views: accuracy (0 to 1) by view when it was last evaluated, the mean over seeds.
        views_deviation: their sample standard deviation (n - 1) over seeds; empty if fewer than two count.
        bytes_total: of all frames, set-up included, summed over clients; ``bytes_public``: of the public
            set, one copy for each client that needs one. Means over seeds.
        bytes_total_deviation: the sample standard deviation of ``bytes_total``; None if fewer than two count.
    """

    name: str
    method: str
    codec: str
    status: Status
    error: str | None
    seeds: list[SeedSummary]
    counted: list[SeedSummary]
    views: dict[str, float]
    views_deviation: dict[str, float]
    bytes_total: float
    bytes_total_deviation: float | None
    bytes_public: float

    @property
    def rounds(self) -> list[RoundJson]:
        """As in results.json, the first is round 1.

        Raises:
            AttributeError: there are several seeds, each of which has rounds of its own.
        """
        return self._only_seed("the rounds", "rounds").rounds

    def server_model(self) -> Classifier:
        """Return the server's model, as `SeedSummary.server_model` does.

        Raises:
            AttributeError: there are several seeds, each of which has models of its own.
        """
        return self._only_seed("the model", "server_model()").server_model()

    def client_model(self, client: int) -> Classifier:
        """Return a client's own model, as `SeedSummary.client_model` does.

        Raises:
            AttributeError: as `server_model`.
        """
        return self._only_seed("the model", f"client_model({client})").client_model(client)

    def _only_seed(self, what: str, place: str) -> SeedSummary:
        if len(self.seeds) != 1:
            raise AttributeError(
                f"arm {self.name!r} has {len(self.seeds)} seeds: take {what} of one, `seeds[0].{place}`"
            )
        return self.seeds[0]


def arm_summary(arm: AnyArmJson, asked: int, path: Path) -> ArmSummary:
    """Return the summary of an arm that was asked to run with so many seeds, in the folder of its run."""
    several, name = "seeds" in arm, arm["name"]
    seeds = [
        _seed_summary(one, name, RunFolder(path).of_seed(one["seed"]).path if several else path)
        for one in of_seeds(arm)
    ]
    numbers = [one["seed"] for one in counted(arm)]
    known = [one for one in seeds if one.seed in numbers]
    views = {
        view: Spread.of([one.views[view] for one in known if view in one.views])
        for view in dict.fromkeys(view for one in known for view in one.views)
    }
    total = Spread.of([one.bytes_total for one in known])
    return ArmSummary(
        name=arm["name"],
        method=arm["method"],
        codec=arm["codec"],
        status=_status([one.status for one in seeds], asked),
        error=next((one.error for one in seeds if one.error is not None), None),
        seeds=seeds,
        counted=known,
        views={view: spread.mean for view, spread in views.items()},
        views_deviation={v: spread.deviation for v, spread in views.items() if spread.deviation is not None},
        bytes_total=total.mean,
        bytes_total_deviation=total.deviation,
        bytes_public=Spread.of([one.bytes_public for one in known]).mean,
    )


def _status(states: Sequence[Status], asked: int) -> Status:
    if "failed" in states:
        return "failed"
    return "done" if states.count("done") == asked else "stopped"


def _seed_summary(one: SeedJson, arm: str, folder: Path) -> SeedSummary:
    return SeedSummary(
        arm=arm,
        folder=folder,
        seed=one["seed"],
        status=one["status"],
        error=one["error"],
        rounds=one["rounds"],
        views=last_views(one),
        bytes_total=one["bytes_total"],
        bytes_public=one["bytes_public"],
    )
