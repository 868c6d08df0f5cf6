"""Which modules an experiment, which the server sends, may name at a node."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedistill.config import plugins
from fedistill.config.plugins import Reference
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError
from fedistill.federation.arm import resolve_arm

KEY = "modules"
"""Key of a node config: names of modules and packages, separated by commas; by default, none."""


@dataclass(frozen=True)
class AllowedModules:
    """The modules that a node allows.

    Attributes:
        names: modules, and packages with all their modules.
        own_model: the model that the node chose itself, which needs no permission.
    """

    names: tuple[str, ...] = ()
    own_model: str | None = None

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> "AllowedModules":
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
        """Refuse references to modules that are not allowed.

        Raises:
            ExperimentError: the module is not allowed; the message names what to add to the node config.
        """
        if reference.kind == "model" and reference.written == self.own_model:
            return
        module = reference.module
        if not any(module == name or module.startswith(f"{name}.") for name in self.names):
            raise ExperimentError(
                f"{reference}: this node does not let an experiment name the module {module}; if its site"
                f' trusts it, allow it by {KEY}="{",".join([*self.names, module])}" in the node config'
            )


def look_up(experiment: Experiment) -> None:
    """Look up everything that an experiment names outside of fedistill; models are checked, but not imported.

    Raises:
        ExperimentError: something cannot be used, or a check before an import refuses it.
    """
    for arm in experiment.arms:
        for model in dict.fromkeys([*arm.models.clients, arm.models.server]):
            if ":" in model:
                plugins.ask(Reference("model", model, model.partition(":")[0]))
        resolve_arm(arm)


def modules_of(experiment: Experiment) -> list[str]:
    """Return the modules that a node has to allow for an experiment.

    Raises:
        ExperimentError: something that it names cannot be used.
    """
    found: list[str] = []
    with plugins.before_import(lambda reference: found.append(reference.module)):
        look_up(experiment)
    return sorted(set(found))
