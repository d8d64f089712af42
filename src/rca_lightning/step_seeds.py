"""Random numbers of a training step depend on the run's seed and the step only."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch

from rca_lightning.data.loaders import run_seed


class SeededSteps(L.LightningModule):
    """A LightningModule whose dropout is the same in a run that was resumed, also within an epoch.

    Checkpoints of Lightning hold no state of random generators. Here torch's is set before every training batch, from
    the seed of the run, the epoch, the batch and the rank.
    """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        words = np.random.SeedSequence((run_seed(), self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)
