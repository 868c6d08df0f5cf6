"""The settings of training on labels: the table `train`, and optimizers wherever one is set."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedistill.config.inputs import InputKind
from fedistill.config.schedules import AnySchedule
from fedistill.config.section import Positive, Raw, RawTable, Section, Share
from fedistill.errors import nearest

PREDICTION_BATCH = 128
"""Samples per forward pass of evaluation and prediction: a network's activations then fit in the caches."""
_LOSSES = ("cross-entropy", "balanced-softmax")
_LEARNING_RATES = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01}


class OptimizerConfig(Section):
    name: str | None = Field(
        default=None,
        description="sgd, adam, adamw, or your own as module:function, called with the list of parameters and"
        " lr, that returns a torch.optim.Optimizer; default: adam for texts and tables without momentum, else"
        " sgd",
    )
    lr: Positive | None = Field(
        default=None, description="default: 0.05 for sgd, 0.01 for adam and adamw; an own one needs it"
    )
    momentum: Share = Field(default=0.0, description="of sgd")
    nesterov: bool = Field(default=False, description="Nesterov's form of the momentum of sgd")
    weight_decay: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="default: 0.01 for adamw, else 0"
    )
    decay: Literal["all", "matrices"] = Field(
        default="all",
        description="which parameters weight decay is of: all, or those of two or more dimensions, which"
        " leaves out biases and normalisation layers",
    )
    clip_norm: Positive | None = Field(
        default=None,
        description="largest norm of the gradient of all parameters together; a larger one is scaled down",
    )

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str | None) -> str | None:
        if name is None or name in _LEARNING_RATES or ":" in name:
            return name
        guess = nearest(name, _LEARNING_RATES)
        raise ValueError(f"{name!r} must be one of {', '.join(_LEARNING_RATES)}, or module:function.{guess}")

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        if self.momentum and self.name not in (None, "sgd"):
            raise ValueError(
                f"`momentum` = {self.momentum:g} is for sgd, and {self._other} has none: leave it out, set it"
                ' to 0, or choose name = "sgd"'
            )
        if self.nesterov and not self.momentum:
            raise ValueError("`nesterov` is a form of momentum: set `momentum`, or leave it out")
        return self

    @model_validator(mode="after")
    def _own_ones_have_their_settings_in_the_function(self) -> Self:
        if not self.own:
            return self
        if self.lr is None:
            raise ValueError(f"{self.name!r} has no default learning rate: set `lr`, which it is called with")
        if self.weight_decay or self.decay != "all":
            raise ValueError(
                f"`weight_decay` and `decay` are for sgd, adam and adamw: set those of {self.name!r} in the"
                " function"
            )
        return self

    @property
    def own(self) -> bool:
        """Whether it is ``module:function``."""
        return self.name is not None and ":" in self.name

    @property
    def _other(self) -> str:
        return "your own" if self.own else str(self.name)

    def resolved(self, data: InputKind) -> "ResolvedOptimizer":
        """Return the settings with the defaults for this kind of data."""
        name = self.name or ("adam" if data != "image" and not self.momentum else "sgd")
        lr = self.lr or _LEARNING_RATES[name]
        decay = self.weight_decay
        if decay is None:
            decay = 0.01 if name == "adamw" else 0.0
        return ResolvedOptimizer.model_validate({**dict(self), "name": name, "lr": lr, "weight_decay": decay})


class TrainOptimizer(OptimizerConfig):
    """The optimizer of `train`."""

    schedule: AnySchedule | None = Field(
        default=None,
        description="how the learning rate changes: constant, cosine or step, or a table { name, SETTINGS };"
        " default: not at all",
    )


class ResolvedOptimizer(TrainOptimizer):
    """An optimizer's settings, none of them open."""

    name: str
    lr: Positive
    weight_decay: float

    def resolved(self, data: InputKind) -> "ResolvedOptimizer":
        """Return these settings."""
        return self

    def in_round(self, round: int, rounds: int) -> "ResolvedOptimizer":
        """Return the settings in a round from 1 to ``rounds``, where a schedule over rounds sets the rate."""
        if self.schedule is None or self.schedule.over == "steps":
            return self
        rate = self.lr * self.schedule.factor(round - 1, rounds)
        return self.model_copy(update={"lr": rate, "schedule": None})

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate at a step, from 0, of a local training of so many."""
        if self.schedule is None or self.schedule.over == "rounds":
            return self.lr
        return self.lr * self.schedule.factor(step, steps)


class NotTrue(Section):
    """FedNTD: stay close to the starting model's outputs on all classes but the true one."""

    beta: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the term; 0 turns it off"
    )
    temperature: Positive = Field(default=1.0, description="temperature of both softmaxes")


class EarlyStopping(Section):
    """End a local training once the loss on samples that are kept from it no longer falls."""

    share: float = Field(
        default=0.1,
        gt=0,
        le=0.5,
        description="share of each client's own samples that are kept from training",
    )
    patience: int = Field(default=2, ge=1, description="epochs without a lower loss after which it ends")


class Augment(Section):
    """Change the samples of each batch at random when a model is trained on labels."""

    flip: bool = Field(default=False, description="images: mirror half of them, left to right")
    crop: int = Field(
        default=0, ge=0, description="images: black border in pixels, out of which the size is cut anywhere"
    )
    erase: float = Field(
        default=0.0, ge=0, le=1, description="images: probability that a random rectangle becomes black"
    )
    drop_words: Share = Field(default=0.0, description="texts: probability that a word is taken out")

    def others(self, data: InputKind) -> list[str]:
        """Return the keys of settings that are not for this kind of data, but are set."""
        kinds = {"flip": "image", "crop": "image", "erase": "image", "drop_words": "text"}
        return [key for key, kind in kinds.items() if kind != data and getattr(self, key)]


Count = Annotated[int, Field(ge=1)]


class Train(Section):
    epochs: Count | None = Field(default=None, description="default: 1 for images, 4 for texts and tables")
    steps: Count | None = Field(default=None, description="batches per round, in place of epochs")
    batch_size: Count | None = Field(
        default=None, description="default: 32 for images, 16 for texts and tables"
    )
    optimizer: TrainOptimizer = Field(
        default=TrainOptimizer(),
        description="of clients' training, and of the server's where its method has no other",
    )
    loss: str = Field(
        default="cross-entropy",
        description="loss on private labels: cross-entropy, balanced-softmax, which adjusts for the client's"
        " class counts, or your own as module:function, of logits (n, C) and labels (n,)",
    )
    label_smoothing: Share = Field(default=0.0, description="share of each label spread over all classes")
    not_true: NotTrue | None = Field(
        default=None, description="stay close to the starting model on the other classes (FedNTD)"
    )
    early_stopping: EarlyStopping | None = Field(
        default=None,
        description="end a local training once samples that are kept from it no longer gain, and return to"
        " its best epoch; default: train to the end on all samples",
    )
    augment: Augment | None = Field(
        default=None,
        description="change samples at random when training on labels: flip, crop and erase images, drop"
        " words; default: take them as they are",
    )

    @field_validator("loss")
    @classmethod
    def _loss_is_known(cls, loss: str) -> str:
        if loss in _LOSSES or ":" in loss:
            return loss
        guess = nearest(loss, _LOSSES)
        raise ValueError(f"{loss!r} must be one of {', '.join(_LOSSES)}, or module:function.{guess}")

    @model_validator(mode="after")
    def _own_losses_smooth_themselves(self) -> Self:
        if self.label_smoothing and self.own_loss:
            raise ValueError(
                f"`label_smoothing` = {self.label_smoothing:g} is of cross-entropy and balanced-softmax: set"
                f" it to 0, and smooth in {self.loss!r}"
            )
        return self

    @property
    def own_loss(self) -> bool:
        """Whether the loss is ``module:function``."""
        return ":" in self.loss

    def resolved(self, data: InputKind) -> "ResolvedTrain":
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

    def written_out(self, data: InputKind) -> "Train":
        """Return `resolved` as the type that a file with these settings is read as."""
        return Train.model_validate(self.resolved(data).model_dump())


class ResolvedTrain(Train):
    """Settings of training, none of them open; what methods work with."""

    epochs: Count
    batch_size: Count
    optimizer: ResolvedOptimizer

    def in_round(self, round: int, rounds: int) -> "ResolvedTrain":
        """Return the settings in a round from 1 to ``rounds``."""
        return self.model_copy(update={"optimizer": self.optimizer.in_round(round, rounds)})


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
