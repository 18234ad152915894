"""Numbers worked by hand, both modes, factories and clear errors; runs on every backend."""

import functools

import keras
import layer_references as references
import numpy as np
import pytest
from keras import ops

from dlkit import layers
from dlkit._errors import InputError
from dlkit.layers import activation, norm


def array(x):
    return ops.convert_to_numpy(x)


def test_batch_norm_of_one_and_three_is_minus_one_and_one():
    layer = layers.BatchNorm(momentum=0.9, epsilon=0.0)
    assert array(layer(np.array([[1.0], [3.0]], "float32"), training=True)).ravel().tolist() == [-1.0, 1.0]
    # mean 2 and biased variance 1: 0.9 * 0 + 0.1 * 2 and 0.9 * 1 + 0.1 * 1
    assert np.allclose(array(layer.moving_mean), 0.2)
    assert np.allclose(array(layer.moving_variance), 1.0)
    assert np.allclose(array(layer(np.array([[0.2]], "float32"), training=False)), 0.0, atol=1e-6)


def test_batch_norm_with_gamma_and_beta_of_the_batch_does_nothing():
    x = np.random.default_rng(0).normal(2, 3, size=(16, 4)).astype("float32")
    layer = layers.BatchNorm(epsilon=1e-5)
    layer.build(x.shape)
    layer.set_weights([np.sqrt(x.var(axis=0) + 1e-5), x.mean(axis=0), np.zeros(4), np.ones(4)])
    assert np.allclose(array(layer(x, training=True)), x, atol=1e-5)


def test_an_empty_batch_does_not_move_the_averages():
    layer = layers.BatchNorm()
    layer.build((None, 2, 2, 3))
    before = [array(w).copy() for w in layer.weights]
    y = layer(np.zeros((0, 2, 2, 3), "float32"), training=True)
    assert tuple(y.shape) == (0, 2, 2, 3)
    assert all((array(w) == b).all() for w, b in zip(layer.weights, before, strict=True))


def test_frozen_batch_norm_keeps_its_averages_and_learns_gamma():
    layer = layers.BatchNorm(frozen=True)
    x = np.random.default_rng(0).normal(5, 2, size=(8, 3)).astype("float32")
    assert (array(layer(x, training=True)) == array(layer(x, training=False))).all()
    assert (array(layer.moving_mean) == 0).all()
    assert [w.name for w in layer.trainable_weights] == ["gamma", "beta"]


def test_a_batch_norm_that_is_not_trainable_runs_in_inference_mode():
    layer = layers.BatchNorm()
    layer.trainable = False
    x = np.random.default_rng(0).normal(5, 2, size=(8, 3)).astype("float32")
    assert (array(layer(x, training=True)) == array(layer(x, training=False))).all()


def test_renormalisation_without_room_is_batch_norm_and_with_room_uses_the_averages():
    x = np.random.default_rng(0).normal(0.2, 1.1, size=(8, 3)).astype("float32")
    strict, free = layers.BatchNorm(renorm=(1.0, 0.0)), layers.BatchNorm(renorm=(100.0, 100.0))
    expected = references.batch_norm_training(x.astype("float64"), np.ones(3), np.zeros(3))
    assert np.allclose(array(strict(x, training=True)), expected, atol=1e-5)
    # unlimited correction gives exactly what inference would: (x - 0) / sqrt(1 + epsilon)
    assert np.allclose(array(free(x, training=True)), x / np.sqrt(1 + 1e-5), atol=1e-5)


def test_masked_positions_do_not_count_in_the_batch_statistics():
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    layer = layers.BatchNorm(momentum=0.0)
    layer(x, training=True, mask=mask)
    assert np.allclose(array(layer.moving_mean), x[mask].mean(axis=0), atol=1e-5)
    assert np.allclose(array(layer.moving_variance), x[mask].var(axis=0), atol=1e-5)


def test_swish_is_silu_at_one_half_the_input_at_zero_and_relu_at_a_large_beta():
    x = np.linspace(-3, 3, 13).astype("float32")[None]
    for beta, expected in ((1.0, x / (1 + np.exp(-x))), (0.0, x / 2), (1e4, np.maximum(x, 0))):
        assert np.allclose(array(layers.Swish(beta, trainable=False)(x)), expected, atol=1e-6)


def test_a_frozen_swish_stays_frozen_after_a_reload_and_keeps_its_weight():
    layer = layers.Swish(2.0)
    layer.build((None, 3))
    layer.trainable = False
    again = layers.Swish.from_config(layer.get_config())
    again.build((None, 3))
    assert not again.trainable
    assert len(again.weights) == 1


def test_swiglu_has_its_weights_in_the_order_w_v_b_c_beta():
    layer = layers.SwiGLU(2, trainable_beta=True)
    layer.build((None, 1))
    layer.set_weights(
        [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5, 0.0]), np.array([0.0, 1.0]), np.array(2.0)]
    )
    x = 1.0
    expected = [references.swish(1.5, 2.0) * 3 * x, references.swish(2.0, 2.0) * 5]
    assert np.allclose(array(layer(np.array([[x]], "float32")))[0], expected)


def test_the_two_kernels_of_a_gate_start_different():
    layer = layers.SwiGLU(4)
    layer.build((None, 3))
    assert not np.allclose(array(layer.gate_kernel), array(layer.value_kernel))


@pytest.mark.parametrize("scale_at", ["train", "test"])
def test_dropout_keeps_the_expectation_in_both_forms(scale_at):
    x = np.full((200, 200), 2.0, "float32")
    layer = layers.Dropout(0.3, scale_at=scale_at, seed=1)
    trained, tested = array(layer(x, training=True)), array(layer(x, training=False))
    assert abs(trained.mean() - tested.mean()) < 0.02
    assert abs((trained == 0).mean() - 0.3) < 0.01
    values = sorted(set(np.round(trained.ravel(), 4)))
    assert np.allclose(values, [0.0, 2.0 / 0.7 if scale_at == "train" else 2.0], atol=1e-3)


def test_dropout_at_its_ends_keeps_or_drops_everything():
    x = np.ones((3, 3), "float32")
    assert (array(layers.Dropout(0.0)(x, training=True)) == 1).all()
    assert (array(layers.Dropout(1.0)(x, training=True)) == 0).all()


def test_stochastic_depth_drops_whole_samples():
    y = array(layers.StochasticDepth(0.5, seed=3)(np.ones((64, 2, 3), "float32"), training=True)).reshape(64, -1)
    assert all(len(set(row)) == 1 for row in y.tolist())
    assert set(np.unique(y).tolist()) == {0.0, 2.0}


def test_local_response_norm_sums_within_the_channels():
    layer = layers.LocalResponseNorm(size=5, k=2.0, alpha=1e-4, beta=0.75)
    x = np.full((1, 1, 1, 6), 100.0, "float32")
    counts = np.array([3, 4, 5, 5, 4, 3])  # neighbours within two channels: the paper's n = 5
    assert np.allclose(array(layer(x)).ravel(), 100 / (2 + 1e-4 * counts * 1e4) ** 0.75, rtol=1e-6)


def test_weight_standardisation_leaves_the_learnt_kernel_alone():
    wrapped = layers.WeightStandardization(keras.layers.DepthwiseConv2D(3, use_bias=False))
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 2)).astype("float32")
    y = array(wrapped(x))
    kernel = array(wrapped.layer.kernel)
    hat = references.standardized(kernel.astype("float64"), (0, 1))
    expected = np.stack([references.conv2d(x[..., c : c + 1], hat[:, :, c : c + 1])[..., 0] for c in range(2)], -1)
    assert np.allclose(y, expected, atol=1e-4)
    assert kernel.std() < 0.9  # still the initial one, not of unit variance


def test_a_mask_reaches_the_layer_behind_a_norm():
    inputs = keras.Input((4, 3))
    masked = keras.layers.Masking()(inputs)
    out = layers.SwiGLU(2)(layers.LayerNorm()(masked))
    pooled = keras.layers.GlobalAveragePooling1D()(out)
    x = np.ones((1, 4, 3), "float32")
    x[:, 2:] = 0
    model = keras.Model(inputs, [out, pooled])
    steps, mean = model(x, training=False)
    assert np.allclose(array(mean), array(steps)[:, :2].mean(axis=1), atol=1e-6)


def test_norm_takes_a_name_a_class_or_a_callable():
    assert type(norm("rms", name="n1", dtype="float32")) is layers.RMSNorm
    assert norm("batch", name="bn1").name == "bn1"
    assert norm(layers.GroupNorm, groups=4).groups == 4
    assert norm(functools.partial(layers.GroupNorm, groups=8), name="g").groups == 8
    assert norm(keras.layers.BatchNormalization).momentum == 0.99
    assert array(norm(None)(np.ones((1, 2)))).tolist() == array(norm("none")(np.ones((1, 2)))).tolist() == [[1.0, 1.0]]


def test_activation_takes_a_name_a_class_or_a_function():
    assert activation("leaky_relu").negative_slope == 0.01
    assert activation("leaky_relu", negative_slope=0.1, name="a").name == "a"
    assert type(activation(layers.Swish, beta=2.0)) is layers.Swish
    assert np.allclose(array(activation(ops.square)(np.array([[3.0]], "float32"))), 9)
    assert np.allclose(array(activation(None)(np.array([[3.0]], "float32"))), 3)


WRONG = [
    (lambda: layers.GroupNorm(3).build((None, 4, 8)), ["groups=3", "8 channels", "GroupNorm(groups=2)"]),
    (lambda: layers.GroupNorm(0), ["groups=0", "groups=32"]),
    (lambda: layers.LayerNorm(axis=0).build((None, 8)), ["batch axis", "LayerNorm(axis=-1)"]),
    (lambda: layers.LayerNorm(axis=(1, -1)).build((None, 8)), ["each axis once"]),
    (lambda: layers.RMSNorm(axis=3).build((None, 8)), ["axis 3", "(None, 8)", "RMSNorm(axis=-1)"]),
    (lambda: layers.RMSNorm().build((None, 4, None)), ["must be known", "keras.Input((4, 64))"]),
    (lambda: layers.BatchNorm(axis=0).build((4, 8)), ["batch axis"]),
    (lambda: layers.BatchNorm(momentum=1.5), ["momentum=1.5", "momentum=0.9"]),
    (lambda: layers.BatchNorm(renorm=3), ["(r_max, d_max)", "renorm=(3.0, 5.0)"]),
    (lambda: layers.BatchNorm()(np.ones((2, 3, 4)), training=True, mask=np.ones((2,), bool)), ["mask of shape (2,)"]),
    (lambda: layers.InstanceNorm().build((None, 8)), ["no positions", "rank 3"]),
    (lambda: layers.LayerNorm(epsilon=-1), ["epsilon=-1", "from 0"]),
    (lambda: layers.LayerNorm(axis="last"), ["axis='last'", "LayerNorm(axis=-1)"]),
    (lambda: layers.LocalResponseNorm(size=4), ["size=4 is even", "size=5"]),
    (lambda: layers.Maxout(4, 0), ["pieces=0", "pieces=2"]),
    (lambda: layers.Maxout(4, 2, kernel_size=(3, 3)).build((None, 8, 2)), ["kernel_size=(3, 3)", "rank 3"]),
    (lambda: layers.Maxout(4, 2, 3, padding="full"), ["'full'", "valid"]),
    (lambda: layers.SwiGLU(-1), ["units=-1"]),
    (lambda: layers.SwiGLU(2, beta="steep"), ["beta='steep'"]),
    (lambda: layers.GLU(2, activation="sigmoyd"), ["did you mean 'sigmoid'"]),
    (lambda: layers.Dropout(1.2), ["rate=1.2", "from 0 to 1"]),
    (lambda: layers.Dropout(0.5, scale_at="tset"), ["did you mean 'test'"]),
    (lambda: layers.WSConv2D(4, 3, epsilon=-1), ["epsilon=-1"]),
    (lambda: layers.WeightStandardization(keras.layers.ReLU()).build((None, 3)), ["ReLU has no kernel"]),
    (lambda: norm("bathc"), ["did you mean 'batch'", "group"]),
    (lambda: norm(layers.RMSNorm()), ["functools.partial(RMSNorm"]),
    (lambda: norm(lambda **kw: 3), ["must return a layer"]),
    (lambda: activation("swihs"), ["did you mean 'swish'", "relu"]),
    (lambda: activation(layers.Swish()), ["share"]),
    (lambda: activation(3), ["no name, layer class or function"]),
]


@pytest.mark.parametrize(("call", "says"), WRONG, ids=[" ".join(says)[:40] for _, says in WRONG])
def test_wrong_input_is_told_what_came_what_is_allowed_and_what_works(call, says):
    with pytest.raises(InputError) as caught:
        call()
    assert all(text in str(caught.value) for text in says), str(caught.value)
