"""fedistill's side: rounds one by one (exact), or with clients that are trained together (fast)."""

from turns import started

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run

workload, turns = started()
experiment = parse(workload.settings["experiment"], "peers")
task, (arm,) = prepare(experiment)
run = start_run(arm)
executor = SerialExecutor(experiment, task)
for _ in range(workload.settings["rounds"]):
    turns.wait()
    play_round(run, arm, executor)
    turns.played()
turns.score(workload, run.server.model.load_into(workload.network()))
