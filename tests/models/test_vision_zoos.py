"""Networks of timm and torchvision as the guide wraps them, with stand-ins that are called as these are."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedistill.models.checks import check_model
from fedistill.models.registry import build_model
from fedistill.models.signature import Signature

GUIDE = Path(__file__).parents[2] / "docs" / "hugging-face.md"
TORCHVISION = """
from types import SimpleNamespace

from torch import nn


class ResNet(nn.Module):
    def __init__(self, num_classes, norm_layer):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = norm_layer(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        self.seen = x.detach()
        return self.fc(self.bn1(self.conv1(x)).relu().mean(dim=(2, 3)))


def resnet18(*, weights=None, progress=True, num_classes=1000, norm_layer=nn.BatchNorm2d):
    return ResNet(num_classes, norm_layer)


models = SimpleNamespace(resnet18=resnet18)
"""
TIMM = """
from torch import nn


def create_model(model_name, pretrained=False, *, num_classes=1000, img_size=224):
    assert model_name == "vit_tiny_patch16_224" and not pretrained
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * img_size**2, num_classes))
"""


@pytest.fixture(autouse=True)
def zoos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (block,) = re.findall(r'```python title="vision.py"\n(.*?)```', GUIDE.read_text(), flags=re.DOTALL)
    for name, content in (("vision", block), ("torchvision", TORCHVISION), ("timm", TIMM)):
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("vision", "torchvision", "timm"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["vision:resnet18", "vision:tiny_vit"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_others_fit_any_task_of_images(name: str, channels: int) -> None:
    check_model(name, Signature("image", (channels, 16, 16), 7, 0))


def test_they_see_what_imagenet_has_taught_them() -> None:
    """A white pixel of red: (1 - 0.485) / 0.229; of blue (1 - 0.406) / 0.225."""
    model = build_model("vision:resnet18", Signature("image", (1, 4, 4), 7, 0), 0, 0).eval()
    model(torch.ones(1, 1, 4, 4))
    seen = model.get_submodule("network").seen[0, :, 0, 0]  # type: ignore[operator,union-attr,index]  # a stand-in
    assert seen.tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
