"""Converted networks behind one call: float32 `tensors` in, named arrays out. Imports nothing of dlkit.

The checking process loads this file by its path, so that what it runs is the runtime and nothing else.
"""

import contextlib
from pathlib import Path

import numpy as np

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "litert": "model.tflite"}


class Runtime:
    """A network in another runtime.

    Args:
        form: "onnx", "openvino" or "litert".
        folder: holds the file, see `FILES`.
        threads: 0 leaves the number to the runtime.

    `call(tensors)` returns a dict of arrays; wrong types and shapes raise ValueError. `inputs` and `outputs` hold type
    and shape by name, None for an axis of any length.
    """

    def __init__(self, form, folder, threads=0):
        path = str(Path(folder) / FILES[form])
        self._answer = {"onnx": self._onnx, "openvino": self._openvino, "litert": self._litert}[form](path, threads)

    def __call__(self, tensors):
        tensors = np.asarray(tensors)
        (dtype, shape) = next(iter(self.inputs.values()))
        fits = len(shape) == tensors.ndim and all(a in (None, b) for a, b in zip(shape, tensors.shape, strict=True))
        if tensors.dtype != dtype or not fits:
            raise ValueError(f"tensors of type {tensors.dtype} and shape {tensors.shape}; expected {dtype} {shape}")
        return self._answer(np.ascontiguousarray(tensors))

    def _onnx(self, path, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        types = {"tensor(float)": "float32"}

        def plain(values):
            return {
                v.name: [types.get(v.type, v.type), [n if isinstance(n, int) else None for n in v.shape]]
                for v in values
            }

        self.inputs, self.outputs = plain(session.get_inputs()), plain(session.get_outputs())
        (given,), names = self.inputs, list(self.outputs)
        return lambda tensors: dict(zip(names, session.run(names, {given: tensors}), strict=True))

    def _openvino(self, path, threads):
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        model = core.compile_model(core.read_model(path), "CPU", settings)

        def plain(ports):
            return {
                port.get_any_name(): [
                    str(np.dtype(port.element_type.to_dtype())),
                    [n.get_length() if n.is_static else None for n in port.partial_shape],
                ]
                for port in ports
            }

        self.inputs, self.outputs = plain(model.inputs), plain(model.outputs)

        def answer(tensors):
            found = model([tensors])
            return {port.get_any_name(): np.array(found[port]) for port in model.outputs}

        return answer

    def _litert(self, path, threads):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=path, num_threads=threads or None)
        runner = interpreter.get_signature_runner("tensors")

        def plain(details):
            return {
                name: [np.dtype(d["dtype"]).name, [None if n < 0 else int(n) for n in d["shape_signature"]]]
                for name, d in details.items()
            }

        self.inputs, self.outputs = plain(runner.get_input_details()), plain(runner.get_output_details())
        return lambda tensors: runner(tensors=tensors)


def size(form, folder):
    """Returns the bytes of the files that hold the network."""
    total = 0
    for name in (FILES[form], "model.bin", "model.onnx.data"):
        with contextlib.suppress(FileNotFoundError):
            total += (Path(folder) / name).stat().st_size
    return total
