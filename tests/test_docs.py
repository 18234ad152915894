"""Every Python block of every page runs as it stands, in its order; what belongs to other libraries is compiled.

The README's own is in test_readme.py. `SETTINGS` makes what a page takes for granted: files, and names such as `model`.
"""

import ast
import doctest
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlkit
from dlkit import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# only compiled: libraries that are not here, a cluster, downloads of weights, a second strategy in one process
READ_ONLY = re.compile(r"\b(torchvision|timm|keras_hub|wandb|mlflow|ray|keras\.applications|tf\.distribute)\b")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}[^\n]*\n|\n(?= {4}))+")
SLOW = {
    "coming_from.md",
    "models.md",
    "reports.md",
    "serving.md",
    "training.md",
    "tuning.md",
    "guides/tune.md",
    "guides/export_and_serve.md",
}


def blocks(page: str) -> Iterator[str]:
    """Yields the Python of a page: fenced blocks, and indented ones that can be nothing but Python."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [(m.start(), textwrap.dedent(m[3])) for m in FENCE.finditer(text) if m[2] == "python"]
    rest = FENCE.sub(lambda m: re.sub(r"[^\n]", "x", m[0]), text)  # of the same length
    for m in INDENTED.finditer(rest):
        whole = textwrap.dedent(m[0])
        parts = [whole] if is_python(whole) else whole.split("\n\n")  # Python above commands
        found += [(m.start() + i, part) for i, part in enumerate(parts) if is_python(part)]
    return (code for _, code in sorted(found))


def is_python(code: str) -> bool:
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Call) for node in ast.walk(tree))


PAGES = [str(p.relative_to(DOCS)) for p in sorted(DOCS.rglob("*.md"))]
WITH_CODE = [p for p in PAGES if any(blocks(p)) or ">>> " in (DOCS / p).read_text(encoding="utf-8")]


def jpegs(folder: str, side: tuple[int, int] = (260, 300), each: int = 12) -> None:
    """Writes two classes of pictures that differ."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for kind, shade in (("cat", 90), ("dog", 160)):
        Path(folder, kind).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(rng.normal(shade, 30, (*side, 3)), 0, 255).astype("uint8")
            image.fromarray(pixels).save(Path(folder, kind, f"{i}.jpg"))


def of_layers() -> dict[str, Any]:
    from dlkit.layers import RMSNorm

    def formula(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale

    return {"MyNorm": RMSNorm, "my_float64_formula": formula}


def of_data() -> dict[str, Any]:
    jpegs("pets")
    return {}


def torch_file(path: str, *, depths: tuple[int, ...] = (3, 4, 6, 3), deep: bool = False) -> None:
    torch = pytest.importorskip("torch")
    import peers

    block = peers.Basic if sum(depths) == 8 else peers.Bottleneck
    net = peers.ResNet(block, depths, (64, 128, 256, 512), 1000, deep=deep, **({"average": True} if deep else {}))
    torch.save(peers.randomise(net).state_dict(), path)


def of_models() -> dict[str, Any]:
    torch_file("resnet50-0676ba61.pth")
    return {}


def of_coming_from() -> dict[str, Any]:
    import keras

    from dlkit.data import from_folder

    torch_file("resnet50-0676ba61.pth")
    torch_file("resnet50d.pth", deep=True)
    torch_file("resnet18-f37072fd.pth", depths=(2, 2, 2, 2))
    network = keras.applications.ResNet50(weights=None)
    network.save_weights("resnet50.weights.h5")
    jpegs("photos", each=16)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype="uint8")
    expected = network.predict(keras.applications.resnet50.preprocess_input(images.astype("float32")), verbose=0)
    return {
        "images": images, "expected": expected, "picture": Path("photos/cat/0.jpg").read_bytes(),
        "photos": from_folder("photos", classes=[*"abcdefgh", "cat", "dog"]),
    }  # fmt: skip


def digits_model() -> dict[str, Any]:
    """A small network for the digits, its data and its preparation; untrained."""
    from dlkit.data import Preprocess, load
    from dlkit.models import resnet_cifar

    train, test = load("digits")
    preprocess = Preprocess(16, channels=1, mean=0.3, std=0.37)
    model = resnet_cifar(8, classes=10, input_shape=preprocess.input_shape, width=0.25)
    return {"train": train, "test": test, "preprocess": preprocess, "model": model, "labels": train.classes}


def of_serving() -> dict[str, Any]:
    for package in ("onnx", "tf2onnx", "onnxruntime", "openvino", "ai_edge_litert"):
        pytest.importorskip(package)
    jpegs(".", each=1)
    Path("cat/0.jpg").rename("a.jpg")
    return digits_model()


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "layers.md": of_layers, "data.md": of_data, "models.md": of_models, "coming_from.md": of_coming_from,
    "serving.md": of_serving,
}  # fmt: skip


def after_coming_from(names: dict[str, Any]) -> None:
    """keras.applications behind its preprocess_input, and dlkit's network behind Preprocess, answer the same."""
    assert np.abs(names["probabilities"] - names["expected"]).max() < 1e-6


def after_training(names: dict[str, Any]) -> None:
    assert names["result"].metrics["accuracy"] > 0.5  # chance is 0.1
    assert Path("lr.png").is_file()
    assert len(names["folds"].results) == 3


def after_reports(names: dict[str, Any]) -> None:
    for page in ("runs/wide/report.html", "runs/compare.html"):
        assert "http://www.w3.org" in (text := Path(page).read_text(encoding="utf-8")) or "data:image" in text
        assert not re.search(r"(src|href)=.https?:", text)


AFTER = {"reports.md": after_reports, "training.md": after_training, "coming_from.md": after_coming_from}


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in WITH_CODE])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "models"))  # for the peers' networks
    names = {"__name__": "page", **SETTINGS.get(page, dict)()}
    for code in blocks(page):
        if not READ_ONLY.search(code):
            exec(compile(code, page, "exec"), names)
    AFTER.get(page, lambda _: None)(names)
    text = (DOCS / page).read_text(encoding="utf-8")
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    examples = doctest.DocTestParser().get_doctest(text, names, page, page, 0)
    assert doctest.DocTestRunner(optionflags=flags).run(examples).failed == 0


def test_every_block_is_python_and_most_of_them_run():
    every = [(page, code) for page in WITH_CODE for code in blocks(page)]
    for page, code in every:
        compile(code, page, "exec")
    shown = [code for _, code in every if READ_ONLY.search(code)]
    assert len(shown) < len(every) / 3


def test_the_reference_has_every_public_package_and_module():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md")}
    assert set(dlkit._PACKAGES) <= set(pages)
    text = "".join(pages.values())
    for module in (*dlkit._PACKAGES, "data.augment", "train.schedules", "train.stopping", "train.losses", "tune.space"):
        assert f".. automodule:: dlkit.{module}\n" in text


def test_every_command_and_option_in_the_pages_exists():
    texts = [path.read_text(encoding="utf-8") for path in (*DOCS.rglob("*.md"), *ROOT.glob("*.md"))]
    lines = [line for text in texts for line in re.findall(r"(?:^ {4}|`|&& )dlkit ([a-z][^`\n#]*)", text, re.MULTILINE)]
    assert len(lines) > 50
    for line in lines:
        name, options = line.split()[0], re.findall(r"(?<!\S)--([a-z-]+)", line.split("   ")[0])
        assert name in cli.COMMANDS, line
        known = {p.replace("_", "-") for p in inspect.signature(cli.COMMANDS[name]).parameters} | {"help", "debug"}
        assert {option.removeprefix("no-") for option in options} <= known, line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_knows_every_command(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--tyro-print-completion", shell])
    assert ended.value.code in (0, None)
    script = capsys.readouterr().out
    assert all(command in script for command in cli.COMMANDS)
    assert "--run-dir" in script or "run-dir" in script


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_shows_its_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__", "display": lambda *_: None}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(
        output["output_type"] in ("error", "stream") and output.get("name") == "stderr" for output in outputs
    )
