"""The architectures as KerasTuner hypermodels: for people who keep KerasTuner's own tuners.

    tuner = keras_tuner.Hyperband(HyperResNet(classes=10, input_shape=(32, 32, 3)), "val_accuracy", max_epochs=9)
    tuner.search(train, validation_data=validation, preprocess=preprocess)

`search` of this package is faster: there a promoted trial continues with its optimizer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras import ops

from dlkit import models
from dlkit._errors import InputError
from dlkit.data import Preprocess, Source, eval_pipeline, from_arrays, train_pipeline
from dlkit.train import losses, optimizers, schedules
from dlkit.tune import space

_BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "mlp": models.mlp, "cnn": models.cnn, "alexnet": models.alexnet, "vgg": models.vgg,
    "resnet_cifar": models.resnet_cifar, "resnet": models.resnet,
}  # fmt: skip


class Hyper(keras_tuner.HyperModel):
    """What the hypermodels share: `build` gives a compiled model, `fit` takes sources or arrays.

    Besides the architecture it varies optimizer, learning rate, momentum, weight decay, schedule, warm-up, batch and
    label smoothing, and the augmentation of pictures. All of it is declared in `build`, so that a reloaded tuner knows
    the whole space.

    Args:
        classes: outputs of the model.
        input_shape: of one input, without the batch.
        large: the larger networks of the family.
        augment: vary the augmentation too; it takes effect where `fit` is given uint8 pictures or a source.
        seed: of the training stream.
        name, tunable: as in every hypermodel.

    Raises:
        InputError: from `fit`: data that do not suit the model.
    """

    family = ""

    def __init__(
        self,
        classes: int = 10,
        input_shape: Sequence[int] = (32, 32, 3),
        *,
        large: bool = False,
        augment: bool = True,
        seed: int = 0,
        name: str | None = None,
        tunable: bool = True,
    ):
        super().__init__(name, tunable)
        self.classes, self.input_shape = classes, tuple(input_shape)
        self.large, self.augment, self.seed = large, augment, seed

    def builder(self) -> Callable[..., keras.Model]:
        """Returns the function that builds the family's models."""
        return _BUILDERS[self._family()]

    def build(self, hp: Any) -> keras.Model:
        """Builds and compiles the model that `hp` describes."""
        overrides = space.architecture(self._family(), large=self.large)(hp)
        recipe = self._recipe(hp)
        model = self.builder()(classes=self.classes, input_shape=self.input_shape, **overrides["model"])
        self._compile(model, recipe, recipe["peak_lr"])
        return model

    def fit(self, hp: Any, model: keras.Model, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """Trains the model with the batch, the schedule and the augmentation that `hp` describes.

        Args:
            hp: the hyperparameters.
            model: from `build`.
            x: a `dlkit.data.Source`, or an array: uint8 pictures (n, H, W, C) are prepared and augmented, others are
                trained on as they are.
            y: targets of an array: class ids or one-hot rows.
            **kwargs: of `keras.Model.fit`; `validation_data` may be a source or (x, y). `preprocess` is the input
                definition of pictures; the default resizes to the model's input and normalises as for ImageNet.
        """
        preprocess, recipe = kwargs.pop("preprocess", None), self._recipe(hp)
        epochs, first = kwargs.get("epochs", 1), kwargs.get("initial_epoch", 0)
        count = len(x)
        steps = max(1, round(count / recipe["batch"]))
        rate = schedules.get(
            recipe["schedule"], recipe["peak_lr"], steps * epochs, int(min(recipe["warmup_epochs"], epochs / 2) * steps)
        )
        held = {variable.name: ops.convert_to_numpy(variable) for variable in model.optimizer.variables}
        self._compile(model, recipe, rate)
        for variable in model.optimizer.variables:
            if variable.name in held:
                variable.assign(held[variable.name])  # where a promoted trial was
        if not isinstance(x, Source) and np.asarray(x).dtype == np.uint8:
            x, y = self._source(x, y), None
        if not isinstance(x, Source):
            return model.fit(x, y, batch_size=recipe["batch"], **kwargs)
        preprocess = preprocess or Preprocess(self.input_shape[:2], channels=self.input_shape[-1])  # type: ignore[arg-type]
        if y is not None:
            raise InputError("a source holds its targets: leave y out")
        stream = train_pipeline(
            x, preprocess, recipe.get("augment", ()), recipe["batch"], self.seed, start_step=first * steps
        )
        kwargs["validation_data"] = self._validation(kwargs.get("validation_data"), preprocess)
        return model.fit(stream, steps_per_epoch=steps, shuffle=False, **kwargs)

    def _family(self) -> str:
        return self.family

    def _recipe(self, hp: Any) -> dict[str, Any]:
        parts = [space.optimizer, space.schedule, space.batch, _penalties]
        if self.augment and len(self.input_shape) == 3:
            parts.append(space.augmentation)
        return dict(space.combine(*parts)(hp)["recipe"])

    def _compile(self, model: keras.Model, recipe: dict[str, Any], rate: Any) -> None:
        optimizer = optimizers.get(
            recipe["optimizer"], rate, model.trainable_variables, momentum=recipe.get("momentum", 0.9),
            weight_decay=recipe["weight_decay"],
        )  # fmt: skip
        loss = losses.get("cross_entropy", label_smoothing=recipe["label_smoothing"])
        model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=False)

    def _validation(self, data: Any, preprocess: Any) -> Any:
        if data is None:
            return None
        if not isinstance(data, Source):
            data = self._source(*data)
        return eval_pipeline(data, preprocess, 256)

    def _source(self, x: Any, y: Any) -> Source:
        y = np.asarray(y)
        ids = y.argmax(-1) if y.ndim == 2 and y.shape[1] == self.classes > 1 else y.astype(np.int64)
        return from_arrays(np.asarray(x), ids, classes=[str(i) for i in range(self.classes)])


def _penalties(hp: Any) -> dict[str, dict[str, Any]]:
    return {
        "recipe": {
            "weight_decay": hp.Float("weight_decay", 1e-5, 1e-2, sampling="log", default=5e-4),
            "label_smoothing": hp.Choice("label_smoothing", [0.0, 0.1]),
        }
    }


class HyperMLP(Hyper):
    """Multilayer perceptrons: layers, units, dropout, norm and activation; the rest as in `Hyper`.

    >>> HyperMLP(classes=3, input_shape=(4,)).build(keras_tuner.HyperParameters()).output_shape
    (None, 3)
    """

    family = "mlp"


class HyperCNN(Hyper):
    """Plain convolutional networks: blocks, convolutions, filters, head, downsampling, norm and its position.

    >>> HyperCNN(classes=3, input_shape=(8, 8, 1)).build(keras_tuner.HyperParameters()).output_shape
    (None, 3)
    """

    family = "cnn"


class HyperAlexNet(Hyper):
    """AlexNet with one or two columns: width, norm, activation, dropout and, if large, the stem."""

    family = "alexnet"


class HyperVGG(Hyper):
    """VGG: the column of the table, width, norm, activation, dropout and, if large, the stem."""

    family = "vgg"


class HyperResNet(Hyper):
    """Residual networks: depth, width, version, shortcut, norm, activation and stem.

    Small (the default): `resnet_cifar` with 8 to 20 layers. Large: `resnet` with 34 to 101 for pictures from 64 pixels,
    `resnet_cifar` with 20 to 56 below.

    >>> HyperResNet(classes=3, input_shape=(8, 8, 1)).build(keras_tuner.HyperParameters()).output_shape
    (None, 3)
    """

    def _family(self) -> str:
        return "resnet" if self.large and min(self.input_shape[:2]) >= 64 else "resnet_cifar"
