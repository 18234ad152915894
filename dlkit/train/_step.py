"""One update of the weights as one traced function: gradients, penalties, clipping, optimizer, average, measures."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from dlkit.data import draws
from dlkit.train import _convolutions, tasks
from dlkit.train._kinds import kind
from dlkit.train.losses import CrossEntropy


def numbers(recipe: Any, loss: Any, optimizer: Any) -> dict[str, float]:
    """Returns the numbers of a run that enter its traced step as inputs; what is 0 has no operations there.

    The smoothing of labels is one where `loss` is dlkit's: Keras' own losses hold theirs in a closure.
    """
    found = {"weight_decay": optimizer.weight_decay, "l1": recipe.l1, "l2": recipe.l2, "clip_norm": recipe.clip_norm}
    smoothing = {"label_smoothing": float(loss.label_smoothing)} if isinstance(loss, CrossEntropy) else {}
    return {name: float(value) for name, value in found.items() if value} | smoothing


class Step:
    """The training step of a run; a call traces it once per input shape.

    The batch is cut into `recipe.accumulate` micro-batches that run one after the other; their gradients are averaged:

        g = mean_m grad L_m + l2 w + l1 sign(w);   g <- g min(1, clip_norm / ||g||);   w <- optimizer(w, g)

    Penalties are for kernels only. An update whose loss is not finite is left out, so the weights that led to it can
    be looked at.

    Args:
        model: what is trained.
        optimizer: built for its trainable variables.
        recipe: the run.
        loss: the loss object.
        averaging: told of every update.
        measures: further columns, "gradient_norm" (before clipping) and "weight_change".
        strategy: the replicas the model's variables live on.

    Attributes:
        columns: what the returned vector holds, in order.
    """

    def __init__(
        self, model: Any, optimizer: Any, recipe: Any, loss: Any, averaging: Any, measures: Sequence[str], strategy: Any
    ):
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.loss, self.averaging = loss, averaging
        self.measures, self.strategy = tuple(measures), strategy
        self.metrics: dict[str, Callable[[Any, Any], Any]] = tasks.batch_metrics(recipe.task)
        self.columns = ("loss", *self.metrics, *self.measures)
        self.kernels = [kind(variable) == "kernel" for variable in model.trainable_variables]
        self.take(numbers(recipe, loss, optimizer))
        self._traced = draws.traced(self._step)

    def __call__(self, inputs: Any, targets: Any, step: int, wish: bool = False) -> Any:
        """Updates the model by one batch and returns float64 (columns + 1): means over the batch, then the wishes.

        Args:
            inputs, targets: the batch; on several replicas, one value each (`tf.distribute`).
            step: steps done before this one.
            wish: this process wants to stop; the last number is how many do, the same on all of them.
        """
        wishes = tf.constant(float(wish), tf.float64)
        return self._traced(inputs, targets, tf.constant(step, tf.int64), wishes, self._numbers)

    def take(self, values: dict[str, float]) -> None:
        """Goes on with the `numbers` of another recipe, which must have the same names, in the same trace."""
        self._numbers = {name: tf.constant(value) for name, value in values.items()}

    def _step(self, inputs: Any, targets: Any, step: Any, wish: Any, numbers: dict[str, Any]) -> Any:
        with _holding(self.loss, "label_smoothing", numbers), _holding(self.optimizer, "weight_decay", numbers):
            values = self.strategy.run(self._replica, args=(inputs, targets, wish, numbers))  # a thread per replica
        values = self.strategy.experimental_local_results(values)[0]
        self.averaging.update(step)
        return values

    def _replica(self, inputs: Any, targets: Any, wish: Any, numbers: dict[str, Any]) -> Any:
        variables, replicas = self.model.trainable_variables, self.strategy.num_replicas_in_sync
        gradients, values = self._accumulated(inputs, targets)
        values = tf.concat([values, wish[None]], 0)
        clip, share = numbers.get("clip_norm"), 1.0 / replicas
        if replicas > 1:
            values = tf.distribute.get_replica_context().all_reduce("SUM", values)
            values = values * tf.constant([share] * (values.shape[0] - 1) + [1.0], tf.float64)
        if replicas > 1 and (clip is not None or "gradient_norm" in self.measures):
            # the norm is that of the whole batch's gradient; the optimizer's own sum then adds equal parts
            gradients = tf.distribute.get_replica_context().all_reduce("SUM", [g * share for g in gradients])
        kernels = zip(gradients, variables, self.kernels, strict=True)
        gradients = [_penalised(g, variable, numbers) if kernel else g for g, variable, kernel in kernels]
        measured = clip is not None or "gradient_norm" in self.measures
        norm = tf.linalg.global_norm(gradients) if measured else None
        if clip is not None:
            factor = tf.minimum(1.0, clip / tf.maximum(norm, 1e-12))
            gradients = [g * tf.cast(factor, g.dtype) for g in gradients]
        change = self._apply(gradients if replicas == 1 else [g * share for g in gradients], values[0])
        extra = {"gradient_norm": norm, "weight_change": change}
        found = [tf.cast(extra[name], tf.float64)[None] for name in self.measures]
        return tf.concat([values[:-1], *found, values[-1:]], 0)

    def _accumulated(self, inputs: Any, targets: Any) -> tuple[list[Any], Any]:
        """Returns the mean gradients and the mean loss and metrics of all micro-batches."""
        parts = self.recipe.accumulate
        if parts == 1:
            return self._gradients(inputs, targets)
        rows = tf.shape(inputs)[0] // parts

        def cut(tensor: Any, i: Any) -> Any:
            part = tensor[i * rows : (i + 1) * rows]
            part.set_shape([None if tensor.shape[0] is None else tensor.shape[0] // parts, *tensor.shape[1:]])
            return part

        def add(i: Any, sums: list[Any], total: Any) -> tuple[Any, list[Any], Any]:
            gradients, values = self._gradients(cut(inputs, i), tf.nest.map_structure(lambda t: cut(t, i), targets))
            return i + 1, [a + b for a, b in zip(sums, gradients, strict=True)], total + values

        start = [tf.zeros(v.shape, v.dtype) for v in self.model.trainable_variables]
        values = tf.zeros([1 + len(self.metrics)], tf.float64)
        _, sums, values = tf.while_loop(  # one after the other: their memory is the point
            lambda i, *_: i < parts, add, (tf.constant(0), start, values), parallel_iterations=1
        )
        return [total / parts for total in sums], values / parts

    def _gradients(self, inputs: Any, targets: Any) -> tuple[list[Any], Any]:
        variables = [variable.value for variable in self.model.trainable_variables]
        # the replicas' threads take turns inside the block, which sets an attribute of their common graph
        alone = self.strategy.num_replicas_in_sync == 1
        tape = tf.GradientTape() if tf.executing_eagerly() else None  # where tf.function is switched off, to debug
        with tape or (_convolutions.fast_gradients() if alone else contextlib.nullcontext()):
            outputs = self.model(inputs, training=True)
            # Keras divides a mean loss by the number of replicas
            loss = tf.cast(self.loss(targets, outputs), tf.float32) * self.strategy.num_replicas_in_sync
            if self.model.losses:
                loss += tf.add_n([tf.cast(term, tf.float32) for term in self.model.losses])
        differentiate = tape.gradient if tape else tf.gradients
        gradients = differentiate(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        values = [loss, *(metric(targets, outputs) for metric in self.metrics.values())]
        return [tf.convert_to_tensor(g) for g in gradients], tf.stack([tf.cast(v, tf.float64) for v in values])

    def _apply(self, gradients: list[Any], loss: Any) -> Any:
        """Updates the weights and returns their relative change, where it is asked for."""
        variables = self.model.trainable_variables
        measured = "weight_change" in self.measures
        before = [tf.identity(tf.convert_to_tensor(variable)) for variable in variables] if measured else []
        if self.strategy.num_replicas_in_sync > 1:  # tf.distribute does not update inside a condition
            self.optimizer.apply(gradients, variables)
        else:
            tf.cond(tf.math.is_finite(loss), lambda: self._update(gradients, variables), lambda: False)
        if not measured:
            return None
        change = tf.linalg.global_norm([tf.convert_to_tensor(v) - b for v, b in zip(variables, before, strict=True)])
        return change / tf.maximum(tf.linalg.global_norm(before), 1e-30)

    def _update(self, gradients: list[Any], variables: list[Any]) -> bool:
        self.optimizer.apply(gradients, variables)
        return True


def _penalised(gradient: Any, kernel: Any, numbers: dict[str, Any]) -> Any:
    if "l2" in numbers:
        gradient = gradient + tf.cast(numbers["l2"], gradient.dtype) * tf.cast(kernel, gradient.dtype)
    if "l1" in numbers:
        gradient = gradient + tf.cast(numbers["l1"], gradient.dtype) * tf.sign(tf.cast(kernel, gradient.dtype))
    return gradient


@contextlib.contextmanager
def _holding(owner: Any, name: str, numbers: dict[str, Any]) -> Iterator[None]:
    """Puts an input of the trace in the place of an attribute while the block is traced."""
    if name not in numbers:
        yield
        return
    value = getattr(owner, name)
    setattr(owner, name, numbers[name])
    try:
        yield
    finally:
        setattr(owner, name, value)
