"""Quality of evicted caches: the field's tasks, metrics that score the answers, a run over a grid.

No NumPy in this file, so that ``--help`` stays fast.
"""

from typing import Final, Literal

Question = Literal["aware", "unknown"]

LENGTH: Final = 4096  # RULER's shortest published length; small enough for any model
N_SAMPLES: Final = 10  # of what is generated; of files all
N_SCORED: Final = 128  # tokens that ppl goes on with; it predicts all but the first
SEED: Final = 42
