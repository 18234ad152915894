"""The part of a run's page that needs the trained model and labelled data."""

from html import escape

import numpy as np

from dlkit.data import Preprocess, Source, eval_pipeline
from dlkit.data._preview import epochs_of
from dlkit.report import _insight, _pictures
from dlkit.report._outcome import Outcome, outcome
from dlkit.report._plots import shown
from dlkit.train import Run
from dlkit.train._evaluate import outputs, predictor
from dlkit.train.tasks import iou

MISTAKES, EXAMPLES, EPOCHS, TARGETS = 24, 6, 7, 4


def sections(run: Run, source: Source) -> list[str]:
    """Returns the HTML of what the run's model does with `source`, and of what it looks at."""
    parts = [f"<h2>On {escape(source.name)}: {len(source):,} items</h2>"]
    pictures = len(run.preprocess.input_shape) == 3
    if run.recipe.task == "classification":
        found = outcome(run.model, source, run.preprocess)
        parts.append(f'<div class="figures">{_pictures.confusion(found)}{_pictures.calibration(found)}</div>')
        parts.append(_classes(found))
        parts += _mistakes(run, source, found) if pictures else []
    elif run.recipe.task == "regression":
        predicted, true = outputs(predictor(run.model), source, run.preprocess)
        pairs = list(zip(true.reshape(predicted.shape).T, predicted.T, strict=True))
        if len(pairs) > TARGETS:
            parts.append(f'<p class="sub">the first {TARGETS} of {len(pairs)} targets</p>')
        drawn = [_pictures.scatter(*pair, f"target {i + 1}") for i, pair in enumerate(pairs[:TARGETS])]
        parts.append(f'<div class="figures">{"".join(drawn)}</div>')
    else:
        predicted, true = outputs(predictor(run.model), source, run.preprocess)
        overlap = iou(predicted, true)
        places = np.argsort(overlap)[np.linspace(0, len(overlap) - 1, EXAMPLES).astype(int)]  # from worst to best
        titles = [f"IoU {overlap[i]:.2f}" for i in places]
        parts.append(_pictures.boxes(_plain(run, source, places), true[places], predicted[places], titles))
    return parts + _network(run, source) if pictures else parts


def _classes(found: Outcome) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "class", "items", "precision", "recall", "F1"))
    rows = "".join(
        f"<tr><td>{i}</td><td>{escape(row['class'])}</td><td>{row['items']:,}</td>"
        + "".join(
            f"<td>{'' if row[name] is None else f'{row[name]:.3f}'}</td>" for name in ("precision", "recall", "f1")
        )
        + "</tr>"
        for i, row in enumerate(found.per_class())
    )
    table = f"<table><tr>{head}</tr>{rows}</table>"
    if len(found.classes) > _pictures.NAMED:
        table = f"<details><summary>{len(found.classes):,} classes</summary>{table}</details>"
    return f'<h2>Per class</h2><div class="scroll">{table}</div>'


def _mistakes(run: Run, source: Source, found: Outcome) -> list[str]:
    """The worst mistakes as pictures, and where the network looked for the class it chose."""
    wrong = found.worst(MISTAKES)
    parts = []
    if len(wrong):
        titles = [
            f"{_name(found, found.targets[i])}\n-> {_name(found, found.predicted[i])} {found.confidence[i]:.0%}"
            for i in wrong
        ]
        text = (
            f"{(found.predicted != found.targets).sum():,} of {len(source):,} are wrong; those given the least chance"
        )
        parts += [f'<h2>The worst mistakes</h2><p class="sub">{text}: true class, predicted class, confidence</p>']
        parts.append(_wide(_pictures.grid(_plain(run, source, wrong), titles, 8, "worst mistakes")))
    right = np.flatnonzero(found.predicted == found.targets)
    chosen = np.concatenate([right[np.linspace(0, len(right) - 1, 4).astype(int)] if len(right) else right, wrong[:4]])
    heat = _insight.grad_cam(run.model, _inputs(run, source, chosen), found.predicted[chosen])
    if heat is not None:
        text = "what speaks for the predicted class; correct ones first, then the worst mistakes"
        parts.append(f'<h2>Grad-CAM</h2><p class="sub">{text}</p>')
        titles = [_name(found, found.predicted[i]) for i in chosen]
        parts.append(_wide(_pictures.overlays(_plain(run, source, chosen), heat, titles, "Grad-CAM")))
    return parts


def _wide(picture: str) -> str:
    """A picture with small text, which a narrow page scrolls instead of shrinking it."""
    return f'<div class="scroll">{picture}</div>'


def _name(found: Outcome, number: int) -> str:
    """A class as the titles of small pictures show it."""
    return shown(found.classes[number], 14, f"class {number}")


def _network(run: Run, source: Source) -> list[str]:
    """First filters, feature maps of one picture, and what the augmentation makes of a few."""
    parts = []
    if (kernel := _insight.first_filters(run.model)) is not None:
        size = f"{kernel.shape[0]} x {kernel.shape[1]}"
        text = f"{kernel.shape[-1]} kernels of {size} positions, each scaled to its own range"
        parts.append(f'<h2>First filters</h2><p class="sub">{text}</p>{_pictures.filters(kernel)}')
    if _insight.feature_layers(run.model):
        parts.append("<h2>Feature maps of one picture</h2>")
        parts.append(_pictures.grid(_plain(run, source, np.array([0])), ["the picture"], 1, "the picture"))
        for name, maps in _insight.feature_maps(run.model, _inputs(run, source, np.array([0]))[0]):
            size = " x ".join(str(side) for side in maps.shape)
            parts.append(f'<p class="sub">{escape(name)}: {size}</p>{_pictures.maps(name, maps)}')
    if run.recipe.augment and isinstance(run.preprocess, Preprocess):
        part = source.subset(np.linspace(0, len(source) - 1, min(EXAMPLES, len(source)), dtype=int))  # of all classes
        shown = epochs_of(part, run.recipe.augment, EPOCHS, run.recipe.seed, preprocess=run.preprocess)
        plain = _plain(run, part, np.arange(len(part)))
        images = [image for first, row in zip(plain, shown, strict=True) for image in (first, *row)]
        titles = ["as it is", *(f"epoch {epoch + 1}" for epoch in range(EPOCHS))] * len(part)
        parts.append('<h2>Augmentation</h2><p class="sub">these pictures, as a training run would see them</p>')
        parts.append(_wide(_pictures.grid(images, titles, 1 + EPOCHS, "augmentation preview", cell=1.2)))
    return parts


def _inputs(run: Run, source: Source, rows: np.ndarray) -> np.ndarray:
    """What the network sees of these items."""
    return np.concatenate([inputs for inputs, _ in eval_pipeline(source.subset(rows), run.preprocess, len(rows))])


def _plain(run: Run, source: Source, rows: np.ndarray) -> list[np.ndarray]:
    """The same as pictures with values 0..1."""
    preprocess = run.preprocess
    mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
    return list(np.clip(_inputs(run, source, rows) * std + mean, 0, 1))
