"""Output factors of every layer, on the device that scores it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from restkv_local.model.model_file import ModelShape
from restkv_local.model.output_factors import fold_v_rotation
from restkv_local.native import NativeContext
from restkv_local.storage.factor_cache import load_output_factors
from restkv_local.types import F32, ObservationRequest


class DeviceFactors:
    """What a score by the change of a layer's output multiplies V with, there when a request wants it.

    Parameters
    ----------
    native : NativeContext
        Whose cache they are for; another cache needs them anew (:meth:`forget`).
    shape : ModelShape
        The model's header.
    on_host : bool
        Whether a copy stays here, for the NumPy oracle.
    """

    def __init__(self, native: NativeContext, shape: ModelShape, *, on_host: bool) -> None:
        self._native = native
        self._shape = shape
        self._on_host = on_host
        self._host: dict[int, F32] = {}
        self._projects: bool | None = None  # whether those that are there hold W_O; None: none are

    def __getitem__(self, layer: int) -> F32:
        """Return the host's copy of a layer's: (n_head, d, d)."""
        return self._host[layer]

    def forget(self) -> None:
        """They are gone with their cache."""
        self._projects = None

    def load(self, request: ObservationRequest | None) -> None:
        """Have there what a request wants; what Ctrl-C stops begins anew next time."""
        if request is None or not request.measures_values:
            return
        if self._projects == request.project:
            return
        self._projects = None
        for i, (il, factors) in enumerate(self._stream(project=request.project)):
            assert il == self._native.layers[i].il
            self._native.set_factors(i, factors)
            if self._on_host:
                self._host[i] = factors
        self._projects = request.project

    def _stream(self, *, project: bool) -> Iterator[tuple[int, F32]]:
        native = self._native
        if not project:
            identity = np.eye(native.layers[0].head_dim_v, dtype=np.float32)
            for layer in native.layers:
                yield layer.il, np.broadcast_to(identity, (layer.n_head, *identity.shape))
            return
        for il, factors in load_output_factors(self._shape):
            yield il, fold_v_rotation(factors) if native.v_rotated else factors
