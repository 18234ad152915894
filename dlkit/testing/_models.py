"""check_model(): what every model must pass."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dlkit._errors import unknown

Build = Callable[[], keras.Model]
CHECKS = ("build", "names", "dtype", "batch", "reload", "weights", "overfit", "export")


def check_model(
    build: Build,
    input_shape: tuple[int, ...] | None = None,
    *,
    skip: tuple[str, ...] = (),
    steps: int = 60,
    learning_rate: float = 1e-2,
    batch: int = 4,
) -> None:
    """Raises AssertionError if a model breaks the contract of this package; works on users' own models.

    build      two builds have the same layers, variables and shapes; the model has one input
    names      names of layers and paths of variables are unique; no name contains "/"
    dtype      the output is float32 and finite
    batch      the batch size is free, and a sample's answer does not depend on the others
    reload     `.keras`: the same output, bit for bit, and the same configuration
    weights    `.weights.h5`: weights come back into a second build, bit for bit
    overfit    a few steps on one batch bring the loss below half of its start
    export     a SavedModel endpoint with training=False gives the same output

    Args:
        build: makes the model; called twice.
        input_shape: of one sample; None reads it from the model.
        skip: names of checks to leave out.
        steps: most training steps of "overfit".
        learning_rate: of Adam there.
        batch: samples of the batch.

    Raises:
        AssertionError: with the check, what was expected and what came.
        InputError: `skip` names no check.

    Example:
        >>> from dlkit import models, testing
        >>> testing.check_model(lambda: models.mlp((16,), classes=3, input_shape=(5,)), skip=("export",))
    """
    for name in skip:
        if name not in CHECKS:
            raise unknown("check", name, CHECKS)
    model = build()
    shape = tuple(model.input_shape[1:]) if input_shape is None else tuple(input_shape)
    x = np.random.default_rng(0).normal(size=(batch, *shape)).astype("float32")
    for name in CHECKS:
        if name in skip:
            continue
        try:
            _RUN[name](build, model, x, {"steps": steps, "learning_rate": learning_rate})
        except AssertionError as error:
            raise AssertionError(f"{model.name}: check {name!r}: {error}") from error


def _forward(model: keras.Model, x: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def _equal(a: list[np.ndarray], b: list[np.ndarray], what: str, tolerance: float = 0.0) -> None:
    assert len(a) == len(b), f"{what}: {len(b)} arrays instead of {len(a)}"
    for p, q in zip(a, b, strict=True):
        assert p.shape == q.shape, f"{what}: shape {q.shape} instead of {p.shape}"
        gap = float(np.max(np.abs(p.astype("float64") - q.astype("float64")), initial=0.0))
        scale = max(1.0, float(np.max(np.abs(p), initial=0.0)))
        assert gap <= tolerance * scale, f"{what}: differs by {gap:.2e}, allowed {tolerance * scale:.0e}"


def _build(build: Build, model: keras.Model, x: Any, _: dict) -> None:
    other = build()
    assert [layer.name for layer in model.layers] == [layer.name for layer in other.layers], "layer names differ"
    assert [w.path for w in model.weights] == [w.path for w in other.weights], "paths of variables differ"
    assert [w.shape for w in model.weights] == [w.shape for w in other.weights], "shapes of variables differ"
    assert len(model.inputs) == 1, f"{len(model.inputs)} inputs instead of one"


def _names(build: Build, model: keras.Model, x: Any, _: dict) -> None:
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names), "two layers bear one name"
    assert not any("/" in n for n in names), "a layer's name contains /"
    paths = [w.path for w in model.weights]
    twice = sorted({p for p in paths if paths.count(p) > 1})
    assert not twice, f"two variables bear the path {twice[:1]}"


def _dtype(build: Build, model: keras.Model, x: Any, _: dict) -> None:
    for y in _forward(model, x):
        assert y.dtype == np.float32, f"the output is {y.dtype} instead of float32"
        assert np.all(np.isfinite(y)), "the output is not finite"


def _batch(build: Build, model: keras.Model, x: Any, _: dict) -> None:
    assert model.input_shape[0] is None, "the batch size is fixed"
    whole = _forward(model, x)
    for n in (1, len(x) - 1):
        _equal([y[:n] for y in whole], _forward(model, x[:n]), f"the first {n} samples alone", 1e-4)


def _reload(build: Build, model: keras.Model, x: Any, _: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        again = keras.models.load_model(path)
        _equal(_forward(model, x), _forward(again, x), "the reloaded model's output")
        for a, b in zip(model.layers, again.layers, strict=True):
            assert _config(a) == _config(b), f"the configuration of {a.name} differs after reloading"


def _config(layer: keras.layers.Layer) -> str:
    config = keras.saving.serialize_keras_object(layer)["config"]
    return json.dumps(config, sort_keys=True, default=str)


def _weights(build: Build, model: keras.Model, x: Any, _: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.weights.h5")
        model.save_weights(path)
        other = build()
        other.load_weights(path)
        _equal(model.get_weights(), other.get_weights(), "the loaded weights")


def _overfit(build: Build, model: keras.Model, x: Any, options: dict) -> None:
    copy = keras.models.clone_model(model)
    outputs = copy.outputs[0].shape[-1]
    y = np.arange(len(x)) % outputs
    last = copy.layers[-1]
    probabilities = getattr(getattr(last, "activation", None), "__name__", "") == "softmax"
    if outputs > 1:
        loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    else:
        loss, y = keras.losses.MeanSquaredError(), np.linspace(0.0, 1.0, len(x))[:, None].astype("float32")
    copy.compile(keras.optimizers.Adam(options["learning_rate"]), loss, jit_compile=False)
    start, value = None, float("inf")
    for _ in range(options["steps"]):
        value = float(copy.train_on_batch(x, y))
        start = value if start is None else start
        assert np.isfinite(value), "the loss is not finite"
        if value < 0.5 * start:
            return
    raise AssertionError(f"the loss went from {start:.3f} to {value:.3f} in {options['steps']} steps on one batch")


def _export(build: Build, model: keras.Model, x: Any, _: dict) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            "serve",
            lambda image: model(image, training=False),
            input_signature=[tf.TensorSpec((None, *x.shape[1:]), tf.float32)],
        )
        archive.write_out(folder, verbose=False)
        loaded = tf.saved_model.load(folder)  # its variables live as long as this object
        served = loaded.serve(tf.constant(x))
        _equal(_forward(model, x), [np.asarray(y) for y in tf.nest.flatten(served)], "the export's output", 1e-5)


_RUN: dict[str, Callable[..., None]] = {
    "build": _build,
    "names": _names,
    "dtype": _dtype,
    "batch": _batch,
    "reload": _reload,
    "weights": _weights,
    "overfit": _overfit,
    "export": _export,
}
