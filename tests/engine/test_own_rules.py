"""Policies and allocations of a user's own, registered from outside the package."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from restkv_local import register_allocator, register_policy
from restkv_local.allocators.base import Allocator, fit_total
from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.config import Config
from restkv_local.errors import ConfigError, PlanError
from restkv_local.policies.base import Policy
from restkv_local.policies.h2o import H2O
from restkv_local.policies.registry import POLICIES
from restkv_local.types import ObservationRequest
from tests import builders
from tests.engine.test_engine import check_invariants, read

pytestmark = pytest.mark.native

MODEL = builders.llama(n_head=8, n_head_kv=2, head_dim=64)


@dataclass(frozen=True, kw_only=True)
class Looked(Policy):
    """Mean attention, as a newcomer would write it."""

    name: ClassVar[str] = "looked"
    summary: ClassVar[str] = "mean attention of the window"
    source: ClassVar[str] = "none"

    def request(self, n_obs, max_position, n_select):
        return ObservationRequest(reductions=("mean",))

    def score(self, observation):
        mean = observation.attention["mean"]
        return mean.reshape(observation.n_head_kv, -1, observation.n_kv).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class PerQueryHead(Looked):
    name: ClassVar[str] = "per-query-head"

    def score(self, observation):
        return observation.attention["mean"]


@dataclass(frozen=True, kw_only=True)
class Generous(Allocator):
    name: ClassVar[str] = "generous"
    summary: ClassVar[str] = "all rows for everybody"
    source: ClassVar[str] = "none"

    def allocate(self, demand):
        return demand.n_rows.copy()


@dataclass(frozen=True, kw_only=True)
class Last(Generous):
    name: ClassVar[str] = "last"

    def allocate(self, demand):
        """Whatever is not protected goes to the last layer."""
        wanted = np.zeros(demand.n_rows.shape)
        wanted[-1] = 1.0
        return fit_total(wanted, demand)


@dataclass(frozen=True, kw_only=True)
class OneNumber(Generous):
    name: ClassVar[str] = "one-number"

    def allocate(self, demand):
        return np.full(1, demand.budget, np.int32)


@pytest.fixture(autouse=True)
def _only_ours_afterwards():
    kept = [(registry, dict(registry)) for registry in (POLICIES, ALLOCATORS)]
    yield
    for registry, ours in kept:
        registry.clear()
        registry.update(ours)


def test_a_registered_policy_is_one_like_ours(open_llama, tokens):
    assert register_policy(Looked) is Looked
    engine = read(open_llama(MODEL, policy="looked", allocation="global"), tokens(700))
    assert engine.counters.events > 1
    check_invariants(engine)


def test_a_name_of_ours_is_not_given_away():
    with pytest.raises(ConfigError, match="policy='h2o' is built in"):
        register_policy(H2O)
    with pytest.raises(ConfigError, match="allocation='global' is built in"):
        register_allocator(ALLOCATORS["global"])


def test_what_lacks_its_one_method_cannot_be_made():
    class Nothing(Policy):
        name = "looked"

    register_policy(Nothing)
    with pytest.raises(TypeError, match="abstract"):
        POLICIES["looked"].from_config(None)


def test_scores_of_another_shape_are_refused_by_name(open_llama, tokens):
    register_policy(PerQueryHead)
    with pytest.raises(PlanError, match=r"policy='per-query-head' must .* = \(2, .* got \(8, "):
        read(open_llama(MODEL, policy="per-query-head"), tokens(300))


def test_what_has_the_text_repeated_cannot_look_at_the_newest_queries_too(open_llama):
    """They are the repetition's: with a guide nothing was repeated, without one the window was refused."""

    @dataclass(frozen=True, kw_only=True)
    class Repeated(Looked):
        name: ClassVar[str] = "repeated"
        track: ClassVar[str] = "repeat"

    register_policy(Repeated)
    with pytest.raises(ConfigError, match="policy='repeated' tracks 'repeat' and asks for"):
        open_llama(MODEL, policy="repeated")
    llama = open_llama(MODEL, also_track=("repeat",), n_ubatch=64)
    with pytest.raises(ConfigError, match="let its request be None"):
        llama.engine.use(policy="repeated")


@pytest.mark.parametrize(
    ("allocator", "says"), [(Generous, "must share out 256 rows"), (OneNumber, r"got \(1,\)")]
)
def test_an_allocation_that_breaks_its_word_is_refused_by_name(open_llama, tokens, allocator, says):
    register_allocator(allocator)
    with pytest.raises(PlanError, match=says):
        read(open_llama(MODEL, policy="snapkv", allocation=allocator.name), tokens(300))


def test_readings_by_code_that_is_not_ours_are_not_kept(open_llama, tokens):
    """The same name may be other code the next time."""
    register_policy(Looked)
    llama = open_llama(MODEL, policy="looked")
    read(llama, tokens(20))
    assert llama.reading_key(tokens(20), []) is None
    llama.engine.use(policy="restkv")
    assert llama.reading_key(tokens(20), []) is not None


@pytest.mark.parametrize("policy", [H2O(recent_ratio=0.0), Looked()], ids=["ours", "own"])
def test_knobs_stay_where_an_engine_is_renewed(open_llama, monkeypatch, policy):
    """`ask` and a changed budget make a new one."""
    asked = []
    monkeypatch.setattr(
        type(policy), "rerank", lambda self, scores, *_: asked.append(self) or scores
    )
    llama = open_llama(MODEL, also_track=("sum",))
    llama.engine.use(policy=policy)
    list(llama.ask("a tower by the sea. " * 20, ["what is it?"]))
    assert asked
    assert set(asked) == {policy}
    assert not llama.engine.renewed(llama.engine.config).is_configured
    other = llama.engine.renewed(Config(policy="restkv"))
    assert other.is_configured


@pytest.mark.gpu
@pytest.mark.parametrize("n_gpu_layers", [0, 2, -1])
def test_rows_stay_on_their_device_whatever_the_allocation(open_llama, tokens, n_gpu_layers):
    """The output layer counts as one of those on the GPU."""
    register_allocator(Last)
    model = builders.llama(n_layer=4, n_head_kv=2, head_dim=64)
    llama = open_llama(model, allocation="last", policy="snapkv", n_gpu_layers=n_gpu_layers)
    text = tokens(600)
    engine = read(llama, text, guide=text[-12:])
    check_invariants(engine)
    devices = np.array([layer.device for layer in engine.native.layers])
    assert len({*devices}) == (2 if n_gpu_layers == 2 else 1)
    for device in {*devices}:
        mine = devices == device
        assert engine.rows.n_rows[mine].sum() == engine.budget * mine.sum() * 2


def test_an_eviction_goes_by_the_devices_that_the_pool_names(open_llama, tokens):
    """Without a GPU: the layers are only said to lie on two."""
    register_allocator(Last)
    llama = open_llama(builders.llama(n_layer=4, n_head_kv=2, head_dim=64), allocation="last")
    engine = llama.engine
    engine.open(300, 16, 0)
    engine.native.layers = [
        replace(layer, device=i // 2) for i, layer in enumerate(engine.native.layers)
    ]
    engine.read(tokens(300))
    assert engine.counters.events > 0
    engine.evict()
    n_rows = engine.rows.n_rows.sum(axis=1)
    assert n_rows.reshape(2, 2).sum(axis=1).tolist() == [256, 256]
    assert n_rows[3] > n_rows[2]
