"""The settings of training on labels: the table `train`, and optimizers wherever one is set."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedistill.config.section import Positive, Raw, RawTable, Section, Share

OptimizerName = Literal["sgd", "adam"]
PREDICTION_BATCH = 128
"""Samples per forward pass of evaluation and prediction: a network's activations then fit in the caches."""
_LEARNING_RATES: dict[OptimizerName, float] = {"sgd": 0.05, "adam": 0.01}


class OptimizerConfig(Section):
    name: OptimizerName | None = Field(
        default=None, description="default: adam for texts without momentum, else sgd"
    )
    lr: Positive | None = Field(default=None, description="default: 0.05 for sgd, 0.01 for adam")
    momentum: Share = Field(default=0.0, description="of sgd")
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        if self.name == "adam" and self.momentum:
            raise ValueError(
                f"`momentum` = {self.momentum:g} is for sgd, and adam has none: leave it out, set it to"
                ' 0, or choose name = "sgd"'
            )
        return self

    def resolved(self, data: Literal["image", "text"]) -> "ResolvedOptimizer":
        """Return the settings with the defaults for this kind of data."""
        name = self.name or ("adam" if data == "text" and not self.momentum else "sgd")
        lr = self.lr or _LEARNING_RATES[name]
        return ResolvedOptimizer.model_validate({**dict(self), "name": name, "lr": lr})


class ResolvedOptimizer(OptimizerConfig):
    """An optimizer's settings, none of them open."""

    name: OptimizerName
    lr: Positive


class NotTrue(Section):
    """FedNTD: stay close to the starting model's outputs on all classes but the true one."""

    beta: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the term; 0 turns it off"
    )
    temperature: Positive = Field(default=1.0, description="temperature of both softmaxes")


Count = Annotated[int, Field(ge=1)]


class Train(Section):
    epochs: Count | None = Field(default=None, description="default: 1 for images, 4 for texts")
    steps: Count | None = Field(default=None, description="batches per round, in place of epochs")
    batch_size: Count | None = Field(default=None, description="default: 32 for images, 16 for texts")
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: Literal["cross-entropy", "balanced-softmax"] = Field(
        default="cross-entropy",
        description="loss on private labels; balanced-softmax adjusts for the client's class counts",
    )
    label_smoothing: Share = Field(default=0.0, description="share of each label spread over all classes")
    not_true: NotTrue | None = Field(
        default=None, description="stay close to the starting model on the other classes (FedNTD)"
    )

    def resolved(self, data: Literal["image", "text"]) -> "ResolvedTrain":
        """Return the settings with the defaults for this kind of data.

        SGD at 0.05 leaves text models at chance for many rounds, since a word's vector moves only with the
        samples that have the word. docs/tutorial.md says how those for texts were chosen.
        """
        epochs, batch_size = (1, 32) if data == "image" else (4, 16)
        return ResolvedTrain.model_validate(
            {
                **dict(self),
                "epochs": self.epochs or epochs,
                "batch_size": self.batch_size or batch_size,
                "optimizer": self.optimizer.resolved(data),
            }
        )

    def written_out(self, data: Literal["image", "text"]) -> "Train":
        """Return `resolved` as the type that a file with these settings is read as."""
        return Train.model_validate(self.resolved(data).model_dump())


class ResolvedTrain(Train):
    """Settings of training, none of them open; what methods work with."""

    epochs: Count
    batch_size: Count
    optimizer: ResolvedOptimizer


def own_optimizer(inherited: RawTable, arm: RawTable) -> RawTable:
    """Return what an arm inherits, without the optimizer if the arm names another one.

    The learning rate and the momentum of one optimizer mean nothing to another, so that an arm which changes
    the name starts from the defaults of its own.
    """
    theirs, own = _optimizer(inherited), _optimizer(arm)
    before = theirs.get("name") or ("sgd" if theirs.get("momentum") else None)
    if before is None or own.get("name") in (None, before):
        return inherited
    train = {key: value for key, value in inherited["train"].items() if key != "optimizer"}
    return {**inherited, "train": train}


def _optimizer(table: RawTable) -> RawTable:
    train = table.get("train")
    found: Raw = train.get("optimizer") if isinstance(train, dict) else None
    return found if isinstance(found, dict) else {}
