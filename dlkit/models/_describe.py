"""describe(): what a network costs and sees, computed from its graph without running it."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from dlkit._errors import InputError
from dlkit._files import write_text
from dlkit.models._graph import Opened, Shape, Step, graph_of
from dlkit.models._picture import svg

# operations that hand their input on: nothing is stored for them
_VIEWS = ("Flatten", "Reshape", "Identity", "Dropout", "StochasticDepth", "Squeeze", "ExpandDims")
_WHOLE = ("Flatten", "GlobalAveragePooling", "GlobalMaxPooling")


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer."""

    name: str
    kind: str
    output: Shape  # without the batch axis
    parameters: int  # trainable ones
    statistics: int  # weights that are not trained: moving averages
    multiply_adds: int | None  # None: a size is unknown
    activation_bytes: int | None  # of the output, for one sample; 0 for a view of the input
    receptive_field: tuple[float, ...] | None  # pixels of the input a value sees, per axis; None: all of them
    stride: tuple[float, ...] | None  # pixels of the input between neighbouring values


@dataclasses.dataclass(frozen=True)
class Description:
    """What `describe` found; print it with rich, or take `to_json()` or `picture()`.

    Multiply-adds are those of convolutions and matrix products, for one sample, as the papers count. Activation memory
    is for one sample too: in training every output is kept for the backward pass, at inference only what later layers
    still read. The receptive field is that of the last map before pooling.
    """

    name: str
    input_shape: Shape
    output_shape: Shape
    parameters: int
    statistics: int
    multiply_adds: int | None
    training_bytes: int | None
    inference_bytes: int | None
    receptive_field: tuple[float, ...] | None
    stride: tuple[float, ...] | None
    last_map: Shape | None
    layers: tuple[Row, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain numbers, lists and strings."""
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = 2) -> str:
        """Returns everything as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def picture(self) -> str:
        """Returns the network as an SVG picture: one box per stage, its height the map's side, its width the depth."""
        return svg(self)

    def save_picture(self, path: str | Path) -> Path:
        """Writes the picture to a file whose name ends in .svg."""
        if Path(path).suffix != ".svg":
            raise InputError(f"{path}: the picture is SVG; give a name that ends in .svg")
        return write_text(path, self.picture())

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=f"{self.name}: input {_size(self.input_shape)}")
        for column in ("layer", "kind", "output", "parameters", "multiply-adds", "receptive field", "stride"):
            table.add_column(column, justify="left" if column in ("layer", "kind") else "right")
        for r in self.layers:
            field = _sides(r.receptive_field) if r.receptive_field else "all"
            cost = "?" if r.multiply_adds is None else f"{r.multiply_adds:,}" if r.multiply_adds else ""
            table.add_row(
                r.name,
                r.kind,
                _size(r.output),
                f"{r.parameters:,}" if r.parameters else "",
                cost,
                field,
                _sides(r.stride),
            )
        yield table
        for key, value in self.summary().items():
            yield f"{key}: {value}"
        for warning in self.warnings:
            yield f"[yellow]warning[/yellow]: {warning}"

    def summary(self) -> dict[str, str]:
        """Returns the totals as text, for a table or a terminal."""
        memory = {"training": self.training_bytes, "inference": self.inference_bytes}
        return {
            "parameters": f"{self.parameters:,} (+ {self.statistics:,} moving statistics)",
            "multiply-adds": "unknown size" if self.multiply_adds is None else f"{self.multiply_adds:,} per sample",
            **{
                f"activation memory, {k}": "unknown size" if v is None else f"{v / 2**20:,.2f} MiB per sample"
                for k, v in memory.items()
            },
            "last map": "none" if self.last_map is None else _size(self.last_map),
            "receptive field": _sides(self.receptive_field) or "none",
            "effective stride": _sides(self.stride) or "none",
        }

    def __str__(self) -> str:
        return "\n".join([self.name, *(f"  {k}: {v}" for k, v in self.summary().items())])


def describe(model: keras.Model) -> Description:
    """Returns what a Keras model costs and sees, without running it.

    Args:
        model: any functional or sequential model with a known input shape. Of a subclassed model, which has no graph,
            only the parameters of its layers are given.

    Raises:
        InputError: the argument is no Keras model, or it has not been built.

    Example:
        >>> from dlkit import models
        >>> d = describe(models.resnet_cifar(20))
        >>> d.parameters, d.multiply_adds, d.receptive_field
        (269722, 40551040, (81, 81))

    Reference: receptive field after lecture 000 (E. Sokolov), sections 5.4-5.5; parameters and multiply-adds after 5.2.
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"describe: {model!r} is no Keras model; build one with dlkit.models.create(name)")
    if not model.built:
        raise InputError(f"describe: {model.name} has no shapes yet; call model.build(input_shape) first")
    if graph_of(model) is None:
        return _without_graph(model)
    opened = Opened(model)
    rows = _rows(opened)
    maps = [r for r in rows if r.receptive_field is not None and len(r.output) > 1]
    last = maps[-1] if maps else None
    costs = [r.multiply_adds for r in rows]
    return Description(
        name=model.name,
        input_shape=opened.input_shapes[0][1:],
        output_shape=tuple(graph_of(model).outputs[0].shape)[1:],
        parameters=_count(model.trainable_variables),
        statistics=_count([v for v in model.weights if not v.trainable]),
        multiply_adds=None if None in costs else sum(c for c in costs if c is not None),
        training_bytes=_total([r.activation_bytes for r in rows]),
        inference_bytes=_peak(opened),
        receptive_field=last.receptive_field if last else None,
        stride=last.stride if last else None,
        last_map=last.output if last else None,
        layers=tuple(rows),
        warnings=tuple(_small_maps(rows, opened.input_shapes[0][1:])),
    )


def _rows(opened: Opened) -> list[Row]:
    """Returns one row per step."""
    views: dict[int, tuple[Any, Any]] = {}
    for key, shape in zip(opened.inputs, opened.input_shapes, strict=True):
        axes = len(shape) - 2
        views[key] = ((1,) * axes, (1,) * axes) if axes > 0 else (None, None)
    rows: list[Row] = []
    counted: set[tuple[int, str]] = set()
    for step in opened.steps:
        field, stride = _sees(step, [views[k] for k in step.inputs if k in views])
        views.update((k, (field, stride)) for k in step.outputs)
        layer = step.operation
        own = [] if (id(layer), step.name) in counted else getattr(layer, "weights", [])  # a shared layer counts once
        counted.add((id(layer), step.name))
        kind = type(layer).__name__
        rows.append(
            Row(
                step.name,
                kind,
                step.output_shapes[0][1:],
                _count([w for w in own if w.trainable]),
                _count([w for w in own if not w.trainable]),
                multiply_adds(step),
                0 if kind in _VIEWS else _bytes(step),
                field,
                stride,
            )
        )
    return rows


def multiply_adds(step: Step) -> int | None:
    """Returns the multiply-adds of one operation for one sample; None if a size is unknown."""
    layer, into, out = step.operation, step.input_shapes[0][1:], step.output_shapes[0][1:]
    kernels = [w for w in getattr(layer, "trainable_weights", []) if len(w.shape) >= 2]
    if not kernels:
        kernels = [w for w in getattr(layer, "weights", []) if len(w.shape) >= 2]
    if not kernels or "Normalization" in type(layer).__name__ or type(layer).__name__.endswith("Norm"):
        return 0
    if isinstance(layer, keras.layers.PReLU):
        return 0
    if isinstance(layer, keras.layers.Embedding):
        return 0
    rank = len(getattr(layer, "kernel_size", ()))
    if "Transpose" in type(layer).__name__:
        positions = into[:rank]
    elif rank:
        positions = out[:rank]
    else:
        positions = into[:-1]
    if None in positions:
        return None
    return math.prod(n for n in positions if n is not None) * sum(math.prod(w.shape) for w in kernels)


def _sees(step: Step, inputs: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Returns receptive field and stride of a step's output."""
    layer, kind = step.operation, type(step.operation).__name__
    known = [(f, s) for f, s in inputs if f is not None]
    if len(known) < len(inputs) or not known or kind.startswith(_WHOLE) or len(step.output_shapes[0]) < 3:
        return None, None
    field = tuple(max(axis) for axis in zip(*(f for f, _ in known), strict=True))
    stride = tuple(max(axis) for axis in zip(*(s for _, s in known), strict=True))
    into, out = step.input_shapes[0][1:-1], step.output_shapes[0][1:-1]
    if len(into) != len(out) or len(field) != len(out):
        return None, None
    size = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    axes = len(out)
    if size is None:
        steps = [_ratio(a, b) for a, b in zip(into, out, strict=True)] if kind == "PadShortcut" else [1] * axes
        return field, tuple(s * t for s, t in zip(stride, steps, strict=True))
    strides, dilation = _axes(layer.strides, axes), _axes(getattr(layer, "dilation_rate", 1), axes)
    if "Transpose" in kind:
        stride = tuple(s / t for s, t in zip(stride, strides, strict=True))
        return tuple(f + (k - 1) * s for f, k, s in zip(field, _axes(size, axes), stride, strict=True)), stride
    spans = [d * (k - 1) for d, k in zip(dilation, _axes(size, axes), strict=True)]
    field = tuple(f + span * s for f, span, s in zip(field, spans, stride, strict=True))
    return field, tuple(s * t for s, t in zip(stride, strides, strict=True))


def _peak(opened: Opened) -> int | None:
    """Returns the largest sum of tensors alive at one time, for one sample."""
    last = {key: i for i, step in enumerate(opened.steps) for key in step.inputs}
    last.update(dict.fromkeys(opened.outputs, len(opened.steps)))
    sizes = dict.fromkeys(opened.inputs, 0)
    for key, shape in zip(opened.inputs, opened.input_shapes, strict=True):
        if None in shape[1:]:
            return None
        sizes[key] = 4 * math.prod(n for n in shape[1:] if n is not None)
    alive, peak = sum(sizes.values()), 0
    for i, step in enumerate(opened.steps):
        size = 0 if type(step.operation).__name__ in _VIEWS else _bytes(step)
        if size is None:
            return None
        sizes[step.outputs[0]] = size
        alive += size
        peak = max(peak, alive)
        for key in {*step.inputs, *step.outputs}:
            if last.get(key, i) <= i:
                alive -= sizes.get(key, 0)
    return peak


def _small_maps(rows: list[Row], input_shape: Shape) -> list[str]:
    """Warns about convolutions that see one pixel and its padding."""
    if len(input_shape) < 3 or all(n == 1 for n in input_shape[:-1]):
        return []
    small = [r.name for r in rows if "Conv" in r.kind and len(r.output) > 2 and all(n == 1 for n in r.output[:-1])]
    if not small:
        return []
    return [
        f"at input {_size(input_shape)} the last map is 1x1: {len(small)} convolutions from {small[0]} on convolve "
        'padding; use a larger input or stem="cifar"'
    ]


def _without_graph(model: keras.Model) -> Description:
    rows = [
        Row(
            layer.name,
            type(layer).__name__,
            (),
            _count(layer.trainable_variables),
            _count(layer.non_trainable_variables),
            None,
            None,
            None,
            None,
        )
        for layer in model.layers
    ]
    statistics = _count([v for v in model.weights if not v.trainable])
    warning = "a subclassed model has no graph: only parameters are known"
    return Description(
        model.name, (), (), _count(model.trainable_variables), statistics,
        None, None, None, None, None, None, tuple(rows), (warning,),
    )  # fmt: skip


def _bytes(step: Step) -> int | None:
    shape = step.output_shapes[0][1:]
    return None if None in shape else step.itemsize * math.prod(n for n in shape if n is not None)


def _total(values: list[int | None]) -> int | None:
    return None if None in values else sum(v for v in values if v is not None)


def _count(variables: Any) -> int:
    return sum(math.prod(v.shape) for v in variables)


def _axes(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _ratio(a: int | None, b: int | None) -> int:
    return 1 if not a or not b else max(1, round(a / b))


def _size(shape: Shape) -> str:
    return " x ".join("?" if n is None else str(n) for n in shape)


def _sides(value: tuple[float, ...] | None) -> str:
    if not value:
        return ""
    return f"{value[0]:g}" if len(set(value)) == 1 else " x ".join(f"{v:g}" for v in value)
