"""The checks of outside methods and codecs: they pass what is sound, and name what is broken."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedistill.errors import ExperimentError
from fedistill.methods.weights.fedavg import FedAvg
from fedistill.testing import ContractError, check_codec, check_method, codec_checks, method_checks
from fedistill.testing.checks import run_checks
from helpers.installed import Installer, installed

METHODS = '''
import itertools
from dataclasses import dataclass, replace
from fedistill.communication.messages.weights import TrainedWeights
from fedistill.errors import Refusal
from fedistill.methods.labels.dsfl import DsFl
from fedistill.methods.weights.fedavg import FedAvg

calls = itertools.count()

class Drifting(FedAvg):
    """Each call at the server is another one."""

    name = "drifting"

    def server_step(self, state, server, replies):
        after = super().server_step(state, server, replies)
        weights = after.model.weights + 0.01 * next(calls)
        return replace(after, model=replace(after.model, weights=weights))

class Picky(DsFl):
    """Says that it takes any models, and does not."""

    name = "picky"

    def check(self, federation):
        if federation.server_model == "cnn-m":
            raise Refusal("not this one")

class Silent(FedAvg):
    name = "silent"

@dataclass(frozen=True)
class Fragile(TrainedWeights):
    def check(self):
        if self.samples != 1:
            raise KeyError(self.samples)

class Careless(FedAvg):
    """Its message does not expect others than its own."""

    name = "careless"
    uplink = Fragile
'''
CODECS = """
from dataclasses import replace
import numpy as np
from fedistill.communication.codecs.base import Decoded, Encoded
from fedistill.communication.codecs.plain import Fp32
from fedistill.communication.tensor_specs import Content

class Lossy(Fp32):
    name = "lossy"
    def encode(self, values, spec, known, sender):
        return super().encode(values.round(2), spec, known, sender)

class Crashing(Fp32):
    name = "crashing"
    def decode(self, payload, spec, known):
        return Decoded(np.frombuffer(payload, "<f4").reshape(spec.shape).copy())

class Varying(Fp32):
    name = "varying"
    def encode(self, values, spec, known, sender):
        payload = super().encode(values, spec, known, sender).payload
        return Encoded(payload + bytes(1 + sender.random.integers(99)))
    def decode(self, payload, spec, known):
        return super().decode(payload[: 4 * spec.count], spec, known)

class Amnesiac(Fp32):
    name = "amnesiac"
    remembers = True
    def encode(self, values, spec, known, sender):
        sent = super().encode(values, spec, known, sender)
        return replace(sent, memory={"messages": 1})

class Meddling(Fp32):
    name = "meddling"
    def encode(self, values, spec, known, sender):
        values += 1
        return super().encode(values, spec, known, sender)

class Secret(Fp32):
    name = "secret"
    def encode(self, values, spec, known, sender):
        return replace(super().encode(values, spec, known, sender), own={"messages": 1})

class Reaching(Fp32):
    name = "reaching"
    relative = True
"""


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Installer]:
    with installed(tmp_path) as installer:
        installer.package("checked", faulty_methods=METHODS, faulty_codecs=CODECS)
        yield installer


def broken(checks: list[tuple[str, Callable[[], None]]], name: str) -> str:
    with pytest.raises(AssertionError) as caught:
        dict(checks)[name]()
    return str(caught.value)


METHOD_FAULTS = {
    (
        "Drifting",
        "same_seed_same_bits",
    ): "two runs of one seed must be the same bit for bit, but they differ in the server's state",
    (
        "Drifting",
        "worker_processes_end_in_the_same_bits",
    ): "a run in worker processes must be bit-identical",
    ("Drifting", "resumed_ends_as_never_stopped"): "a resumed run must end as one that never stopped, but",
    (
        "Drifting",
        "lost_replies_change_nothing_at_the_server",
    ): "the server's state has changed, although every",
    ("Picky", "models_that_differ_run_or_are_refused_with_a_fix"): "its `needs` accept any models, but",
    ("Silent", "it_says_what_it_is"): "Silent needs a docstring that says how it works and what is exchanged",
    ("Careless", "damaged_messages_are_refused"): "raised KeyError and not FrameError",
}


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(("method", "rule"), METHOD_FAULTS)
def test_a_method_that_breaks_a_rule_is_told_which_and_how(method: str, rule: str) -> None:
    faulty_methods = importlib.import_module("faulty_methods")
    found = broken(method_checks(getattr(faulty_methods, method)), rule)
    assert METHOD_FAULTS[method, rule] in found


CODEC_FAULTS = {
    ("Lossy", "numbers_come_back"): "its `lossiness` is nothing, but other numbers come back",
    ("Crashing", "damaged_bytes_are_refused"): "ValueError and not FrameError",
    ("Varying", "equal_shapes_take_equal_bytes"): "`fixed` is True, but messages have",
    ("Amnesiac", "both_sides_remember_the_same"): "message 1: the two sides remember different things",
    ("Meddling", "both_sides_remember_the_same"): "the numbers that are sent are changed in place",
    ("Secret", "both_sides_remember_the_same"): "it keeps something, but `keeps` is False",
    ("Reaching", "only_what_sends_weights_is_relative"): "`relative` is True, but it codes more than weights",
}


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(("codec", "rule"), CODEC_FAULTS)
def test_a_codec_that_breaks_a_rule_is_told_which_and_how(codec: str, rule: str) -> None:
    found = broken(codec_checks(f"faulty_codecs:{codec}"), rule)
    assert CODEC_FAULTS[codec, rule] in found


def test_one_error_lists_all_that_failed() -> None:
    def fine() -> None: ...

    def wrong() -> None:
        raise AssertionError("2 is not 3")

    def crashes() -> None:
        raise KeyError("size")

    def refused() -> None:
        raise ExperimentError("no such thing")

    checks = [(check.__name__, check) for check in (fine, wrong, crashes, refused)]
    with pytest.raises(ContractError) as caught:
        run_checks("method mine", checks)
    assert str(caught.value) == (
        "method mine breaks 3 of 4 rules of the contract:\n- wrong: 2 is not 3\n- crashes: raised KeyError:"
        " 'size'\n- refused: no such thing"
    )
    assert run_checks("method mine", checks[:1]) == ["fine"]


def test_a_class_that_no_experiment_can_name_is_refused_at_once() -> None:
    class Local(FedAvg):
        """Defined in a function."""

    with pytest.raises(
        ContractError, match=r"Local: worker processes import it by name, so define it at the"
    ):
        method_checks(Local)
    with pytest.raises(ExperimentError, match=r"^method 'fedagv' is not one of "):
        check_method("fedagv")


def test_sound_ones_pass_all_checks(install: Installer) -> None:
    install.outside()
    method = importlib.import_module("fedistill_outside.methods").Ballots

    experiment = {"task": {"limit": 200, "public": 60}}
    settings = {"codec": "bf16", "aggregation": "geometric"}
    passed = check_method(method, settings=settings, experiment=experiment)
    assert passed == [name for name, _ in method_checks("ballots")]
    assert "lost_replies_change_nothing_at_the_server" in passed
    assert check_codec("bf16") == [name for name, _ in codec_checks("bf16")]
