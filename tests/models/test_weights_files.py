"""Weight files that are hostile, broken or of another network are refused with their reason, and nothing changes."""

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest

from dlkit import models
from dlkit.models._torch_files import read_torch

SMALL = {"width": 0.5, "input_shape": (8, 8, 3)}


def model(**kw) -> keras.Model:
    return models.resnet_cifar(8, **{**SMALL, **kw})


def refused(path, pattern: str, target: keras.Model | None = None, **kw) -> None:
    """Checks the error's text, that it comes fast with little memory, and that no weight was written."""
    target = target or model()
    before, start = target.get_weights(), time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=pattern):
        models.load_weights(target, path, **kw)
    assert time.process_time() - start < 1.0  # of this process: others may share the machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 * 1024
    for a, b in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def archive(path, content: bytes, storages: dict[str, bytes] | None = None, compressed: bool = False) -> None:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", content)
        for key, value in (storages or {}).items():
            file.writestr(f"archive/data/{key}", value)


@pytest.mark.parametrize("form", ["zip", "legacy", "nested"])
def test_a_pickle_that_calls_a_function_is_refused_before_the_call(form, tmp_path):
    evil = Evil(tmp_path / "made")
    if form == "legacy":
        (tmp_path / "w.th").write_bytes(
            b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, evil, []))
        )
    else:
        archive(tmp_path / "w.th", pickle.dumps({"state_dict": {"a": evil}} if form == "nested" else evil, 2))
    refused(tmp_path / "w.th", r"w\.th: the file wants to load (posix|nt)\.mkdir")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("numpy.core.multiarray", "_reconstruct"), ("torch", "load"), ("os", "system")],
)
def test_only_tensors_and_dictionaries_are_unpickled(module, name, tmp_path):
    content = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"q\x00."
    archive(tmp_path / "w.pth", content)
    refused(tmp_path / "w.pth", rf"wants to load {module}\.{name}")


def tensor_pickle(size: str, storage: str = "10", stride: str = "(I1\nt") -> bytes:
    """Returns a pickle of {"a": tensor} in protocol 0, written by hand."""
    pid = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{storage}\ntQ"
    return f"(dS'a'\nctorch._utils\n_rebuild_tensor_v2\n({pid}I0\n{size}{stride}I00\n(dtRs.".encode()


def test_a_tensor_that_declares_more_than_its_storage_is_refused(tmp_path):
    archive(tmp_path / "w.pt", tensor_pickle("(I2500000000\nt"), {"0": bytes(40)})
    refused(tmp_path / "w.pt", r"shape \(2500000000,\) over 10 numbers")
    archive(tmp_path / "w.pt", tensor_pickle("(I2500000000\nt", stride="(I0\nt"), {"0": bytes(40)})
    refused(tmp_path / "w.pt", r"shape \(2500000000,\) over 10 numbers")


def test_a_storage_that_declares_ten_gigabytes_is_refused(tmp_path):
    archive(tmp_path / "w.pt", tensor_pickle("(I10\nt", storage="2500000000"), {"0": bytes(40)})
    refused(tmp_path / "w.pt", "declares a storage of 10,000,000,000 bytes and has 40")


def test_a_compressed_archive_is_refused_as_a_bomb(tmp_path):
    archive(tmp_path / "w.pt", tensor_pickle("(I10\nt"), {"0": bytes(10**7)}, compressed=True)
    refused(tmp_path / "w.pt", "compressed, which PyTorch's files never are")


def test_members_with_paths_out_of_the_archive_are_never_written(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("../../outside/data.pkl", b"x")
    refused(tmp_path / "w.pt", r"no data\.pkl")
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as file:
        file.writestr("../model.weights.h5", b"x")
    refused(tmp_path / "w.keras", r"no model\.weights\.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.keras", "w.pt"]


def test_a_keras_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.keras", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model.weights.h5", bytes(10**8))
        file.writestr("config.json", "{}")
    refused(tmp_path / "w.keras", r"would unpack to 100,000,000 bytes")


def test_nothing_that_a_keras_config_describes_is_built(tmp_path):
    inner = io.BytesIO()
    with h5py.File(inner, "w") as file:
        file.create_group("layers")
    lambda_layer = {"class_name": "Lambda", "config": {"name": "evil", "function": "x"}}
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as file:
        file.writestr("model.weights.h5", inner.getvalue())
        file.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": [lambda_layer]}}))
    refused(tmp_path / "w.keras", "no weights of layers")


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual", "shape bomb"])
def test_hdf5_files_that_point_outside_or_declare_too_much_are_refused(kind, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones((3, 3, 3, 8), "float32")
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "conv1"
        if kind == "external link":
            group["0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
        elif kind == "soft link":
            group["0"] = h5py.SoftLink("/layers")
        elif kind == "external data":
            group.create_dataset("0", (27, 8), "float32", external=[(str(tmp_path / "raw"), 0, 864)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 3, 3, 8), "float32")
            layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3, 3, 3, 8))
            group.create_virtual_dataset("0", layout)
        else:
            group.create_dataset("0", (50000, 50000), "float32", chunks=(1000, 1000))
    refused(tmp_path / "w.weights.h5", "link out of its place|no array inside the file|declares 10,000,000,000 bytes")


@pytest.mark.parametrize("header", ["length", "json", "outside", "dtype", "negative"])
def test_broken_safetensors_are_refused(header, tmp_path):
    entry = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    if header == "outside":
        entry["a"] |= {"shape": [2500000000], "data_offsets": [0, 10**10]}
    if header == "dtype":
        entry["a"]["dtype"] = "X9"
    if header == "negative":
        entry["a"] |= {"shape": [-2, -1]}
    text = b"{" * 50 if header == "json" else json.dumps(entry).encode()
    length = 10**10 if header == "length" else len(text)
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + text + bytes(8))
    refused(tmp_path / "w.safetensors", "no safetensors file|lies outside the file|is broken")


@pytest.mark.parametrize("name", ["w.pt", "w.th", "w.safetensors", "w.weights.h5", "w.keras", "w.h5"])
def test_empty_truncated_and_random_files_are_refused_by_name(name, tmp_path):
    for content in (b"", b"PK\x03\x04 broken", np.random.default_rng(0).bytes(999)):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, name)


def test_a_missing_file_an_unknown_kind_and_an_unknown_source_say_what_is_allowed(tmp_path):
    refused(tmp_path / "no.pt", "is no file")
    (tmp_path / "w.onnx").write_bytes(b"x")
    refused(tmp_path / "w.onnx", r"unknown kind of weight file '\.onnx'; known: \.pth")
    (tmp_path / "w.pt").write_bytes(b"x")
    refused(
        tmp_path / "w.pt", "unknown source of weights 'torchvison'; did you mean 'torchvision'", source="torchvison"
    )
    refused(tmp_path / "w.pt", "source='keras' does not write .pt files", source="keras")


# files of this package's own (Keras loads them by position, without a word about names)


def rewrite(source, target, change) -> None:
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        for key in old:
            old.copy(key, new)
        change(new)


def test_own_files_come_back_by_name(tmp_path):
    source, target = model(), model()
    source.save_weights(tmp_path / "w.weights.h5")
    report = models.load_weights(target, tmp_path / "w.weights.h5", source="dlkit")
    assert report.missing == report.leftover == ()
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def layer_group(file, name: str):
    return next(g for g in file["layers"].values() if "vars" in g and g["vars"].attrs.get("name") == name)["vars"]


def test_layers_swapped_in_a_file_still_reach_their_names(tmp_path):
    source, target = model(), model()
    source.save_weights(tmp_path / "a.weights.h5")

    def swap(file):
        first, second = layer_group(file, "stage2_block1_conv1"), layer_group(file, "stage2_block1_conv2")
        first.attrs["name"], second.attrs["name"] = second.attrs["name"], first.attrs["name"]

    rewrite(tmp_path / "a.weights.h5", tmp_path / "b.weights.h5", swap)
    models.load_weights(target, tmp_path / "b.weights.h5")
    a, b = models.named_weights(source), models.named_weights(target)
    np.testing.assert_array_equal(a["stage2_block1_conv1/kernel"].numpy(), b["stage2_block1_conv2/kernel"].numpy())


def test_a_missing_layer_and_an_extra_layer_are_named(tmp_path):
    model().save_weights(tmp_path / "a.weights.h5")

    def rename(file):
        layer_group(file, "stage3_block1_conv2").attrs["name"] = "surprise"

    rewrite(tmp_path / "a.weights.h5", tmp_path / "b.weights.h5", rename)
    refused(
        tmp_path / "b.weights.h5",
        r"not in the file \(stage3_block1_conv2/kernel\).*not in the model \(surprise/kernel\)",
    )
    report = models.load_weights(model(), tmp_path / "b.weights.h5", allow_partial=True)
    assert report.missing == ("stage3_block1_conv2/kernel",)
    assert report.leftover == ("surprise/kernel",)
    assert "1 missing: stage3_block1_conv2/kernel" in str(report)


def test_another_depth_another_width_and_whole_numbers_are_refused_by_layer(tmp_path):
    models.resnet_cifar(14, **SMALL).save_weights(tmp_path / "deep.weights.h5")
    refused(tmp_path / "deep.weights.h5", r"30 of the file are not in the model .stage\d_block2_")
    model(width=1.0).save_weights(tmp_path / "wide.weights.h5")
    refused(
        tmp_path / "wide.weights.h5", r"conv1/kernel is \(3, 3, 3, 16\) in the file and \(3, 3, 3, 8\) in the model"
    )
    model().save_weights(tmp_path / "a.weights.h5")

    def whole(file):
        group = layer_group(file, "stage2_block1_conv1")
        value = group["0"][()].astype("int32")
        del group["0"]
        group["0"] = value

    rewrite(tmp_path / "a.weights.h5", tmp_path / "b.weights.h5", whole)
    refused(tmp_path / "b.weights.h5", r"stage2_block1_conv1/kernel holds int32")


def test_a_looped_stage_is_saved_block_by_block_and_read_by_name(tmp_path, monkeypatch):
    from dlkit.models import _resnet_cifar

    flat = models.resnet_cifar(20, **SMALL)
    flat.save_weights(tmp_path / "flat.weights.h5")
    monkeypatch.setattr(_resnet_cifar, "FLAT", 1)
    looped = models.resnet_cifar(20, **SMALL)
    models.load_weights(looped, tmp_path / "flat.weights.h5")
    looped.save_weights(tmp_path / "looped.weights.h5")
    again = flat.__class__.from_config(flat.get_config())
    models.load_weights(again, tmp_path / "looped.weights.h5")
    for a, b in zip(flat.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_restricted_reader_agrees_with_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    values = {
        "plain": torch.arange(6.0).reshape(2, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "part": torch.arange(10)[3:7],
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(2.5, dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    for zipped in (True, False):
        torch.save(values, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        found = read_torch(tmp_path / "w.pt")
        assert found.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(found[name], value.detach().numpy())
