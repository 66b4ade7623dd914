"""How long to train, and in what batches, where the user does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sciflow.config import Training

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """The numbers that depend on how many events there are.

    Attributes:
        batch_size: Events in a global batch.
        max_steps: Steps of the optimiser.
        learning_rate: Its peak.
        validate_every: Steps between validations.
    """

    batch_size: int
    max_steps: int
    learning_rate: float
    validate_every: int

    @classmethod
    def of(cls, settings: Training, num_rows: int, relative_steps: int = 1) -> Budget:
        """Choose what the settings leave open.

        The batch grows with the square root of the data, a power of two from 64 to 4,096. There are 60 epochs, though
        at least 1,000 steps, for small sets, and no more than 5,000, unless ten epochs take longer: early stopping
        looks after what overfits before. The learning rate is 1e-3, and grows with the square root of a batch above
        128, up to 3e-3 (Malladi et al., arXiv:2205.10287): the more events, the less noise in a step. There are 50
        validations, ten steps apart at least, so that patience does not run out in the first few steps of a short run.

        Args:
            settings: What is settled.
            num_rows: Training events.
            relative_steps: How many times as many epochs and steps a family takes.

        Example:
            >>> Budget.of(Training(), 10_000)
            Budget(batch_size=256, max_steps=2400, learning_rate=0.0014142135623730952, validate_every=48)
        """
        rule = 2 ** round(math.log2(max(1.0, 2.5 * math.sqrt(num_rows))))
        batch_size = min(settings.batch_size or min(4096, max(64, rule)), num_rows)
        per_epoch = -(-num_rows // batch_size)
        if settings.max_epochs is not None:
            steps = settings.max_epochs * per_epoch
            max_steps = min(steps, settings.max_steps or steps)
        else:
            max_steps = settings.max_steps or max(10 * per_epoch, relative_steps * min(5000, max(1000, 60 * per_epoch)))
        learning_rate = settings.learning_rate or min(3e-3, 1e-3 * math.sqrt(max(1.0, batch_size / 128)))
        validate_every = settings.validate_every or min(max_steps, max(10, max_steps // 50))
        return cls(batch_size, max_steps, learning_rate, validate_every)
