"""What votes for a client of `bridge` in place of its trained model."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.config.inputs import SAMPLES
from fedistill.config.schema import Positive
from fedistill.config.section import Section
from fedistill.errors import Refusal
from fedistill.methods.participants import Client, FederationInfo
from fedistill.models import registry as models
from fedistill.models.naive_bayes import NaiveBayes, count_words
from fedistill.training.loop import predict


class NaiveBayesVoter(Section):
    """Multinomial naive Bayes of hashed words, as the method of this name has it."""

    name: Literal["naive-bayes"]
    buckets: int = Field(default=8192, ge=2, le=1_000_000, description="numbers that hashed words may have")
    length: int | None = Field(
        default=None, ge=1, description="words that count per text; default: task.text.length"
    )
    alpha: Positive = Field(default=0.3, description="added to each count, so that no word is impossible")

    def check(self, federation: FederationInfo) -> None:
        """Check, before round 1, that there are words to count.

        Raises:
            Refusal: the task's samples are no texts.
        """
        kind = federation.signatures[federation.server_model].kind
        if kind != "text":
            raise Refusal(
                f"voter {self.name} counts words, but the samples of this task are {SAMPLES[kind]}: leave"
                " `voter` out"
            )

    def classes_of(self, client: Client, samples: int) -> Tensor:
        """Return the class (n,) of each of the first public texts, by the words of the client's own texts.

        Classes that the client has are equally probable beforehand, and it names no other.
        """
        name = models.hashed_words(self.buckets, self.length)
        own, public = client.inputs(name), client.public_inputs(name)[:samples]
        texts, words = count_words(own, client.data.labels, client.classes, self.buckets)
        if not texts.any():
            return torch.zeros(samples, dtype=torch.int64)
        return predict(NaiveBayes.of(words, texts, self.alpha, uniform=True), public).argmax(dim=1)
