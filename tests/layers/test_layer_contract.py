"""Every layer against the contract; a public layer without a row in the table fails."""

import inspect

import keras
import layer_references as references
import pytest
from layer_cases import CASES

from dlkit import layers
from dlkit.layers._activations import ACTIVATIONS
from dlkit.layers._factory import NORMS
from dlkit.testing import check_layer


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_keeps_the_contract(case):
    check_layer(case.make, case.shape, **case.checks)


def test_every_public_layer_has_a_row():
    public = {n for n in layers.__all__ if inspect.isclass(getattr(layers, n))}
    rows = {case.name.split("-")[0] for case in CASES}
    assert public - rows == set()


def test_every_activation_name_has_a_checked_formula():
    assert set(ACTIVATIONS) == set(references.ACTIVATIONS)


def test_every_norm_name_makes_a_layer_of_the_table_or_the_identity():
    made = {type(layers.norm(name)).__name__ for name in NORMS} - {"Identity"}
    assert made <= {case.name.split("-")[0] for case in CASES}


class Drifting(keras.layers.Layer):
    """A layer with a fault chosen by name, to see the contract fail."""

    def __init__(self, fault, **kwargs):
        super().__init__(**kwargs)
        self.fault = fault

    def build(self, input_shape):
        if self.fault == "config":
            self.fault = "rewritten"

    def call(self, inputs):
        if self.fault == "value":
            return inputs * 1.001
        if self.fault == "gradient":
            return keras.ops.stop_gradient(inputs)
        if self.fault == "dtype":
            return keras.ops.cast(inputs, "float32")
        return keras.ops.square(inputs) if self.fault == "overflow" else inputs

    def compute_output_shape(self, input_shape):
        return (1, *input_shape[1:]) if self.fault == "shape" else input_shape

    def get_config(self):
        return {**super().get_config(), "fault": self.fault}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("config", "changed the config"),
        ("value", "float64 reference"),
        ("gradient", "finite differences"),
        ("dtype", "float32 out"),
        ("shape", "compute_output_shape says"),
        ("overflow", "not finite"),
    ],
)
def test_the_contract_sees_a_layer_with_a_fault(fault, says):
    reference = (lambda x: x**2) if fault == "overflow" else (lambda x: x)
    with pytest.raises(AssertionError, match=says):
        check_layer(lambda **kw: Drifting(fault, **kw), (2, 3), reference=reference)
