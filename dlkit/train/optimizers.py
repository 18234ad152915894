"""Optimizers by name: weight decay leaves norms and biases alone, groups of variables may have rates of their own."""

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from dlkit._errors import unknown
from dlkit.train._kinds import kind
from dlkit.train._muon import Muon

_register = keras.saving.register_keras_serializable(package="dlkit")


@_register
class AveragedMomentum(keras.optimizers.Optimizer):
    """Steps along a moving average of the gradients, the second of the lectures' two forms of momentum.

        v = beta v + (1 - beta) g,   w <- w - eta_t v

    "momentum" is the first form, h = beta h + g. At a constant rate the two are the same method with rates that differ
    by the factor 1 - beta: here the step is as long as one gradient's, and a rate found for plain descent stays right
    when beta changes.

    Args:
        learning_rate: eta, a number or a schedule.
        momentum: beta, at least 0 and below 1.
        **kwargs: as in any `keras.optimizers.Optimizer`.

    Reference: Е. А. Соколов, "Введение в глубинное обучение", lecture 5; B. Polyak, 1964, for the first form.

    >>> w = keras.Variable([1.0])
    >>> AveragedMomentum(0.5, momentum=0.9).apply([ops.ones(1)], [w])
    >>> round(float(w[0]), 3)
    0.95
    """

    def __init__(
        self, learning_rate: Any = 0.01, momentum: float = 0.9, name: str = "averaged_momentum", **kwargs: Any
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = float(momentum)

    def build(self, variables: Any) -> None:
        if self.built:
            return
        super().build(variables)
        self._averages = self.add_optimizer_variables(variables, "average")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        average = self._averages[self._get_variable_index(variable)]
        new = self.momentum * ops.convert_to_tensor(average) + (1.0 - self.momentum) * ops.cast(gradient, average.dtype)
        self.assign(average, new)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * ops.cast(new, variable.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum}


@_register
class Momentum(keras.optimizers.SGD):
    """Is `keras.optimizers.SGD`; with momentum TensorFlow updates a variable in one pass over the memory.

    >>> w = keras.Variable([1.0])
    >>> optimizer = Momentum(0.5, momentum=0.9)
    >>> for _ in range(2):
    ...     optimizer.apply([ops.ones(1)], [w])
    >>> round(float(w[0]), 3)
    -0.45
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.momentum and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            state = self.momentums[self._get_variable_index(variable)].value
            # not of some rows only, nor with a copy of the state for each replica
            if isinstance(gradient, tf.Tensor) and not isinstance(state, tf.distribute.DistributedValues):
                rate, beta, g = (tf.cast(value, variable.dtype) for value in (learning_rate, self.momentum, gradient))
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=variable.handle, accum=state.handle, lr=rate, grad=g, momentum=beta, use_nesterov=self.nesterov
                )
                return
        super().update_step(gradient, variable, learning_rate)


@_register
class Lamb(keras.optimizers.Lamb):
    """Is `keras.optimizers.Lamb`, which Keras 3.15 can save but does not find again when it loads a model.

    >>> isinstance(keras.optimizers.deserialize(keras.optimizers.serialize(Lamb(0.1))), keras.optimizers.Lamb)
    True
    """


class _Grouped:
    """Multiplies the learning rate by a factor for each variable; mixed into an optimizer class."""

    def __init__(self, *args: Any, lr_groups: Iterable[tuple[str, float]] = (), **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lr_groups = tuple((pattern, float(factor)) for pattern, factor in lr_groups)

    def build(self, variables: Any) -> None:
        super().build(variables)  # type: ignore[misc]
        self._factors = tuple(rate_factor(variable, self.lr_groups) for variable in variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = self._factors[self._get_variable_index(variable)]  # type: ignore[attr-defined]
        super().update_step(gradient, variable, learning_rate * factor)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lr_groups": [list(pair) for pair in self.lr_groups]}  # type: ignore[misc]


# name -> class and its own arguments. The lectures write momentum as h = beta h + g, w -= eta h (M. Hushchyn) and as
# v = beta v + (1 - beta) g, w -= eta v. Keras' SGD computes h = beta h - eta g, w += h: the first when eta is constant.
OPTIMIZERS: dict[str, tuple[type, Callable[[float], dict[str, Any]]]] = {
    "sgd": (keras.optimizers.SGD, lambda beta: {}),
    "momentum": (Momentum, lambda beta: {"momentum": beta}),
    "averaged_momentum": (AveragedMomentum, lambda beta: {"momentum": beta}),
    "nesterov": (Momentum, lambda beta: {"momentum": beta, "nesterov": True}),
    "adagrad": (keras.optimizers.Adagrad, lambda beta: {}),
    "rmsprop": (keras.optimizers.RMSprop, lambda beta: {"rho": 0.9, "momentum": beta}),
    "adam": (keras.optimizers.Adam, lambda beta: {}),
    "adamw": (keras.optimizers.AdamW, lambda beta: {}),
    "lamb": (Lamb, lambda beta: {}),
    "muon": (Muon, lambda beta: {"momentum": beta}),
}
_GROUPED = {
    cls: _register(type(f"Grouped{cls.__name__}", (_Grouped, cls), {"__doc__": f"{cls.__name__} with lr_groups."}))
    for cls, _ in OPTIMIZERS.values()
}


def of(recipe: Any, learning_rate: Any, variables: list[Any]) -> keras.optimizers.Optimizer:
    """Builds the optimizer that `recipe` describes."""
    return get(
        recipe.optimizer, learning_rate, variables, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        lr_groups=recipe.lr_groups,
    )  # fmt: skip


def get(
    name: str,
    learning_rate: Any,
    variables: list[Any],
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    lr_groups: Iterable[tuple[str, float]] = (),
) -> keras.optimizers.Optimizer:
    """Builds the named optimizer for `variables`, its state included, so that a checkpoint can be read into it.

    Args:
        name: one of `OPTIMIZERS`.
        learning_rate: a number or a `LearningRateSchedule`.
        variables: the model's trainable variables.
        momentum: beta, for "momentum", "averaged_momentum", "nesterov", "rmsprop" and "muon".
        weight_decay: lambda in w -= eta lambda w for every kernel; biases, scales and offsets of norms and learnt
            betas are excluded. It is not multiplied by the factors of `lr_groups`.
        lr_groups: (pattern, factor) pairs; the rate of a variable is multiplied by the factor of the first pair that
            `rate_factor` finds for it.

    Raises:
        InputError: an unknown name, with the nearest one.

    Reference: lecture "Training of neural networks" (M. Hushchyn, HSE 2025), sections "Momentum" to "Adam".

    >>> kernel, bias = keras.Variable([[1.0]], name="kernel"), keras.Variable([1.0], name="bias")
    >>> optimizer = get("sgd", 0.1, [kernel, bias], lr_groups=(("bias", 2.0),))
    >>> optimizer.apply([ops.ones((1, 1)), ops.ones(1)], [kernel, bias])
    >>> round(float(kernel[0, 0]), 3), round(float(bias[0]), 3)
    (0.9, 0.8)
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    cls, own = OPTIMIZERS[name]
    settings: dict[str, Any] = {"learning_rate": learning_rate, "weight_decay": weight_decay or None, **own(momentum)}
    if cls is keras.optimizers.AdamW:
        settings["weight_decay"] = float(weight_decay)  # refuses None
    if cls is Muon:  # the classifier's columns are no directions to be equalised: it moves with the vectors
        kernels = [variable.path for variable in variables if kind(variable) == "kernel"]
        settings["exclude"] = tuple(kernels[-1:])
    groups = tuple(lr_groups)
    optimizer = _GROUPED[cls](lr_groups=groups, **settings) if groups else cls(**settings)
    vectors = [variable for variable in variables if kind(variable) != "kernel"]
    if weight_decay and vectors:
        optimizer.exclude_from_weight_decay(var_list=vectors)
    optimizer.build(variables)
    return optimizer


def rate_factor(variable: Any, groups: Iterable[tuple[str, float]]) -> float:
    """Returns the factor of the first (pattern, factor) pair that fits the variable, 1 without one.

    A pattern is a kind ("bias", "norm", "kernel") or a shell pattern of the variable's path, begun at any of its parts:
    "conv1*" fits "conv1_2/kernel" and "model/conv1_2/kernel".

    >>> rate_factor(keras.Variable([[1.0]], name="kernel"), (("bias", 64.0), ("ker*", 0.5)))
    0.5
    """
    path = getattr(variable, "path", variable.name)
    parts = path.split("/")
    starts = ["/".join(parts[i:]) for i in range(len(parts))]
    for pattern, factor in groups:
        if pattern == kind(variable) or any(fnmatch.fnmatchcase(start, pattern) for start in starts):
            return float(factor)
    return 1.0
