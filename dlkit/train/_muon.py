"""Muon: momentum whose matrices are orthogonalised before each step, convolution kernels included."""

import math
from typing import Any

import keras
from keras import ops

from dlkit._errors import InputError
from dlkit.train._kinds import kind

# Quintic with the steepest slope at zero; singular values end between 0.7 and 1.2, which is close enough to 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Any, steps: int = 5, epsilon: float = 1e-7) -> Any:
    """Moves every singular value of `matrix` close to 1 and keeps the singular vectors.

        X_0 = G / |G|_F,   X_{i+1} = a X_i + (b A + c A A) X_i,   A = X_i X_i^T

    Newton-Schulz iteration of degree five on the smaller side of the matrix. The coefficients (3.4445, -4.7750, 2.0315)
    make the slope at zero steep rather than the limit exact.

    Args:
        matrix: (rows, columns), any float dtype; computed in it.
        steps: iterations; 5 bring values above 0.01 of the largest close to 1, 3 those above 0.1.
        epsilon: added to the norm, so that a zero gradient stays zero.

    Reference: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/; J. Bernstein, L. Newhouse, "Old optimizer, new norm", 2024.

    >>> import numpy as np
    >>> x = np.asarray(orthogonalise(np.diag([3.0, 1.0]).astype("float32")))
    >>> bool(abs(np.linalg.svd(x, compute_uv=False) - 1).max() < 0.35)
    True
    """
    a, b, c = COEFFICIENTS
    rows, columns = matrix.shape
    x = ops.transpose(matrix) if rows > columns else matrix
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + epsilon)
    for _ in range(steps):
        gram = ops.matmul(x, ops.transpose(x))
        x = a * x + ops.matmul(b * gram + c * ops.matmul(gram, gram), x)
    return ops.transpose(x) if rows > columns else x


@keras.saving.register_keras_serializable(package="dlkit")
class Muon(keras.optimizers.Optimizer):
    """Steps along the orthogonalised momentum for matrices and kernels, and by Nesterov's momentum for the rest.

        h = beta h + g,   d = g + beta h,   w <- normalised(w) - eta_t O(d) s        matrices and kernels
        h = beta_o h + g, w <- w - eta_t r (g + beta_o h)                            the rest

    O is `orthogonalise` of the kernel as a matrix (window x inputs, outputs), so all directions of a layer move equally
    far. s = sqrt(max(1, outputs / (window x inputs))). With `normalise`, a kernel is rescaled before each step to the
    norm sqrt(outputs), that of a matrix with unit columns: eta is then the relative size of a step and weight decay
    of kernels is superfluous. Choose it for short trainings of convolutional networks with a norm after each
    convolution; `keras.optimizers.Muon` treats only Dense kernels so and gives convolutions to AdamW.

    Args:
        learning_rate: of the orthogonalised kernels; the record's is 0.24 for batches of 2,000 CIFAR-10 pictures, about
            0.1 suits 500.
        momentum: beta; the record's is 0.6 at batch 2,000, larger for smaller batches.
        iterations_ns: steps of `orthogonalise`; 3 suffice in short trainings, 5 is the usual number.
        normalise: rescale the kernels as above.
        rest_rate: r, the rate of the other variables relative to `learning_rate`.
        rest_momentum: beta_o.
        exclude: parts of variable paths that belong to the rest although they are matrices: the classifier, whose
            columns are no directions to be equalised, and embeddings. `optimizers.get` names the last kernel.
        **kwargs: as in any `keras.optimizers.Optimizer`: `weight_decay`, `global_clipnorm`, ...

    Raises:
        InputError: a momentum outside 0..1 or no iterations.

    Example:
        >>> import numpy as np
        >>> kernel = keras.Variable(np.ones((3, 3, 4, 8), "float32"))
        >>> optimizer = Muon(0.1, normalise=False)
        >>> optimizer.apply([ops.ones((3, 3, 4, 8))], [kernel])
        >>> tuple(kernel.shape)
        (3, 3, 4, 8)

    Reference: K. Jordan et al., "Muon", 2024; K. Jordan, cifar10-airbench (94 % in 8 epochs), 2024,
    https://github.com/KellerJordan/cifar10-airbench.
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.6,
        iterations_ns: int = 3,
        normalise: bool = True,
        rest_rate: float = 1.0,
        rest_momentum: float = 0.85,
        exclude: tuple[str, ...] = ("predictions", "classifier", "head", "embedding"),
        name: str = "muon",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        for label, value in (("momentum", momentum), ("rest_momentum", rest_momentum)):
            if not 0 <= value < 1:
                raise InputError(f"Muon: {label}={value!r} must be at least 0 and below 1, for example 0.6")
        if not isinstance(iterations_ns, int) or iterations_ns < 1:
            raise InputError(f"Muon: iterations_ns={iterations_ns!r} must be a whole number from 1, for example 3")
        if not 0 < rest_rate < math.inf:
            raise InputError(f"Muon: rest_rate={rest_rate!r} must be a positive number, for example 1.0")
        self.momentum, self.rest_momentum, self.rest_rate = float(momentum), float(rest_momentum), float(rest_rate)
        self.iterations_ns, self.normalise, self.exclude = iterations_ns, bool(normalise), tuple(exclude)

    def build(self, variables: Any) -> None:
        if self.built:
            return
        super().build(variables)
        self._heavy = self.add_optimizer_variables(variables, "momentum")
        self._orthogonal = [self.orthogonalises(variable) for variable in variables]

    def orthogonalises(self, variable: Any) -> bool:
        """Tells whether a variable is a matrix or kernel that moves by the orthogonalised momentum."""
        return kind(variable) == "kernel" and not any(part in variable.path for part in self.exclude)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        orthogonal, heavy = self._orthogonal[index], self._heavy[index]
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        beta = self.momentum if orthogonal else self.rest_momentum
        moved = beta * ops.convert_to_tensor(heavy) + gradient
        self.assign(heavy, moved)
        direction = gradient + beta * moved
        if not orthogonal:
            self.assign_sub(variable, rate * self.rest_rate * direction)
            return
        outputs = variable.shape[-1]
        inputs = math.prod(variable.shape[:-1])
        step = orthogonalise(ops.reshape(direction, (inputs, outputs)), self.iterations_ns)
        step = ops.reshape(step, variable.shape) * math.sqrt(max(1.0, outputs / inputs))
        value = ops.convert_to_tensor(variable)
        if self.normalise:
            value = value * (math.sqrt(outputs) / (ops.sqrt(ops.sum(ops.square(value))) + 1e-7))
        self.assign(variable, value - rate * step)

    def get_config(self) -> dict[str, Any]:
        own = ("momentum", "iterations_ns", "normalise", "rest_rate", "rest_momentum", "exclude")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
