"""Several replicas of a model: the devices of this process (MirroredStrategy) and other processes (multi-worker)."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.train import _run_dir


@dataclass(frozen=True)
class Workers:
    """Where a model's variables live, and which part of the work is this process's.

    Attributes:
        strategy: the `tf.distribute` strategy in whose scope the model was built; TensorFlow's default one otherwise.
        index, count: this process and how many there are.
        replicas: copies of the model over all processes.
    """

    strategy: Any
    index: int
    count: int
    replicas: int

    @classmethod
    def of(cls, model: Any, recipe: Any) -> "Workers":
        """Finds the strategy of `model`.

        Raises:
            InputError: the batch cannot be cut into equal parts for all replicas.
        """
        value = model.variables[0].value if model.variables else None
        strategy = getattr(value, "distribute_strategy", None) or tf.distribute.get_strategy()
        replicas = strategy.num_replicas_in_sync
        resolver: Any = getattr(strategy, "cluster_resolver", None)
        spec = resolver.cluster_spec().as_dict() if resolver is not None and replicas > 1 else {}
        count = max(1, sum(len(addresses) for name, addresses in spec.items() if name in ("chief", "worker")))
        if recipe.batch % (replicas * recipe.accumulate):
            raise InputError(
                f"batch={recipe.batch} cannot be cut into {replicas} replicas of {recipe.accumulate} micro-batches; "
                f"choose a multiple of {replicas * recipe.accumulate}"
            )
        index = 0
        if count > 1:
            index = resolver.task_id + (len(spec.get("chief", [])) if resolver.task_type == "worker" else 0)
        return cls(strategy, index, count, replicas)

    @property
    def chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.index == 0

    def locked(self, run_dir: Path) -> Any:
        return _run_dir.locked(run_dir) if self.chief else contextlib.nullcontext()

    def claimed(self, run_dir: Path, identity: dict[str, Any], resume: bool) -> Any:
        return _run_dir.claimed(run_dir, identity, resume, write=self.chief)

    def split(self, batch: Any) -> Any:
        """Cuts this process's block of the batch into contiguous parts, one for each of its replicas."""
        local = self.replicas // self.count
        if local == 1:
            return batch

        def spread(tensor: Any) -> Any:
            rows = tensor.shape[0] // local

            def part(context: Any) -> Any:
                place = context.replica_id_in_sync_group % local
                return tensor[place * rows : (place + 1) * rows]

            return self.strategy.experimental_distribute_values_from_function(part)

        return tf.nest.map_structure(spread, batch)

    def agreed(self, value: float) -> float:
        """Returns the chief's `value` in every process, so that all of them decide alike."""
        if self.count == 1:
            return value
        share = tf.constant(value if self.chief else 0.0, tf.float64)

        def add() -> Any:
            return tf.distribute.get_replica_context().all_reduce("SUM", share)

        total = self.strategy.experimental_local_results(
            tf.function(lambda: self.strategy.run(add), autograph=False)()
        )[0]
        return float(total) * self.count / self.replicas
