"""Shared by methods in which clients send counts, means and covariances of fixed features, once."""

import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.classwise import class_agreement
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.statistics import (
    MEAN_UNIT,
    MOST_LEVELS,
    MOST_MEAN,
    MOST_SCALE,
    SCALES_PER_OCTAVE,
    FeatureMoments,
    StatisticsRequest,
)
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.schema import Positive
from fedistill.config.secure_sums import SecureSums
from fedistill.errors import ExperimentError, FrameError, Refusal
from fedistill.methods.base import Needs, NoState, Reply
from fedistill.methods.participants import Client, FederationInfo, Server
from fedistill.methods.shared.moment_sums import moment_addends, moments_to_add
from fedistill.methods.shared.statistics import StatisticsServer, StatisticsSettings, SumsOfStatistics
from fedistill.models.fixed_features import (
    EdgeFrequencies,
    EncodedColumns,
    FixedFeatures,
    FixedFeaturesNet,
)
from fedistill.models.frozen_features import FrozenFeatures
from fedistill.models.signature import Signature
from fedistill.training.loop import predict

MOST_FEATURES = 512
TRUSTED = 0.5
"""The least share of samples in classes described as others do, with which `screen` relies on a client."""
_WIDTH = 64


class MomentsSettings(StatisticsSettings):
    features: str | None = Field(
        default=None,
        description="frozen model whose features are taken: a name as in `models`, with weights from the"
        " seed or, of hf:NAME, from its file; or module:function, which returns them; default: of images,"
        " frequencies of brightness and edges; of tables, the columns",
    )
    width: int | None = Field(
        default=None,
        ge=2,
        le=MOST_FEATURES,
        description="d, the number of features, or of random projections of a frozen model's; default: 64, or"
        " all that the model or the table has",
    )
    levels: int = Field(
        default=3,
        ge=1,
        le=MOST_LEVELS,
        description="correlations are rounded to 2 levels + 1 numbers",
    )
    screen: bool = Field(
        default=False,
        description="leave out clients most of whose samples are of classes that they describe otherwise than"
        " most clients do; the server then keeps the moments of each client",
    )
    l2: Positive | None = Field(
        default=None,
        description="added to the diagonal of the correlation matrix; default: what its rounding asks for",
    )


@dataclass(frozen=True)
class Moments:
    """Samples (C,), sums of features (C, d), and sums of products of features (d, d), all float64."""

    samples: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def none(cls, classes: int, width: int) -> "Moments":
        zeros = torch.zeros(classes, width + 1, dtype=torch.float64)
        return cls(zeros[:, 0], zeros[:, 1:], torch.zeros(width, width, dtype=torch.float64))

    @classmethod
    def of(cls, message: FeatureMoments, classes: int) -> "Moments":
        """Return what a message says, up to its rounding."""
        deviations, means = _described(message)
        samples = message.samples.double()
        within = torch.eye(len(deviations), dtype=torch.float64)
        row, column = torch.triu_indices(len(deviations), len(deviations), offset=1)
        within[row, column] = within[column, row] = message.correlations.double() / message.levels
        within *= torch.outer(deviations, deviations) * samples.sum()
        found = cls.none(classes, len(deviations))
        found.samples[message.classes] = samples
        found.sums[message.classes] = samples[:, None] * means
        return replace(found, products=within + means.T @ (samples[:, None] * means))

    @classmethod
    def of_sums(cls, sums: Mapping[str, Tensor]) -> "Moments":
        """Return those of the sums that `moments_to_add` adds up to."""
        width = sums["sums"].shape[1]
        products = torch.empty(width, width, dtype=torch.float64)
        row, column = torch.triu_indices(width, width)
        products[row, column] = products[column, row] = sums["products"]
        return cls(sums["samples"], sums["sums"], products)

    def plus(self, other: "Moments") -> "Moments":
        return Moments(self.samples + other.samples, self.sums + other.sums, self.products + other.products)


def message_of(features: Tensor, labels: Tensor, levels: int) -> FeatureMoments:
    """Return the moments of features (n, d) with these labels, rounded."""
    features = features.double()
    classes, places, samples = torch.unique(labels, return_inverse=True, return_counts=True)
    means = torch.zeros(len(classes), features.shape[1], dtype=torch.float64)
    means = means.index_add(0, places, features) / samples[:, None]
    centred = features - means[places]
    covariance = centred.T @ centred / len(features)
    # No mean may be so many deviations away that its integer is out of range.
    least = means.abs().amax(dim=0) * (1.01 / (MEAN_UNIT * MOST_MEAN))
    exact = covariance.diag().sqrt().maximum(least).clamp(min=2.0 ** (-MOST_SCALE // SCALES_PER_OCTAVE))
    scales = (SCALES_PER_OCTAVE * exact.log2()).round().long().clamp(-MOST_SCALE, MOST_SCALE)
    units = torch.exp2(scales.double() / SCALES_PER_OCTAVE) * MEAN_UNIT
    rounded = (means / units).round().long().clamp(-MOST_MEAN, MOST_MEAN)
    rounded[1:] -= rounded[:1].clone()
    row, column = torch.triu_indices(len(exact), len(exact), offset=1)
    correlations = (covariance / torch.outer(exact, exact))[row, column]
    return FeatureMoments(
        classes=classes,
        samples=samples,
        scales=scales.diff(prepend=torch.zeros(1, dtype=torch.int64)),
        means=rounded.flatten(),
        correlations=(correlations * levels).round().long().clamp(-levels, levels),
        present=len(classes),
        levels=levels,
    )


def _described(message: FeatureMoments) -> tuple[Tensor, Tensor]:
    """Return a message's standard deviations (d,) within classes and class means (m, d), float64."""
    # A correct client has no scales beyond these, with which all sums are finite.
    scales = message.scales.cumsum(dim=0).clamp(-MOST_SCALE, MOST_SCALE)
    deviations = torch.exp2(scales.double() / SCALES_PER_OCTAVE)
    means = message.means.reshape(message.present, -1).double()
    means[1:] += means[:1].clone()
    return deviations, means * (deviations * MEAN_UNIT)


@functools.lru_cache(maxsize=8)
def _edge_bounds(shape: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
    return EdgeFrequencies(shape, width).bounds()


def check_bounds(message: FeatureMoments, low: Tensor, high: Tensor) -> None:
    """Check moments against what features can be: from ``low`` to ``high``, each (d,).

    Numbers between two bounds have no larger standard deviation than half of their distance (Popoviciu).
    Means and deviations may be off by their rounding.

    Raises:
        FrameError: a mean or a deviation is out of bounds; says of which feature.
    """
    deviations, means = _described(message)
    most = (high - low) / 2 * 2 ** (1 / SCALES_PER_OCTAVE)
    if (deviations > most).any():
        worst = int((deviations / most).argmax())
        raise FrameError(
            f"feature {worst} has a standard deviation of {deviations[worst]:.3g};"
            f" {most[worst]:.3g} is the most"
        )
    off = MEAN_UNIT * deviations
    beyond = ((low - off - means).maximum(means - high - off)).amax(dim=0)
    if (beyond > 0).any():
        worst = int(beyond.argmax())
        found = means[:, worst]
        raise FrameError(
            f"feature {worst} has class means from {found.min():.3g} to {found.max():.3g};"
            f" it can be from {low[worst]:.3g} to {high[worst]:.3g}"
        )


def l2_of_rounding(samples: Sequence[int], width: int, levels: int) -> float:
    """Return the ridge that suits a mean of rounded correlation matrices.

    Rounding errors are nearly independent, and uniform in steps of 1 / ``levels``. The eigenvalues of a
    symmetric matrix of such errors reach 2 s sqrt(d), where s is their standard deviation in the mean. About
    a sixth of that, and 0.01 besides, was mostly within 0.2 points, and always within 0.9, of the best of
    0.03, 0.1, 0.2 and 0.4, on held-out training images of Fashion-MNIST and MNIST (1 to 15 levels; 32 to 128
    features; 10 and 50 clients; seeds 0 and 1).

    Args:
        samples: of each client; ``width``: d.
    """
    shares = math.hypot(*samples) / max(sum(samples), 1)
    return 0.01 + 0.35 * shares * math.sqrt(width / 12) / levels


_VARIES = 1e-3
"""Deviations below this, of features of about unit size, or this share of the mean one, are none."""


def agreements(by_client: Mapping[int, Moments]) -> dict[int, float]:
    """Return the share of each client's samples in classes that it describes as most clients do.

    Features are measured in standard deviations within classes, the median over clients; where most clients
    have one value of a feature, the root mean square, and features that vary nowhere are left out.
    """
    clients = sorted(by_client)
    samples = torch.stack([by_client[client].samples for client in clients])
    means = torch.stack(
        [by_client[one].sums / by_client[one].samples.clamp(min=1)[:, None] for one in clients]
    )
    squares = torch.stack([by_client[one].products.diag() / by_client[one].samples.sum() for one in clients])
    between = (samples[..., None] * means.square()).sum(dim=1) / samples.sum(dim=1)[:, None]
    by_feature = (squares - between).clamp(min=0)
    usual, mean = by_feature.sqrt().median(dim=0).values, by_feature.mean(dim=0).sqrt()
    deviations = torch.where(usual > _VARIES * mean, usual, mean)
    scaled = torch.where(deviations > _VARIES, means / deviations.clamp(min=_VARIES), 0)
    return dict(zip(clients, class_agreement(scaled, samples > 0, samples).tolist(), strict=True))


def inverse(matrix: Tensor, l2: float) -> Tensor:
    """Return the inverse of a covariance (d, d) that rounding may have made indefinite.

    It is inverted as a correlation matrix, with its negative eigenvalues set to 0 and ``l2`` added to all.
    """
    deviations = matrix.diag().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    scale = torch.outer(deviations, deviations)
    values, vectors = torch.linalg.eigh(matrix / scale)
    found: Tensor = (vectors / (values.clamp(min=0) + l2)) @ vectors.T / scale
    return found


@dataclass(frozen=True)
class MomentsServer(StatisticsServer):
    """What answers for the server, whose moments it has, and their sum.

    With ``screen``, ``by_client`` has each client's, and the sum is of those that are relied on.
    """

    moments: Moments
    by_client: dict[int, Moments] = field(default_factory=dict)


class MomentsMethod(SumsOfStatistics[FeatureMoments, MomentsServer]):
    """Base of methods whose server solves for a linear classifier on features that nobody trains."""

    exchanges = "counts, means and covariance of fixed features, once"
    byte_formula = "up = (d(d-1)/2 H + mdH')/8, H, H' bits per number, m classes; down = 11; once"
    uplink = FeatureMoments
    ServerState = MomentsServer
    needs = Needs(inputs="image or table")
    Settings = MomentsSettings
    settings: MomentsSettings

    @abstractmethod
    def classifier(self, moments: Moments, l2: float) -> tuple[Tensor, Tensor]:
        """Return weights (C, d) and biases (C,) of a linear classifier, float64."""

    def __init__(self, settings: MomentsSettings) -> None:
        super().__init__(settings)
        if settings.features is not None:
            self.needs = replace(self.needs, inputs="any")
            self.frozen_models = (settings.features,)

    def inputs_of(self, model: str) -> str:
        return self.settings.features or model

    def check(self, federation: FederationInfo) -> None:
        own = federation.signatures[federation.server_model]
        if self.settings.features is None and own.kind == "table":
            _check_columns(self.name, self.settings.width, own)
            return
        if self.settings.features is None and own.kind == "text":
            raise Refusal(
                f"method {self.name} needs images, but the samples of this task are texts: set features to a"
                " frozen model of texts, or take naive-bayes"
            )
        super().check(federation)
        if self.settings.features is not None:
            try:
                width = self._features(federation).width
            except ExperimentError as error:
                raise Refusal(f"method {self.name}: {error}") from None
            if width > MOST_FEATURES:
                raise Refusal(
                    f"method {self.name}: model {self.settings.features!r} has {width} features, more than"
                    f" {MOST_FEATURES}: set width, the number of random projections of these"
                )
            return
        width = self.settings.width or _WIDTH
        if width > (most := EdgeFrequencies.most(own.shape)):
            raise Refusal(
                f"method {self.name}: images of {own.shape[1]} by {own.shape[2]} pixels have {most} features,"
                f" fewer than width = {width}"
            )

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        context = super().message_context(federation, client)
        width = self._features(federation).width
        return replace(context, width=width, settings={"levels": self.settings.levels})

    def start_server(self, server: Server) -> MomentsServer:
        moments = Moments.none(server.classes, self._features(server.federation).width)
        return MomentsServer(self.start_model(server), [], moments)

    def client_step(
        self, state: NoState, client: Client, received: StatisticsRequest | None
    ) -> tuple[NoState, FeatureMoments | None]:
        if received is None:
            return state, None
        return state, message_of(self._own_features(client), client.data.labels, self.settings.levels)

    def _own_features(self, client: Client) -> Tensor:
        """Return the features (n, d) of a client's samples."""
        inputs = client.inputs(self.inputs_of(client.model))
        return predict(self._features(client.federation), inputs)

    def check_reply(self, state: MomentsServer, server: Server, reply: Reply[FeatureMoments]) -> None:
        count, samples = int(reply.message.samples.sum()), server.clients[reply.client].samples
        if reply.client in state.clients:
            raise FrameError("its moments came before, and it was not asked for them again")
        if count != samples:
            raise FrameError(f"it counts {count} samples, but has {samples}")
        if reply.message.levels != self.settings.levels:
            raise FrameError(f"it has {reply.message.levels} levels, not {self.settings.levels}")
        own = server.federation.signatures[server.federation.server_model]
        if self.settings.features is None and own.kind == "image":
            check_bounds(reply.message, *_edge_bounds(own.shape, self.settings.width or _WIDTH))

    def add(
        self, state: MomentsServer, server: Server, replies: Iterable[Reply[FeatureMoments]]
    ) -> MomentsServer:
        moments, clients, by_client = state.moments, [*state.clients], dict(state.by_client)
        for reply in replies:
            found = Moments.of(reply.message, server.classes)
            clients.append(reply.client)
            if self.settings.screen:
                by_client[reply.client] = found
            else:
                moments = moments.plus(found)
        if self.settings.screen and by_client:
            agreed = agreements(by_client)
            server.note_reliability(agreed)
            moments = Moments.none(*moments.sums.shape)
            for client in [one for one, share in agreed.items() if share >= TRUSTED] or agreed:
                moments = moments.plus(by_client[client])
        return replace(state, clients=clients, moments=moments, by_client=by_client)

    def without_sums(self, federation: FederationInfo) -> Iterator[str]:
        if self.settings.screen:
            yield "`screen`, which looks at each client's moments (leave it out)"

    def addends(self, federation: FederationInfo, settings: SecureSums) -> dict[str, Addend]:
        width = self._features(federation).width
        return moment_addends(federation.classes, width, max(federation.samples), settings)

    def to_add(self, client: Client, message: Message, settings: SecureSums) -> dict[str, Tensor]:
        # Sums of exact features: what is rounded for range coding need not be rounded twice.
        return moments_to_add(self._own_features(client), client.data.labels, client.classes, settings)

    def add_sum(self, state: MomentsServer, server: Server, total: SecureTotal) -> MomentsServer:
        return replace(state, moments=state.moments.plus(Moments.of_sums(total.sums)))

    def solve(self, state: MomentsServer, federation: FederationInfo) -> FixedFeaturesNet:
        net = self.blank(federation)
        l2 = self.settings.l2
        if l2 is None:
            samples = [federation.samples[client] for client in state.clients]
            l2 = l2_of_rounding(samples, net.features.width, self.settings.levels)
        weights, biases = self.classifier(state.moments, l2)
        with torch.no_grad():
            net.head.weight.copy_(weights)
            net.head.bias.copy_(biases)
        return net

    def blank(self, federation: FederationInfo) -> FixedFeaturesNet:
        return FixedFeaturesNet(self._features(federation), federation.classes)

    def _features(self, federation: FederationInfo) -> FixedFeatures:
        name, width = self.settings.features, self.settings.width
        if name is None:
            own = federation.signatures[federation.server_model]
            if own.kind == "table":
                return EncodedColumns(own.shape[0])
            return EdgeFrequencies(own.shape, width or _WIDTH)
        return FrozenFeatures(name, federation.signatures[name], federation.seed, width)


def _check_columns(method: str, width: int | None, signature: Signature) -> None:
    """See that the inputs of models of tables can serve as features."""
    (columns,) = signature.shape
    if width not in (None, columns):
        raise Refusal(
            f"method {method}: rows of this table are {columns} numbers to a model, and all of these are the"
            f" features, not width = {width}: leave `width` out"
        )
    if columns > MOST_FEATURES:
        raise Refusal(
            f"method {method}: rows of this table are {columns} numbers to a model, more than"
            f' {MOST_FEATURES} features: set features = "mlp-tab", or name fewer columns in task.table'
        )
