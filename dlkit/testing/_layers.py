"""check_layer: one call that holds a layer to the contract, on whichever Keras backend runs."""

import inspect
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit import _errors

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
# largest deviation from the float64 reference, relative to the largest value: a few roundings of the dtype
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}

Factory = Callable[..., keras.layers.Layer]
Reference = Callable[..., np.ndarray]


def check_layer(
    factory: Factory,
    input_shape: Sequence[int],
    *,
    reference: Reference | None = None,
    unknown: Sequence[int] = (),
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16"),
    training: bool = False,
    random: bool = False,
    tolerance: float = 1.0,
    large: float = 1e4,
    jit: bool = True,
    seed: int = 0,
) -> None:
    """Holds a layer to the contract.

    - the config is JSON, made of constructor arguments, the same before and after build and call, and its layer again
    - shapes and dtypes are what `compute_output_shape` and the policy say, in float32, bfloat16 and float16
    - the output equals the float64 `reference`, the gradients its finite differences
    - half precision stays finite at inputs of 1e4
    - unknown batch and positions, `.keras` round trip and compilation (`jit_compile`) give the same numbers
    - a mask passes through where the layer supports masks

    Args:
        factory: called with `dtype=` (a policy's name); returns a new layer.
        input_shape: with the batch, small: about 100 to 1000 values.
        reference: float64 NumPy function (x, *weights) -> y for inference, or for training with `training`.
        unknown: axes besides the batch whose size may be unknown; the layer must work with None there.
        dtypes: of the policies to check.
        training: the mode that is compared with the reference; both modes must run.
        random: True for layers that draw in training: no comparison of values there.
        tolerance: multiplies the allowed deviation (2e-5, 2e-2, 2e-3 of the largest value for float32, bfloat16,
            float16).
        large: scale of the input in the finiteness check.
        jit: whether the layer must also run compiled.
        seed: of inputs and weights.

    Raises:
        AssertionError: with what was expected and what came.
        InputError: a dtype that no policy has.

    Example:
        >>> import keras
        >>> check_layer(lambda **kw: keras.layers.Dense(3, **kw), (2, 5), reference=lambda x, w, b: x @ w + b)
    """
    for dtype in dtypes:
        if dtype not in POLICIES:
            raise _errors.unknown("dtype", dtype, POLICIES)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=input_shape)
    kept: list[np.ndarray] | None = None
    for dtype in dtypes:
        layer = factory(dtype=POLICIES[dtype])
        _check_config(layer, input_shape, built=False)
        layer.build(tuple(input_shape))
        kept = _random_weights(layer, rng) if kept is None else kept
        layer.set_weights(kept)
        _check_output(layer, x, kept, reference, dtype, training, tolerance)
        _check_finite(layer, x, dtype, large)
        if random or reference is None or dtype != "float32":
            continue
        layer.set_weights(kept)
        _check_gradients(layer, x, kept, reference, training, tolerance)
    layer = factory(dtype="float32")
    layer.build(tuple(input_shape))
    layer.set_weights(kept or [])
    _check_config(layer, input_shape, built=True)
    _check_modes(layer, x, random)
    _check_model(factory, x, kept or [], unknown)
    _check_mask(factory, input_shape)
    if jit:
        _check_jit(factory, x, kept or [], training and not random)


def _text(shape: Any) -> str:
    return str(tuple(shape))


def _random_weights(layer: keras.layers.Layer, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns weights away from their initial 0 and 1; those that do not learn (averages) positive; seeds untouched."""
    values = []
    for weight in layer.weights:
        start = ops.convert_to_numpy(weight.value)
        if start.dtype.kind in "iu":
            values.append(start)
            continue
        noise = rng.normal(size=weight.shape)
        learnt = 0.5 * noise + 0.3
        values.append((learnt if weight.trainable else np.abs(noise) + 0.5).astype("float32"))
    return values


def _numpy(x: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")), "float64")


def _input(x: np.ndarray, dtype: str) -> Any:
    return ops.cast(ops.convert_to_tensor(x.astype("float32")), dtype)


def _deviation(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(got - expected), initial=0.0) / max(np.max(np.abs(expected), initial=0.0), 1e-3))


def _check_config(layer: keras.layers.Layer, input_shape: Sequence[int], built: bool) -> None:
    name, config = type(layer).__name__, layer.get_config()
    text = json.dumps(config, sort_keys=True, default=repr)
    again = type(layer).from_config(json.loads(json.dumps(config, default=repr)) if _is_json(config) else config)
    assert json.dumps(again.get_config(), sort_keys=True, default=repr) == text, (
        f"{name}: from_config(get_config()) has another config: {again.get_config()} instead of {config}"
    )
    if not built:
        again.build(tuple(input_shape))
        after = json.dumps(again.get_config(), sort_keys=True, default=repr)
        assert after == text, f"{name}: build changed the config from {text} to {after}"
        accepted = inspect.signature(type(layer).__init__).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            extra = sorted(set(config) - set(accepted))
            assert not extra, f"{name}: the config has {extra}, which the constructor does not take"


def _is_json(config: dict[str, Any]) -> bool:
    try:
        json.dumps(config)
    except TypeError:
        return False
    return True


def _check_output(
    layer: keras.layers.Layer,
    x: np.ndarray,
    weights: list[np.ndarray],
    reference: Reference | None,
    dtype: str,
    training: bool,
    tolerance: float,
) -> None:
    name, given = type(layer).__name__, _input(x, dtype)
    y = layer(given, training=training) if _takes_training(layer) else layer(given)
    expected_shape = tuple(layer.compute_output_shape(tuple(x.shape)))
    assert tuple(y.shape) == expected_shape, (
        f"{name}: output {_text(y.shape)}, compute_output_shape says {_text(expected_shape)}"
    )
    got_dtype = keras.backend.standardize_dtype(y.dtype)
    assert got_dtype == dtype, f"{name}: {dtype} in, {got_dtype} out"
    if reference is None:
        return
    rounded = [w if w.dtype.kind in "iu" else w.astype("float64") for w in weights]
    expected = reference(_numpy(given), *rounded)
    deviation, allowed = _deviation(_numpy(y), expected), tolerance * TOLERANCE[dtype]
    assert deviation <= allowed, (
        f"{name} in {dtype}: deviates by {deviation:.2e} of the largest value from the float64 reference, "
        f"allowed {allowed:.1e}"
    )


def _takes_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _check_finite(layer: keras.layers.Layer, x: np.ndarray, dtype: str, large: float) -> None:
    scale = large / np.max(np.abs(x))
    for training in (True, False) if _takes_training(layer) else (None,):
        extra = {} if training is None else {"training": training}
        y = _numpy(layer(_input(x * scale, dtype), **extra))
        assert np.isfinite(y).all(), f"{type(layer).__name__} in {dtype}: not finite at inputs of {large:g}"


def _check_modes(layer: keras.layers.Layer, x: np.ndarray, random: bool) -> None:
    """Both modes run, twice the same at inference, and (unless random) in training."""
    if not _takes_training(layer):
        return
    state, given = layer.get_weights(), _input(x, "float32")
    for training in (False, True):
        first = _numpy(layer(given, training=training))
        if training and random:
            continue
        layer.set_weights(state)
        second = _numpy(layer(given, training=training))
        layer.set_weights(state)
        assert (first == second).all(), f"{type(layer).__name__}: two equal calls differ, training={training}"


def _check_gradients(
    layer: keras.layers.Layer,
    x: np.ndarray,
    weights: list[np.ndarray],
    reference: Reference,
    training: bool,
    tolerance: float,
) -> None:
    """Compares the gradient along one random direction with the reference's central difference in float64."""
    rng = np.random.default_rng(1)
    learnt = [i for i, w in enumerate(layer.weights) if w.trainable]
    given = x.astype("float32").astype("float64")
    values = [given, *(w.astype("float64") for w in weights)]
    upstream = rng.normal(size=np.shape(reference(*values)))
    got = _gradients(layer, given.astype("float32"), upstream.astype("float32"), training)
    names = ["the input", *(layer.weights[i].name for i in learnt)]
    for place, name, gradient in zip([0, *(i + 1 for i in learnt)], names, got, strict=True):
        direction = rng.normal(size=values[place].shape)
        sides = []
        for step in (1e-6, -1e-6):
            moved = list(values)
            moved[place] = values[place] + step * direction
            sides.append(float(np.sum(upstream * reference(*moved))))
        expected = (sides[0] - sides[1]) / 2e-6
        actual = float(np.sum(np.asarray(gradient, "float64") * direction))
        scale = max(abs(expected), float(np.linalg.norm(gradient)), 1e-3)
        allowed = tolerance * 1e-4 * scale
        assert abs(actual - expected) <= allowed, (
            f"{type(layer).__name__}: the gradient of {name} along a direction is {actual:.6g}, finite differences "
            f"give {expected:.6g}, allowed difference {allowed:.1e}"
        )


def _gradients(layer: keras.layers.Layer, x: np.ndarray, upstream: np.ndarray, training: bool) -> list[np.ndarray]:
    """Returns the gradients of sum(upstream * layer(x)) for x and the learnt weights, on the backend that runs."""
    extra = {"training": training} if _takes_training(layer) else {}
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def run(given: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(given)
                loss = tf.reduce_sum(layer(given, **extra) * upstream)
            sources = [given, *(w.value for w in layer.trainable_variables)]
            return tape.gradient(loss, sources, unconnected_gradients="zero")

        return [np.asarray(g) for g in run(tf.constant(x))]
    if backend == "jax":
        import jax

        fixed = [w.value for w in layer.non_trainable_variables]

        def loss_of(given: Any, learnt: Any) -> Any:
            y, _ = layer.stateless_call(learnt, fixed, given, **extra)
            return (y * upstream).sum()

        first, rest = jax.grad(loss_of, argnums=(0, 1))(x, [w.value for w in layer.trainable_variables])
        return [np.asarray(g) for g in (first, *rest)]
    import torch

    device = layer.weights[0].value.device if layer.weights else "cpu"
    given = torch.tensor(x, requires_grad=True, device=device)
    leaves = [given, *(w.value for w in layer.trainable_variables)]
    loss = (layer(given, **extra) * torch.tensor(upstream, device=device)).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else [None] * len(leaves)
    return [
        (torch.zeros_like(v) if g is None else g).detach().cpu().numpy() for g, v in zip(found, leaves, strict=True)
    ]


def _check_model(factory: Factory, x: np.ndarray, weights: list[np.ndarray], unknown: Sequence[int]) -> None:
    """In a model with unknown batch and positions: other sizes run, and the saved file gives the same bits."""
    direct = factory(dtype="float32")
    direct.build(tuple(x.shape))
    direct.set_weights(weights)
    sizes = [None if i in unknown else n for i, n in enumerate(x.shape)][1:]
    inputs = keras.Input(sizes)
    layer = factory(dtype="float32")
    model = keras.Model(inputs, layer(inputs))
    name = type(layer).__name__
    model.set_weights(weights)
    given = x.astype("float32")
    bigger = np.concatenate([given] * 3, axis=0)
    for axis in unknown:
        bigger = np.concatenate([bigger, bigger], axis=axis)
    for sample in (given, bigger):
        got = _numpy(model(sample, training=False))
        extra = {"training": False} if _takes_training(direct) else {}
        deviation = _deviation(got, _numpy(direct(sample, **extra)))
        assert deviation <= 1e-5, f"{name}: input of shape {sample.shape} in a model deviates by {deviation:.1e}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        again = keras.models.load_model(path)
    same = again.layers[-1].get_config() == layer.get_config()
    assert same, f"{name}: the reloaded config is {again.layers[-1].get_config()} instead of {layer.get_config()}"
    for before, after in zip(model.get_weights(), again.get_weights(), strict=True):
        assert (before == after).all(), f"{name}: a weight changed in the .keras file"
    equal = (_numpy(model(given, training=False)) == _numpy(again(given, training=False))).all()
    assert equal, f"{name}: the reloaded model gives other bits"


def _check_mask(factory: Factory, input_shape: Sequence[int]) -> None:
    layer = factory(dtype="float32")
    if not layer.supports_masking:
        return
    mask = np.ones(tuple(input_shape)[:2], bool)
    got = layer.compute_mask(np.zeros(input_shape, "float32"), mask)
    kept = got is mask or (got is not None and (_numpy(got) == mask).all())
    assert kept, f"{type(layer).__name__}: says it supports masks and drops one"


def _check_jit(factory: Factory, x: np.ndarray, weights: list[np.ndarray], training: bool) -> None:
    """Compiles a call for TensorFlow (`jit_compile=True`) or JAX and compares it with the plain call."""
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        return
    layer = factory(dtype="float32")
    layer.build(tuple(x.shape))
    layer.set_weights(weights)
    extra = {"training": training} if _takes_training(layer) else {}
    given = x.astype("float32")
    if backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda t: layer(t, **extra), jit_compile=True, autograph=False)(tf.constant(given))
    else:
        import jax

        learnt, fixed = ([w.value for w in v] for v in (layer.trainable_variables, layer.non_trainable_variables))
        compiled = jax.jit(lambda t: layer.stateless_call(learnt, fixed, t, **extra)[0])(given)
    layer.set_weights(weights)
    deviation = _deviation(_numpy(compiled), _numpy(layer(ops.convert_to_tensor(given), **extra)))
    assert deviation <= 2e-5, f"{type(layer).__name__}: compiled it deviates by {deviation:.1e} of the largest value"
