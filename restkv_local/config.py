"""Every default of the project, once, with its bounds. No NumPy, so that ``--help`` stays fast."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

from restkv_local.errors import ConfigError

PrefillKind = Literal["bounded", "full"]
PositionKind = Literal["auto", "original", "compact"]
ScoringKind = Literal["native", "numpy"]
Order = Literal["aggregate", "per_query"]
GuideReduction = Literal["ema", "mean", "max"]
KVType = Literal["f16", "q8_0", "q4_0"]

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "prefill": get_args(PrefillKind),
    "positions": get_args(PositionKind),
    "scoring": get_args(ScoringKind),
    "order": get_args(Order),
    "guide_reduction": get_args(GuideReduction),
    "type_k": get_args(KVType),
    "type_v": get_args(KVType),
}

PENALISED: Final = 64  # newest tokens of an answer that penalties count, as in llama.cpp

_MOST: Final = 2**31 - 1  # what C's int holds

# name: (lowest, highest), both allowed
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "n_sink": (0, math.inf),
    # 1: decoding continues right after the newest token, so that one must stay.
    "n_recent": (1, math.inf),
    "n_obs": (1, _MOST),
    "n_guide": (0, math.inf),
    "n_ubatch": (1, _MOST),
    "kernel": (1, math.inf),
    "alpha": (0, 1),
    "scale": (1, math.inf),
    "tau": (0, math.inf),
    "seed": (-1, 2**32 - 1),
    "n_predict": (-1, math.inf),
    "temp": (0, math.inf),
    "top_k": (0, _MOST),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0, math.inf),
    "undo_mib": (0, math.inf),
    "n_threads": (0, 512),  # llama.cpp's own limit
    "n_gpu_layers": (-1, _MOST),
}

# Zero itself is out: weights would vanish, 0**0 would appear, nothing could be sampled.
_POSITIVE: Final = ("alpha", "tau", "top_p", "repeat_penalty")

_DIGITS: Final = 18  # of a budget: more are a slip
_UNITS: Final = {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(kib|mib|gib|%)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a session was asked to do.

    Counts are tokens unless the name says otherwise. ``budget`` is the number
    of rows each layer and KV head keeps after an eviction, sinks, pinned and
    recent tokens included; as text it may also be ``"512MiB"`` or ``"25%"``.

    ``alpha``, ``scale``, ``tau``, ``order``, ``past_only`` and ``guide_reduction`` are restkv's alone, ``use_wo``
    is restkv+'s too, ``kernel`` of all that smooth over neighbours. Other policies leave them aside, so that several
    can be compared under the same options.

    Raises
    ------
    ConfigError
        If a value is out of bounds.
    """

    budget: int | str = 2048
    policy: str = "restkv"
    allocation: str = "uniform"
    prefill: PrefillKind = "bounded"
    positions: PositionKind = "auto"
    guide: str = "auto"  # "auto", "off", or the guide's own text
    scoring: ScoringKind = "native"

    n_sink: int = 4
    n_recent: int = 32
    n_obs: int = 32
    n_guide: int = 64
    n_ubatch: int = 512

    # 21: at 512 rows a floor of 5 lost the digits of a needle after the first.
    kernel: int = 21
    alpha: float = 0.3
    scale: float = 2000.0
    tau: float = 1.0
    order: Order = "aggregate"
    past_only: bool = False
    use_wo: bool = True
    # max: of a question's tokens each asks for something else, and with EMA its last five, the
    # template's, carry 83 % of the weight. 1,500 tokens, 128 rows: ema 14, mean 17, max 20 of 20.
    guide_reduction: GuideReduction = "max"

    n_predict: int = 512  # -1: until the model stops
    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0  # of the answer's last PENALISED tokens; 1: none
    seed: int = -1  # -1: a new one each run

    undo_mib: int = 1024  # memory for the moments a conversation can be taken back to; 0: none
    n_threads: int = 0  # 0: the number of physical cores
    n_gpu_layers: int = 0
    type_k: KVType = "f16"
    type_v: KVType = "f16"

    def __post_init__(self) -> None:
        """Check every field."""
        for field in fields(self):
            _check_field(field.name, field.default, getattr(self, field.name))
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, to be centred; got kernel={self.kernel}")
        spec = parse_budget(self.budget)
        if spec.kind == "rows":
            check_budget(int(spec.value), self, n_pinned=0)


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """A budget as it was written: rows, bytes of K and V, or percent of the prompt."""

    kind: Literal["rows", "bytes", "percent"]
    value: float


def parse_budget(text: int | str) -> BudgetSpec:
    """Read a budget such as ``2048``, ``"512MiB"`` or ``"25%"``.

    Raises
    ------
    ConfigError
        If the text is none of these forms, or out of range.
    """
    match = _BUDGET.fullmatch(str(text).strip())
    forms = "budget must be a number of rows, KiB, MiB or GiB, or a percentage"
    if match is None or isinstance(text, bool) or len(match[1]) > _DIGITS:
        raise ConfigError(f"{forms}, as in 2048, 512MiB or 25%; got budget={text!r}")
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise ConfigError(f"budget must be above 0% and at most 100%; got budget={text!r}")
        return BudgetSpec("percent", number)
    if unit:
        return BudgetSpec("bytes", int(number * _UNITS[unit]))
    if "." in match[1]:
        raise ConfigError(f"{forms}; rows come whole; got budget={text!r}")
    return BudgetSpec("rows", int(match[1]))


def resolve_budget(
    spec: BudgetSpec,
    kv_bytes_per_row_all_layers: int,
    n_reserve: int,
    n_prompt: int,
    n_pad: int = 1,
    n_least: int = 1,
) -> int:
    """Turn a budget into rows per layer and KV head.

    Parameters
    ----------
    spec : BudgetSpec
        The budget as written.
    kv_bytes_per_row_all_layers : int
        Bytes of K and V of one token over all layers that are evicted.
    n_reserve : int
        Rows that the cache holds beyond the budget (chunk and guide). A budget
        in bytes pays for them too.
    n_prompt : int
        Tokens of the prompt; only a percentage looks at it.
    n_pad : int
        The cache is allocated in multiples of this many rows.
    n_least : int
        Rows that a percentage is raised to: it may be of a prompt that needs
        no eviction.

    Returns
    -------
    int
        Rows, at least 1. Whether rows and bytes hold the protected tokens is
        ``check_budget``'s question.

    Raises
    ------
    ConfigError
        If the bytes do not even hold the reserve.
    """
    if spec.kind == "rows":
        return int(spec.value)
    if spec.kind == "percent":
        return max(n_least, int(n_prompt * spec.value / 100))
    n_capacity = int(spec.value) // kv_bytes_per_row_all_layers // n_pad * n_pad
    if n_capacity <= n_reserve:
        n_least = -(-(n_reserve + 1) // n_pad) * n_pad
        least = math.ceil(n_least * kv_bytes_per_row_all_layers / 2**20)
        raise ConfigError(
            f"budget of {spec.value / 2**20:.1f} MiB holds {n_capacity} rows, but chunk and guide"
            f" alone take {n_reserve}; give at least {least}MiB or a smaller n_ubatch"
        )
    return n_capacity - n_reserve


def least_budget(config: Config, n_pinned: int) -> int:
    """Return the rows that must stay, and one to choose; sinks are among the first ``n_pinned`` tokens."""
    return max(config.n_sink, n_pinned) + config.n_recent + 1


def check_budget(budget: int, config: Config, n_pinned: int) -> None:
    """Refuse a budget that leaves no row to choose.

    Raises
    ------
    ConfigError
        If ``budget`` is below `least_budget`.
    """
    least = least_budget(config, n_pinned)
    if budget < least:
        n_more = max(0, n_pinned - config.n_sink)
        raise ConfigError(
            f"budget must be at least n_sink + n_pinned + n_recent + 1 = {least}; got"
            f" budget={budget}, n_sink={config.n_sink}, n_pinned={n_more}, n_recent={config.n_recent}"
        )


def _check_field(name: str, default: object, value: object) -> None:
    """Refuse one value that is not of its default's kind or not within its bounds."""
    if name == "budget":
        return
    kind = type(default)
    given = f"got {name}={value!r}"
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise ConfigError(f"{name} must be of type {kind.__name__}; {given}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"{name} must be one of {', '.join(_CHOICES[name])}; {given}")
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{name} must not be empty; {given}")
    if isinstance(value, (int, float)) and name in _BOUNDS:
        low, high = _BOUNDS[name]
        above = low < value if name in _POSITIVE else low <= value
        # Written so that NaN, which compares false with everything, is refused too.
        if not (above and value <= high and _is_finite(value)):
            rule = f"above {low:g}" if name in _POSITIVE else f"at least {low:g}"
            limit = f" and at most {high:.0f}" if math.isfinite(high) else " and finite"
            raise ConfigError(f"{name} must be {rule}{limit}; {given}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


# What everyone else takes defaults from: a slotted class does not show them itself.
DEFAULTS: Final = Config()

# The budget of what compares texts of several lengths, or plans for one that memory holds whole.
DEFAULT_SHARE: Final = "25%"
