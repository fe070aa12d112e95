"""One typed binding per function of patches/src/llama-restkv.h, the prototype as a comment."""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np

from restkv_local.errors import NativeError

I32_ARRAY = np.ctypeslib.ndpointer(np.int32, flags="C_CONTIGUOUS")
F32_ARRAY = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
I32_OUT = C.POINTER(C.c_int32)
F32_OUT = C.POINTER(C.c_float)

# llama_restkv_flags
MAX = 1 << 0
AGGREGATE = 1 << 1
PER_QUERY = 1 << 2
REDUCE_MAX = 1 << 3
PAST_ONLY = 1 << 4
DRIFT = 1 << 5
SQUARE = 1 << 6
ENTROPY = 1 << 7
LAST_USE = 1 << 8
VALUE_NORM = 1 << 9

# attention rows that a flag adds, in the order they come
ROWS = {"max": MAX, "square": SQUARE, "entropy": ENTROPY, "last_use": LAST_USE}
METRICS = AGGREGATE | PER_QUERY | VALUE_NORM

# llama_restkv_bytes_kind; scoring: rings and factors, other: caches of sliding windows
BYTES = {"k": 0, "v": 1, "scoring": 2, "other": 3}

# llama_restkv_tensor
TENSORS = {"k": 0, "v": 1, "q": 2}

# llama_restkv_status
FAILED = -3


def optional(array_type: Any) -> Any:
    """Return ``array_type`` with None allowed, for a pointer that may be NULL."""

    class Optional(array_type):  # type: ignore[misc]
        @classmethod
        def from_param(cls, value: Any) -> Any:
            return None if value is None else array_type.from_param(value)

    return Optional


F32_OR_NULL = optional(F32_ARRAY)
I32_OR_NULL = optional(I32_ARRAY)


class Bindings:
    """The functions of llama-restkv.h; a negative status becomes :class:`NativeError`."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.llama_restkv_last_error.restype = C.c_char_p
        ctx = C.c_void_p

        # int32_t llama_restkv_arm(int32_t n_ring, int32_t n_rows);
        self.arm = self._checked("arm", C.c_int32, C.c_int32)
        # void llama_restkv_disarm(void);
        self.disarm = self._void("disarm")
        # int32_t llama_restkv_attach(struct llama_context * ctx);
        self.attach = self._checked("attach", ctx)
        # int32_t llama_restkv_decode(struct llama_context * ctx, llama_token * tokens,
        #     int32_t n_tokens, bool probe);
        self.decode = self._checked("decode", ctx, I32_ARRAY, C.c_int32, C.c_bool)
        # int32_t llama_restkv_set_turned(struct llama_context * ctx, int32_t i, bool turned);
        self.set_turned = self._checked("set_turned", ctx, C.c_int32, C.c_bool)
        # void llama_restkv_abort(struct llama_context * ctx, bool abort);
        self.abort = self._void("abort", ctx, C.c_bool)
        # int32_t llama_restkv_n_layer(const struct llama_context * ctx);
        self.n_layer = self._checked("n_layer", ctx)
        # int32_t llama_restkv_layer_info(const struct llama_context * ctx, int32_t i,
        #     int32_t * n_head, int32_t * n_head_kv, int32_t * head_dim_k, int32_t * head_dim_v,
        #     int32_t * device);
        self.layer_info = self._checked("layer_info", ctx, C.c_int32, *[I32_OUT] * 5)
        # int32_t llama_restkv_capacity(const struct llama_context * ctx);
        self.capacity = self._checked("capacity", ctx)
        # int32_t llama_restkv_used(const struct llama_context * ctx);
        self.used = self._checked("used", ctx)
        # int32_t llama_restkv_room(const struct llama_context * ctx);
        self.room = self._checked("room", ctx)
        # int64_t llama_restkv_bytes(const struct llama_context * ctx, int32_t kind);
        self.bytes = self._checked("bytes", ctx, C.c_int32, result=C.c_int64)
        # int32_t llama_restkv_v_rotated(const struct llama_context * ctx);
        self.v_rotated = self._checked("v_rotated", ctx)
        # int32_t llama_restkv_k_rotated(const struct llama_context * ctx);
        self.k_rotated = self._checked("k_rotated", ctx)
        # int32_t llama_restkv_n_observed(const struct llama_context * ctx);
        self.n_observed = self._checked("n_observed", ctx)
        # int32_t llama_restkv_clear(struct llama_context * ctx);
        self.clear = self._checked("clear", ctx)
        # int32_t llama_restkv_set_factors(struct llama_context * ctx, int32_t i, const float * factors);
        self.set_factors = self._checked("set_factors", ctx, C.c_int32, F32_ARRAY)
        # int32_t llama_restkv_score(struct llama_context * ctx, int32_t flags, int32_t n_window,
        #     int32_t n_skip, int32_t n_weights, const float * weights, float tau, int32_t top_k,
        #     const float * positions, float * attention, float * metric, float * drift);
        self.score = self._checked(
            "score", ctx, *[C.c_int32] * 4, F32_ARRAY, C.c_float, C.c_int32,
            F32_OR_NULL, F32_ARRAY, F32_OR_NULL, F32_OR_NULL,
        )  # fmt: skip
        # int32_t llama_restkv_key_direction(struct llama_context * ctx, float * cosine);
        self.key_direction = self._checked("key_direction", ctx, F32_ARRAY)
        # int32_t llama_restkv_query_moments(struct llama_context * ctx, int32_t n_window,
        #     int32_t n_skip, const float * basis, float * first, float * second);
        self.query_moments = self._checked(
            "query_moments", ctx, C.c_int32, C.c_int32, F32_OR_NULL, F32_ARRAY, F32_ARRAY
        )
        # int32_t llama_restkv_mean_rotation(struct llama_context * ctx, int32_t i, llama_pos pos,
        #     int32_t n, float * rotation);
        self.mean_rotation = self._checked("mean_rotation", ctx, *[C.c_int32] * 3, F32_ARRAY)
        # int32_t llama_restkv_expected(struct llama_context * ctx, const float * mean,
        #     const float * root, float * logits);
        self.expected = self._checked("expected", ctx, *[F32_ARRAY] * 3)
        # int32_t llama_restkv_compact(struct llama_context * ctx, const int32_t * n_keep,
        #     const int32_t * keep, const int32_t * shift, llama_pos pos);
        self.compact = self._checked("compact", ctx, I32_ARRAY, I32_ARRAY, I32_OR_NULL, C.c_int32)
        # int64_t llama_restkv_state_size(const struct llama_context * ctx);
        self.state_size = self._checked("state_size", ctx, result=C.c_int64)
        # int32_t llama_restkv_state_get(struct llama_context * ctx, void * data, int64_t size);
        self.state_get = self._checked("state_get", ctx, C.c_void_p, C.c_int64)
        # int32_t llama_restkv_state_set(struct llama_context * ctx, const void * data, int64_t size);
        self.state_set = self._checked("state_set", ctx, C.c_char_p, C.c_int64)
        # int32_t llama_restkv_state_rows(const struct llama_context * ctx, const void * data,
        #     int64_t size, int32_t * n_rows);
        self.state_rows = self._checked("state_rows", ctx, C.c_char_p, C.c_int64, I32_ARRAY)
        # int32_t llama_restkv_read(struct llama_context * ctx, int32_t i, int32_t tensor,
        #     int32_t n_window, float * out);
        self.read = self._checked("read", ctx, *[C.c_int32] * 3, F32_ARRAY)
        # int32_t llama_restkv_attention_params(const struct llama_context * ctx, int32_t i,
        #     float * scale, float * softcap, int32_t * has_sinks);
        self.attention_params = self._checked(
            "attention_params", ctx, C.c_int32, F32_OUT, F32_OUT, I32_OUT
        )

    def _checked(self, name: str, *types: Any, result: Any = C.c_int32) -> Any:
        function = getattr(self._library, f"llama_restkv_{name}")
        function.argtypes = types
        function.restype = result

        def call(*args: Any) -> int:
            status: int = function(*args)
            if status < 0:
                reason = self._library.llama_restkv_last_error().decode()
                raise NativeError(f"llama_restkv_{name} failed ({status}): {reason}", status)
            return status

        return call

    def _void(self, name: str, *types: Any) -> Any:
        function = getattr(self._library, f"llama_restkv_{name}")
        function.argtypes = types
        function.restype = None
        return function
