"""Initial weights: the lectures' methods by name, Dirac, and LSUV, which calibrates a built model on a batch."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit._errors import InputError, unknown

__all__ = ["Dirac", "get", "lsuv"]


@keras.saving.register_keras_serializable(package="dlkit")
class Dirac(keras.initializers.Initializer):
    """Starts a convolution as the identity: output channel i passes input channel i on.

        W[centre, i, i] = gain for i < min(n_in, n_out), 0 elsewhere

    Lets signal and gradient cross a deep plain network at the start, and lets `dlkit.models.grow` insert layers
    without changing the function. Output channels beyond the inputs start as zero, or as `rest` says.

    Args:
        groups: of the convolution; each group is an identity of its own.
        gain: the value on the diagonal.
        rest: None leaves output channels beyond the inputs zero; else the name or initializer that fills them.

    Raises:
        InputError: the weight has no input and output axis, or groups do not divide the outputs.

    Example:
        >>> import numpy as np
        >>> np.asarray(Dirac()((3, 1, 1)))[:, 0, 0].tolist()
        [0.0, 1.0, 0.0]

    Reference: S. Zagoruyko, N. Komodakis, "DiracNets", 2017, eq. 4, https://arxiv.org/abs/1706.00388.
    """

    def __init__(self, groups: int = 1, gain: float = 1.0, rest: Any = None) -> None:
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise InputError(f"Dirac: groups={groups!r} must be a whole number from 1, for example Dirac(groups=1)")
        self.groups, self.gain = groups, float(gain)
        self.rest = None if rest is None else get(rest)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        if len(shape) < 2 or shape[-1] % self.groups:
            raise InputError(
                f"Dirac: a weight of shape {tuple(shape)} with groups={self.groups} is no kernel "
                "(window..., inputs, outputs) whose outputs the groups divide, for example (3, 3, 16, 32)"
            )
        *window, n_in, n_out = shape
        centre = tuple(k // 2 for k in window)
        kernel, filled = np.zeros(shape, "float32"), np.zeros(n_out, bool)
        for group in range(self.groups):
            for i in range(min(n_in, n_out // self.groups)):
                out = group * (n_out // self.groups) + i
                kernel[(*centre, i, out)] = self.gain
                filled[out] = True
        dtype = keras.backend.standardize_dtype(dtype)
        result = ops.cast(ops.convert_to_tensor(kernel), dtype)
        if self.rest is None:
            return result
        return ops.where(ops.convert_to_tensor(filled), result, self.rest(shape, dtype=dtype))

    def get_config(self) -> dict[str, Any]:
        rest = None if self.rest is None else keras.initializers.serialize(self.rest)
        return {"groups": self.groups, "gain": self.gain, "rest": rest}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Dirac":
        rest = config.get("rest")
        return cls(**{**config, "rest": keras.initializers.deserialize(rest) if isinstance(rest, dict) else rest})


def _variance(scale: float, mode: str, distribution: str) -> Callable[..., Any]:
    return functools.partial(keras.initializers.VarianceScaling, scale=scale, mode=mode, distribution=distribution)


_INITIALIZERS: dict[str, Callable[..., Any]] = {
    "xavier": _variance(1.0, "fan_in", "untruncated_normal"),
    "xavier_uniform": _variance(1.0, "fan_in", "uniform"),
    "glorot": _variance(1.0, "fan_avg", "untruncated_normal"),
    "glorot_normal": keras.initializers.GlorotNormal,
    "glorot_uniform": keras.initializers.GlorotUniform,
    "he": _variance(2.0, "fan_in", "untruncated_normal"),
    "he_normal": keras.initializers.HeNormal,
    "he_uniform": keras.initializers.HeUniform,
    "he_fan_out": _variance(2.0, "fan_out", "untruncated_normal"),
    "lecun": keras.initializers.LecunNormal,
    "lecun_normal": keras.initializers.LecunNormal,
    "lecun_uniform": keras.initializers.LecunUniform,
    "constant": keras.initializers.Constant,
    "normal": functools.partial(keras.initializers.RandomNormal, stddev=1.0),
    "uniform": functools.partial(keras.initializers.RandomUniform, minval=-0.05, maxval=0.05),
    "orthogonal": keras.initializers.Orthogonal,
    "dirac": Dirac,
    "identity": keras.initializers.Identity,
    "zeros": keras.initializers.Zeros,
    "ones": keras.initializers.Ones,
}
_SEEDLESS = ("constant", "dirac", "identity", "zeros", "ones")


def get(name: Any, /, seed: int | None = None, **kw: Any) -> Any:
    """Returns a new Keras initializer for a name, a class, a config, a callable or an instance.

        xavier                 normal, variance 1/n_in: the method as lecture 003 gives it, Var(w) = 1/n
        glorot                 normal, variance 2/(n_in + n_out): lecture 002; glorot_normal is Keras' truncated one
        he                     normal, variance 2/n_in: for ReLU, lecture 002; he_fan_out has 2/n_out, as in ResNets
        lecun                  truncated normal, variance 1/n_in
        xavier_uniform, glorot_uniform, he_uniform, lecun_uniform: the same variances, uniform
        normal                 N(0, 1), lecture 003; `stddev=0.01` is AlexNet's
        uniform                U(-0.05, 0.05), lecture 003's U(-a, a); `minval`, `maxval`
        constant               `value`, 0 by default; lecture 003 shows why a constant does not learn
        orthogonal, dirac, identity, zeros, ones

    n_in and n_out count a convolution's window. The instance is new each time, so layers do not share draws.

    Args:
        name: see above; a callable (shape, dtype) -> tensor and an instance are returned as they are.
        seed: of the draws, for a name, a class or a config that has any; None draws one or keeps the config's.
        **kw: further arguments of the initializer, such as `value` or `stddev`.

    Raises:
        InputError: the name is unknown (the known ones are listed) or an argument does not fit.

    Example:
        >>> get("he", seed=1).scale
        2.0

    Reference: X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010,
    eq. 12; K. He et al., "Delving Deep into Rectifiers", 2015, eq. 10, https://arxiv.org/abs/1502.01852.
    Lecture 003 (M. Gushchin), "Initialisation"; lecture 002 (St Petersburg University), "Initialisation of weights".
    """
    if isinstance(name, dict) and not kw:
        config = dict(name.get("config") or {})
        if seed is not None and "seed" in config:
            name = {**name, "config": {**config, "seed": seed}}
        return keras.initializers.deserialize(name)
    if isinstance(name, str):
        key = name.lower()
        if key not in _INITIALIZERS:
            raise unknown("initializer", name, _INITIALIZERS)
        seeded = {} if key in _SEEDLESS else {"seed": seed}
        try:
            return _INITIALIZERS[key](**seeded, **kw)
        except TypeError as error:
            raise InputError(f"initializer {name!r} does not take {sorted(kw)}: {error}") from error
    if isinstance(name, type) and issubclass(name, keras.initializers.Initializer):
        seeded = {} if seed is None or "seed" not in inspect.signature(name).parameters else {"seed": seed}
        return name(**seeded, **kw)
    if callable(name) and not kw:
        return name
    if kw and (callable(name) or isinstance(name, dict)):
        raise InputError(f"initializer {name!r} is complete and does not take {sorted(kw)}; give its name or class")
    raise InputError(f"initializer {name!r} is no name, config or callable; known names: {', '.join(_INITIALIZERS)}")


def lsuv(
    model: Any, batch: Any, *, tolerance: float = 0.01, max_iterations: int = 10, seed: int = 0
) -> dict[str, float]:
    """Scales each layer's kernel until its output on `batch` has unit variance, from the first layer to the last.

        kernel <- orthonormal;  repeat  kernel <- kernel / std(layer(batch))  until |var - 1| < tolerance

    Calibrates what formulas only estimate: the variance after the actual nonlinearities and shortcuts. Choose "he"
    where no batch is at hand. The output is measured before a layer's own activation.

    Args:
        model: a built functional or Sequential Keras model; its dense and convolutional kernels change in place.
        batch: inputs as the model takes them, some hundred samples.
        tolerance: largest deviation of the variance from 1; the paper's is 0.1.
        max_iterations: scalings per layer; linear layers need one or two.
        seed: of the orthonormal start.

    Returns:
        The variance reached by each layer, by name.

    Raises:
        InputError: the model has no layer graph, or a layer's output does not vary on this batch.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32), keras.layers.Dense(4)])
        >>> x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
        >>> [round(v, 2) for v in lsuv(model, x).values()]
        [1.0, 1.0]

    Reference: D. Mishkin, J. Matas, "All you need is a good init", 2015, algorithm 1,
    https://arxiv.org/abs/1511.06422. Lecture 003 (M. Gushchin), "Initialisation" (the variance it keeps).
    """
    layers = [layer for layer in getattr(model, "layers", []) if _has_kernel(layer)]
    if not layers or not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise InputError(
            f"lsuv: {model!r} is no built functional model with dense or convolutional layers; build it first, "
            "for example with keras.Input as its first layer"
        )
    reached = {}
    for number, layer in enumerate(layers):
        kernel = layer.kernel
        start = keras.initializers.Orthogonal(seed=seed + number)
        kernel.assign(start(kernel.shape, dtype=kernel.dtype))
        reached[layer.name] = _calibrate(model, layer, batch, tolerance, max_iterations)
    return reached


def _has_kernel(layer: Any) -> bool:
    return hasattr(layer, "kernel") and hasattr(layer, "activation") and len(layer.kernel.shape) >= 2


def _calibrate(model: Any, layer: Any, batch: Any, tolerance: float, max_iterations: int) -> float:
    """Scales one layer's kernel and returns the variance of its output before the activation."""
    activation, layer.activation = layer.activation, keras.activations.linear
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.input  # a list of one warns about its structure
    try:
        probe = keras.Model(inputs, layer.output)
        for scalings in range(max_iterations + 1):
            output = np.asarray(ops.convert_to_numpy(probe(batch, training=False)), "float64")
            variance = float(output.var())
            if not variance > 0 or not np.isfinite(variance):
                raise InputError(
                    f"lsuv: the output of layer {layer.name!r} has variance {variance} on this batch of shape "
                    f"{np.shape(batch)}; give a batch of varied samples, scaled as in training"
                )
            if abs(variance - 1) < tolerance or scalings == max_iterations:
                break
            layer.kernel.assign(layer.kernel / np.sqrt(variance).astype("float32"))
        return variance
    finally:
        layer.activation = activation
