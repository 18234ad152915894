"""The peers' networks in plain PyTorch, with the names that torchvision, timm and public reimplementations use."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class LambdaLayer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def zero_shortcut(channels: int, split: bool):
    before = channels // 4 if split else 0
    after = channels // 2 - before
    return LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, after)))


class Basic(nn.Module):
    """torchvision's BasicBlock; `shortcut` names the projection as the CIFAR reimplementations do."""

    expansion = 1

    def __init__(self, inside, planes, stride, option="B", name="downsample", split=True, average=False):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.carry = name
        setattr(self, name, shortcut(inside, planes, stride, option, split, average))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + getattr(self, self.carry)(x))


class Bottleneck(nn.Module):
    """torchvision's Bottleneck: the stride in the 3x3 (`first=True`: in the 1x1, as the paper has it)."""

    expansion = 4

    def __init__(self, inside, planes, stride, option="B", name="downsample", split=True, average=False, first=False):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 1, stride if first else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1 if first else stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.carry = name
        setattr(self, name, shortcut(inside, 4 * planes, stride, option, split, average))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + getattr(self, self.carry)(x))


class PreBasic(nn.Module):
    """A pre-activation block, the projection on the activated input."""

    expansion = 1

    def __init__(self, inside, planes, stride, first=False):
        super().__init__()
        if not first:
            self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        if stride > 1 or inside != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, planes, 1, stride, bias=False))

    def forward(self, x):
        y = F.relu(self.bn1(x)) if hasattr(self, "bn1") else x
        carried = self.shortcut(y) if hasattr(self, "shortcut") else x
        return carried + self.conv2(F.relu(self.bn2(self.conv1(y))))


def shortcut(inside, out, stride, option, split, average):
    if stride == 1 and inside == out:
        return nn.Sequential()
    if option == "A":
        return zero_shortcut(out, split)
    if average:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        return nn.Sequential(pool, nn.Conv2d(inside, out, 1, bias=False), nn.BatchNorm2d(out))
    return nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """torchvision's and timm's ResNet; `head="linear"` and stem "cifar" as in the CIFAR reimplementations."""

    def __init__(self, block, depths, planes, classes=10, stem="imagenet", head="fc", deep=False, stem_norm=True, **kw):
        super().__init__()
        first, channels = planes[0], 3
        if deep:
            self.conv1 = nn.Sequential(
                nn.Conv2d(channels, first // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(first // 2), nn.ReLU(),
                nn.Conv2d(first // 2, first // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(first // 2), nn.ReLU(),
                nn.Conv2d(first // 2, first, 3, 1, 1, bias=False),
            )  # fmt: skip
        elif stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, first, 7, 2, 3, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, first, 3, 1, 1, bias=False)
        self.preactivated, self.pools, self.depths = block is PreBasic, stem == "imagenet" or deep, depths
        if not self.preactivated or stem_norm:
            self.bn1 = nn.BatchNorm2d(first)
        inside = first
        for stage, (depth, width) in enumerate(zip(depths, planes, strict=True), 1):
            blocks = []
            for i in range(depth):
                if self.preactivated:
                    kw["first"] = stem_norm and (stage, i) == (1, 0)
                blocks.append(block(inside, width, 2 if i == 0 and stage > 1 else 1, **kw))
                inside = width * block.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        if self.preactivated:
            self.bn = nn.BatchNorm2d(inside)
        self.head = head
        setattr(self, head, nn.Linear(inside, classes))

    def forward(self, x):
        x = self.conv1(x)
        if hasattr(self, "bn1"):
            x = F.relu(self.bn1(x))
        if self.pools:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, len(self.depths) + 1):
            x = getattr(self, f"layer{stage}")(x)
        if self.preactivated:
            x = F.relu(self.bn(x))
        return getattr(self, self.head)(x.mean((2, 3)))


class VGG(nn.Module):
    """torchvision's VGG."""

    def __init__(self, depths, planes, units, classes, size, norm, third=3):
        super().__init__()
        modules, inside = [], 3
        for depth, width in zip(depths, planes, strict=True):
            for i in range(depth):
                kernel = third if i == 2 else 3
                modules.append(nn.Conv2d(inside, width, kernel, padding=kernel // 2))
                if norm:
                    modules.append(nn.BatchNorm2d(width))
                modules.append(nn.ReLU())
                inside = width
            modules.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Sequential(
            nn.Linear(inside * size * size, units), nn.ReLU(), nn.Dropout(0.0),
            nn.Linear(units, units), nn.ReLU(), nn.Dropout(0.0), nn.Linear(units, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class TimmVGG(nn.Module):
    """timm's VGG: the first dense layers are convolutions called `pre_logits`."""

    def __init__(self, depths, planes, units, classes, size):
        super().__init__()
        self.features = VGG(depths, planes, units, classes, size, norm=False).features
        self.pre_logits = nn.Module()
        self.pre_logits.fc1 = nn.Conv2d(planes[-1], units, size)
        self.pre_logits.fc2 = nn.Conv2d(units, units, 1)
        self.head = nn.Module()
        self.head.fc = nn.Linear(units, classes)

    def forward(self, x):
        x = F.relu(self.pre_logits.fc1(self.features(x)))
        return self.head.fc(F.relu(self.pre_logits.fc2(x)).flatten(1))


class AlexNet(nn.Module):
    """torchvision's AlexNet (`columns=1`) and the two-column one in plain PyTorch."""

    def __init__(self, columns, planes, units, classes, size):
        super().__init__()
        a, b, c, d, e = planes
        g = columns

        def lrn():  # PyTorch divides alpha by the window's size
            return [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if columns == 2 else []

        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), *lrn(), nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2, groups=g), nn.ReLU(), *lrn(), nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1, groups=g), nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1, groups=g), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(0.0), nn.Linear(e * size * size, units), nn.ReLU(),
            nn.Dropout(0.0), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every weight and statistic a random value that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        draw = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.copy_(0.75 + 0.5 * torch.rand(value.shape, generator=generator))
        elif value.ndim == 1:
            value.copy_(0.1 * draw)
        else:
            value.copy_(draw * (2.0 / value[0].numel()) ** 0.5)
    return model
