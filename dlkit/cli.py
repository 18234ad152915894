"""The command line: a command is one call into a package; nothing heavy is imported before the arguments are read."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from dlkit._errors import InputError, unknown
from dlkit._shell import explain, frameworks, settings

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
Data = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
RunDir = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
Export = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPORT")]
Settings = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE")]


def quickstart(runs: str = "runs/quickstart", saved_models: str = "saved_models") -> None:
    """Digits from data to a verified SavedModel: search, training, export, prediction. No network, about a minute.

    Example: dlkit quickstart

    Args:
        runs: folder for the search and the run; each quickstart gets a new number in it.
        saved_models: the export goes to SAVED_MODELS/digits/VERSION, the next free version.
    """
    with frameworks():
        from dlkit._quickstart import run
    run(Path(runs), Path(saved_models))


def models(json: bool = False) -> None:
    """List the models that `train`, `tune` and `describe` know.

    Example: dlkit models

    Args:
        json: print JSON instead of a table.
    """
    with frameworks():
        from dlkit import _commands
    _commands.models(json)


def describe(model: Model, input: int = 0, channels: int = 3, classes: int = 1000, json: bool = False) -> None:
    """Show a model's layers, parameters, multiply-adds, memory and receptive field, without running it.

    Example: dlkit describe resnet50 --input 224

    Args:
        model: a name that `dlkit models` lists.
        input: side of the square input in pixels; 0 takes the model's own (32 for CIFAR networks, else 224).
        channels: channels of the input.
        classes: number of classes.
        json: print JSON instead of a table.
    """
    with frameworks():
        from dlkit import _commands
    _commands.describe(model, input, channels, classes, json)


def train(
    model: Model,
    data: Data = "",
    recipe: str = "",
    set: Settings = (),
    size: int = 0,
    run_dir: str = "",
    seed: int = 0,
    weights: str = "",
    export: bool = True,
    saved_models: str = "saved_models",
) -> None:
    """Train MODEL on DATA, or on DATA alone with a model chosen for it, and export it; a stopped run continues.

    Example: dlkit train resnet_cifar20 photos/ --set epochs=10 --set peak_lr=0.05

    Args:
        model: a name that `dlkit models` lists; leave it out to have one chosen.
        data: a folder with one subfolder per class, "digits", or the name of a prepared TFDS data set.
        recipe: a name of `dlkit.train.RECIPES` or a YAML file of recipe fields; empty takes one that suits the data.
        set: FIELD=VALUE, a field of the recipe; may be repeated.
        size: side of the square input in pixels; 0 chooses by the data.
        run_dir: folder of the run; empty takes runs/DATA-MODEL.
        seed: of the initial weights, the split and the stream.
        weights: a file of trained weights of MODEL (.safetensors, .pth, .h5, .keras) to start from: fine-tuning.
        export: write the verified export SAVED_MODELS/DATA at the end.
        saved_models: folder of the exports.
    """
    with frameworks():
        from dlkit import _commands
    if not data:
        model, data = "", model
    out = saved_models if export else ""
    _commands.train(model, data, recipe, settings(set), size, run_dir, seed, weights, out)


def tune(
    model: Model,
    data: Data = "",
    epochs_budget: int = 0,
    oracle: str = "bohb",
    recipe: str = "",
    set: Settings = (),
    size: int = 0,
    directory: str = "",
    seed: int = 0,
    space: str = "default",
    workers: int = 1,
    dry_run: bool = False,
    export: str = "",
    saved_models: str = "saved_models",
) -> None:
    """Search learning rate, weight decay, smoothing and width of MODEL on DATA, or --space; a killed search continues.

    Example: dlkit tune resnet_cifar8 digits --epochs-budget 40 --set epochs=9

    Example: dlkit tune resnet_cifar20 photos/ --space optimizer,augmentation --workers 2 --export photos

    Args:
        model: a name that `dlkit models` lists; leave it out to have one chosen.
        data: a folder with one subfolder per class, "digits", or the name of a prepared TFDS data set.
        epochs_budget: epochs of all trials together; 0 takes eight full trainings.
        oracle: random, bayesian, hyperband, asha or bohb.
        recipe: a name of `dlkit.train.RECIPES` or a YAML file of recipe fields; its epochs are the most of one trial.
        set: FIELD=VALUE, a field of the recipe; may be repeated.
        size: side of the square input in pixels; 0 chooses by the data.
        directory: folder of the search; empty takes runs/tune-DATA-MODEL.
        seed: of the split, the suggestions and the initial weights.
        space: what is varied: default, optimizer, schedule, batch, loss, regularization, augmentation, architecture
            (which takes the place of MODEL's width and depth); several with commas.
        workers: processes that train at the same time.
        dry_run: show the space and how many trials train how long, and train nothing.
        export: retrain the best configuration on all of DATA and write the verified export SAVED_MODELS/EXPORT.
        saved_models: folder of the exports.
    """
    with frameworks():
        from dlkit import _tune
    if not data:
        model, data = "", model
    _tune.tune(
        model, data, epochs_budget, oracle, recipe, settings(set), size, directory, seed, space=space,
        workers=workers, dry_run=dry_run, export=export, saved_models=saved_models,
    )  # fmt: skip


def evaluate(run: RunDir, data: Data) -> None:
    """Measure the model of a run on labelled data, through the run's own preprocessing.

    Example: dlkit evaluate runs/photos-resnet_cifar20 photos-test/

    Args:
        run: a run directory.
        data: a folder with the run's classes, "digits" (its test split), or a prepared TFDS data set.
    """
    with frameworks():
        from dlkit import _commands
    _commands.evaluate(run, data)


def export(
    run: RunDir,
    name: str = "",
    saved_models: str = "saved_models",
    version: int = 0,
    optimize: str = "fold",
    precision: str = "float32",
    format: str = "saved_model",
    data: str = "",
    calibrate: bool = False,
) -> None:
    """Write a run's model as a verified SavedModel with preprocessing and class names in the graph.

    Example: dlkit export runs/photos-resnet_cifar20 --name photos

    Args:
        run: a run directory.
        name: name of the model in SAVED_MODELS; empty takes the run directory's.
        saved_models: folder in the layout of TensorFlow Serving: NAME/VERSION.
        version: an integer that is still free; 0 takes the next one.
        optimize: fold, freeze or none.
        precision: float32; bfloat16 (SavedModel, newer processors); int8 (litert).
        format: saved_model, onnx, openvino or litert; all but the first hold the network behind the preprocessing.
        data: a folder of labelled images, "digits" or a prepared TFDS data set: its held-out part goes through the
            check, its training part gives the ranges of int8.
        calibrate: choose the temperature of the probabilities on the held-out part of DATA.
    """
    with frameworks():
        from dlkit import _commands
    _commands.export(run, name, saved_models, version, optimize, precision, format, data, calibrate)


def verify(path: Export, data: str = "") -> None:
    """Verify an export again, in a fresh process that imports only TensorFlow.

    Example: dlkit verify saved_models/digits/1

    Args:
        path: a version directory.
        data: a folder of labelled images to feed; empty feeds generated images of every format.
    """
    with frameworks():
        from dlkit import _commands
    _commands.verify(path, data)


def predict(
    path: Export, files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE")]
) -> None:
    """Classify image files with an export.

    Example: dlkit predict saved_models/digits/1 a.png b.jpg

    Args:
        path: a version directory, or a model directory (its newest version).
        files: JPEG, PNG, BMP, GIF or WebP files.
    """
    with frameworks():
        from dlkit import _commands
    _commands.predict(path, files)


def serve(
    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SAVED_MODELS")] = "saved_models",
    host: str = "127.0.0.1",
    port: int = 8501,
    grpc_port: int | None = 8500,
    set: Settings = (),
) -> None:
    """Serve exports on this machine as TensorFlow Serving does, with a page to drop pictures on. Ctrl-C ends it.

    Loading a SavedModel runs what is in it: serve only what you trust. There is no password and no encryption.

    Example: dlkit serve saved_models/ --port 8501 --set max_batch=64

    Args:
        directory: a folder of models (NAME/VERSION), one model, or one version.
        host: address to listen on; the default can be reached from this machine only.
        port: of HTTP; 0 takes a free one.
        grpc_port: of gRPC; 0 takes a free one, None switches it off.
        set: FIELD=VALUE, another setting of dlkit.export.server.Options (docs/serving.md); may be repeated.
    """
    from dlkit.export.server import Options
    from dlkit.export.server._lean import without_keras

    options = Options.of(directory, host=host, port=port, grpc_port=grpc_port, **Options.parsed(settings(set)))
    with without_keras(), frameworks():
        from dlkit.export.server._run import run
    run(options)


def report(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")],
    data: str = "",
    out: str = "runs/compare.html",
) -> None:
    """Draw the page of a run or of a search, or one page that compares several runs.

    Example: dlkit report runs/photos-resnet_cifar20 --data photos/

    Example: dlkit report runs/a runs/b

    Args:
        runs: one run directory (or a search's), or two to eight runs to compare.
        data: labelled data the run's model is shown: a folder ("photos/": the part that was held out of training, else
            its test/), "digits" or a prepared TFDS data set; adds mistakes, calibration and what the network looks at.
        out: the page of a comparison.
    """
    if not runs:
        raise InputError("dlkit report takes a run directory, such as runs/photos-resnet_cifar20")
    with frameworks():
        from dlkit import _commands
    _commands.report(runs, data, out)


def doctor(json: bool = False) -> None:
    """Show what dlkit finds on this machine: versions, devices, bfloat16, threads, and how to install what is missing.

    Example: dlkit doctor

    Args:
        json: print JSON instead of a table.
    """
    with frameworks():
        from dlkit import _doctor
    _doctor.show(json)


def data(action: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="check")], path: Data) -> None:
    """Check a folder of images: every file that training would refuse, with the reason.

    Example: dlkit data check photos/

    Args:
        action: check.
        path: a folder with one subfolder per class.
    """
    if action != "check":
        raise InputError(f"unknown action {action!r}; `dlkit data` knows: check")
    with frameworks():
        from dlkit import _commands
    _commands.check(path)


def lectures(
    action: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="list|run|gallery")] = "list",
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = "",
    quick: bool = False,
    data: str = "",
    out: str = "",
) -> None:
    """List the lectures' experiments, run one, or write the page of all results.

    Example: dlkit lectures

    Example: dlkit lectures run descent --quick

    Args:
        action: list, run or gallery.
        name: of the experiment; for `gallery` the folder of results, empty takes docs/lectures.
        quick: seconds instead of minutes; effects are measured, and not judged.
        data: CIFAR-10 as a folder with train/ and test/, for the full runs that train on photographs.
        out: folder of the result; empty takes runs/lectures/NAME. For `gallery`, the page.
    """
    if action not in ("list", "run", "gallery"):
        raise unknown("action of `dlkit lectures`", action, ("list", "run", "gallery"))
    with frameworks():
        from dlkit import _commands
    _commands.lectures(action, name, quick, data, out)


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        quickstart,
        train,
        tune,
        evaluate,
        export,
        verify,
        predict,
        serve,
        models,
        describe,
        data,
        report,
        doctor,
        lectures,
    )
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with 2 for wrong input, 130 after Ctrl-C, 1 for a defect or a failed check."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    if "--version" in arguments[:1]:
        import dlkit

        print(f"dlkit {dlkit.__version__}")
        return
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=arguments, prog="dlkit",
            description="From a folder of images to a verified model in a serving directory. "
            "--debug after any command shows the traceback of an error.",
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )  # fmt: skip
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        sys.exit(explain(error))
