"""From a trained model to `<directory>/<version>/`: written hidden, checked in a fresh process, shown by one rename."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit import _files
from dlkit._errors import InputError
from dlkit.export import _cases, _folders, _manifest, _options, _warmup
from dlkit.export._cases import Cases
from dlkit.export._options import Options
from dlkit.export._process import Checker
from dlkit.export._report import VerificationError
from dlkit.export._signatures import TOP, Servable, interface, trace

LARGEST_FROZEN = 400_000_000  # bytes of weights; a loader in Python holds a frozen graph about 25 times


def saved_model(
    model: Any,
    preprocess: Any,
    labels: Sequence[str] | None,
    directory: str | os.PathLike[str],
    *,
    version: int | None = None,
    verify_on: Any = None,
    optimize: str | None = "fold",
    precision: str = "float32",
    task: str | None = None,
    temperature: float = 1.0,
    calibrate: Any = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a SavedModel that computes what was evaluated, and shows it only after a fresh process has proven so.

        serving_default  image_bytes (encoded files) -> probabilities, logits, classes, scores
        images           uint8 pictures of any size        tensors     float32, already preprocessed
        tf_example       serialized tf.train.Example       features    pooled embeddings of encoded files
        tolerant         like serving_default; an undecodable file answers zeros and a text in `error`

    The signatures are dlkit's own: the model runs with `training=False` and in float32, `preprocess` is in the graph,
    and TensorFlow alone loads the result. `classes` and `scores` are the best five names with their probabilities;
    a regression answers `predictions`, a box task `boxes`. The folder's writer holds a lock, so that exports into
    one folder follow each other.

    Args:
        model: a Keras model with one input and one output: logits or probabilities, one per label.
        preprocess: the `dlkit.data.Preprocess` (`Standardize` for tables) of the evaluation pipeline; None for a
            network fed with tensors.
        labels: class names in the order of the outputs; None for regression and boxes.
        directory: holds the versions, e.g. `saved_models/digits`; its last part is the model's name for the server.
        version: a positive integer; None takes the next free one.
        verify_on: a `dlkit.data.Source`: up to 128 of its samples go through the check, behind the generated pictures
            of every format, which None leaves alone.
        optimize: "fold" merges batch normalisation into the weights before it and computes no position of a map that
            nothing reads; "freeze" also turns the weights into constants (fastest; about 25 times their size in memory
            at load, so at most 400 MB of weights); None changes nothing: bit-equal to `model.predict`.
        precision: "float32", whatever the training used; "bfloat16" holds convolutions and dense layers in half the
            bytes and is about twice as fast where the processor multiplies it (AVX512-BF16, AMX), slow elsewhere.
            Its check allows 0.2 points of accuracy on `verify_on`, beyond one standard error of the changed answers.
        task: "classification", "regression" or "box"; None: classification with labels, regression without.
        temperature: the logits are divided by it before the softmax; 1 leaves the probabilities as trained.
        calibrate: a labelled `dlkit.data.Source` that was not trained on: the temperature is the one with the smallest
            mean negative log-likelihood of its labels. `logits` stay as trained.
        about: recipe, metrics, data fingerprint: JSON values for the manifest and the model card.

    Returns:
        The version's folder. It holds saved_model.pb, variables/, assets/labels.txt, manifest.json,
        verification.json, README.md (the model card) and assets.extra/ (warm-up requests, verification samples).

    Raises:
        InputError: labels, shapes, names or the target do not fit; nothing was written.
        VerificationError: the export does not compute what was evaluated; nothing was published.

    Example:
        >>> saved_model(model, preprocess, ["cat", "dog"], "saved_models/pets", verify_on=test)  # doctest: +SKIP
        PosixPath('saved_models/pets/1')
    """
    options = _options.checked(
        labels, directory, version, optimize, precision, task, temperature, about, calibrate=calibrate
    )
    return publish(Export, model, preprocess, options, verify_on)


def publish(kind: "type[Export]", model: Any, preprocess: Any, options: Options, verify_on: Any, *more: Any) -> Path:
    """Writes one checked version of `kind` into the folder of `options`, alone in it, and returns its path."""
    _options.check_width(model, options)
    shape = _options.input_shape(model, preprocess)
    with Checker() as checker, _folders.writing(options.directory) as scratch:
        _folders.check_target(options.directory, options.version, options.form)  # again: now nobody else writes there
        return kind(model, preprocess, shape, options, *more).write(verify_on, checker, scratch)


class Export:
    """One export on its way: the network, its reference outputs, and what is written."""

    def __init__(self, model: Any, preprocess: Any, shape: tuple[int | None, ...], options: Options):
        from dlkit.export import _net  # here, so that `predict` and `verify` need no Keras

        self._net = _net
        self.name, self.preprocess, self.shape, self.options = model.name, preprocess, shape, options
        self.model = _net.in_float32(model)
        if options.precision != "float32" or options.form != "saved_model":
            _net.check_graph(model, options)
        self.rewrites: dict[str, Any] = {}
        size = sum(int(np.prod(weight.shape)) * 4 for weight in self.model.weights)
        if options.optimize == "freeze" and size > LARGEST_FROZEN:
            raise InputError(
                f"{size / 1e6:,.0f} MB of weights as constants would need about {25 * size / 1e9:,.0f} GB at load; use "
                "optimize='fold'"
            )

    def write(self, verify_on: Any, checker: Checker, scratch: Path) -> Path:
        """Writes the next version, checked, and returns its folder."""
        from dlkit.train.precision import arithmetic  # here, so that `predict` and `verify` need no Keras

        with arithmetic("float32"):  # rewrites and outputs are compared in it, also after `fast_math()`
            return self._written(verify_on, checker, scratch)

    def _written(self, verify_on: Any, checker: Checker, scratch: Path) -> Path:
        stored = _cases.generated(self.preprocess, self.shape)
        cases = stored
        if verify_on is not None:
            many = (self.options.quantize or self.options.precision) != "float32"
            cases = _cases.joined(stored, _cases.of_source(verify_on, self.preprocess, self.options.labels, many))
        cases.expected = self._evaluated(cases)
        _options.check_outputs(cases.expected, self.options)
        self._calibrate(cases.expected)
        servable = self._servable(cases, cases.expected)
        number = self.options.version or _folders.next_version(self.options.directory)
        path = self.options.directory / str(number)
        manifest = self._manifest(servable, number)
        with _files.new_folder(path) as folder:
            self._files(folder, servable, manifest, cases.first(len(stored.tensors)))
            exact = self.options.optimize is None and self.options.precision == "float32"
            request = _cases.request(cases, manifest, exact) | {"export": str(folder)}
            report = dataclasses.replace(checker.run(scratch, request, cases.arrays()), path=str(path))
            if not report.ok:
                raise VerificationError(report)
            _files.write_json(folder / _manifest.VERIFICATION, report.to_dict())
            _files.write_text(folder / _manifest.CARD, _manifest.model_card(manifest, report))
        return path

    def _files(self, folder: Path, servable: Any, manifest: dict[str, Any], stored: Cases) -> None:
        _write(folder, servable, manifest, stored)

    def _calibrate(self, expected: np.ndarray) -> None:
        """Chooses the temperature on the samples of `calibrate`."""
        self.calibration: dict[str, Any] | None = None
        self.temperature = self.options.temperature
        if self.options.calibrate is not None:
            from dlkit.export import _calibrate

            hidden = self._net.ends_in_softmax(self.model) or self._net.sums_to_one(expected)
            self.calibration = _calibrate.calibration(
                self.model, self.preprocess, self.options.labels, self.options.calibrate, probabilities=hidden
            )
            self.temperature = self.calibration["temperature"]

    def _evaluated(self, cases: Cases) -> Any:
        """The outputs of `predict`.

        A server's graph has no static batch size; with one, TensorFlow may add in another order across layers. Two
        calls with different sizes make `predict` forget it, so that the comparison can be exact.
        """
        if self.options.optimize is None:
            for rows in (1, 2):
                self.model.predict(cases.tensors[:rows], verbose=0)
        found = self.model.predict(cases.tensors, batch_size=cases.batch, verbose=0)
        return found["probabilities"] if isinstance(found, dict) else found

    def _servable(self, cases: Cases, expected: np.ndarray) -> Servable:
        """Traces the network once, notes its features as a reference, and optimises it."""
        options, net = self.options, self._net.served(self.model, self.options.task)
        softmax = options.task == "classification" and self._net.ends_in_softmax(self.model)
        hidden = options.task == "classification" and not softmax and self._net.sums_to_one(expected)
        self.gives = "probabilities" if softmax or hidden else "logits"
        core = trace(net.model, self.shape, net.names, log=hidden)
        if "features" in net.names:
            cases.features = _cases.in_batches(
                lambda rows: core(tf.constant(rows))["features"], cases.tensors, cases.batch
            )[0]
        if options.optimize is not None or options.precision != "float32":
            from dlkit.export import _optimize

            core, self.rewrites = _optimize.optimised(
                core, net, options, self.shape, cases.tensors[: cases.batch], hidden
            )
        return self._around(core)

    def _around(self, core: Any) -> Any:
        options = self.options
        return Servable(core, self.preprocess, self.shape, options.task, options.labels, self.temperature)

    def _manifest(self, servable: Servable, number: int) -> dict[str, Any]:
        options = self.options
        weights = _manifest.weights_record(servable.weights)
        return {
            "format": _manifest.FORMAT,
            "form": options.form,
            "name": options.directory.resolve().name,
            "version": number,
            "created": _manifest.now(),
            "task": options.task,
            "labels": list(options.labels),
            "top": min(TOP, len(options.labels)),
            "temperature": self.temperature,
            "calibration": self.calibration,
            "optimize": options.optimize,
            "precision": options.precision,
            "quantize": options.quantize,
            "rewrites": self.rewrites,
            "model": {"name": self.name, "gives": self.gives, **weights},
            "input_shape": list(self.shape),
            "preprocess": _manifest.preprocess_record(self.preprocess),
            "signatures": interface(servable.signatures()),
            "versions": _manifest.versions(),
            "about": options.about,
        }


def _write(folder: Path, servable: Servable, manifest: dict[str, Any], stored: Cases) -> None:
    """Writes everything but the verification: graph and weights, labels, manifest, samples, warm-up requests."""
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(servable.module, str(folder), servable.signatures(), options)
    _manifest.write_papers(folder, manifest)
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    stored.save(folder / _manifest.SAMPLES)
    requests = []
    for name, signature in manifest["signatures"].items():
        argument = next(iter(signature["inputs"]))
        requests.append((name, {argument: stored.example(argument)}))
    _warmup.write_requests(extra / "tf_serving_warmup_requests", requests)
