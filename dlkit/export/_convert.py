"""From a traced function to the files of other runtimes."""

import contextlib
import logging
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit import _files
from dlkit._errors import InputError
from dlkit.export import _folders
from dlkit.export._slim import slimmed

OPSET = 18
LARGE = 1 << 20  # numbers in a weight that the converter of ONNX does not get to see: it keeps up to 50 copies of each


def frozen(function: Any, erfc: bool) -> Any:
    """Returns the concrete function with constants for its weights, inlined.

    Without `erfc`, the complementary error function, which an exact GELU uses, becomes 1 - erf(x): ONNX has no such
    operation, and the converter writes an invalid file. LiteRT's knows an exact GELU by it.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    constant = convert_variables_to_constants_v2(function, lower_control_flow=False)
    graph = constant.graph.as_graph_def()
    if erfc or not any(node.op == "Erfc" for node in graph.node):
        return _named(graph, constant, function)
    new = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        if node.op != "Erfc":
            new.node.append(node)
            continue
        one = new.node.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].type = node.attr["T"].type
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0, tf.as_dtype(node.attr["T"].type)))
        erf = new.node.add(name=f"{node.name}/erf", op="Erf", input=node.input)
        difference = new.node.add(name=node.name, op="Sub", input=[one.name, erf.name])
        for made in (erf, difference):
            made.attr["T"].type = node.attr["T"].type
    return _named(new, constant, function)


def _named(graph: Any, constant: Any, function: Any) -> Any:
    """Wraps the graph again, its outputs as a dict under the names of the signature."""
    names = sorted(function.structured_outputs)  # the order in which a function's outputs are flattened
    found = [tensor.name for tensor in constant.outputs]
    source = constant.inputs[0].name

    def imported(tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        values = tf.graph_util.import_graph_def(graph, input_map={source: tensors}, return_elements=found, name="")
        return {name: tf.identity(value, name=name) for name, value in zip(names, values, strict=True)}

    spec = tf.TensorSpec(constant.inputs[0].shape, tf.float32, name="tensors")
    return tf.function(imported, input_signature=[spec], autograph=False).get_concrete_function()


def to_onnx(function: Any, path: Path) -> None:
    """Writes the frozen function as one ONNX file and has onnx.checker read it."""
    import onnx
    import tf2onnx

    inputs = [tensor.name for tensor in function.inputs]
    names = sorted(function.structured_outputs)
    outputs = {tensor.name: name for name, tensor in zip(names, function.outputs, strict=True)}
    graph, weights = _without_large_weights(function.graph.as_graph_def())
    with _quiet():
        proto, _ = tf2onnx.convert.from_graph_def(
            graph,
            input_names=[*inputs, *(f"{name}:0" for name in weights)],
            output_names=list(outputs),
            opset=OPSET,
            tensors_to_rename={inputs[0]: "tensors", **{f"{name}:0": name for name in weights}, **outputs},
        )
    _with_weights(proto.graph, weights)
    del proto.metadata_props[:]
    _files.write_bytes(path, proto.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def _without_large_weights(graph: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns the graph with an input in place of each large constant, and the values under the inputs' names.

    Not where there are loops: the converter recognises an LSTM by the constants that it reads.
    """
    weights: dict[str, np.ndarray] = {}
    if any(node.op in ("While", "StatelessWhile") for node in graph.node):
        return graph, weights
    light = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        shape = [dim.size for dim in tensor.tensor_shape.dim] if tensor is not None else []
        if tensor is None or tensor.dtype != tf.float32.as_datatype_enum or math.prod(shape) < LARGE:
            light.node.append(node)
            continue
        name = f"weight_{len(weights)}"
        weights[name] = tf.make_ndarray(tensor)
        made = light.node.add(name=name, op="Placeholder")
        made.attr["dtype"].type = tensor.dtype
        made.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
        light.node.add(name=node.name, op="Identity", input=[name]).attr["T"].type = tensor.dtype
    return light, weights


def _with_weights(graph: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Puts the values back as initializers, transposed where the converter asks for it."""
    import onnx

    for node in list(graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            order = next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
            turned = weights[node.input[0]].transpose(order)
            graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), node.output[0]))
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for given in list(graph.input):
        if given.name in weights:
            graph.input.remove(given)
            if given.name in read:
                graph.initializer.append(onnx.numpy_helper.from_array(weights[given.name], given.name))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the converters' remarks about each other's deprecated functions."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def to_openvino(folder: Path) -> None:
    """Turns the folder's ONNX file into OpenVINO's two files."""
    import openvino

    source = folder / _folders.MODEL_FILES["onnx"]
    model = openvino.Core().read_model(str(source))
    openvino.save_model(model, str(folder / _folders.MODEL_FILES["openvino"]), compress_to_fp16=False)
    source.unlink()


def to_litert(function: Any, folder: Path, quantize: str | None, ranges: Iterable[np.ndarray] | None) -> None:
    """Writes model.tflite with one signature, `tensors`; "int8" takes the ranges of activations from `ranges`."""
    module = tf.Module()
    with tempfile.TemporaryDirectory(prefix="dlkit-litert-") as scratch:
        tf.saved_model.save(module, scratch, {"tensors": function})
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=["tensors"])
        if quantize is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([row] for row in ranges or ())
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
                tf.lite.OpsSet.TFLITE_BUILTINS,
            ]
        try:
            with _quiet():
                content = converter.convert()
        except Exception as error:  # the converter's own class is not public
            missing = re.findall(r"(?:TF Select|Custom) ops: ([\w, ]+)", str(error))
            if not missing:
                raise
            raise InputError(
                f"LiteRT has no kernel for {', '.join(sorted(set(missing)))}; build the model without, or export "
                "another form"
            ) from error
    _files.write_bytes(folder / _folders.MODEL_FILES["litert"], slimmed(content))
