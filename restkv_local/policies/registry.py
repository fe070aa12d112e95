"""Names of the policies; the command line and the contract tests read this table."""

from __future__ import annotations

from typing import Final, TypeVar

from restkv_local.config import DEFAULTS, Config
from restkv_local.errors import ConfigError
from restkv_local.policies.base import Policy
from restkv_local.policies.caote import Caote
from restkv_local.policies.criticalkv import CriticalKV
from restkv_local.policies.defensivekv import DefensiveKV
from restkv_local.policies.expected_attention import ExpectedAttention
from restkv_local.policies.fifo import Fifo
from restkv_local.policies.full import Full
from restkv_local.policies.h2o import H2O
from restkv_local.policies.keydiff import KeyDiff
from restkv_local.policies.kvzip import KVzip
from restkv_local.policies.lacache import LaCache
from restkv_local.policies.lru import LRU
from restkv_local.policies.restkv import RestKV
from restkv_local.policies.restkv_plus import RestKVPlus
from restkv_local.policies.seeded_random import SeededRandom
from restkv_local.policies.snapkv import SnapKV
from restkv_local.policies.streamingllm import StreamingLLM
from restkv_local.policies.tova import TOVA

POLICIES: Final[dict[str, type[Policy]]] = {
    policy.name: policy
    for policy in (
        RestKV,
        RestKVPlus,
        SnapKV,
        Caote,
        CriticalKV,
        DefensiveKV,
        TOVA,
        H2O,
        ExpectedAttention,
        KeyDiff,
        KVzip,
        LaCache,
        StreamingLLM,
        LRU,
        Fifo,
        SeededRandom,
        Full,
    )
}

BUILT_IN_POLICIES: Final = frozenset(POLICIES)

P = TypeVar("P", bound=Policy)


def register_policy(policy: type[P]) -> type[P]:
    """Add a policy of your own, for every command and class of this process; also a decorator.

    A name of your own may be registered again, as a notebook does whose cell is run twice.

    Raises
    ------
    ConfigError
        If the name is that of a built-in policy.
    """
    if policy.name in BUILT_IN_POLICIES:
        raise ConfigError(f"policy={policy.name!r} is built in; give yours another name")
    POLICIES[policy.name] = policy
    return policy


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
