"""Names of the policies; the command line and the contract tests read this table."""

from __future__ import annotations

from typing import Final

from restkv_local.config import DEFAULTS, Config
from restkv_local.errors import ConfigError
from restkv_local.policies.base import Policy
from restkv_local.policies.caote import Caote
from restkv_local.policies.fifo import Fifo
from restkv_local.policies.full import Full
from restkv_local.policies.restkv import RestKV
from restkv_local.policies.seeded_random import SeededRandom
from restkv_local.policies.snapkv import SnapKV
from restkv_local.policies.streamingllm import StreamingLLM

POLICIES: Final[dict[str, type[Policy]]] = {
    policy.name: policy
    for policy in (RestKV, SnapKV, Caote, StreamingLLM, Fifo, SeededRandom, Full)
}


def make_policy(name: str, config: Config = DEFAULTS) -> Policy:
    """Build a policy by name.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if name not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}; got policy={name!r}")
    return POLICIES[name].from_config(config)
