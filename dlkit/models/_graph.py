"""A Keras model's graph as a flat list of steps: nested models and looped stages are opened."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a model with what it reads and writes."""

    name: str
    operation: Any
    inputs: tuple[int, ...]  # keys of tensors
    outputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]  # with the batch axis
    output_shapes: tuple[Shape, ...]
    itemsize: int  # bytes per value of the first output


class Opened:
    """The steps of a model in the order in which they run, every tensor with a key of its own."""

    def __init__(self, model: keras.Model) -> None:
        self._next = 0
        self.steps: list[Step] = []
        graph = graph_of(model)
        self.inputs = [self._new() for _ in graph.inputs]
        self.input_shapes = [tuple(t.shape) for t in graph.inputs]
        self.outputs = self._open(graph, self.inputs, "")

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _open(self, graph: Any, inputs: list[int], prefix: str) -> list[int]:
        """Adds the steps of one graph whose inputs have these keys; returns the keys of its outputs."""
        keys = dict(zip([id(t) for t in graph.inputs], inputs, strict=True))
        for node in nodes(graph):
            arguments = [t for t in node.arguments.keras_tensors if id(t) in keys]
            read = [keys[id(t)] for t in arguments]
            operation, written = node.operation, None
            inner = _inner(operation)
            if inner is not None:
                written = self._open(inner, read, f"{prefix}{operation.name}/")
            elif hasattr(operation, "blocks"):
                written = read
                for block, name in operation.blocks():
                    gates = [self._new() for _ in block.inputs[1:]]
                    written = self._renamed(block, [*written, *gates], prefix, name)
            if written is None:
                written = [self._new() for _ in node.outputs]
                self.steps.append(_step(prefix + operation.name, node, arguments, read, written))
            keys.update(zip([id(t) for t in node.outputs], written, strict=True))
        return [keys[id(t)] for t in graph.outputs]

    def _renamed(self, block: Any, read: list[int], prefix: str, name: Any) -> list[int]:
        """Opens one block of a looped stage; `name` maps the template's layer names to the block's."""
        start = len(self.steps)
        written = self._open(block, read, "")
        self.steps[start:] = [dataclasses.replace(s, name=prefix + name(s.name)) for s in self.steps[start:]]
        return written


def graph_of(model: Any) -> Any:
    """Returns the functional graph of a functional or sequential model, None of any other."""
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None)
    return model if hasattr(model, "_nodes_by_depth") else None


def nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of a functional graph in the order in which they run, without the inputs."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if not node.is_input and not isinstance(node.operation, keras.layers.InputLayer):
                yield node


def _inner(operation: Any) -> Any:
    return graph_of(operation) if isinstance(operation, keras.Model) else None


def _step(name: str, node: Any, arguments: list[Any], read: list[int], written: list[int]) -> Step:
    sizes = {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "bool": 1}
    return Step(
        name,
        node.operation,
        tuple(read),
        tuple(written),
        tuple(tuple(t.shape) for t in arguments),
        tuple(tuple(t.shape) for t in node.outputs),
        sizes.get(str(node.outputs[0].dtype), 4),
    )
