"""Which modules an experiment, which comes from the server, may name at a node."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedistill.config import plugins
from fedistill.config.plugins import Reference
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError
from fedistill.federation.arm import resolve_arm
from fedistill.federation.metrics import find_metrics
from fedistill.methods.registry import create_method

Config = Mapping[str, bool | float | int | str]
"""A run config or a node config, as Flower has read it."""
KEY = "modules"
"""In a node config: names of modules and packages, separated by commas; none unless it is there."""


@dataclass(frozen=True)
class AllowedModules:
    """A node's list.

    Attributes:
        names: modules, and packages with all that is in them.
        own_model: the node's own choice, which needs no permission.
    """

    names: tuple[str, ...] = ()
    own_model: str | None = None

    @classmethod
    def of(cls, node_config: Config) -> "AllowedModules":
        """Read a node config.

        Raises:
            ExperimentError: `modules` is not a list of names.
        """
        given = node_config.get(KEY, "")
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else []
        names = [name for name in names if name] if given == "" else names
        if not isinstance(given, str) or not all(map(plugins.is_module, names)):
            raise ExperimentError(
                f"node config: {KEY} = {given!r} must name modules as Python would import them, separated by"
                f' commas, for example {KEY}="my_methods,my_package.models"'
            )
        model = node_config.get("model")
        return cls(tuple(names), None if model is None else str(model))

    def check(self, reference: Reference) -> None:
        """Refuse what is not on the list.

        Raises:
            ExperimentError: says what to add to the node config.
        """
        if reference.kind == "model" and reference.written == self.own_model:
            return
        module = reference.module
        if not any(module == name or module.startswith(f"{name}.") for name in self.names):
            raise ExperimentError(
                f"{reference}: this node does not let an experiment name the module {module}; if its site"
                f' trusts that, {KEY}="{",".join([*self.names, module])}" in its node config allows it'
            )


def look_up(experiment: Experiment) -> None:
    """Look up all that an experiment names outside of fedistill; functions are asked for, but not imported.

    Raises:
        ExperimentError: something cannot be used, or whoever is asked before an import refuses it.
    """
    find_metrics(experiment.evaluate.metrics)
    for arm in experiment.arms:
        frozen = create_method(arm).frozen_models
        named = [("model", model) for model in (*arm.models.clients, arm.models.server, *frozen)]
        named += [("optimizer", arm.train.optimizer.name or ""), ("loss", arm.train.loss)]
        for kind, function in dict.fromkeys(named):
            if ":" in function:
                plugins.ask(Reference(kind, function, function.partition(":")[0]))
        resolve_arm(arm)


def modules_of(experiment: Experiment) -> list[str]:
    """Modules that a node has to allow for an experiment.

    Raises:
        ExperimentError: something that it names cannot be used.
    """
    found: list[str] = []
    with plugins.before_import(lambda reference: found.append(reference.module)):
        look_up(experiment)
    return sorted(set(found))
