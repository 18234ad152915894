"""A stage of many equal blocks as one layer: one traced block, one stacked variable for each kind of weight."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit._errors import InputError
from dlkit.models._fast import loop, loops
from dlkit.models._remat import pure_call, read

Tensor = Any


class Hidden:
    """Keeps something out of reach of Keras' tracking: what belongs elsewhere, or to nobody."""

    def __init__(self, content: Any) -> None:
        self.content = content


class BlockWeight:
    """One block's share of a stacked variable, used like a variable: `value`, `numpy()`, `assign()`, `shape`."""

    def __init__(self, variable: keras.Variable, index: int, path: str) -> None:
        self.variable, self.index, self.path = variable, index, path
        self.name, self.shape, self.dtype = path.rsplit("/", 1)[-1], tuple(variable.shape[1:]), variable.dtype
        self.trainable = variable.trainable

    @property
    def value(self) -> Tensor:
        """The share as a tensor."""
        return self.variable.value[self.index]

    def numpy(self) -> np.ndarray:
        """The share as an array."""
        return ops.convert_to_numpy(self.value)

    def assign(self, value: Any) -> None:
        """Replaces the share; the other blocks keep theirs."""
        new = ops.convert_to_numpy(value)
        if tuple(new.shape) != self.shape:
            raise InputError(f"{self.path}: a value of shape {tuple(new.shape)} does not fit {self.shape}")
        whole = np.array(ops.convert_to_numpy(self.variable.value))
        whole[self.index] = new
        self.variable.assign(whole)


@keras.saving.register_keras_serializable(package="dlkit")
class Stage(keras.layers.Layer):
    """Equal residual blocks one after another; their graph exists once, each kind of weight is one stacked variable.

    A flat Keras graph of hundreds of blocks exceeds Python's recursion limit and takes minutes to trace; so does an
    optimizer with thousands of variables. Every block's weights keep a name of their own: `named_weights(model)` gives
    `stage2_block7_conv1/kernel`, and files hold them one by one under these names. An optimizer that takes norms per
    variable (gradient clipping by `clipnorm`, LARS) sees a stage as one.

    Args:
        block: functional model of the first block; the names of its layers start with its own name, which ends in a
            number. Its output has the shape of its first input; with stochastic depth a second input of shape
            (1, ..., 1) multiplies the branch.
        count: number of blocks.
        rates: rate of stochastic depth of each block; None without it.
        remat: whether a training step computes the inside of a block again instead of keeping it.
        seed: of stochastic depth.
    """

    def __init__(
        self,
        block: Any,
        count: int,
        rates: Sequence[float] | None = None,
        remat: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._block = Hidden(keras.saving.deserialize_keras_object(block) if isinstance(block, dict) else block)
        self.count, self.rates, self.remat, self.seed = count, None if rates is None else tuple(rates), remat, seed
        if rates is not None:
            self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def block(self) -> keras.Model:
        """The graph that all blocks share; its own weights are not used."""
        return self._block.content

    def build(self, input_shape: Any) -> None:
        stacks = {}
        for layer in self.block.layers:
            for variable in layer.variables:
                stacks[id(variable)] = self.add_weight(
                    name=f"{layer.name.removeprefix(self.block.name + '_')}_{variable.name}",
                    shape=(self.count, *variable.shape),
                    initializer=_stacked(layer, variable, self.count),
                    dtype=variable.dtype,
                    trainable=variable.trainable,
                    autocast=getattr(variable, "_autocast", True),
                    aggregation=variable.aggregation,
                )
        self._stacks = Hidden(stacks)

    def _name(self, i: int) -> Callable[[str], str]:
        """Returns the function that turns a name of the first block into the same one of block i."""
        prefix = self.block.name
        stem = prefix.rstrip("0123456789")
        number = int(prefix.removeprefix(stem)) + i
        outer = self.name.partition("stage")[0]  # "member1_" in an ensemble
        return lambda name: f"{outer}{stem}{number}{name.removeprefix(prefix)}"

    def blocks(self) -> Iterator[tuple[keras.Model, Callable[[str], str]]]:
        """Yields, for each block, the graph that it shares and the function that gives its layers' names."""
        for i in range(self.count):
            yield self.block, self._name(i)

    def named_weights(self) -> dict[str, BlockWeight]:
        """Returns every block's weights by name."""
        found = {}
        for i in range(self.count):
            for layer in self.block.layers:
                for variable in layer.variables:
                    path = f"{self._name(i)(layer.name)}/{variable.name}"
                    found[path] = BlockWeight(self._stacks.content[id(variable)], i, path)
        return found

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        training, stacks = bool(training), self._stacks.content
        if self.block.trainable != self.trainable:  # a frozen stage's norms use their moving averages
            self.block.trainable = self.trainable
        weights = [stacks[id(v)] for v in self.block.trainable_variables]
        moving = [stacks[id(v)] for v in self.block.non_trainable_variables]
        gates = [] if self.rates is None else [self._gates(inputs, training)]

        def body(x: Tensor, constant: list[Tensor], state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            own, gate = constant[: len(weights)], constant[len(weights) :]
            return pure_call(self.block, [x, *gate], own, state, training, self.remat)

        constant, state = [*(ops.convert_to_tensor(w) for w in weights), *gates], read(moving)
        if loops():
            y, new = loop(body, inputs, constant, state)
        else:
            y, new = self._one_by_one(body, inputs, constant, state)
        if training:
            for variable, value in zip(moving, new, strict=True):
                variable.assign(value)
        return y

    def _gates(self, x: Tensor, training: bool) -> Tensor:
        """Returns what multiplies each block's branch for each sample: 0 or 1 / (1 - rate), at inference 1."""
        shape = (self.count, ops.shape(x)[0], *(1 for _ in x.shape[1:]))
        if not training:
            return ops.ones(shape, x.dtype)
        rates = ops.reshape(ops.convert_to_tensor(self.rates, "float32"), (-1, *(1 for _ in x.shape)))
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= rates
        return ops.cast(ops.where(kept, 1.0 / (1.0 - rates), 0.0), x.dtype)

    def _one_by_one(self, body: Any, x: Tensor, constant: list[Tensor], state: list[Tensor]) -> Any:
        """Returns what the loop returns, on backends that trace every block."""
        shares = [[ops.unstack(s, num=self.count) for s in group] for group in (constant, state)]
        rows = []
        for i in range(self.count):
            x, new = body(x, *([s[i] for s in group] for group in shares))
            rows.append(new)
        return x, [ops.stack(list(column)) for column in zip(*rows, strict=True)]

    def save_own_variables(self, store: Any) -> None:
        for path, weight in self._shares():
            store[path.replace("/", ".")] = weight

    def load_own_variables(self, store: Any) -> None:
        expected = {path.replace("/", "."): path for path, _ in self._shares()}
        wrong = sorted(set(expected) ^ set(store.keys()))
        if wrong:
            raise InputError(f"{self.name}: the file's weights differ from the model's in {', '.join(wrong[:4])}")
        for layer in self.block.layers:
            for variable in layer.variables:
                keys = [f"{self._name(i)(layer.name)}.{variable.name}" for i in range(self.count)]
                self._stacks.content[id(variable)].assign(np.stack([np.asarray(store[k]) for k in keys]))

    def _shares(self) -> Iterator[tuple[str, np.ndarray]]:
        for layer in self.block.layers:
            for variable in layer.variables:
                whole = ops.convert_to_numpy(self._stacks.content[id(variable)].value)
                for i in range(self.count):
                    yield f"{self._name(i)(layer.name)}/{variable.name}", whole[i]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {
            "block": keras.saving.serialize_keras_object(self.block),
            "count": self.count,
            "rates": self.rates,
            "remat": self.remat,
            "seed": self.seed,
        }
        return {**super().get_config(), **own}


def named_weights(model: keras.Model) -> dict[str, Any]:
    """Returns every weight of a model by "layer/weight", the same in every depth, also inside looped stages.

    The values are variables or, inside a looped stage, `BlockWeight`s: both have `value`, `numpy()` and `assign()`.

    >>> from dlkit import models
    >>> tuple(models.named_weights(models.resnet_cifar(8))["stage3_block1_conv2/kernel"].shape)
    (3, 3, 32, 32)
    """
    found: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, Stage):
            found.update(layer.named_weights())
        elif isinstance(layer, keras.Model):
            found.update({f"{layer.name}/{path}": w for path, w in named_weights(layer).items()})
        else:
            found.update({f"{layer.name}/{w.path.removeprefix(layer.path + '/')}": w for w in layer.weights})
    return found


def _stacked(layer: keras.layers.Layer, variable: keras.Variable, count: int) -> Callable[..., Any]:
    """Returns an initializer that draws each block's share as the layer would draw its own."""
    own = getattr(layer, f"{variable.name}_initializer", None)

    def initialize(shape: Sequence[int], dtype: Any = None) -> Any:
        if not isinstance(own, keras.initializers.Initializer):
            return ops.convert_to_tensor(np.repeat(ops.convert_to_numpy(variable.value)[None], count, axis=0))
        if isinstance(own, keras.initializers.Constant | keras.initializers.Zeros | keras.initializers.Ones):
            return own(shape, dtype)
        draws = [type(own).from_config(own.get_config())(shape[1:], dtype) for _ in range(count)]
        return ops.stack(draws)

    return initialize
