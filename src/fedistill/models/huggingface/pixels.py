"""Images as a pretrained network takes them: its size, mean and standard deviation, computed by torch."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedistill.config.section import Positive, Raw, RawTable
from fedistill.errors import ExperimentError

Side = Annotated[int, Field(ge=1, le=4096)]
_FILTERS: dict[int, Literal["nearest", "bilinear", "bicubic"]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers, which `resample` has; for its others bicubic is the nearest that torch has."""


class PixelScaling(BaseModel):
    """What a ``preprocessor_config.json`` asks for.

    Attributes:
        size: height and width that images are scaled to; None if they are not.
        shortest: in place of it, what the shorter side is scaled to.
        crop: height and width of the middle that is then cut out; None if nothing is.
        factor: of pixels from 0 to 1.
        mean, std: of each channel, after that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side] | None = None
    shortest: Side | None = None
    crop: tuple[Side, Side] | None = None
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    factor: Positive = 1.0
    mean: tuple[float, ...] = Field(min_length=1, max_length=4)
    std: tuple[Positive, ...] = Field(min_length=1, max_length=4)

    @model_validator(mode="after")
    def _one_deviation_per_mean(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations")
        return self

    @classmethod
    def of(cls, processor: RawTable, channels: int, model: str) -> Self:
        """Read the configuration of an image processor.

        Raises:
            ExperimentError: it asks for something else.
        """
        try:
            size, crop = processor.get("size"), processor.get("crop_size")
            normalised = processor.get("do_normalize", True)
            rescaled = processor.get("do_rescale", True)
            return cls(
                size=_sides(size) if processor.get("do_resize", True) else None,
                shortest=_shortest(size) if processor.get("do_resize", True) else None,
                crop=_sides(crop) if processor.get("do_center_crop", crop is not None) else None,
                resample=_FILTERS.get(processor.get("resample", 2), "bicubic"),
                factor=255 * processor.get("rescale_factor", 1 / 255) if rescaled else 255.0,
                mean=tuple(processor["image_mean"]) if normalised else (0.0,) * channels,
                std=tuple(processor["image_std"]) if normalised else (1.0,) * channels,
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ExperimentError(
                f"model {model!r}: its preprocessor_config.json asks for what fedistill does not do"
                f" ({type(error).__name__}: {reason}): it takes size, crop_size, image_mean and image_std"
            ) from None


def _sides(size: Raw) -> tuple[int, int] | None:
    if isinstance(size, dict):
        return (size["height"], size["width"]) if "height" in size else None
    return None if size is None else (size, size)


def _shortest(size: Raw) -> int | None:
    return size["shortest_edge"] if isinstance(size, dict) and "height" not in size else None


class Pixels(nn.Module):
    """Turns float32 images (n, c, h, w) in [-1, 1] into what the network takes; grey becomes RGB."""

    def __init__(self, scaling: PixelScaling, channels: int) -> None:
        super().__init__()
        self.scaling, self.channels = scaling, channels

    def forward(self, images: Tensor) -> Tensor:
        wanted = self.scaling
        pixels = (images + 1) / 2
        if pixels.shape[1] != self.channels:
            pixels = pixels.mean(dim=1, keepdim=True).expand(-1, self.channels, -1, -1)
        pixels = self._resized(pixels)
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (wanted.mean, wanted.std))
        return (pixels * wanted.factor - mean) / std

    def _resized(self, pixels: Tensor) -> Tensor:
        wanted, (height, width) = self.scaling, pixels.shape[2:]
        size = wanted.size
        if wanted.shortest is not None:
            scale = wanted.shortest / min(height, width)
            size = (int(height * scale), int(width * scale))
        if size is not None and size != (height, width):
            smooth = wanted.resample != "nearest"
            pixels = interpolate(pixels, size, mode=wanted.resample, antialias=smooth)
            pixels = pixels.clamp(0, 1)  # bicubic overshoots, where bytes would not
        if wanted.crop is None:
            return pixels
        tall, wide = wanted.crop
        top, left = max(0, (pixels.shape[2] - tall) // 2), max(0, (pixels.shape[3] - wide) // 2)
        return pixels[:, :, top : top + tall, left : left + wide]
