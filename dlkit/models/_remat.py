"""Rematerialisation: a block's inside is computed again in the backward pass instead of being kept."""

import re
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

Tensor = Any


def pure_call(
    block: keras.Model, inputs: list[Tensor], trainable: list[Tensor], moving: list[Tensor], training: bool, remat: bool
) -> tuple[Tensor, list[Tensor]]:
    """Returns a block's output and its moved statistics; no variable is read or written.

    Because the statistics go in and come out as values, the second computation of the inside cannot move them twice,
    and a seed goes in as a value too, so dropout draws the same numbers again.
    """

    count = len(inputs)

    def inside(*values: Tensor) -> tuple[Tensor, ...]:
        x = values[0] if count == 1 else list(values[:count])
        y, new = block.stateless_call(list(values[count:]), list(moving), x, training=training)
        return (y, *new)

    run = keras.remat(inside) if remat and training else inside
    y, *new = run(*inputs, *trainable)
    return y, list(new)


def read(variables: Iterable[keras.Variable]) -> list[Tensor]:
    """Returns the values that untrained variables have now.

    On TensorFlow `value` is the variable itself, and a backward pass that reads it again would see what the forward
    pass assigned: another seed, another dropout mask.
    """
    return [ops.stop_gradient(v.value) for v in variables]


class _Segments:
    """Holds the models of the blocks out of reach of Keras' tracking: their layers belong to the whole model."""

    def __init__(self, models: list[tuple[keras.Model, bool]]) -> None:
        self.models = models


@keras.saving.register_keras_serializable(package="dlkit")
class Rematerialized(keras.Model):
    """A functional model whose residual blocks forget their inside in training.

    Layers, names, weights, files and results are those of the plain functional model; only the execution of a training
    step differs. In inference it runs as the plain model does.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Any = None) -> Tensor:
        if not training:
            return super().call(inputs, training=training, mask=mask)
        x = keras.tree.flatten(inputs)[0]
        for segment, block in self._parts().models:
            if not block:
                x = segment.call(x, training=training)
                continue
            trainable, moving = segment.trainable_variables, segment.non_trainable_variables
            x, new = pure_call(segment, [x], [v.value for v in trainable], read(moving), True, True)
            for variable, value in zip(moving, new, strict=True):
                variable.assign(value)
        return x

    def _parts(self) -> _Segments:
        """Returns the models of stem, blocks and head, cut once from the graph."""
        if not hasattr(self, "_dlkit_segments"):
            self._dlkit_segments = _Segments(_cut(self))
        return self._dlkit_segments


def _cut(model: keras.Model) -> list[tuple[keras.Model, bool]]:
    """Returns (model, is it a block?) from the input to the output, cut before the first block and after each."""
    names = [layer.name for layer in model.layers]
    first = next(i for i, name in enumerate(names) if re.match(r"stage\d+_block\d+_", name))
    source = model.get_layer(names[first]).input
    stem = source[0] if isinstance(source, list) else source
    ends = [n for n in names if re.fullmatch(r"stage\d+_block\d+_out", n)]
    cuts = [model.inputs[0], stem, *(model.get_layer(n).output for n in ends), model.outputs[0]]
    kinds = [False, *[True] * len(ends), False]
    return [
        (keras.Model(a, b, name=f"segment{i}"), kind)
        for i, (a, b, kind) in enumerate(zip(cuts, cuts[1:], kinds, strict=False))
        if a is not b
    ]
