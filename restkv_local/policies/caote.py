"""CAOTE: the change of the attention output, on plain window attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from restkv_local.config import Config
from restkv_local.policies.restkv import RestKV
from restkv_local.types import Reduction


@dataclass(frozen=True, kw_only=True)
class Caote(RestKV):
    """ReST-KV's score before ReST-KV: no output projection, no weighting in time, no drift.

    ``a/(1-a) * ||v - o||_2`` on SnapKV's attention, the mean over the observed
    queries. CAOTE is a score on top of another method's attention; how its
    authors order pooling and score we did not find, so rows are averaged as
    in SnapKV after it.

    References
    ----------
    .. [1] "CAOTE", 2025, arXiv:2504.14051.
    """

    name: ClassVar[str] = "caote"
    summary: ClassVar[str] = "largest change of the attention output, on window attention"
    source: ClassVar[str] = "CAOTE, 2025, arXiv:2504.14051"

    reduction: Reduction = "mean"
    guide_reduction: Reduction = "mean"
    use_wo: bool = False
    adaptive: bool = False

    @classmethod
    def from_config(cls, config: Config) -> Caote:
        """Build the policy from the options it understands."""
        return cls(kernel=config.kernel)
