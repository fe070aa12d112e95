"""Random: the floor that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.config import Config
from restkv_local.errors import ConfigError
from restkv_local.policies.base import Policy
from restkv_local.types import F32, Observation


@dataclass(frozen=True, kw_only=True)
class SeededRandom(Policy):
    """Uniform noise, the same for the same seed, layer and event.

    Attributes
    ----------
    seed : int
        Seed of the noise, at least 0.

    Raises
    ------
    ConfigError
        If the seed is negative.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "seeded noise: the floor every method must beat"
    source: ClassVar[str] = "none"

    seed: int = 0

    def __post_init__(self) -> None:
        """Check the seed."""
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0; got seed={self.seed}")

    @classmethod
    def from_config(cls, config: Config) -> SeededRandom:
        """Build the policy from the options it understands."""
        # -1 asks for another sampling seed each run; rows stay comparable between runs, so it is one seed here.
        return cls(seed=config.seed % 2**32)

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv), in [0, 1)."""
        rng = np.random.default_rng((self.seed, observation.layer, observation.event))
        return rng.random((observation.n_head_kv, observation.n_kv), np.float32)
