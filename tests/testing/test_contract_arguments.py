"""The contract's own arguments: names of checks and dtypes that are none, and masks that get lost."""

import keras
import pytest

from dlkit._errors import InputError
from dlkit.testing import check_layer, check_model


@keras.saving.register_keras_serializable("dlkit-tests")
class Dropping(keras.layers.Layer):
    """Says that it supports masks, and drops them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_mask(self, inputs, previous_mask):
        return None


def test_a_dropped_mask_is_told():
    with pytest.raises(AssertionError, match="says it supports masks and drops one"):
        check_layer(lambda **kw: Dropping(**kw), (2, 3))


def test_names_that_are_none_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown check 'overfitt'; did you mean 'overfit'"):
        check_model(lambda: pytest.fail("the model was built"), skip=("overfitt",))
    with pytest.raises(InputError, match="unknown dtype 'float61'; did you mean 'float16'"):
        check_layer(lambda **_: pytest.fail("the layer was made"), (2, 3), dtypes=("float61",))
