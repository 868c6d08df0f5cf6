"""``fedistill audit`` as a user sees it: tables, the file, what stays as it is, and messages."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedistill.studies.audit import audit as auditing
from fedistill.studies.audit.audit_json import read_audit
from helpers.program import PATIENCE, here, start
from helpers.small import write_small

QUICK = ("--shadows", "2", "--rounds", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    write_small(place, 'method = "fedavg"\ncodec = "qsgd"', 'method = "gaussian"\nname = "statistics"')
    assert here("compare", "exp.toml", "--out", "a run", "--quiet", cwd=place).returncode == 0
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "audit.json"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_tables_the_file_and_an_untouched_run(place: Path) -> None:
    before = digests(place / "a run")
    ended = here("audit", "a run", *QUICK, cwd=place)
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        "fedavg: 2 rounds replayed; frames, views and state are those of the run",
        "fedavg: client 0 audited (1 of 2)",
        "fedavg: client 1 audited (2 of 2)",
        "statistics: 2 rounds replayed; frames, views and state are those of the run",
        "statistics: client 0 audited (1 of 2)",
        "statistics: client 1 audited (2 of 2)",
    ]
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in ended.stdout.splitlines()
        if line.startswith("│")
    ]
    rows = {(*row[:3],): row for row in cells}
    assert {*rows} >= {
        *(("fedavg", "weights", score) for score in ("loss", "entropy", "lira", "blind")),
        ("statistics", "statistics", "trace"),
    }
    (counts,) = [row for row in cells if row[:2] == ["statistics", "counts"]]
    assert counts[2].startswith("0.000 (0.")
    assert rows["fedavg", "weights", "lira"][-1] == "too few non-members"
    assert ended.stdout.splitlines()[-1] == "audit: a run/audit.json"
    assert digests(place / "a run") == before, "the run is left as it was"

    found = read_audit(place / "a run")
    assert found is not None
    again = here("audit", "a run", *QUICK, "--json", cwd=place)
    assert (again.returncode, again.stderr) == (0, ""), "what is there is not audited again"
    shown = json.loads(again.stdout)
    assert shown["folder"] == "a run"
    assert shown["arms"] == json.loads(json.dumps(found["arms"]))
    one = here("audit", "a run", *QUICK, "--arm", "statistics", "--json", cwd=place)
    assert [arm["name"] for arm in json.loads(one.stdout)["arms"]] == ["statistics"]
    other = here(
        "audit", "a run", *QUICK, "--seed", "1", "--arm", "statistics", "--json", "--quiet", cwd=place
    )
    assert other.stderr == ""
    assert json.loads(other.stdout)["settings"]["seed"] == 1, "other settings begin from the start"
    kept = read_audit(place / "a run")
    assert kept is not None
    assert [arm["name"] for arm in kept["arms"]] == ["statistics"]


def test_what_was_stopped_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, whole = digests(place / "a run"), auditing.audit_client

    def stop_at_the_second_arm(evidence: auditing.ArmEvidence, client: int) -> auditing.ClientFindings:
        if evidence.arm.name == "statistics":
            raise KeyboardInterrupt
        return whole(evidence, client)

    with monkeypatch.context() as patch:
        patch.setattr(auditing, "audit_client", stop_at_the_second_arm)
        stopped = here("audit", "a run", *QUICK, "--quiet", cwd=place)
    assert stopped.returncode == 1
    assert stopped.stderr == (
        "fedistill: stopped; audited arms are kept, and the run is unchanged; continue with: fedistill audit"
        " 'a run' --shadows 2 --rounds 1 --quiet\n"
    )
    ended = here("audit", "a run", *QUICK, cwd=place)
    assert ended.returncode == 0
    assert {line.split(":")[0] for line in ended.stderr.splitlines()} == {"statistics"}
    assert digests(place / "a run") == before


def test_ctrl_c_ends_it_with_one_message(place: Path) -> None:
    process = start("audit", "a run", "--shadows", "40", cwd=place)
    try:
        assert process.stderr is not None
        assert "fedavg: 2 rounds replayed" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("fedistill: ")
    assert "audited arms are kept, and the run is unchanged; continue with: fedistill audit" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("spoil", "asked", "message"),
    [
        (
            lambda run: None,
            ("--arm", "fedavgg"),
            "--arm fedavgg: the arms are fedavg, statistics. Did you mean",
        ),
        (lambda run: (run / "results.json").unlink(), (), "results.json cannot be read"),
        (lambda run: (run / "audit.json").write_text("{"), (), "audit.json: cannot be read"),
        (lambda run: (run / "audit.json").write_text('{"schema": 2}'), (), "delete it and audit again"),
        (lambda run: (run / "session").write_text("x"), (), "was run on a network"),
        (lambda run: shutil.rmtree(run), (), "holds no run"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    spoil: Callable[[Path], None], asked: tuple[str, ...], message: str, place: Path
) -> None:
    spoil(place / "a run")
    ended = here("audit", "a run", *QUICK, *asked, cwd=place)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert message in ended.stderr


def test_of_several_seeds_one_is_named(tmp_path: Path) -> None:
    write_small(tmp_path, 'method = "gaussian"', seeds="[0, 1]", rounds=1)
    assert here("compare", "exp.toml", "--out", "run", "--quiet", cwd=tmp_path).returncode == 0
    ended = here("audit", "run", cwd=tmp_path)
    assert ended.returncode == 2
    assert "run has several seeds: audit the folder of one, seed-0, seed-1" in ended.stderr
    assert here("audit", "run/seed-1", *QUICK, "--quiet", cwd=tmp_path).returncode == 0


def test_the_short_form_of_the_benchmark(tmp_path: Path) -> None:
    benchmark, rows = Path(__file__).parents[2] / "benchmarks" / "audit.py", tmp_path / "rows.json"
    kept = {"short, seed 1": {"voting": "is kept already"}}
    rows.write_text(json.dumps(kept))
    command = [sys.executable, str(benchmark), "--short", "--out", str(rows)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(rows.read_text())["short, seed 1"]
    assert {*found} == {"fedavg", "voting", "gaussian"}
    assert found["voting"] == "is kept already", "what is kept is not run again"
    assert found["gaussian"]["label_shares"][0]["total_variation"] == 0
    assert found["fedavg"]["views"]["server@global"] > 0
