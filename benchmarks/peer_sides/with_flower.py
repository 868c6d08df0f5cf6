"""Flower's side: its simulation on Ray with one worker of one processor, FedAvg, no evaluation."""

import sys
from collections.abc import Iterable
from typing import Any

from flower_client import app as client
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from turns import Turns, processor_of_tree, started


class Rounds(FedAvg):
    """Starts a round when it is asked for; one ends when the mean is there."""

    def __init__(self, turns: Turns, **settings: Any) -> None:
        super().__init__(**settings)
        self._turns = turns

    def configure_train(self, *args: Any) -> Iterable[Any]:
        self._turns.wait()
        return super().configure_train(*args)

    def aggregate_train(self, *args: Any) -> Any:
        found = super().aggregate_train(*args)
        self._turns.played()
        return found


workload, turns = started(processor_of_tree)
settings = workload.settings
server = ServerApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    share = settings["participants"] / settings["clients"]
    strategy = Rounds(turns, fraction_train=share, fraction_evaluate=0.0)
    model = workload.network()
    result = strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=settings["rounds"],
        train_config=ConfigRecord({"data": sys.argv[1], "settings": sys.argv[2]}),
    )
    model.load_state_dict(result.arrays.to_torch_state_dict())
    turns.score(workload, model)


run_simulation(
    server,
    client,
    num_supernodes=settings["clients"],
    backend_config={
        "init_args": {"num_cpus": 1, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    },
)
