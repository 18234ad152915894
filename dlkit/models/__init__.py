"""The founding architectures, exact and with every part exchangeable by name.

>>> from dlkit import models
>>> model = models.resnet_cifar(20, norm="group", activation="swish")
>>> model.output_shape
(None, 10)
"""

from dlkit.models._alexnet import alexnet
from dlkit.models._blocks import SmallMapWarning
from dlkit.models._cifar_fast import cifar_fast
from dlkit.models._cnn import cnn
from dlkit.models._describe import Description, describe
from dlkit.models._endpoints import endpoints
from dlkit.models._ensemble import ensemble
from dlkit.models._grow import grow
from dlkit.models._localizer import localizer
from dlkit.models._mlp import mlp
from dlkit.models._registry import create, names
from dlkit.models._resnet import resnet, resnet18, resnet34, resnet50, resnet101, resnet152
from dlkit.models._resnet_cifar import resnet_cifar
from dlkit.models._stage import named_weights
from dlkit.models._variant import variant
from dlkit.models._vgg import vgg, vgg11, vgg13, vgg16, vgg19
from dlkit.models._weights import Report, load_weights

__all__ = [
    "mlp", "cnn", "alexnet",
    "vgg", "vgg11", "vgg13", "vgg16", "vgg19",
    "resnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet_cifar", "cifar_fast",
    "ensemble", "localizer", "endpoints", "grow",
    "create", "names", "describe", "Description", "named_weights", "variant",
    "load_weights", "Report",
    "SmallMapWarning",
]  # fmt: skip
