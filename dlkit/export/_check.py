"""The process that checks an export: it imports TensorFlow and NumPy, and refuses Keras and dlkit.

Run by path, never as part of the package:

    python -P _check.py        (then lines on standard input: folders with request.json and cases.npz, as JSON strings)

It answers with result.json in each folder. Nothing here may import from dlkit: that is the point.
"""

import importlib.machinery
import json
import os
import platform
import sys
import traceback
import types
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class _Hidden:
    """Makes keras and dlkit look as if they were not installed."""

    names = ("keras", "dlkit", "keras_tuner", "tf_keras")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, origin=os.devnull)  # type: ignore[arg-type]
        return None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"{spec.name} is hidden: an export has to run without it", name=spec.name)

    def exec_module(self, module):
        raise ModuleNotFoundError(module.__name__)


sys.meta_path.insert(0, _Hidden())

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

RANDOM_OPS = ("Random", "Multinomial", "Dropout", "Rng", "ParameterizedTruncatedNormal")


class Checks:
    """Runs every check on one loaded export and collects the rows."""

    def __init__(self, request, cases):
        self.request, self.cases, self.rows = request, cases, []
        self.classification = request["task"] == "classification"
        self.main = {"classification": "logits", "regression": "predictions", "box": "boxes"}[request["task"]]
        self.batch = request["batch"]
        self.export = Path(request["export"])

    def add(self, name, ok, difference=None, limit=None, detail=""):
        self.rows.append({"name": name, "ok": bool(ok), "difference": difference, "limit": limit, "detail": detail})

    def near(self, name, found, expected, limit):
        """One row: the largest difference, which must not exceed `limit`; NaN and wrong shapes fail."""
        found, expected = np.asarray(found), np.asarray(expected)
        if found.shape != expected.shape:
            self.add(name, False, detail=f"shape {found.shape}, expected {expected.shape}")
            return
        wide = found.astype(np.float64) - expected.astype(np.float64)
        same = np.isnan(found.astype(np.float64)) & np.isnan(expected.astype(np.float64))
        difference = float(np.max(np.abs(np.where(same, 0.0, wide)), initial=0.0))
        self.add(name, difference <= limit, difference, limit)

    def raises(self, name, call):
        try:
            call()
        except (tf.errors.OpError, TypeError, ValueError) as error:
            self.add(name, True, detail=f"{type(error).__name__}: {_sentence(error)}")
        else:
            self.add(name, False, detail="answered instead of raising an error")

    def run(self):
        strange = _sibling("_operations").strange_operations(self.export)
        self.add("no operation reaches out of the graph", not strange, detail=", ".join(strange))
        if strange:
            return
        self.model = tf.saved_model.load(str(self.export))
        self.signatures = self.model.signatures
        loaded = sorted({name.split(".")[0] for name in sys.modules} & set(_Hidden.names))
        self.add("loads with TensorFlow alone", not loaded, detail=", ".join(loaded))
        self.interface()
        self.graph()
        self.files = [self.cases[f"file_{i}"].tobytes() for i in range(self.request["files"])]
        if self.files:
            self.pixels()
            self.encoded("serving_default", self.files, first=True)
            self.encoded("tf_example", [_example(file) for file in self.files[: self.batch]])
            self.images()
            self.wrong_files()
            self.tolerant()
        else:
            self.encoded("serving_default", self.cases.get("inputs", self.cases["tensors"]), first=True)
        self.tensors()
        self.rows_are_independent()
        self.features()
        self.wrong_shapes()

    def interface(self):
        """The names, types and shapes of every signature are those the manifest states."""
        found = {name: interface(function) for name, function in self.signatures.items()}
        expected = self.request["signatures"]
        wrong = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        self.add("names, types and shapes of the signatures", not wrong, detail=", ".join(wrong))

    def graph(self):
        """No random operation is left, and each weight is in the files once."""
        from tensorflow.core.protobuf import saved_model_pb2

        proto = saved_model_pb2.SavedModel()
        content = (self.export / "saved_model.pb").read_bytes()
        proto.ParseFromString(content)
        nodes = [node for graph in proto.meta_graphs for node in graph.graph_def.node]
        nodes += [n for graph in proto.meta_graphs for f in graph.graph_def.library.function for n in f.node_def]
        random = sorted({node.op for node in nodes if node.op.removeprefix("Stateless").startswith(RANDOM_OPS)})
        self.add("no random operation in the graph", not random, detail=", ".join(random))
        size = sum(file.stat().st_size for file in (self.export / "variables").glob("*.data-*"))
        if self.request["frozen"]:
            size += len(content)
        allowed = 1.05 * self.request["parameter_bytes"] + self.request["graph_bytes"]
        self.add("each weight is stored once (bytes)", size <= allowed, detail=f"{size} of at most {int(allowed)}")

    def answer(self, signature, **inputs):
        return {name: value.numpy() for name, value in self.signatures[signature](**inputs).items()}

    def batches(self, signature, argument, rows):
        parts = [
            self.answer(signature, **{argument: tf.constant(rows[i : i + self.batch])})
            for i in range(0, len(rows), self.batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def pixels(self):
        """The preprocessing in the graph gives the pixels of the evaluation pipeline, without any difference."""
        expected = self.cases["tensors"]
        found = self.model.preprocess(tf.constant(self.files[: len(expected)])).numpy()
        self.near("preprocessed pixels", found, expected, 0.0)

    def outputs(self, name, found, rows, same_batch=True):
        """The outputs of one signature against the evaluation pipeline's, and against each other."""
        expected = self.cases["expected"][rows]
        limits = self.request["limits"]["same_batch" if same_batch else "other_batch"]
        scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        if not self.classification:
            self.near(f"{name} {self.main}", found[self.main], expected, limits["main"] * scale)
            return
        temperature = self.request["temperature"]
        if not self.request["expects_probabilities"]:
            self.near(f"{name} logits", found["logits"], expected, limits["main"] * scale)
        elif temperature == 1.0:
            self.near(f"{name} probabilities", found["probabilities"], expected, limits["main"])
            expected = np.log(np.maximum(expected.astype(np.float64), 1e-300))
        evaluated = _softmax(expected / temperature)
        title, limit = f"{name} probabilities of the evaluation", limits["probabilities"]
        if self.request["lossy"]:  # a rounded logit may move one picture's probabilities far, but not all of them
            mean = float(np.mean(np.abs(found["probabilities"] - evaluated)))
            self.add(f"{title} (mean)", mean <= limit, mean, limit)
        else:
            self.near(title, found["probabilities"], evaluated, limit)
        consistent = _softmax(found["logits"] / temperature)
        self.near(
            f"{name} probabilities of its own logits",
            found["probabilities"],
            consistent,
            self.request["limits"]["softmax"],
        )
        self.ranking(name, found)

    def ranking(self, name, found):
        """`classes` and `scores` are the names and probabilities of the best classes, in order."""
        order = np.argsort(-found["probabilities"], axis=-1, kind="stable")[:, : self.request["top"]]
        ranked = np.take_along_axis(found["probabilities"], order, -1)
        names = [[name.decode() for name in row] for row in found["classes"]]
        right = names == [[self.request["labels"][i] for i in row] for row in order]
        self.add(
            f"{name} classes and scores are the best of its probabilities",
            right and np.array_equal(ranked, found["scores"]),
        )

    def encoded(self, signature, rows, first=False):
        found = self.batches(signature, next(iter(self.request["signatures"][signature]["inputs"])), rows)
        self.outputs(signature, found, slice(len(rows)))
        if first and self.classification:
            self.best_classes(found["logits"])

    def best_classes(self, logits):
        """Top-1 agreement with the evaluation, and the accuracy on labelled samples.

        Where precision was given up, pictures that the network cannot tell apart may change sides: the generated ones
        are held to the limit of the outputs, the labelled samples to the limits of agreement and accuracy.
        """
        expected, limits = self.cases["expected"], self.request["limits"]
        known = self.cases["targets"] >= 0 if "targets" in self.cases else np.zeros(len(expected), bool)
        counted = known if self.request["lossy"] else np.ones(len(expected), bool)
        same = self.agreement(logits, expected)
        if counted.any():
            share = float(np.mean(same[counted]))
            ok = share >= limits["agreement"] - 1e-9
            self.add("top-1 agreement with the evaluation", ok, detail=f"{100 * share:.2f} %")
        if known.any():
            right, evaluated = (
                int(np.sum(v.argmax(-1)[known] == self.cases["targets"][known])) for v in (logits, expected)
            )
            count = int(known.sum())
            self.accuracy = right / count
            # a picture that changed its class is as likely a loss as a gain: one standard error is left to chance
            chance = np.sqrt(np.sum(~same[known])) if self.request["lossy"] else 0.0
            ok = evaluated - right <= limits["accuracy"] * count + chance and (
                self.request["lossy"] or evaluated == right
            )
            detail = f"{right / count:.4f}, evaluated {evaluated / count:.4f}, {count} samples"
            self.add("accuracy on the labelled sample", ok, detail=detail)

    def agreement(self, found, expected):
        """Tells for each row whether the best class is the same; a tie within float32 rounding counts as the same."""
        best = np.take_along_axis(expected, found.argmax(-1)[:, None], -1)[:, 0]
        top = expected.max(-1)
        return top - best <= 1e-6 * np.maximum(1.0, np.abs(top))

    def images(self):
        """Every picture on its own, because they differ in size."""
        rows = range(min(len(self.files), self.request["few"]))
        parts = [self.answer("images", images=tf.constant(self.cases[f"pixels_{i}"][None])) for i in rows]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self.outputs("images", joined, slice(len(rows)), same_batch=False)

    def tensors(self):
        rows = self.cases["tensors"]
        found = self.batches("tensors", "tensors", rows)
        self.outputs("tensors", found, slice(len(rows)))
        empty = self.answer("tensors", tensors=tf.constant(rows[:0]))
        shapes = {name: value.shape for name, value in empty.items()}
        right = all(shape == (0, *found[name].shape[1:]) for name, shape in shapes.items())
        self.add("an empty batch gives empty outputs", right, detail="" if right else str(shapes))
        if self.files:
            empty = self.answer("serving_default", image_bytes=tf.constant([], tf.string))
            self.add("no file gives empty outputs", all(value.shape[0] == 0 for value in empty.values()))

    def rows_are_independent(self):
        """A row's answer depends neither on the size of its batch nor on its neighbours."""
        rows = self.cases["tensors"][: self.batch]
        together = self.answer("tensors", tensors=tf.constant(rows))[self.main]
        scale = max(1.0, float(np.max(np.abs(together), initial=0.0)))
        limit = self.request["limits"]["batch"] * scale
        few = range(min(len(rows), self.request["few"]))
        alone = [self.answer("tensors", tensors=tf.constant(rows[i : i + 1]))[self.main] for i in few]
        self.near(f"batch 1 and batch {len(rows)} agree", np.concatenate(alone), together[: len(few)], limit)
        turned = self.answer("tensors", tensors=tf.constant(rows[::-1].copy()))[self.main][::-1]
        self.near("a row does not depend on its neighbours", turned, together, limit)

    def features(self):
        if "features" not in self.request["signatures"]:
            return
        expected = self.cases["features"]
        argument = next(iter(self.request["signatures"]["features"]["inputs"]))
        rows = self.files[: len(expected)] if self.files else self.cases["tensors"][: len(expected)]
        found = self.batches("features", argument, rows)["features"]
        scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        self.near("features", found, expected, self.request["limits"]["same_batch"]["main"] * scale)

    def wrong_files(self):
        bad = {
            "empty bytes": b"",
            "a text file": b"this is no picture",
            "half a file": self.files[0][: len(self.files[0]) // 2],
        }
        for name, content in bad.items():
            files = tf.constant([self.files[0], content])
            self.raises(
                f"{name}: the request fails", lambda files=files: self.answer("serving_default", image_bytes=files)
            )

    def tolerant(self):
        files = [self.files[0], b"this is no picture", *self.files[1 : self.request["few"]], b""]
        good = [i for i in range(len(files)) if i not in (1, len(files) - 1)]
        found = self.answer("tolerant", image_bytes=tf.constant(files))
        served = {name: value[good] for name, value in found.items()}
        self.outputs("tolerant", served, slice(len(good)), same_batch=False)
        texts = [text.decode() for text in found["error"]]
        zeros = all(
            not np.any(found[name][[1, -1]] != (b"" if found[name].dtype == object else 0))
            for name in found
            if name != "error"
        )
        right = zeros and all(texts[i] == "" for i in good) and all(texts[i] for i in (1, len(files) - 1))
        self.add("tolerant answers zeros and a reason for an undecodable file only", right, detail=texts[1])

    def wrong_shapes(self):
        tensors = self.cases["tensors"][:1]
        self.raises(
            "tensors of a wrong type: the request fails",
            lambda: self.answer("tensors", tensors=tf.constant(tensors, tf.float64)),
        )
        wrong = tf.constant(np.concatenate([tensors, tensors], axis=-1))
        self.raises("tensors of a wrong shape: the request fails", lambda: self.answer("tensors", tensors=wrong))
        if self.files:
            flat = tf.constant(self.cases["pixels_0"])
            self.raises("images without a batch axis: the request fails", lambda: self.answer("images", images=flat))


class ConvertedChecks(Checks):
    """The checks of a network in another runtime, which has the one signature `tensors`."""

    def run(self):
        runtimes = _sibling("_runtimes")
        form = self.request["form"]
        self.runtime = runtimes.Runtime(form, self.export)
        loaded = sorted({name.split(".")[0] for name in sys.modules} & set(_Hidden.names))
        self.add("loads without keras and dlkit", not loaded, detail=", ".join(loaded))
        found = {"inputs": self.runtime.inputs, "outputs": self.runtime.outputs}
        expected = self.request["signatures"]["tensors"]
        self.add("names, types and shapes", found == expected, detail="" if found == expected else str(found))
        size, graph = runtimes.size(form, self.export), self.request["graph_bytes"]
        allowed = 1.05 * self.request["parameter_bytes"] + graph
        self.add("each weight is stored once (bytes)", size <= allowed, detail=f"{size} of at most {int(allowed)}")
        rows = self.cases["tensors"]
        found = self.batches("tensors", "tensors", rows)
        self.outputs("tensors", found, slice(len(rows)))
        if self.classification:
            self.best_classes(found["logits"])
        self.rows_are_independent()
        wrong = np.concatenate([rows[:1], rows[:1]], axis=-1)
        self.raises("tensors of a wrong shape: the request fails", lambda: self.runtime(wrong))
        self.raises("tensors of a wrong type: the request fails", lambda: self.runtime(rows[:1].astype(np.float64)))

    def answer(self, signature, **inputs):
        return self.runtime(inputs["tensors"].numpy())

    def ranking(self, name, found):
        """The files hold numbers only: names and order are the caller's."""


def _sibling(name):
    path = str(Path(__file__).with_name(f"{name}.py"))
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module


def interface(function):
    """Returns the names, types and shapes of a signature's inputs and outputs as plain values."""
    inputs = {name: [spec.dtype.name, _shape(spec)] for name, spec in function.structured_input_signature[1].items()}
    outputs = {name: [spec.dtype.name, _shape(spec)] for name, spec in function.structured_outputs.items()}
    return {"inputs": inputs, "outputs": outputs}


def _shape(spec):
    return None if spec.shape.rank is None else list(spec.shape)


def _example(content):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature})).SerializeToString()


def _softmax(logits):
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _sentence(error):
    """The part of TensorFlow's message that a client understands."""
    lines = str(getattr(error, "message", error)).splitlines()
    noise = ("Graph execution error", "Detected at node", "<stack traces", "[[{{", "[[node")
    kept = [line.strip() for line in lines if line.strip() and not line.strip().startswith(noise)]
    return " ".join(kept)[:200]


def check(folder):
    """Answers the request in `folder`; the result appears there by one rename."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with np.load(folder / "cases.npz", allow_pickle=False) as file:
        cases = dict(file)
    checks = (Checks if request["form"] == "saved_model" else ConvertedChecks)(request, cases)
    try:
        checks.run()
    except Exception as error:  # whatever a foreign graph raises is the result, not a crash of the checker
        last = traceback.extract_tb(error.__traceback__)[-1]
        checks.add("runs to the end", False, detail=f"{type(error).__name__} in {last.name}: {_sentence(error)}")
    versions = {"tensorflow": tf.__version__, "numpy": np.__version__, "python": platform.python_version()}
    result = {"checks": checks.rows, "versions": versions, "accuracy": getattr(checks, "accuracy", None)}
    (folder / "result.tmp").write_text(json.dumps(result), encoding="utf-8")
    (folder / "result.tmp").rename(folder / "result.json")


def main():
    """One folder per line on standard input; ends with it, so also when the asking process is killed."""
    for line in sys.stdin.buffer:
        check(Path(json.loads(line)))


if __name__ == "__main__":
    main()
