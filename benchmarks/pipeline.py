"""Images per second of augmentation chains: dlkit against keras.layers, albumentations + OpenCV and Pillow workers.

    python benchmarks/pipeline.py --data CIFAR_FOLDER PHOTO_FOLDER

CIFAR_FOLDER has one folder of 32x32 PNG files per class (made-up pictures without it); PHOTO_FOLDER holds JPEG files.
Every contender runs in a process of its own, the contenders take turns, and the median over the rounds counts. The
peers (albumentations, opencv-python-headless, pillow, torch's worker processes) are optional: a missing one is left
out and said so.
Writes benchmarks/results/pipeline.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
HERE = Path(__file__).resolve()
BATCH = {"cifar": 128, "randaugment": 128, "photos": 64}
CONTENDERS = {
    "cifar": ["dlkit", "keras", "albumentations", "pillow"],
    "randaugment": ["dlkit", "keras"],
    "photos": ["dlkit", "keras", "albumentations", "decode_crop_resize"],
    "training": [],
}
TARGETS = (
    ("cifar", "dlkit", "keras", 6.0), ("cifar", "dlkit", "best of the others", 3.0),
    ("randaugment", "dlkit", "keras", 10.0),
    ("photos", "dlkit", "albumentations", 1.4), ("photos", "dlkit", "keras", 2.0),
    ("photos", "dlkit", "decode_crop_resize", 0.55),
    ("training", "stream", "repeated_batch", 0.95),
)  # fmt: skip


# data -----------------------------------------------------------------------------------------------


def cifar(folders):
    """Returns 5,000 pictures and labels."""
    import numpy as np

    for folder in folders:
        files = sorted(Path(folder).glob("*/*.png"))[:50_000]
        if files:
            from PIL import Image

            files = files[:: max(1, len(files) // 5000)][:5000]
            return np.stack([np.asarray(Image.open(file)) for file in files]), np.arange(len(files)) % 10
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8), np.arange(5000) % 10


def photos(folders):
    """Returns the paths of the photographs."""
    for folder in folders:
        files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
        if files:
            return [str(file) for file in files]
    return []


# dlkit and TensorFlow -------------------------------------------------------------------------------


def dlkit_chain(task):
    """Returns the chain of each task."""
    from dlkit.data import augment as a

    return {
        "cifar": (a.Flip(), a.Affine(rotate=15, shift=0.1, scale=(0.85, 1.15)), a.Color(0.2, 0.2, 0.2),
                  a.GaussianNoise(0.02),
                  a.Erase(area=1 / 16, inside=False)),
        "randaugment": (a.RandAugment(2, 9),),
        "photos": (a.RandomResizedCrop(), a.Flip(), a.Affine(rotate=15), a.Color(0.4, 0.4, 0.4)),
    }[task]  # fmt: skip


def dlkit(task, folders):
    """Returns dlkit's stream."""
    import numpy as np

    from dlkit import data
    from dlkit.data._stores import Files

    if task == "photos":
        files = photos(folders)
        source = data.Source("photos", "classification", Files(files, files), classes=("a", "b"),
                             labels=np.arange(len(files)) % 2, rows=np.arange(len(files)))  # fmt: skip
        return data.train_pipeline(source, data.Preprocess(224), dlkit_chain(task), BATCH[task], 0)
    return data.train_pipeline(
        data.from_arrays(*cifar(folders)), data.Preprocess(32), dlkit_chain(task), BATCH[task], 0
    )


def keras(task, folders):
    """Returns the chain of keras.layers in a parallel map, as its guides show it."""
    import tensorflow as tf
    from keras import layers

    def jitter():
        return [layers.RandomBrightness(0.2, value_range=(0, 255)), layers.RandomContrast(0.2, value_range=(0, 255)),
                layers.RandomSaturation(0.2, value_range=(0, 255))]  # fmt: skip

    chains = {
        "cifar": lambda: [
            layers.RandomFlip("horizontal"), layers.RandomTranslation(0.1, 0.1), layers.RandomRotation(15 / 360),
            layers.RandomZoom(0.15), *jitter(), layers.RandomErasing(1.0, scale=(1 / 16, 1 / 16), fill_value=127.0),
            layers.Rescaling(1 / 255), layers.GaussianNoise(0.02),
        ],
        "randaugment": lambda: [
            layers.RandAugment(value_range=(0, 255), num_ops=2, factor=0.3), layers.Rescaling(1 / 255)
        ],
        "photos": lambda: [
            layers.RandomFlip("horizontal"), layers.RandomRotation(15 / 360), *jitter(), layers.Rescaling(1 / 255)
        ],
    }  # fmt: skip
    chain = chains[task]()

    def apply(images):
        images = tf.cast(images, tf.float32)
        for layer in chain:
            images = layer(images, training=True) if "training" in layer._call_signature.parameters else layer(images)
        return images

    if task == "photos":
        dataset = decoded(folders, antialias=False)
    else:
        dataset = tf.data.Dataset.from_tensor_slices(cifar(folders)[0]).shuffle(5000).repeat()
    return dataset.batch(BATCH[task], drop_remainder=True).map(apply, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


def decoded(folders, *, antialias, partial=False):
    """Returns randomly cropped photographs of 224 pixels: TensorFlow's own recipe."""
    import tensorflow as tf

    def read(path):
        content = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(content)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, tf.zeros([1, 0, 4]), area_range=(0.08, 1), min_object_covered=0, use_image_if_no_bounding_boxes=True
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        if partial:
            image = tf.io.decode_and_crop_jpeg(content, window, channels=3)
        else:
            image = tf.slice(tf.io.decode_jpeg(content, channels=3), begin, size)
        image = tf.image.resize(image, (224, 224), antialias=antialias)
        image.set_shape([224, 224, 3])
        return image

    files = tf.data.Dataset.from_tensor_slices(photos(folders)).shuffle(1000).repeat()
    return files.map(read, num_parallel_calls=tf.data.AUTOTUNE)


def decode_crop_resize(task, folders):
    """Returns photographs that are only decoded (the window alone), cropped and resized."""
    return decoded(folders, antialias=True, partial=True).batch(BATCH[task], drop_remainder=True).prefetch(2)


# worker processes -----------------------------------------------------------------------------------


class Pictures:
    """A torch map-style data set."""

    def __init__(self, items, load, transform):
        self.items, self.load, self.transform = items, load, transform

    def __len__(self):
        return 1_000_000

    def __getitem__(self, i):
        return self.transform(self.load(self.items[i % len(self.items)]))


def workers(task, items, load, transform):
    """Returns batches made by two worker processes."""
    from torch.utils.data import DataLoader

    data = Pictures(items, load, transform)
    return DataLoader(data, BATCH[task], shuffle=True, num_workers=2, prefetch_factor=4, persistent_workers=True)


def albumentations(task, folders):
    """Returns the chain of albumentations with OpenCV."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as album
    import cv2

    cv2.setNumThreads(0)
    if task == "photos":
        chain = [album.RandomResizedCrop((224, 224)), album.HorizontalFlip(),
                 album.Rotate(15, p=1, border_mode=cv2.BORDER_REFLECT),
                 album.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (0, 0), p=1), album.Normalize()]  # fmt: skip
        items, load = photos(folders), lambda path: cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    else:
        chain = [album.HorizontalFlip(),
                 album.Affine(scale=(0.85, 1.15), translate_percent=(-0.1, 0.1), rotate=(-15, 15), p=1),
                 album.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (0, 0), p=1), album.GaussNoise((0, 0.02), p=1),
                 album.CoarseDropout((1, 1), (8, 8), (8, 8), p=1), album.Normalize()]  # fmt: skip
        items, load = cifar(folders)[0], lambda image: image
    compose = album.Compose(chain)
    return workers(task, items, load, lambda image: compose(image=image)["image"])


def pillow(task, folders):
    """Returns the chain of Pillow and NumPy, as torchvision's transforms call them."""
    import math

    import numpy as np
    from PIL import Image, ImageEnhance

    rng = np.random.default_rng()

    def transform(array):
        image = Image.fromarray(array)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        angle, zoom = math.radians(rng.uniform(-15, 15)), 1 / rng.uniform(0.85, 1.15)
        dx, dy = rng.uniform(-3.2, 3.2, 2)
        a, b, d, e = math.cos(angle) * zoom, -math.sin(angle) * zoom, math.sin(angle) * zoom, math.cos(angle) * zoom
        place = (a, b, 16 - a * (16 + dx) - b * (16 + dy), d, e, 16 - d * (16 + dx) - e * (16 + dy))
        image = image.transform((32, 32), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.8, 1.2))
        values = np.asarray(image, np.float32)
        values = np.clip(values + rng.standard_normal(values.shape, np.float32) * (255 * rng.uniform(0, 0.02)), 0, 255)
        top, left = rng.integers(-4, 28, 2)
        values[max(top, 0) : top + 8, max(left, 0) : left + 8] = 127
        return values * np.float32(1 / 127.5) - np.float32(1)

    return workers(task, cifar(folders)[0], lambda image: image, transform)


# measuring ------------------------------------------------------------------------------------------


def training(folders, pairs, steps=15):
    """Prints steps per second of resnet_cifar(20) on one repeated batch and on the stream, one pair a line."""
    import keras
    import tensorflow as tf

    from dlkit import models

    model = models.resnet_cifar(20, classes=10, input_shape=(32, 32, 3))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), keras.losses.CategoricalCrossentropy(from_logits=True),
                  jit_compile=False)  # fmt: skip
    stream = iter(dlkit("cifar", folders))
    batch = next(stream)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        variables = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    def steps_per_second(streamed):
        for _ in range(5):  # not counted: uses up what was made while nobody took it
            step(*(next(stream) if streamed else batch)).numpy()
        start = time.perf_counter()
        for _ in range(steps):
            step(*(next(stream) if streamed else batch)).numpy()
        return steps / (time.perf_counter() - start)

    model.optimizer.build(model.trainable_variables)
    steps_per_second(True)
    for pair in range(pairs):
        order = (False, True) if pair % 2 else (True, False)
        rates = {streamed: steps_per_second(streamed) for streamed in order}
        print(rates[False], rates[True], flush=True)


def train_in_turns(folders, pairs):
    """Returns the results of `training`, with the ratio of each pair."""
    command = [sys.executable, str(HERE), "--one", "training", "stream", "--pairs", str(pairs), "--data", *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    rows = [tuple(map(float, line.split())) for line in done.stdout.strip().splitlines()[-pairs:]]
    columns = {
        "repeated_batch": [one for one, _ in rows],
        "stream": [other for _, other in rows],
        "ratio": [other / one for one, other in rows],
    }
    return {name: {"median": statistics.median(v), "all": v} for name, v in columns.items()}


def rate(task, which, folders, seconds):
    """Returns images per second after a warm-up."""
    batches = iter(globals()[which](task, folders))
    for _ in range(12):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count * BATCH[task] / (time.perf_counter() - start)


def run(task, which, folders, seconds):
    """Returns the rate that a fresh process measured, or None with the reason printed."""
    command = [sys.executable, str(HERE), "--one", task, which, "--seconds", str(seconds), "--data", *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        print(f"{task} {which}: left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return float(done.stdout.strip().splitlines()[-1])


def main():
    """Runs the contenders in turns, prints the medians and the targets, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--tasks", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=15, help="turns of the training task")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "CONTENDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one and arguments.one[0] == "training":
        training(arguments.data, arguments.pairs)
        return
    if arguments.one:
        print(rate(*arguments.one, arguments.data, arguments.seconds))
        return
    path = HERE.parent / "results" / "pipeline.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    for task in arguments.tasks:
        if task == "photos" and not photos(arguments.data):
            print("photos: left out: no folder of photographs given", file=sys.stderr)
            continue
        if task == "training":
            results[task] = train_in_turns(arguments.data, arguments.pairs)
            write(path, results)
            continue
        rates = {which: [] for which in CONTENDERS[task]}
        for _ in range(arguments.rounds):
            for which in rates:
                value = run(task, which, arguments.data, arguments.seconds)
                if value is not None:
                    rates[which].append(value)
        results[task] = {which: {"median": statistics.median(v), "all": v} for which, v in rates.items() if v}
        write(path, results)
    report(results)


def write(path, results):
    """Writes the results so far, so that a run that is cut short keeps what it measured."""
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    command = "python benchmarks/pipeline.py --data CIFAR_FOLDER PHOTO_FOLDER"
    path.write_text(json.dumps({"command": command, "machine": machine, "results": results}, indent=2) + "\n")


def report(results):
    """Prints medians, spreads and the ratios that are promised."""
    for task, rates in results.items():
        for which, numbers in rates.items():
            digits = 0 if task != "training" else 2
            spread = f"{min(numbers['all']):,.{digits}f} .. {max(numbers['all']):,.{digits}f}"
            print(f"{task:12} {which:20} {numbers['median']:10,.{digits}f}   ({spread}, n={len(numbers['all'])})")
    for task, ours, theirs, factor in TARGETS:
        rates = results.get(task, {})
        others = [rates[name]["median"] for name in ("albumentations", "pillow") if name in rates]
        base = (
            (max(others) if others else None) if theirs == "best of the others" else rates.get(theirs, {}).get("median")
        )
        if base and ours in rates:
            ratio = rates["ratio"]["median"] if "ratio" in rates else rates[ours]["median"] / base
            print(f"{task}: {ours} / {theirs} = {ratio:.2f}, target {factor}: {'met' if ratio >= factor else 'MISSED'}")


if __name__ == "__main__":
    main()
