"""The hypermodels in KerasTuner's own tuners: they search, save, reload and continue."""

import keras_tuner
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, load
from dlkit.tune import HyperAlexNet, HyperCNN, HyperMLP, HyperResNet, HyperVGG

PREPROCESS = Preprocess(8, channels=1, mean=0.3, std=0.37)
SHAPE = PREPROCESS.input_shape
TUNERS = {
    "random": lambda model, **kw: keras_tuner.RandomSearch(model, "val_accuracy", max_trials=2, seed=1, **kw),
    "bayesian": lambda model, **kw: keras_tuner.BayesianOptimization(
        model, "val_accuracy", max_trials=3, num_initial_points=2, seed=1, **kw
    ),
    "hyperband": lambda model, **kw: keras_tuner.Hyperband(model, "val_accuracy", max_epochs=2, factor=2, seed=1, **kw),
}


def sources():
    train, test = load("digits")
    return train.subset(range(96)), test.subset(range(40))


def fixed(**values):
    """Hyperparameters that are not searched, to keep the networks of a test tiny."""
    hp = keras_tuner.HyperParameters()
    for name, value in values.items():
        hp.Fixed(name, value)
    return hp


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuner", "model"),
    [
        ("random", HyperMLP(10, SHAPE, augment=False)),
        ("bayesian", HyperCNN(10, SHAPE)),
        ("hyperband", HyperMLP(10, SHAPE, augment=False)),
        ("random", HyperResNet(10, SHAPE)),
        ("bayesian", HyperMLP(10, SHAPE)),
        ("hyperband", HyperResNet(10, SHAPE)),
    ],
)
def test_a_tuner_searches_saves_and_reloads(tuner, model, tmp_path):
    train, validation = sources()
    keywords = {"directory": str(tmp_path), "project_name": "p"}
    found = TUNERS[tuner](model, **keywords)
    found.search(train, validation_data=validation, preprocess=PREPROCESS, epochs=1, verbose=0)
    best = found.get_best_hyperparameters()[0]
    copy = type(model)(10, SHAPE, augment=model.augment)
    reloaded = TUNERS[tuner](copy, **keywords)
    for trial_id, trial in found.oracle.trials.items():
        assert reloaded.oracle.trials[trial_id].hyperparameters.values == trial.hyperparameters.values
        assert reloaded.oracle.trials[trial_id].score == trial.score
    again = keras_tuner.HyperParameters.from_config(best.get_config())
    assert again.get_config() == best.get_config()
    assert copy.build(again).count_params() == model.build(best).count_params()
    assert len(reloaded.oracle.trials) == len(found.oracle.trials) >= 2


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(HyperMLP, (12,)), (HyperCNN, SHAPE), (HyperResNet, SHAPE), (HyperAlexNet, (32, 32, 1)), (HyperVGG, (32, 32, 1))],
)
@pytest.mark.parametrize("large", [False, True])
def test_the_space_is_declared_in_build_and_survives_its_configuration(kind, shape, large):
    hp = keras_tuner.HyperParameters()
    if large and kind in (HyperVGG, HyperAlexNet):
        hp = fixed(width=0.0625, stem="cifar")
    model = kind(4, shape, large=large).build(hp)
    assert model.output_shape == (None, 4)
    assert model.optimizer is not None
    names = {p.name for p in hp.space}
    assert {"norm", "activation", "optimizer", "nesterov_lr", "schedule", "batch", "weight_decay"} <= names
    assert ("policy" in names) == (len(shape) == 3)
    again = keras_tuner.HyperParameters.from_config(hp.get_config())
    assert again.get_config() == hp.get_config()
    kind(4, shape, large=large).build(again)
    assert [p.name for p in again.space] == [p.name for p in hp.space]


def test_large_residual_networks_suit_the_size_of_the_pictures():
    hp = keras_tuner.HyperParameters()
    hp.values = {"depth": 34, "width": 0.75}
    model = HyperResNet(3, (64, 64, 3), large=True)
    assert model._family() == "resnet"
    assert HyperResNet(3, (32, 32, 3), large=True)._family() == "resnet_cifar"


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_fit_takes_plain_arrays(kind):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (40, *SHAPE)).astype("uint8")
    y = random.integers(0, 10, 40)
    x = x if kind == "uint8" else x.astype("float32") / 255
    hyper, hp = HyperMLP(10, SHAPE), keras_tuner.HyperParameters()
    model = hyper.build(hp)
    history = hyper.fit(hp, model, x, y, validation_data=(x, y), epochs=2, verbose=0)
    assert len(history.history["val_accuracy"]) == 2
    assert model.optimizer.iterations.numpy() == 2 * 1  # one step of 64 per epoch


def test_a_promoted_fit_keeps_the_optimizer_and_shows_the_next_samples():
    train, _ = sources()
    hyper, hp = HyperMLP(10, SHAPE), fixed(batch=32)
    model = hyper.build(hp)
    hyper.fit(hp, model, train, epochs=1, preprocess=PREPROCESS, verbose=0)
    hyper.fit(hp, model, train, epochs=2, initial_epoch=1, preprocess=PREPROCESS, verbose=0)
    assert model.optimizer.iterations.numpy() == 6


def test_a_source_with_separate_targets_is_refused():
    train, _ = sources()
    hyper, hp = HyperMLP(10, SHAPE), keras_tuner.HyperParameters()
    with pytest.raises(InputError, match="leave y out"):
        hyper.fit(hp, hyper.build(hp), train, np.zeros(len(train)))
