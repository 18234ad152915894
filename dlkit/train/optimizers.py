"""Optimizers by name, with weight decay that leaves norms and biases alone."""

from collections.abc import Callable
from typing import Any

import keras

from dlkit._errors import unknown

# The lectures write momentum as h = beta h + g, w -= eta h (M. Hushchyn) and as v = beta v + (1 - beta) g, w -= eta v.
# Keras computes h = beta h - eta g, w += h: the first form when eta is constant.
OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "sgd": lambda momentum, **kw: keras.optimizers.SGD(momentum=0.0, **kw),
    "momentum": lambda momentum, **kw: keras.optimizers.SGD(momentum=momentum, **kw),
    "nesterov": lambda momentum, **kw: keras.optimizers.SGD(momentum=momentum, nesterov=True, **kw),
    "adagrad": lambda momentum, **kw: keras.optimizers.Adagrad(**kw),
    "rmsprop": lambda momentum, **kw: keras.optimizers.RMSprop(rho=0.9, momentum=momentum, **kw),
    "adam": lambda momentum, **kw: keras.optimizers.Adam(**kw),
    "adamw": lambda momentum, **kw: keras.optimizers.AdamW(**kw),
}


def get(
    name: str,
    learning_rate: Any,
    variables: list[Any],
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    ema: float = 0.0,
) -> keras.optimizers.Optimizer:
    """Builds the named optimizer for `variables`, its state included, so that a checkpoint can be read into it.

    Args:
        name: one of `OPTIMIZERS`.
        learning_rate: a number or a `LearningRateSchedule`.
        variables: the model's trainable variables.
        momentum: beta, for "momentum", "nesterov" and "rmsprop".
        weight_decay: lambda in w -= eta lambda w for every matrix and kernel; vectors and scalars (biases, scales and
            offsets of norms, learnt betas) are excluded.
        ema: decay per step of averaged weights kept by the optimizer; 0 keeps none.

    Raises:
        InputError: an unknown name, with the nearest one.

    Reference: lecture "Training of neural networks" (M. Hushchyn, HSE 2025), sections "Momentum" to "Adam".
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    optimizer = OPTIMIZERS[name](
        momentum,
        learning_rate=learning_rate,
        weight_decay=weight_decay or None,
        use_ema=ema > 0,
        ema_momentum=ema or 0.99,
    )
    vectors = [variable for variable in variables if len(variable.shape) < 2]
    if weight_decay and vectors:
        optimizer.exclude_from_weight_decay(var_list=vectors)
    optimizer.build(variables)
    return optimizer
