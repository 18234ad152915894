"""One version in memory: its signatures, how to run them, and the trial that it passes before it serves."""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit.export._operations import strange_operations
from dlkit.export.server._errors import ServeError, of_tensorflow

Arrays = dict[str, np.ndarray]
WARMUP, SAMPLES = "assets.extra/tf_serving_warmup_requests", "assets.extra/verification.npz"
MAIN = ("logits", "predictions", "boxes")
# of the largest value: another machine rounds differently, wrong weights differ by far more
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
PREDICT = "tensorflow/serving/predict"


class RefusedError(Exception):
    """A version that must not serve; the text says why."""


@dataclass(frozen=True)
class Signature:
    """A function of the SavedModel with the types and shapes of its inputs and outputs.

    Args:
        batched: every input and output has a first axis of any length, so requests can run together.
        method: the name that TensorFlow Serving goes by; "tensorflow/serving/predict" in all of dlkit's exports.
    """

    name: str
    function: Any
    inputs: dict[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    batched: bool
    method: str = PREDICT

    @property
    def pictures(self) -> bool:
        """True when its only input is a batch of strings: encoded pictures in dlkit's exports."""
        specs = list(self.inputs.values())
        return len(specs) == 1 and specs[0].dtype == tf.string and specs[0].shape.rank == 1

    def run(self, inputs: Arrays) -> Arrays:
        """Runs it once.

        Raises:
            ServeError: with the code and the sentence of TensorFlow's error.
        """
        try:
            given = {name: tf.constant(value, self.inputs[name].dtype) for name, value in inputs.items()}
            return {name: value.numpy() for name, value in self.function(**given).items()}
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise of_tensorflow(error) from error


class Loaded:
    """A SavedModel in memory.

    Raises:
        RefusedError: TensorFlow cannot load it, it has no signature, or it would touch files, networks or Python.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            strange = strange_operations(path)  # before it is loaded, because loading runs what is in it
        except Exception as error:
            raise RefusedError(f"its graph cannot be read: {_first_line(error)}") from error
        if strange:
            raise RefusedError(f"its graph reaches out of the process: {', '.join(strange)}")
        try:
            model = tf.saved_model.load(str(path))
        except Exception as error:  # damaged files raise nearly anything
            raise RefusedError(f"TensorFlow cannot load it: {_first_line(error)}") from error
        self.definitions = _definitions(path)
        self.signatures = {
            name: _signature(name, function, self.definitions) for name, function in model.signatures.items()
        }
        if not self.signatures:
            raise RefusedError("it has no signature to serve")
        self._model = model  # its variables live as long as it does

    def signature(self, name: str) -> Signature:
        """Returns the signature of that name, `serving_default` for an empty one."""
        name = name or "serving_default"
        if name not in self.signatures:
            raise ServeError(
                "INVALID_ARGUMENT",
                f'Serving signature name: "{name}" not found in signature def; '
                f"known: {', '.join(sorted(self.signatures))}",
            )
        return self.signatures[name]

    def check(self) -> None:
        """Replays the warm-up requests and the samples that the export carries.

        Raises:
            RefusedError: a request fails, or an answer is not the one that was exported.
        """
        try:
            self._warm_up()
            self._compare()
        except ServeError as error:
            raise RefusedError(f"it fails on a request of its own: {error.message}") from error

    def _warm_up(self) -> None:
        """First calls are the slow ones; a server that replays them is fast from the first request on."""
        file = self.path / WARMUP
        if not file.is_file():
            return
        from tensorflow_serving.apis import prediction_log_pb2

        try:
            records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
            requests = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request for r in records]
        except Exception as error:
            raise RefusedError(f"{WARMUP} is damaged: {_first_line(error)}") from error
        for request in requests:
            signature = self.signature(request.model_spec.signature_name)
            signature.run({name: tf.make_ndarray(value) for name, value in request.inputs.items()})

    def _compare(self) -> None:
        """The carried files (or rows) must give the values that the evaluation pipeline gave when it was exported."""
        file, signature = self.path / SAMPLES, self.signatures.get("serving_default")
        if not file.is_file() or signature is None or len(signature.inputs) != 1:
            return
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            expected = arrays["expected"]
            rows = _rows(arrays)
        except Exception as error:
            raise RefusedError(f"{SAMPLES} is damaged: {_first_line(error)}") from error
        name = next((output for output in MAIN if output in signature.outputs), None)
        if name is None or rows is None or len(rows) > len(expected):
            return
        found = signature.run({next(iter(signature.inputs)): rows})[name]
        expected = expected[: len(rows)].astype(np.float64)
        if found.shape != expected.shape:
            return  # an export of probabilities carries those
        allowed = (TOLERANCE if self._full_precision() else HALF_TOLERANCE) * max(
            1.0, float(np.max(np.abs(expected), initial=0.0))
        )
        difference = float(np.max(np.abs(found - expected), initial=0.0))
        if not difference <= allowed:
            raise RefusedError(
                f"its {name} differ by {difference:.3g} from those it was exported with, {allowed:.3g} allowed"
            )

    def _full_precision(self) -> bool:
        try:
            manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
            return manifest.get("precision", "float32") == "float32"
        except (OSError, ValueError, AttributeError):
            return True

    def close(self) -> None:
        """Lets the weights go."""
        self.signatures = {}
        self._model = None


def _rows(arrays: Arrays, limit: int = 8) -> np.ndarray | None:
    files = sorted((name for name in arrays if name.startswith("file_")), key=lambda name: int(name[5:]))[:limit]
    if files:
        return np.array([arrays[name].tobytes() for name in files], object)
    rows = arrays.get("inputs", arrays.get("tensors"))
    return None if rows is None else rows[:limit]


def _signature(name: str, function: Any, definitions: Any) -> Signature:
    inputs = dict(function.structured_input_signature[1])
    outputs = function.structured_outputs
    outputs = outputs if isinstance(outputs, dict) else {}
    specs = [*inputs.values(), *outputs.values()]
    batched = bool(inputs) and all(bool(spec.shape.rank) and spec.shape[0] is None for spec in specs)
    method = definitions[name].method_name if name in definitions else PREDICT
    return Signature(name, function, inputs, tuple(outputs), batched, method or PREDICT)


def _definitions(path: Path) -> Any:
    """The signature definitions as the file states them: what `metadata` answers."""
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    with contextlib.suppress(OSError):
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
    graphs = [graph for graph in proto.meta_graphs if "serve" in graph.meta_info_def.tags] or proto.meta_graphs
    if not graphs:
        return {}
    return {name: value for name, value in graphs[0].signature_def.items() if not name.startswith("__saved_model")}


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\{\{.*?\}\} ?", "", str(error))  # names of graph nodes
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)[:300]
