"""What importing costs, and that the public names are there."""

import subprocess
import sys

import pytest

import dlkit

FRAMEWORKS = ("tensorflow", "keras", "numpy", "keras_tuner", "tensorflow_datasets", "matplotlib", "sklearn", "scipy")

# the contract: removing or renaming one of these breaks users
PUBLIC = {
    "layers": "RMSNorm LayerNorm GroupNorm InstanceNorm BatchNorm LocalResponseNorm WSConv2D Swish Maxout GLU ReGLU "
    "GEGLU SwiGLU GatedMLP Dropout StochasticDepth norm activation",
    "models": "mlp cnn alexnet vgg vgg11 vgg13 vgg16 vgg19 resnet resnet18 resnet34 resnet50 resnet101 resnet152 "
    "resnet_cifar create names describe endpoints ensemble localizer grow load_weights",
    "data": "Preprocess Source from_folder from_tfds from_arrays load train_pipeline eval_pipeline augment",
    "data.augment": "Affine Color GaussianNoise Blur Erase RandomCrop RandomResizedCrop MixUp CutMix RandAugment "
    "TrivialAugment preview views",
    "train": "Recipe RECIPES fit evaluate load_run schedules stopping losses fast_math lr_find k_fold",
    "tune": "search Asha Bohb HyperMLP HyperCNN HyperAlexNet HyperVGG HyperResNet",
    "export": "saved_model verify predict onnx openvino litert serve",
    "report": "write write_search compare",
    "lectures": "names run gallery",
    "testing": "check_layer check_model check_augmentation",
}


def loaded_after(statement):
    code = f"import sys; {statement}; print([n for n in {FRAMEWORKS} if n in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_dlkit_loads_no_framework():
    assert loaded_after("import dlkit") == "[]"


def test_the_command_line_reads_its_arguments_before_it_loads_a_framework():
    assert loaded_after("import dlkit.cli") == "[]"


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_there(package):
    found = dlkit
    for part in package.split("."):
        found = getattr(found, part)
    missing = [name for name in PUBLIC[package].split() if not hasattr(found, name)]
    assert missing == []
    assert [name for name in found.__all__ if not hasattr(found, name)] == []


def test_an_unknown_package_names_those_that_exist():
    with pytest.raises(AttributeError, match="its packages are layers"):
        dlkit.layer  # noqa: B018
