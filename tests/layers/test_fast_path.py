"""TensorFlow's fast paths: equal to the reference, exact at a large mean, standard operations in exports."""

import math
import os
from pathlib import Path

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("fast paths exist on TensorFlow alone", allow_module_level=True)

import layer_references as references
import tensorflow as tf
from tensorflow.python.eager import context

from dlkit import layers
from dlkit.layers import _compiled, _fast, _onednn, _plain
from dlkit.train.precision import arithmetic, has_bfloat16

NORMS = {
    "GroupNorm": (lambda **kw: layers.GroupNorm(4, **kw), (4, 6, 10, 16)),
    "GroupNorm-odd": (lambda **kw: layers.GroupNorm(2, **kw), (4, 13, 5, 8)),
    "GroupNorm-rank2": (lambda **kw: layers.GroupNorm(4, **kw), (5, 16)),
    "InstanceNorm": (layers.InstanceNorm, (4, 6, 10, 16)),
    "LayerNorm": (layers.LayerNorm, (4, 7, 24)),
    "LayerNorm-rank2": (layers.LayerNorm, (7, 24)),
    "RMSNorm": (layers.RMSNorm, (4, 6, 5, 16)),
    "SwiGLU": (lambda **kw: layers.SwiGLU(6, trainable_beta=True, **kw), (4, 3, 6)),
    "GEGLU": (lambda **kw: layers.GEGLU(6, use_bias=False, **kw), (4, 6)),
    "BatchNorm": (layers.BatchNorm, (8, 6, 10, 16)),
    "BatchNorm-rows": (layers.BatchNorm, (8, 5, 160)),
}
POLICY = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


@pytest.fixture
def plain(monkeypatch):
    """Returns a switch to the reference path."""
    return lambda: monkeypatch.setattr(_fast, "available", lambda: False)


def built(make, shape, dtype):
    """Returns a layer with random weights, an input and an upstream gradient, all from fixed seeds."""
    rng = np.random.default_rng(0)
    layer = make(dtype=POLICY[dtype])
    layer.build(shape)
    for weight in layer.trainable_variables:
        weight.assign(rng.normal(size=weight.shape) + 0.5)
    return layer, *(tf.constant(rng.normal(size=shape), dtype) for _ in range(2))


def derivatives(layer, shape, dtype, second=True):
    """Returns a tf.function of (x, dy), batch unknown: y, its derivatives, and those of the sum of their squares."""

    @tf.function(input_signature=[tf.TensorSpec((None, *shape[1:]), dtype)] * 2, autograph=False)
    def run(x, dy):
        with tf.GradientTape() as outer:
            outer.watch([x, dy])
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = layer(x, training=True)
            first = inner.gradient(y, [x, *(w.value for w in layer.trainable_variables)], dy)
            squares = tf.add_n([tf.reduce_sum(tf.square(tf.cast(g, tf.float32))) for g in first])
        return [y, *first, *(outer.gradient(squares, [x, dy]) if second else [])]

    return run


def deviation(a, b):
    a, b = (np.asarray(tf.cast(t, tf.float32), "float64") for t in (a, b))
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("name", NORMS)
def test_output_and_first_and_second_derivatives_equal_the_reference(name, plain):
    make, shape = NORMS[name]
    layer, x, dy = built(make, shape, "float32")
    fast = derivatives(layer, shape, "float32")(x, dy)
    plain()
    for i, (got, expected) in enumerate(zip(fast, derivatives(layer, shape, "float32")(x, dy), strict=True)):
        assert deviation(got, expected) < 1e-5, i


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm", "RMSNorm", "BatchNorm"])
def test_bfloat16_equals_the_reference_within_one_rounding(name, plain):
    make, shape = NORMS[name]
    layer, x, dy = built(make, shape, "bfloat16")
    fast = derivatives(layer, shape, "bfloat16", second=False)(x, dy)
    plain()
    for got, expected in zip(fast, derivatives(layer, shape, "bfloat16", second=False)(x, dy), strict=True):
        assert got.dtype == expected.dtype
        assert deviation(got, expected) < 8e-3  # one unit in the last of 8 bits


@pytest.mark.parametrize(
    ("name", "trained", "inferred"),
    [
        # the compiled functions subtract a nearby value first; oneDNN's LayerNorm rounds the mean of 1e3 to the input's
        # last place, 6e-5, which a row of half the deviation doubles; the standard operations at inference and the
        # fused kernel of BatchNorm round the mean once, and the sum it comes from
        ("GroupNorm", 2e-6, 5e-4),
        ("InstanceNorm", 2e-6, 5e-4),
        ("LayerNorm", 5e-5, 5e-4),
        ("BatchNorm", 5e-4, None),
    ],
)
def test_the_variance_is_exact_at_mean_1000_and_deviation_1(name, trained, inferred):
    x = (np.random.default_rng(3).normal(size=(8, 28, 28, 16)) + 1e3).astype("float32")
    wide, one, zero = x.astype("float64"), np.ones(16), np.zeros(16)
    layer, expected = {
        "GroupNorm": (layers.GroupNorm(4), references.group_norm(wide, one, zero, 4)),
        "InstanceNorm": (layers.InstanceNorm(), references.instance_norm(wide, one, zero)),
        "LayerNorm": (layers.LayerNorm(), references.layer_norm(wide, one, zero)),
        "BatchNorm": (layers.BatchNorm(), references.batch_norm_training(wide, one, zero)),
    }[name]
    for training, allowed in ((True, trained), (False, inferred)):
        if allowed is not None:
            got = tf.function(lambda t, training=training: layer(t, training=training))(x)
            assert np.abs(got - expected).max() < allowed * np.abs(expected).max()
    if name != "BatchNorm":
        assert np.abs(layer(x) - expected).max() < 2e-6 * np.abs(expected).max()  # eagerly: the reference


def test_an_outlier_border_does_not_spoil_the_shifted_statistics():
    x = np.random.default_rng(4).normal(size=(2, 32, 32, 4)).astype("float32") + 1e3
    x[:, 0] = x[:, :, 0] = 0.0
    expected = references.instance_norm(x.astype("float64"), np.ones(4), np.zeros(4))
    layer = layers.InstanceNorm()
    got = tf.function(lambda t: layer(t, training=True))(x)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def compiled_parts(function):
    """Returns what is XLA in the graph of a concrete function: operation types and attributes."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    found = {n.op for n in nodes if "xla" in n.op.lower()}
    return found | {key for n in nodes for key, value in n.attr.items() if "XlaMustCompile" in key and value.b}


@pytest.mark.parametrize("name", NORMS)
def test_inference_has_standard_operations_only_and_training_is_compiled(name):
    make, shape = NORMS[name]
    layer, *_ = built(make, shape, "float32")
    spec = tf.TensorSpec((None, *shape[1:]))
    inference = tf.function(lambda t: layer(t, training=False)).get_concrete_function(spec)
    assert compiled_parts(inference) == set()
    training = tf.function(lambda t: layer(t, training=True)).get_concrete_function(spec)
    # BatchNorm and, where oneDNN is, LayerNorm run library kernels
    assert bool(compiled_parts(training)) == (name[:5] not in ("Batch", "Layer" if _onednn.fuses(tf) else ""))
    with _fast.standard_ops():
        quiet = tf.function(lambda t: layer(t, training=True)).get_concrete_function(spec)
    assert compiled_parts(quiet) == set()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_compiled_in_training_and_equals_its_formula(dtype):
    x = np.random.default_rng(5).normal(size=(3, 4, 5)).astype("float32") * 3
    x = tf.cast(x, dtype)
    layer = layers.activation("gelu", dtype=dtype)

    def step(t, training):
        with tf.GradientTape() as tape:
            tape.watch(t)
            y = layer(t, training=training)
        return y, tape.gradient(y, t)

    wide = tf.cast(x, tf.float64).numpy()
    phi = np.vectorize(lambda v: 0.5 * (1 + math.erf(v / 2**0.5)))(wide)
    slope = phi + wide * np.exp(-(wide**2) / 2) / (2 * np.pi) ** 0.5
    for training in (True, False):
        traced = tf.function(step).get_concrete_function(x, training)
        assert bool(compiled_parts(traced)) is training
        y, dx = traced(x)
        limit = 1e-6 if dtype == "float32" else 0.01
        np.testing.assert_allclose(tf.cast(y, tf.float64), wide * phi, atol=limit, rtol=limit)
        np.testing.assert_allclose(tf.cast(dx, tf.float64), slope, atol=limit, rtol=limit)


@pytest.mark.skipif(not _onednn.fuses(tf), reason="this TensorFlow has no oneDNN, or its graph optimiser is off")
def test_the_graph_optimiser_makes_one_kernel_of_layer_norm():
    eager, run = context.context(), _onednn._of_rows(tf, 8, 1e-5)
    eager.enable_run_metadata()
    try:
        run(tf.ones((3, 8)), tf.ones(8), tf.zeros(8))
        graphs = eager.export_run_metadata().function_graphs
    finally:
        eager.disable_run_metadata()
    assert {"_MklLayerNorm"} == {n.op for g in graphs for n in g.post_optimization_graph.node if "Norm" in n.op}


@pytest.mark.skipif(not has_bfloat16(), reason="this processor multiplies no bfloat16, so the optimiser leaves it out")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("channels", "half"), [(24, False), (40, False), (32, True)])
def test_batch_norm_stays_in_float32_where_bfloat16_has_no_fast_kernel(channels, half, training):
    norm = layers.BatchNorm()
    x, dy = (tf.random.stateless_normal((4, 5, 6, channels), (seed, 0)) for seed in (1, 2))
    norm.build(x.shape)
    for weight in norm.weights:
        weight.assign(tf.random.stateless_uniform(weight.shape, (3, 0), 0.5, 1.5))
    start = [np.array(weight) for weight in norm.weights]

    def run(x, dy):
        kernel = tf.eye(channels)[None, None]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.conv2d(norm(tf.nn.conv2d(x, kernel, 1, "SAME"), training=training), kernel, 1, "SAME")
        return (y, *tape.gradient(y, [x, *norm.trainable_variables], dy))

    reference = run(x, dy)
    moved = [np.array(weight) for weight in norm.weights]
    norm.set_weights(start)
    eager = context.context()
    with arithmetic("bfloat16"):
        eager.enable_run_metadata()
        try:
            found = tf.function(run, autograph=False)(x, dy)
            graphs = eager.export_run_metadata().function_graphs
        finally:
            eager.disable_run_metadata()
    kernels = [node for g in graphs for node in g.post_optimization_graph.node if "BatchNorm" in node.op]
    assert len(kernels) >= 2
    assert (tf.bfloat16 in {tf.as_dtype(node.attr["T"].type) for node in kernels}) is half
    for value, by_hand in zip([*found, *norm.weights], [*reference, *moved], strict=True):
        assert deviation(value, by_hand) < 0.02


def test_saved_models_hold_no_compiled_function(tmp_path):
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, layers.LayerNorm()(layers.GroupNorm(2)(inputs)))
    archive = keras.export.ExportArchive()
    archive.track(model)
    # training unsaid on purpose: the worst case, which the stack of the export gives away
    archive.add_endpoint("serve", model.call, input_signature=[tf.TensorSpec((None, 8, 8, 4))])
    archive.write_out(str(tmp_path / "archive"), verbose=False)
    served = tf.saved_model.load(tmp_path / "archive").signatures["serve"]
    assert compiled_parts(served) == set()
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype("float32")
    got = next(iter(served(tf.constant(x)).values()))
    assert np.abs(got - model(x, training=False)).max() < 1e-5


def test_a_new_batch_size_needs_no_new_trace_and_two_runs_give_the_same_bits():
    layer, x, dy = built(*NORMS["GroupNorm"], "float32")
    run = derivatives(layer, (4, 6, 10, 16), "float32", second=False)
    first, second = run(x, dy), run(x, dy)
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(first, second, strict=True))
    part = run(x[:3], dy[:3])
    assert run.experimental_get_tracing_count() == 1
    assert deviation(part[0], first[0][:3]) < 1e-6


def test_training_inside_a_compiled_function_gives_the_same_numbers():
    layer, x, dy = built(*NORMS["GroupNorm"], "float32")

    def step(t):
        with tf.GradientTape() as tape:
            tape.watch(t)
            y = layer(t, training=True)
        return tape.gradient(y, t, dy)

    assert deviation(tf.function(step, jit_compile=True)(x), tf.function(step)(x)) < 1e-5
    norm, far = layers.LayerNorm(), x + 1e3  # XLA's own expansion of the fused kernel would be wrong by percents
    assert deviation(tf.function(lambda t: norm(t, training=True), jit_compile=True)(far), norm(far)) < 2e-6


@pytest.mark.parametrize(
    ("behind", "dtype", "kept"), [(True, "float32", 4), (False, "float32", 1), (False, "bfloat16", 4)]
)
def test_batch_norm_at_inference_keeps_the_picture_where_the_optimiser_merges_it(behind, dtype, kept):
    norm = layers.BatchNorm(dtype=POLICY[dtype])
    norm.build((2, 4, 4, 128))

    @tf.function(autograph=False)
    def run(x):
        return norm(tf.nn.conv2d(x, tf.ones((1, 1, 128, 128), dtype), 1, "SAME") if behind else x, training=False)

    graph = run.get_concrete_function(tf.TensorSpec((None, 4, 4, 128), dtype)).graph
    assert [op.inputs[0].shape[1] for op in graph.get_operations() if op.type == "FusedBatchNormV3"] == [kept]


def held_for_backward(layer, x):
    """Returns the bytes that a graph keeps between forward and backward pass; views count once, with their source."""
    forward = tf.function(lambda t: layer(t, training=True)).get_concrete_function(x)
    rewritten, _ = forward._delayed_rewrite_functions.forward_backward()
    kept = {}
    for tensor in rewritten.graph.outputs[1:]:
        while tensor.op.type in ("Identity", "IdentityN", "Reshape"):
            tensor = tensor.op.inputs[tensor.value_index]
        kept[tensor.name] = tensor
    return sum(t.dtype.size * (t.shape.num_elements() or 0) for t in kept.values())


def test_the_backward_pass_keeps_the_input_and_the_statistics_and_less_than_keras_in_half_precision():
    x = tf.zeros((4, 16, 16, 32))
    assert held_for_backward(layers.GroupNorm(8), x) <= 1.03 * 4 * np.prod(x.shape)
    half = tf.cast(x, "bfloat16")
    ours, theirs = (
        layers.GroupNorm(8, dtype="mixed_bfloat16"),
        keras.layers.GroupNormalization(8, dtype="mixed_bfloat16"),
    )
    for layer in (ours, theirs):
        layer.build(x.shape)
    # Keras keeps a float32 copy of a bfloat16 input; in float32 both keep the input and the statistics
    assert held_for_backward(ours, half) <= 0.6 * held_for_backward(theirs, half)


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident memory as Linux tells it")
@pytest.mark.parametrize("make", [lambda: layers.GroupNorm(4), layers.LayerNorm, layers.RMSNorm])
def test_an_eager_tape_holds_the_input_alone(make):
    x = tf.zeros((10, 128, 128, 16))
    size, length = 4 * np.prod(x.shape), 8
    layer = make()
    layer.build(x.shape)
    layer(x, training=True)
    before = resident_bytes()
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = x
        for _ in range(length):
            y = layer(y, training=True)
    held = resident_bytes() - before
    # every output is the next input: one tensor each, and room for what is freed and not yet given back. A tape over
    # the formula holds three to six each
    assert held < (length + 6) * size
    assert np.isfinite(tape.gradient(y, x)).all()


def test_the_eager_derivatives_equal_the_formulas(plain):
    layer, x, dy = built(*NORMS["GroupNorm"], "float32")

    def derivatives_eagerly():
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = layer(x, training=True)
            first = inner.gradient(y, [x, layer.gamma.value, layer.beta.value], dy)
            squares = tf.reduce_sum(tf.square(first[0]))
        return [y, *first, outer.gradient(squares, x)]

    lean = derivatives_eagerly()
    plain()
    for got, expected in zip(lean, derivatives_eagerly(), strict=True):
        assert deviation(got, expected) < 1e-5


@pytest.mark.parametrize("every", [2, 8, 16, 32, 64, 392])
def test_the_shift_bounds_the_error_also_where_the_spread_is_in_the_sampled_positions(every):
    x = np.full((2, 56 * 56, 4), 1e3, "float32")
    x[:, ::every] = 0.0
    x = x.reshape(2, 56, 56, 4)
    expected = references.instance_norm(x.astype("float64"), np.ones(4), np.zeros(4))
    layer = layers.InstanceNorm()
    got = tf.function(lambda t: layer(t, training=True))(x)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("positions", [1, 2, 13, 14, 15, 31, 37, 64, 65, 97, 131])
def test_sums_over_positions_take_every_position_once(positions):
    for dtype in ("float32", "bfloat16"):
        x = tf.cast(tf.random.stateless_uniform((2, positions, 3), (0, positions), 0, 4, "int32"), dtype)

        def terms(t):
            t = tf.cast(t, tf.float32)
            return t, 2.0 * t * t

        for pick in (slice(None), slice(1, None)):
            got = _compiled.sum_positions(tf, lambda t, pick=pick: terms(t)[pick], x)
            expected = [tf.reduce_sum(t, axis=1) for t in terms(x)[pick]]
            assert all((a.numpy() == b.numpy()).all() for a, b in zip(got, expected, strict=True))


def test_the_moving_averages_follow_the_biased_variance_on_both_paths(plain):
    x = np.random.default_rng(5).normal(size=(4, 3, 3, 2)).astype("float32")
    fast = layers.BatchNorm(momentum=0.75)
    fast(x, training=True)
    expected = 0.75 * 1 + 0.25 * x.reshape(-1, 2).astype("float64").var(axis=0)
    assert np.allclose(fast.moving_variance, expected, rtol=1e-6)
    plain()
    slow = layers.BatchNorm(momentum=0.75)
    slow(x, training=True)
    assert np.allclose(slow.moving_variance, fast.moving_variance, rtol=1e-6)
    assert np.allclose(slow.moving_mean, fast.moving_mean, atol=1e-7)


def test_one_sample_per_channel_has_variance_zero_not_nan():
    layer = layers.BatchNorm()
    y = layer(np.ones((1, 3), "float32"), training=True)
    assert np.isfinite(y).all()
    assert np.allclose(layer.moving_variance, 0.9)


def test_plain_and_fast_modules_offer_the_same_functions():
    for name in ("rms_norm", "layer_norm", "group_norm", "batch_norm_training", "scale_shift"):
        assert list(getattr(_fast, name).__annotations__) == list(getattr(_plain, name).__annotations__)


def test_fit_with_mixed_precision_and_a_short_last_batch_runs_and_learns():
    keras.config.set_dtype_policy("mixed_bfloat16")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6, 6, 4)).astype("float32"), rng.normal(size=(20, 4)).astype("float32")
    model = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.GroupNorm(2), layers.BatchNorm(), keras.layers.GlobalAveragePooling2D()]
    )
    model.compile("adam", "mse")
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert history[-1] < history[0]
