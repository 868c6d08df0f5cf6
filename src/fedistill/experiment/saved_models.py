"""Which models are saved of an arm after its last complete round, and what their cards state."""

from pathlib import Path

from fedistill.communication.codecs import registry as codecs
from fedistill.config.schema import Experiment
from fedistill.config.task import Source
from fedistill.deployment.classifier import Classifier, open_model
from fedistill.deployment.description import Columns, Origin
from fedistill.deployment.model_card import portable_command, without_folders
from fedistill.deployment.saving import Trained, save
from fedistill.errors import ExperimentError
from fedistill.experiment.run_folder import RunFolder
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.federation.history import ArmRun
from fedistill.federation.ledger import SETUP_ROUND
from fedistill.federation.running_mean import as_measured
from fedistill.methods.base import AnyState
from fedistill.models import registry as models


def save_models(folder: RunFolder, experiment: Experiment, arm: ReadyArm, run: ArmRun) -> None:
    """Save the models of an arm, each in a folder of its own; none before its first complete round."""
    if run.round == 0:
        return
    about = _of_run(arm, run, folder.command())
    server = _server_model(arm, run)
    if server is not None:
        accuracy = run.records[-1].views.get("server@global")
        origin = about.model_copy(update={"accuracy": accuracy})
        _save(folder.model_folder(arm.name, "server"), experiment, arm, server, origin)
    for name, state in arm.method.travelling_models(run.server).items():
        network = models.reusable(name, arm.signature(name))
        origin = about.model_copy(update={"role": "travelling"})
        path = folder.model_folder(arm.name, f"travelling-{name}")
        _save(path, experiment, arm, Trained(name, name, network, state), origin)
    if arm.method.has_client_models:
        for client, kept in run.clients.items():
            path = folder.model_folder(arm.name, f"client-{client}")
            scores = run.scores.get(client)
            correct = scores.correct if scores else None
            save_client_model(path, experiment, arm, client, kept, about, correct or None)


def save_client_model(
    path: Path,
    experiment: Experiment,
    arm: ReadyArm,
    client: int,
    state: bytes,
    about: Origin,
    correct: list[int] | None = None,
    own: Source | None = None,
) -> None:
    """Save a client's own model.

    Args:
        path: the folder of the model.
        state: what the client keeps (`ClientResult`).
        about: the run so far.
        correct: its correct answers on the test set by class, if they are those of this state.
        own: where its samples are from, if not from the experiment's data.
    """
    name = arm.federation.clients[client].model
    network = models.reusable(name, arm.signature(name))
    names = arm.task.client_names
    found = {
        "role": "client",
        "client": client,
        "site": names[client] if names else None,
        "accuracy": None if correct is None else sum(correct) / len(arm.task.test),
    }
    trained = Trained(name, name, network, client_state(arm, client, state).model)
    _save(path, experiment, arm, trained, about.model_copy(update=found), own)


def open_saved(folder: RunFolder, arm: str, name: str) -> Classifier:
    """Load a saved model of a run, by the name of its folder; a custom model is imported as in the run.

    Raises:
        ExperimentError: there is no such model, or it cannot be loaded.
    """
    path = folder.model_folder(arm, name)
    if path.is_dir():
        return open_model(path)
    there = sorted(found.name for found in path.parent.iterdir()) if path.parent.is_dir() else []
    if there:
        raise ExperimentError(f"arm {arm!r} has no model {name!r}; it has {', '.join(there)}")
    raise ExperimentError(
        f"arm {arm!r} has saved no models in {folder.path}: models are saved once a round is complete"
    )


def about_site(arm: ReadyArm, round: int) -> Origin:
    """Return what a site of a network knows about its run after this round.

    Whose model it is, and its size, are filled in where it is saved.
    """
    return Origin(
        # The names of own data are paths.
        task=without_folders(arm.task.name),
        arm=arm.name,
        method=arm.config.method,
        codec=codecs.title(arm.config.codec or arm.method.codec),
        role="server",
        seed=arm.seed,
        round=round,
        rounds=arm.rounds,
        parameters=0,
    )


def _of_run(arm: ReadyArm, run: ArmRun, command: str) -> Origin:
    rounds = [entry for entry in run.ledger.entries if entry.round != SETUP_ROUND]
    known = {
        "views": run.records[-1].views,
        "bytes_up": sum(entry.bytes for entry in rounds if entry.direction == "up"),
        "bytes_down": sum(entry.bytes for entry in rounds if entry.direction == "down"),
        "bytes_setup": run.ledger.setup,
        "bytes_public": run.ledger.public,
        "command": portable_command(command),
    }
    return about_site(arm, run.round).model_copy(update=known)


def _server_model(arm: ReadyArm, run: ArmRun) -> Trained | None:
    """Return the server's model as it is measured, or None if it has none."""
    found = arm.server_model()
    if found is None:
        return None
    name, network = found
    state = as_measured(run.server, run.mean)

    def own(client: int) -> AnyState:
        return client_state(arm, client, run.clients.get(client, b""))

    reads = None
    if not arm.method.needs.evaluation_at_clients:
        for model, _ in arm.method.server_eval_models(state, arm.server(SETUP_ROUND), own):
            reads = model
    return Trained(name, reads, network, state.model)


def _save(
    path: Path,
    experiment: Experiment,
    arm: ReadyArm,
    model: Trained,
    origin: Origin,
    own: Source | None = None,
) -> None:
    source = own or experiment.task
    task = experiment.task
    names = None if task.column_names is None else tuple(task.column_names)
    columns = Columns(
        input=source.input,
        label=source.label,
        names=names,
        missing=tuple(task.missing),
        relabel=task.relabel,
    )
    counted = {"parameters": models.count_parameters(model.network)}
    resize = experiment.task.image_size is not None
    save(path, model, arm.task, columns, resize, origin.model_copy(update=counted))
