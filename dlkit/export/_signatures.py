"""The signatures of an export: own endpoints, called with `training=False`, around one traced core."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

TOP = 5
Outputs = dict[str, tf.Tensor]
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"RIFF")
UNDECODABLE = "this file cannot be decoded as JPEG, PNG, BMP, GIF or WebP"


class Servable:
    """The signatures, and `module`, which is saved: the variables once, and `preprocess` (encoded files to tensors).

    Args:
        core: maps preprocessed tensors (batch, ...) to the main output and the features.
        preprocess: has `from_bytes` and `from_images`, or `from_rows`; None for a network that takes tensors only.
        shape: of one preprocessed example.
        task: "classification", "regression" or "box".
        labels: class names, for classification.
        temperature: the logits are divided by it before the softmax.
    """

    def __init__(
        self,
        core: "Core",
        preprocess: Any,
        shape: Sequence[int | None],
        task: str,
        labels: Sequence[str] = (),
        temperature: float = 1.0,
    ):
        self._core, self._preprocess, self._task = core, preprocess, task
        self._labels, self._temperature = tuple(labels), temperature
        tensors = tf.TensorSpec([None, *shape], tf.float32, name="tensors")
        self.endpoints = {"tensors": _traced(lambda tensors: self._answer(tensors), tensors)}
        self.weights = core.weights
        self.preprocess: Any = None
        if hasattr(preprocess, "from_bytes"):
            self._add_files(tensors)
        else:
            self.endpoints["serving_default"] = self._vectors(tensors)
        self._add_features(tensors)
        functions = [function.get_concrete_function() for function in self.endpoints.values()]
        if self.preprocess is not None:
            functions.append(self.preprocess)
        self.module = tf.Module(name="servable")
        self.module.weights = _captured_variables(functions)
        if self.preprocess is not None:
            self.module.preprocess = self.preprocess

    def signatures(self) -> dict[str, Any]:
        """Returns the concrete functions by the signature's name."""
        return {name: function.get_concrete_function() for name, function in self.endpoints.items()}

    def _add_files(self, tensors: tf.TensorSpec) -> None:
        preprocess = self._preprocess
        files = tf.TensorSpec([None], tf.string, name="image_bytes")
        images = tf.TensorSpec([None, None, None, tensors.shape[-1]], tf.uint8, name="images")
        examples = tf.TensorSpec([None], tf.string, name="examples")

        def tf_example(examples: tf.Tensor) -> Outputs:
            wanted = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
            return self._answer(self.preprocess(tf.io.parse_example(examples, wanted)["image/encoded"]))

        decoded = _traced(
            lambda image_bytes: self._shaped(preprocess.from_bytes(known_formats(image_bytes)), tensors), files
        )
        self.preprocess = decoded.get_concrete_function()  # one trace, which all signatures share: loading takes time
        self.endpoints |= {
            "serving_default": _traced(lambda image_bytes: self._answer(self.preprocess(image_bytes)), files),
            "images": _traced(
                lambda images: self._answer(self._shaped(preprocess.from_images(images), tensors)), images
            ),
            "tf_example": _traced(tf_example, examples),
            "tolerant": _traced(lambda image_bytes: self._tolerant(image_bytes, tensors), files),
        }

    def _vectors(self, tensors: tf.TensorSpec) -> Any:
        """The default signature without files: raw rows through a tabular preprocess, or tensors as they are."""
        if self._preprocess is None:
            return _traced(lambda tensors: self._answer(tensors), tensors)
        rows = tf.TensorSpec(tensors.shape, tf.float32, name="inputs")
        return _traced(lambda inputs: self._answer(self._shaped(self._preprocess.from_rows(inputs), tensors)), rows)

    def _add_features(self, tensors: tf.TensorSpec) -> None:
        if "features" not in self._core.names:
            return
        if self.preprocess is None:
            features = _traced(lambda tensors: {"features": self._run(tensors)["features"]}, tensors)
        else:
            files = tf.TensorSpec([None], tf.string, name="image_bytes")
            features = _traced(
                lambda image_bytes: {"features": self._run(self.preprocess(image_bytes))["features"]}, files
            )
        self.endpoints["features"] = features

    @staticmethod
    def _shaped(value: tf.Tensor, tensors: tf.TensorSpec) -> tf.Tensor:
        return tf.ensure_shape(tf.cast(value, tf.float32), tensors.shape)

    def _run(self, tensors: tf.Tensor) -> Outputs:
        """Calls the core; an empty batch becomes one row of zeros on the way in (oneDNN has no empty convolution)."""
        count = tf.shape(tensors)[0]
        one = tf.zeros([1, *tensors.shape[1:]], tensors.dtype)
        rows = tf.cond(count > 0, lambda: tensors, lambda: one)
        rows = tf.ensure_shape(rows, tensors.shape)
        return {name: value[:count] for name, value in self._core(rows).items()}

    def _answer(self, tensors: tf.Tensor) -> Outputs:
        found = numbers(self._run(tensors), self._task, self._temperature)
        if self._task != "classification":
            return found
        scores, best = tf.math.top_k(found["probabilities"], k=min(TOP, len(self._labels)))
        return found | {"classes": tf.gather(tf.constant(self._labels, tf.string), best), "scores": scores}

    def _tolerant(self, files: tf.Tensor, tensors: tf.TensorSpec) -> Outputs:
        """Serves the decodable files; the others answer zeros and a reason.

        A graph cannot catch an error, a dataset inside it can: it drops the elements that fail, and their numbers tell
        which. The element behind the last file keeps the dataset from being empty.
        """
        count = tf.shape(files, out_type=tf.int64)[0]
        decoded = tf.data.Dataset.from_tensor_slices(files).enumerate()
        decoded = decoded.map(lambda i, file: (i, self.preprocess(file[None])[0]), num_parallel_calls=tf.data.AUTOTUNE)
        last = tf.data.Dataset.from_tensors((count, tf.zeros(tensors.shape[1:], tensors.dtype)))
        kept = decoded.ignore_errors().concatenate(last).batch(count + 1)
        rows, pictures = kept.get_single_element()
        shape = tf.concat([[count + 1], tf.shape(pictures, out_type=tf.int64)[1:]], 0)
        pictures = tf.ensure_shape(tf.scatter_nd(rows[:, None], pictures, shape)[:-1], tensors.shape)
        good = tf.scatter_nd(rows[:, None], tf.ones_like(rows), [count + 1])[:-1] > 0
        found = {name: _where(good, value) for name, value in self._answer(pictures).items()}
        return found | {"error": tf.where(good, "", UNDECODABLE)}


def numbers(found: Outputs, task: str, temperature: float) -> Outputs:
    """Returns the numerical outputs of a core's answer, which every form of an export has.

    An ensemble also answers what its members do not know, in nats: `predictive_entropy` of the mean probabilities, and
    `mutual_information` between the class and the member, the part of it that comes from their disagreement.
    """
    rest = {name: value for name, value in found.items() if name != "features"}
    if task != "classification":
        return rest
    logits = rest.pop("logits")
    probabilities = tf.nn.softmax(logits if temperature == 1.0 else logits / temperature)
    if "disagreement" in rest:
        classes = max(2, logits.shape[-1])
        surprise = tf.where(probabilities > 0, -tf.math.log(tf.maximum(probabilities, 1e-37)), 0.0)
        rest["predictive_entropy"] = tf.reduce_sum(probabilities * surprise, -1)
        rest["mutual_information"] = rest["disagreement"] * math.log(classes)
    return {"probabilities": probabilities, "logits": logits, **rest}


def known_formats(files: tf.Tensor) -> tf.Tensor:
    """Returns the encoded files, or fails with a sentence that names the rows that are no pictures at all."""
    known = tf.zeros(tf.shape(files), tf.bool)
    for prefix in STARTS:
        known |= tf.strings.substr(files, 0, len(prefix)) == prefix
    bad = tf.where(~known)[:, 0]
    message = "not a JPEG, PNG, BMP, GIF or WebP file: row(s) of the request, counted from 0,"
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(known), [message, bad])]):
        return tf.identity(files)


class Core:
    """A traced network: preprocessed tensors to a dict of outputs. Traced once, used by every signature.

    Args:
        function: a concrete function that returns one tensor per name.
        names: of its outputs, the main one first.
        weights: what it computes with; empty takes the variables that it reads (constants have to be told).
    """

    def __init__(self, function: Any, names: Sequence[str], weights: Sequence[tf.Variable] = ()):
        self.function, self.names = function, tuple(names)
        self.weights = list(weights) or _captured_variables([function])

    def __call__(self, tensors: tf.Tensor) -> Outputs:
        found = self.function(tensors)
        return dict(zip(self.names, tf.nest.flatten(found), strict=True))


def trace(model: Any, shape: Sequence[int | None], names: Sequence[str], log: bool = False) -> Core:
    """Traces `model(tensors, training=False)` once, for any batch size; `log` turns probabilities into logits."""

    def call(tensors: tf.Tensor) -> list[tf.Tensor]:
        outputs = tf.nest.flatten(model(tensors, training=False))
        outputs = [tf.cast(value, tf.float32) for value in outputs]
        return [tf.math.log(tf.maximum(outputs[0], 1e-37)), *outputs[1:]] if log else outputs

    function = _traced(call, tf.TensorSpec([None, *shape], tf.float32, name="tensors"))
    return Core(function.get_concrete_function(), names)


def interface(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns names, types and shapes of every signature as plain values, for the manifest."""

    def plain(spec: Any) -> list[Any]:
        return [spec.dtype.name, None if spec.shape.rank is None else list(spec.shape)]

    return {
        name: {
            "inputs": {spec.name: plain(spec) for spec in tf.nest.flatten(function.structured_input_signature)},
            "outputs": {key: plain(value) for key, value in function.structured_outputs.items()},
        }
        for name, function in signatures.items()
    }


def _traced(function: Callable[..., Any], spec: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=[spec], autograph=False)


def _captured_variables(functions: Any) -> list[tf.Variable]:
    """The variables that the signatures read, each once; counters of dropout and optimizer state stay behind."""
    found: dict[int, tf.Variable] = {}
    for function in functions:
        for variable in function.graph.variables:
            found.setdefault(id(variable), variable)
    return list(found.values())


def _where(good: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    keep = tf.reshape(good, tf.concat([tf.shape(good), tf.ones(value.shape.rank - 1, tf.int32)], 0))
    return tf.where(keep, value, tf.zeros([], value.dtype) if value.dtype != tf.string else "")
