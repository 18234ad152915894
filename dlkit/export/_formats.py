"""The same network for other runtimes: ONNX, OpenVINO and LiteRT, each checked like a SavedModel before it appears."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.export import _cases, _folders, _manifest, _options
from dlkit.export._cases import Cases
from dlkit.export._options import Options
from dlkit.export._packages import check_packages
from dlkit.export._saved_model import Export, publish
from dlkit.export._signatures import Core, numbers

RANGES = 200  # training images whose activations give the int8 ranges


def onnx(
    model: Any,
    preprocess: Any,
    labels: Sequence[str] | None,
    directory: str | os.PathLike[str],
    *,
    version: int | None = None,
    verify_on: Any = None,
    task: str | None = None,
    temperature: float = 1.0,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<directory>/<version>/model.onnx` (opset 18), checked by onnx.checker and in an ONNX Runtime session.

        tensors: float32 (batch, height, width, channels), preprocessed -> probabilities, logits (predictions, boxes)

    For servers and devices without TensorFlow. The file holds the network behind the preprocessing: feed it what
    `preprocess.from_bytes` gives. It is made of a float32 clone, rewritten as by `saved_model(optimize="fold")`.

    Args:
        model: a functional Keras model with one input and one output.
        preprocess: of the evaluation pipeline; its outputs are what the check feeds.
        labels: class names in the order of the outputs; None for regression and boxes.
        directory: holds the versions of this form only, e.g. `exports/digits-onnx`.
        version: a positive integer; None takes the next free one.
        verify_on: a `dlkit.data.Source`: samples of it go through the check behind the generated pictures.
        task: "classification", "regression" or "box"; None: classification with labels, regression without.
        temperature: the logits are divided by it before the softmax.
        about: JSON values for the manifest and the model card.

    Returns:
        The version's folder: model.onnx, assets/labels.txt, manifest.json, verification.json, README.md.

    Raises:
        InputError: arguments do not fit, or an extra is missing (named before any work starts).
        VerificationError: the file does not compute what was evaluated; nothing was published.

    Example:
        >>> onnx(model, preprocess, ["cat", "dog"], "exports/pets-onnx")  # doctest: +SKIP
        PosixPath('exports/pets-onnx/1')
    """
    check_packages("onnx")
    options = _options.checked(labels, directory, version, "fold", "float32", task, temperature, about, "onnx")
    return publish(ConvertedExport, model, preprocess, options, verify_on)


def openvino(
    model: Any,
    preprocess: Any,
    labels: Sequence[str] | None,
    directory: str | os.PathLike[str],
    *,
    version: int | None = None,
    verify_on: Any = None,
    task: str | None = None,
    temperature: float = 1.0,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<directory>/<version>/model.xml` and `model.bin`, converted from the ONNX file, checked in OpenVINO.

    For Intel's and AMD's processors without TensorFlow. Arguments, outputs and errors are those of `onnx`. OpenVINO
    computes in bfloat16 on processors that have it unless INFERENCE_PRECISION_HINT="f32" is set, as the check does.

    Example:
        >>> openvino(model, preprocess, ["cat", "dog"], "exports/pets-openvino")  # doctest: +SKIP
        PosixPath('exports/pets-openvino/1')
    """
    check_packages("openvino")
    options = _options.checked(labels, directory, version, "fold", "float32", task, temperature, about, "openvino")
    return publish(ConvertedExport, model, preprocess, options, verify_on)


def litert(
    model: Any,
    preprocess: Any,
    labels: Sequence[str] | None,
    directory: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    samples: Any = None,
    version: int | None = None,
    verify_on: Any = None,
    task: str | None = None,
    temperature: float = 1.0,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<directory>/<version>/model.tflite` through TensorFlow's converter, checked in LiteRT.

    For telephones and small computers. Inputs and outputs are float32 in both precisions. Arguments not named here,
    outputs and errors are those of `onnx`; the file's signature is `tensors`.

    Args:
        quantize: None, or "int8": weights and activations in eight bits after training, a quarter of the size; the
            check allows 0.5 points of accuracy on `verify_on`, beyond one standard error of the changed answers.
        samples: a `dlkit.data.Source` with training images; 200 of them give the ranges of the activations for "int8".

    Example:
        >>> litert(model, preprocess, labels, "exports/pets-litert", quantize="int8", samples=train)  # doctest: +SKIP
        PosixPath('exports/pets-litert/1')
    """
    check_packages("litert")
    options = _options.checked(
        labels, directory, version, "fold", "float32", task, temperature, about, "litert", quantize
    )
    if (quantize is None) != (samples is None):
        raise InputError(
            f"quantize={quantize!r} with samples={samples!r}; int8 needs samples, a Source of training images for the "
            "ranges of the activations, and float32 needs none"
        )
    return publish(ConvertedExport, model, preprocess, options, verify_on, samples)


class Answer:
    """A core with the numerical outputs of the task around it: what a conversion starts from."""

    def __init__(self, core: Core, shape: Sequence[int | None], task: str, temperature: float):
        self.weights = core.weights
        tensors = tf.TensorSpec([None, *shape], tf.float32, name="tensors")
        self.function = tf.function(
            lambda tensors: numbers(core(tensors), task, temperature), input_signature=[tensors], autograph=False
        )

    def signatures(self) -> dict[str, Any]:
        """Returns the one concrete function by its name."""
        return {"tensors": self.function.get_concrete_function()}


class ConvertedExport(Export):
    """An export whose file another runtime reads."""

    def __init__(
        self, model: Any, preprocess: Any, shape: tuple[int | None, ...], options: Options, samples: Any = None
    ):
        super().__init__(model, preprocess, shape, options)
        self.samples = samples

    def _around(self, core: Core) -> Any:
        return Answer(core, self.shape, self.options.task, self.temperature)

    def _files(self, folder: Path, servable: Any, manifest: dict[str, Any], stored: Cases) -> None:
        from dlkit.export import _convert

        form = self.options.form
        function = _convert.frozen(servable.function.get_concrete_function(), erfc=form == "litert")
        if form == "litert":
            _convert.to_litert(function, folder, self.options.quantize, self._ranges())
        else:
            _convert.to_onnx(function, folder / _folders.MODEL_FILES["onnx"])
        if form == "openvino":
            _convert.to_openvino(folder)
        if self.options.quantize:
            manifest["model"]["bytes"] = manifest["model"]["parameters"]
        _manifest.write_papers(folder, manifest)
        (folder / _manifest.SAMPLES).parent.mkdir(exist_ok=True)
        stored.save(folder / _manifest.SAMPLES)

    def _ranges(self) -> Any:
        if self.samples is None:
            return None
        from dlkit.data import eval_pipeline

        _cases.check_classes(self.samples, self.options.labels)
        part = _cases.spread(self.samples, RANGES)
        return [row[None] for batch, _ in eval_pipeline(part, self.preprocess, _cases.BATCH) for row in batch.numpy()]
