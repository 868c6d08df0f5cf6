"""Why logits that are turned around are not refused: under label skew honest ones look no better."""

import torch
from torch import Tensor

from fedistill import parse
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.labels import Logits
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run

LIARS = (1, 7)


class Kept:
    """Keeps the logits that the server accepts."""

    def __init__(self) -> None:
        self.logits: dict[int, Tensor] = {}

    def sent(self, client: int, message: Message | None) -> None:
        pass

    def accepted(self, client: int, message: Message) -> None:
        assert isinstance(message, Logits)
        self.logits[client] = message.scores.double()


def confirmed(logits: dict[int, Tensor]) -> dict[int, float]:
    """Return the correlation of each client's logits with the sum of the others', by number.

    All have one length, and neither samples nor classes have a mean of their own.
    """
    centred = {client: own - own.mean(dim=1, keepdim=True) for client, own in logits.items()}
    centred = {client: own - own.mean(dim=0, keepdim=True) for client, own in centred.items()}
    alike = {client: own / own.norm() for client, own in centred.items()}
    total = torch.stack([*alike.values()]).sum(dim=0)
    return {
        client: float(torch.cosine_similarity(own.flatten(), (total - own).flatten(), dim=0))
        for client, own in alike.items()
    }


def test_clients_with_one_class_each_confirm_a_liar_rather_than_each_other() -> None:
    experiment = parse(
        {
            "rounds": 1,
            "task": {
                "name": "digits",
                "clients": 10,
                "public": 300,
                "partition": "pathological(classes_per_client=1)",
            },
            "models": {"clients": ["cnn-s", "mlp-s"], "server": "cnn-s"},
            "arms": [{"method": "fedmd"}],
        },
        "turned",
    )
    task, (arm,) = prepare(experiment)
    kept = Kept()
    with SerialExecutor(experiment, task) as executor:
        play_round(start_run(arm), arm, executor, kept)
    lied = {client: -own if client in LIARS else own for client, own in kept.logits.items()}
    found = confirmed(lied)
    honest = [figure for client, figure in found.items() if client not in LIARS]
    assert max(found[client] for client in LIARS) > max(honest)
    assert min(honest) < 0
