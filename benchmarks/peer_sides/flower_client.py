"""The client of Flower's side.

It is a module of its own, so that Ray's worker imports it and loads the data once, not for each message.
"""

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F
from turns import Workload

app = ClientApp()


@cache
def prepared(path: str, settings: str) -> tuple[Workload, nn.Module]:
    torch.set_num_threads(1)
    workload = Workload(path, settings)
    return workload, workload.network()


@app.train()
def train(message: Message, context: Context) -> Message:
    told = message.content.config_records["config"]
    workload, model = prepared(str(told["data"]), str(told["settings"]))
    settings = workload.settings
    images, labels = workload.clients[int(context.node_config["partition-id"])]
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), settings["lr"], momentum=settings["momentum"])
    for at in torch.randperm(len(images)).split(settings["batch"]):
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
    reply = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(images)}),
        }
    )
    return Message(reply, reply_to=message)
