"""A .keras file of somebody else is refused before anything of it is built: within a second and 200 MiB."""

import io
import json
import os
import resource
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest

from dlkit import models
from dlkit._errors import InputError
from dlkit.models._archive import read_model


@keras.saving.register_keras_serializable(package="hostile_test")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The members of an honest file."""
    path = tmp_path_factory.mktemp("honest") / "model.keras"
    model = models.cnn(classes=3, input_shape=(16, 16, 3))
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, parts, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def with_config(parts, change):
    config = json.loads(parts["config.json"])
    change(config)
    return parts | {"config.json": json.dumps(config).encode()}


def with_layer(parts, layer):
    return with_config(parts, lambda config: config["config"]["layers"].insert(1, layer))


def with_weights(parts, change):
    file = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(file, "r+") as weights:
        change(weights)
    return parts | {"model.weights.h5": file.getvalue()}


def layer(name, module="keras.layers", registered=None, **config):
    return {
        "class_name": name,
        "module": module,
        "registered_name": registered,
        "config": {"name": "evil", **config},
        "name": "evil",
        "inbound_nodes": [],
    }


def shape_bomb(config):
    dense = [entry for entry in config["config"]["layers"] if entry["class_name"] == "Dense"][-1]
    dense["config"]["units"] = 2_000_000_000


def wide_input(config):
    config["config"]["layers"][0]["config"]["batch_shape"] = [None, 4_000_000, 4_000_000, 3]


def deep(config):
    value: list = []
    for _ in range(900):
        value = [value]
    config["config"]["deep"] = value


def external(weights):
    weights["layers"]["evil"] = h5py.ExternalLink("/etc/passwd", "/")


def virtual(weights):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(4,))
    weights.create_virtual_dataset("evil", layout)


HOSTILE = {
    "a lambda": (
        lambda p: with_layer(p, layer("Lambda", function={"class_name": "__lambda__"})),
        r"keras\.layers\.Lambda",
    ),
    "a saved model": (lambda p: with_layer(p, layer("TFSMLayer", filepath="/tmp/evil")), r"keras\.layers\.TFSMLayer"),
    "a vocabulary file": (lambda p: with_layer(p, layer("StringLookup", vocabulary="/etc/passwd")), r"StringLookup"),
    "a function of the system": (lambda p: with_layer(p, layer("system", "os")), r"os\.system"),
    "a name of dlkit that leads elsewhere": (
        lambda p: with_layer(p, layer("system", "os", "dlkit>Unknown")),
        r"wants os\.system",
    ),
    "a function inside keras": (
        lambda p: with_layer(p, layer("get_file", "keras.src.utils.file_utils")),
        r"file_utils\.get_file",
    ),
    "a public function": (lambda p: with_layer(p, layer("load_model", "keras.models")), r"keras\.models\.load_model"),
    "an unregistered function": (
        lambda p: with_layer(p, layer("ReLU", activation={"class_name": "function", "config": "system"})),
        r"function",
    ),
    "more weights than it holds": (lambda p: with_config(p, shape_bomb), r"describes more weights than the file holds"),
    "a picture of 16 terapixels": (lambda p: with_config(p, wide_input), r"is none of a picture or a table"),
    "an external link": (lambda p: with_weights(p, external), r"evil in the weights is a link"),
    "a virtual array": (lambda p: with_weights(p, virtual), r"evil in the weights is a link or no plain array"),
    "ten gigabytes declared": (
        lambda p: with_weights(p, lambda w: w.create_dataset("evil", (2_500_000_000,), "f4", chunks=(1000,))),
        r"declares 10,000,000,000 bytes",
    ),
    "a member out of the archive": (lambda p: p | {"../../evil.txt": b"x"}, r"holds .*evil\.txt"),
    "a pickle": (lambda p: p | {"assets/evil.pkl": b"x"}, r"holds .*evil\.pkl"),
    "no weights": (lambda p: {k: v for k, v in p.items() if k != "model.weights.h5"}, r"is read here holds"),
    "no model": (lambda p: p | {"config.json": b"[]"}, r"describes no model"),
    "nested a thousandfold": (lambda p: with_config(p, deep), None),
    "text of nonsense": (lambda p: p | {"config.json": b"{"}, r"is no readable \.keras file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_fast_and_small(case, parts, tmp_path, monkeypatch):
    change, message = HOSTILE[case]
    path = write(tmp_path / "model.keras", change(parts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("code of the file ran"))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if message is None:
        read_model(path)  # harmless: it only has to end
    else:
        with pytest.raises(InputError, match=message):
            read_model(path)
    assert time.process_time() - started < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]
    assert not (tmp_path.parent / "evil.txt").exists()


def test_a_member_that_unpacks_to_gigabytes_is_refused(parts, tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("metadata.json", "config.json"):
            archive.writestr(name, parts[name])
        with archive.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(bytes(2**20))
    with pytest.raises(InputError, match=r"model\.weights\.h5 would unpack to 67,108,864 bytes"):
        read_model(path)


def test_honest_files_come_back_with_the_layers_that_this_process_registered(parts, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Doubled()(inputs)))
    model.save(tmp_path / "own.keras")
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(read_model(tmp_path / "own.keras")(x, training=False), model(x, training=False))
    assert read_model(write(tmp_path / "again.keras", parts)).count_params() > 0


def test_the_counter_of_weights_is_gone_afterwards(parts, tmp_path):
    right = keras.layers.Layer.add_weight
    with pytest.raises(InputError):
        read_model(write(tmp_path / "bomb.keras", with_config(parts, shape_bomb)))
    assert keras.layers.Layer.add_weight is right
