"""ensemble(): several models as one, with the mean of their probabilities and how far they disagree."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dlkit._errors import InputError

Tensor = Any
FINAL = ("logits", "probabilities")


@keras.saving.register_keras_serializable(package="dlkit")
class Agreement(keras.layers.Layer):
    """Averages the members' probabilities and measures their disagreement.

        p = mean_m p_m
        disagreement = (H(p) - mean_m H(p_m)) / log(classes),  H(p) = -sum_c p_c log p_c

    The disagreement is the mutual information between the prediction and the choice of the member, as a fraction of its
    largest value: 0 where all members say the same, however uncertain they are.

    Args:
        final: "logits" takes the softmax of each member first, "probabilities" takes them as they are.
    """

    def __init__(self, final: str = "logits", **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.final = final

    def call(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        each = ops.stack([ops.cast(x, "float32") for x in inputs], axis=0)
        if self.final == "logits":
            each = ops.softmax(each, axis=-1)
        mean = ops.mean(each, axis=0)
        gap = _entropy(mean) - ops.mean(_entropy(each), axis=0)
        most = ops.log(ops.cast(max(2, each.shape[-1]), "float32"))
        return {"probabilities": mean, "disagreement": ops.maximum(gap / most, 0.0)}

    def compute_output_shape(self, input_shape: Any) -> dict[str, Any]:
        return {"probabilities": input_shape[0], "disagreement": input_shape[0][:-1]}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "final": self.final}


def _entropy(p: Tensor) -> Tensor:
    return -ops.sum(p * ops.log(ops.maximum(p, 1e-30)), axis=-1)


def ensemble(models: Sequence[keras.Model], *, name: str = "ensemble") -> keras.Model:
    """Builds one model of several classifiers: averaged probabilities and how far the members disagree.

    VGG's best result is such an average. The members are copied, weights included; layers of member k are called
    `member<k>_...`, so no two names clash, and the whole saves and exports as one model.

    Args:
        models: two or more classifiers with equal input and output shapes. Each may end in logits or in softmax
            probabilities, all the same way.
        name: of the model.

    Output: a dictionary: "probabilities" (batch, classes) and "disagreement" (batch,), 0 to 1, both float32.

    Raises:
        InputError: fewer than two members, shapes that differ, one output only, logits mixed with probabilities, or a
            last activation that gives neither, such as a sigmoid for each class.

    Example:
        >>> import numpy as np
        >>> from dlkit import models
        >>> pair = models.ensemble([models.mlp((8,), input_shape=(4,)), models.mlp((6,), input_shape=(4,))])
        >>> sorted(pair(np.zeros((1, 4), "float32"), training=False))
        ['disagreement', 'probabilities']

    Reference: K. Simonyan, A. Zisserman 2014, section 4.4 (averaged softmax outputs); B. Lakshminarayanan et al.,
    "Deep Ensembles", 2017; lecture 000 (E. Sokolov), section 8.2.
    """
    members = list(models)
    if len(members) < 2:
        raise InputError(f"ensemble: {len(members)} model(s) given, at least two are needed")
    first = members[0]
    for k, member in enumerate(members):
        if not isinstance(member, keras.Model) or len(member.inputs) != 1 or len(member.outputs) != 1:
            raise InputError(f"ensemble: member {k + 1} is no functional model with one input and one output")
        if member.input_shape != first.input_shape or member.output_shape != first.output_shape:
            raise InputError(
                f"ensemble: member {k + 1} maps {member.input_shape} to {member.output_shape}, member 1 maps "
                f"{first.input_shape} to {first.output_shape}; all must agree"
            )
    if first.output_shape[-1] == 1:
        raise InputError("ensemble: the members have one output, and probabilities of classes are what is averaged")
    ends = {_ends_in_probabilities(m) for m in members}
    if len(ends) > 1:
        raise InputError("ensemble: some members end in probabilities and some in logits; build all the same way")
    inputs = keras.Input(first.input_shape[1:], name="image", dtype=first.inputs[0].dtype)
    outputs = [_copy(member, f"member{k}_", inputs) for k, member in enumerate(members, 1)]
    final = FINAL[ends.pop()]
    return keras.Model(inputs, Agreement(final, name="agreement")(outputs), name=name)


def _copy(model: keras.Model, prefix: str, inputs: Tensor) -> Tensor:
    """Returns the output of a copy of the model on `inputs`, every layer renamed."""

    def renamed(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "name": prefix + layer.name})

    tensors = keras.tree.map_structure(lambda _: inputs, model.input)
    copy = keras.models.clone_model(model, input_tensors=tensors, clone_function=renamed)
    copy.set_weights(model.get_weights())
    return copy.outputs[0]


def _ends_in_probabilities(model: keras.Model) -> bool:
    last = getattr(getattr(model.layers[-1], "activation", None), "__name__", "linear")
    if last not in ("linear", "softmax", "log_softmax"):
        raise InputError(f"ensemble: {model.name!r} ends in {last}; logits or softmax probabilities are averaged")
    return isinstance(model.layers[-1], keras.layers.Softmax) or last == "softmax"
