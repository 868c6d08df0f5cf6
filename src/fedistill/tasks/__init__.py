"""Tasks: private samples dealt out to clients, a public set without labels, and a test set."""

from fedistill.tasks.build import build as build
from fedistill.tasks.task import Labelled as Labelled
from fedistill.tasks.task import PublicSet as PublicSet
from fedistill.tasks.task import Task as Task
