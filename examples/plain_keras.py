"""dlkit's builders, layers and stream in ordinary Keras code: compile, fit, save.

python examples/plain_keras.py            three epochs
python examples/plain_keras.py --smoke    ten steps
"""

import argparse

import keras

from dlkit.data import Preprocess, eval_pipeline, load, train_pipeline
from dlkit.data.augment import Affine
from dlkit.layers import RMSNorm, SwiGLU
from dlkit.models import vgg


def main(smoke: bool, out: str) -> None:
    train, test = load("digits")
    preprocess = Preprocess(32, channels=1, mean=0.3, std=0.37)

    backbone = vgg("A", input_shape=preprocess.input_shape, stem="cifar", norm="group", width=0.125, include_top=False)
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    x = SwiGLU(64)(RMSNorm()(x))
    model = keras.Model(backbone.input, keras.layers.Dense(10, dtype="float32")(x))

    stream = train_pipeline(train, preprocess, [Affine(rotate=10, shift=0.08)], batch=64, seed=0)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(stream, steps_per_epoch=10 if smoke else len(train) // 64, epochs=1 if smoke else 3, shuffle=False)
    print(model.evaluate(eval_pipeline(test, preprocess, 64), return_dict=True))
    model.save(f"{out}/plain_keras.keras")
    print(type(keras.models.load_model(f"{out}/plain_keras.keras").layers[-2]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="ten steps, to see that it runs")
    parser.add_argument("--out", default=".", help="folder for the model file")
    arguments = parser.parse_args()
    main(arguments.smoke, arguments.out)
