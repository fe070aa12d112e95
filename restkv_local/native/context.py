"""One model, one context with a KV pool, and every native call made on them."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from restkv_local.errors import CacheFullError, InputError, ModelError, NativeError
from restkv_local.native import _bindings, _library, _log
from restkv_local.native._ownership import free_with
from restkv_local.native.sampler import Sampler
from restkv_local.native.worker import Worker
from restkv_local.types import F32, I32, I64, Bool

T = TypeVar("T")

# The most that a regular expression of llama.cpp matches at once: what holds no space, then spaces. \x1c to \x1f
# are spaces to Python alone.
_RUN = re.compile(r"[\S\x1c-\x1f]*[^\S\x1c-\x1f]*")
# std::regex recurses once for each character that it matches: 326 bytes of stack, measured with g++ 12.
_STACK_PER_CHARACTER = 512

_MOST_ROWS = 2**31 - 1  # what C's int holds; ctypes would cut more off in silence


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of the pool: model layer ``il``, its head counts and head sizes, and which device's rows are its."""

    il: int
    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    device: int


class _Closed:
    """Stands for the libraries once the model is gone."""

    def __getattr__(self, name: str) -> Any:
        """Refuse whatever is called."""
        raise InputError("the model was closed: make a new Llama")


class _Owned:
    """What was made for a :class:`NativeContext`, and what works on it; freed with it."""

    def __init__(self) -> None:
        self.llama: Any = _library.load()
        self.restkv: Any = _bindings.Bindings(self.llama._lib)
        self.worker = Worker()
        self.ctx: Any = None
        self.memory: Any = None
        self.model: Any = None

    def free_context(self) -> None:
        ctx, self.ctx, self.memory = self.ctx, None, None
        if ctx:
            self.llama.llama_free(ctx)

    def free(self) -> None:
        self.free_context()  # before its model
        llama, worker, model = self.llama, self.worker, self.model
        # A call with pointers that are no longer any would end the process. Where a cycle of references is collected
        # that has an open stream in it, the stream is closed after this.
        closed: Any = _Closed()
        self.llama = self.restkv = self.worker = closed
        self.model = None
        if model:
            llama.llama_model_free(model)
        worker.end()


class NativeContext:
    """A loaded model and, once opened, one context whose full-attention layers keep their rows in a pool.

    Parameters
    ----------
    path : Path
        GGUF file; check it with ``model_file.read_model`` first, llama.cpp aborts on some broken ones.
    n_gpu_layers : int
        Layers whose weights and rows live on the GPU; -1 for all.
    verbose : bool
        Show llama.cpp's log on stderr.

    Raises
    ------
    ModelError
        If llama.cpp cannot load the model.
    InputError
        By every call after :meth:`close`.
    """

    def __init__(self, path: Path, *, n_gpu_layers: int = 0, verbose: bool = False) -> None:
        self._own = _Owned()
        self._free = free_with(self, self._own.free)
        _log.listen(self._llama, verbose=verbose)
        try:
            self._load_model(path, n_gpu_layers)
        except BaseException:
            self.close()
            raise
        self._vocab = self._llama.llama_model_get_vocab(self._own.model)
        self.n_vocab: int = self._llama.llama_vocab_n_tokens(self._vocab)
        self.capacity = 0
        self._n_ubatch = 0
        self._has_logits = False
        # Bytes that the backends gave for a context; remembered, so that any thread may ask.
        self.held = dict.fromkeys(_bindings.BYTES, 0)
        self.layers: list[LayerInfo] = []
        self.v_rotated = False
        self.k_block = 0  # K is stored rotated in blocks of this many values; 0: as it is

    def open(
        self,
        n_rows: int,
        *,
        n_slots: int | None = None,
        n_ring: int,
        n_ubatch: int,
        n_threads: int,
        type_k: str,
        type_v: str,
        unturned: Collection[int] = (),
    ) -> None:
        """Make an empty context; one that was open before is freed first.

        Parameters
        ----------
        n_rows : int
            Rows per segment on average. llama.cpp rounds up to a multiple of 256: ``capacity`` says what it
            became.
        n_slots : int, optional
            Rows that a single segment may grow to at the others' expense. None: all segments are equal.
        n_ring : int
            Observed queries kept per layer.
        n_ubatch : int
            Most tokens that one decode takes.
        unturned : collection of int
            Model layers whose graph leaves RoPE out.

        Raises
        ------
        NativeError
            If the context or its pool cannot be made.
        """
        self.release()
        if max(n_rows, n_slots or 0, n_ring, n_ubatch) > _MOST_ROWS:
            raise NativeError(
                f"a cache has at most {_MOST_ROWS:,} rows, slots and observed queries per layer and head; got"
                f" n_rows={n_rows:,}, n_slots={n_slots or n_rows:,}, n_ring={n_ring:,}"
            )
        llama = self._llama
        params = llama.llama_context_default_params()
        params.n_ctx = n_rows if n_slots is None else n_slots
        params.n_batch = params.n_ubatch = n_ubatch
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = _ggml_type(type_k)
        params.type_v = _ggml_type(type_v)
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = True
        params.swa_full = False
        params.no_perf = True

        def make() -> None:
            # Armed on the thread that creates the context: the flag is thread-local.
            self._restkv.arm(n_ring, 0 if n_slots is None else n_rows)
            _log.forget()
            try:
                self._own.ctx = llama.llama_init_from_model(self._own.model, params)
            finally:
                self._restkv.disarm()
            if not self._ctx:
                raise NativeError(
                    f"llama.cpp cannot make a context with {n_rows} rows per layer and head: {_log.reason()}"
                )
            self._restkv.attach(self._ctx)
            self._own.memory = llama.llama_get_memory(self._ctx)
            self._n_ubatch = n_ubatch
            self.layers = self._layer_infos()
            for i, layer in enumerate(self.layers):
                if layer.il in unturned:
                    self._restkv.set_turned(self._ctx, i, False)
            self.v_rotated = bool(self._restkv.v_rotated(self._ctx))
            self.k_block = self._restkv.k_rotated(self._ctx)
            self.held = {
                name: int(self._restkv.bytes(self._ctx, kind))
                for name, kind in _bindings.BYTES.items()
            }
            self.capacity = self._restkv.capacity(self._ctx)

        try:
            self.finish(make)  # all of it: what is there must be found again to be freed
        except NativeError:
            self.release()
            raise

    def _load_model(self, path: Path, n_gpu_layers: int) -> None:
        llama = self._llama
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers

        def load() -> str:
            _log.forget()
            self._own.model = llama.llama_model_load_from_file(os.fsencode(path), params)
            return _log.reason()

        reason = self.finish(load)  # loading cannot be stopped half way
        if not self._own.model:
            raise ModelError(f"llama.cpp cannot load {path}: {reason}")

    def _layer_infos(self) -> list[LayerInfo]:
        infos = []
        for i in range(self._restkv.n_layer(self._ctx)):
            out = [ctypes.c_int32() for _ in range(5)]
            il = self._restkv.layer_info(self._ctx, i, *[ctypes.byref(value) for value in out])
            infos.append(LayerInfo(il, *[value.value for value in out]))
        return infos

    def close(self) -> None:
        """Free the context, then the model; calling it again does nothing."""
        if isinstance(self._llama, _Closed) or self._worker.is_elsewhere:
            return  # a fork frees nothing of its parent's
        worker, self.capacity = self._worker, 0
        try:
            self.finish(self._free)
        finally:  # Ctrl-C too
            worker.close()

    def release(self) -> None:
        """Free the context, rows and all; the model stays, for :meth:`open`."""
        if self._ctx:
            self.finish(self._free_context)

    def _free_context(self) -> None:
        self.capacity = 0
        self._has_logits = False
        self._own.free_context()

    @property
    def _llama(self) -> Any:
        return self._own.llama

    @property
    def _restkv(self) -> Any:
        return self._own.restkv

    @property
    def _worker(self) -> Worker:
        return self._own.worker

    @property
    def _ctx(self) -> Any:
        return self._own.ctx

    @property
    def _memory(self) -> Any:
        return self._own.memory

    def _run(self, call: Callable[[], T]) -> T:
        """Run ``call`` on the worker; Ctrl-C stops it and is raised once the worker is idle again."""
        aborted = False
        if self._ctx:
            self._restkv.abort(self._ctx, False)  # Ctrl-C may have come before it was taken back

        def abort() -> None:
            nonlocal aborted
            if self._ctx:
                aborted = True
                self._restkv.abort(self._ctx, True)

        try:
            return self._worker.run(call, on_interrupt=abort)
        except NativeError:
            if aborted:
                raise KeyboardInterrupt from None
            raise
        finally:
            if aborted:
                self._restkv.abort(self._ctx, False)

    def finish(self, call: Callable[[], T]) -> T:
        """Run ``call``, native calls in it included, to its end; Ctrl-C is raised afterwards."""
        return self._worker.run(call, on_interrupt=lambda: None)

    # Text and tokens

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """Return the tokens of ``text``; ``add_special`` adds what the vocabulary asks for (BOS).

        Raises
        ------
        InputError
            If :meth:`encode` refuses it.
        """
        data = self.encode(text)

        def take(n_slots: int) -> tuple[int, Any]:
            tokens = (self._llama.llama_token * n_slots)()
            n = self._llama.llama_tokenize(
                self._vocab, data, len(data), tokens, n_slots, add_special, parse_special
            )
            return n, tokens

        n, tokens = self.finish(lambda: take(len(data) + 8))
        if n < 0:  # -n are needed: without a token for the space, each becomes three
            n, tokens = self.finish(lambda: take(-n))
        if n < 0:
            raise NativeError(f"llama_tokenize failed ({n}) on a text of {len(data)} bytes")
        return list(tokens[:n])

    @property
    def offloads(self) -> bool:
        """Whether there is a device other than the CPU that layers can live on."""
        return bool(self._llama.llama_supports_gpu_offload())

    @property
    def bos(self) -> int | None:
        """Token that the vocabulary puts before a text; None where it puts none."""
        llama = self._llama
        adds = llama.llama_vocab_get_add_bos(self._vocab)
        return int(llama.llama_vocab_bos(self._vocab)) if adds else None

    def encode(self, text: str) -> bytes:
        """Return a text as llama.cpp takes it.

        Raises
        ------
        InputError
            If it holds a lone surrogate, as a byte becomes that was no UTF-8, or so much comes without a break
            that llama.cpp would run out of stack and end the process.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds what is no character at place {error.start + 1}"
                f" ({text[error.start]!r}): give it as UTF-8"
            ) from error
        longest = self._worker.stack_bytes // _STACK_PER_CHARACTER
        if len(text) > longest:
            run = max(len(match.group()) for match in _RUN.finditer(text))
            if run > longest:
                raise InputError(
                    f"the text has {run} characters in a row without a break, llama.cpp has stack for"
                    f" {longest}: put a space or a line break between words"
                )
        return data

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token; they may end inside a UTF-8 character.

        Raises
        ------
        InputError
            If there is no such token; llama.cpp would end the process.
        """
        if not 0 <= token < self.n_vocab:
            raise InputError(f"there is no token {token}: tokens are 0 to {self.n_vocab - 1}")
        buffer = ctypes.create_string_buffer(256)
        n = self._llama.llama_token_to_piece(self._vocab, token, buffer, 256, 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._llama.llama_token_to_piece(self._vocab, token, buffer, -n, 0, special)
        return buffer.raw[:n]

    def is_eog(self, token: int) -> bool:
        """Tell whether ``token`` ends a generation."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def metadata(self, key: str) -> str | None:
        """Return a string of the GGUF's metadata as llama.cpp gives it, or None."""
        size = 1 << 16
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._llama.llama_model_meta_val_str(self._own.model, key.encode(), buffer, size)
            if n < 0:
                return None
            if n < size:
                return buffer.value.decode(errors="replace")
            size = n + 1

    def special_token(self, name: str) -> str:
        """Return the text of the ``bos`` or ``eos`` token, empty if the vocabulary has none."""
        token = getattr(self._llama, f"llama_vocab_{name}")(self._vocab)
        return "" if token < 0 else self.piece(token, special=True).decode(errors="replace")

    def special_token_id(self, name: str) -> int:
        """Return the number of the ``bos``, ``eos`` or ``nl`` token, -1 if the vocabulary has none."""
        return int(getattr(self._llama, f"llama_vocab_{name}")(self._vocab))

    # Decoding

    def decode(self, tokens: Sequence[int], *, probe: bool = False) -> None:
        """Read tokens after the newest row; logits of the last one are ready afterwards.

        A probe, which the caller removes again, is read faster: what comes out need not be llama.cpp's to the bit.

        Raises
        ------
        CacheFullError
            If the rows left are fewer than the tokens.
        KeyboardInterrupt
            On Ctrl-C: none of these tokens is in the cache then.
        """
        if self._ctx and len(tokens) > self._n_ubatch:  # llama.cpp would end the process
            raise NativeError(
                f"{len(tokens)} tokens are more than n_ubatch={self._n_ubatch} at once"
            )
        array = np.array(tokens, np.int32)
        used = self.used

        def read() -> int:
            _log.forget()
            try:
                return int(self._restkv.decode(self._opened, array, len(array), probe))
            except NativeError as error:
                if error.status != _bindings.FAILED:
                    raise
                raise NativeError(f"{error}: {_log.reason()}", error.status) from None

        try:
            status = self._run(read)
        except (KeyboardInterrupt, NativeError):
            # Ctrl-C may have come too late to stop the last of the work, or memory ended in the middle.
            self.remove_tail(self.used - used)
            raise
        if status == 1:
            raise CacheFullError(
                f"no room for {len(tokens)} tokens: {self.used} of {self.capacity} rows in use"
            )
        if status == 2:
            raise KeyboardInterrupt
        self._has_logits = True

    def logits(self) -> F32:
        """Return the logits of the newest token, shape (n_vocab,): a view, valid until the next decode.

        Raises
        ------
        NativeError
            If nothing was decoded yet; rows put in place by :meth:`set_state` come without logits, and a cache that was
            cleared has none.
        """
        logits = self.find_logits()
        if logits is None:
            raise NativeError("there are no logits: nothing was decoded yet")
        return logits

    def find_logits(self) -> F32 | None:
        """Return what :meth:`logits` does, None if nothing was decoded yet."""
        # llama.cpp itself returns what it computed last, of whatever text.
        pointer = self._llama.llama_get_logits_ith(self._opened, -1)
        if not pointer or not self._has_logits:
            return None
        logits: F32 = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
        return logits

    def make_sampler(self, **options: Any) -> Sampler:
        """Return a :class:`Sampler` of this library and vocabulary with these options; close it after use."""
        return Sampler(self._llama, self._vocab, owner=self, **options)

    def remove_tail(self, n: int) -> None:
        """Remove the newest ``n`` rows, e.g. a probe."""
        if n > 0:
            self._llama.llama_memory_seq_rm(self._memory, 0, self.position - n + 1, -1)

    def clear(self) -> None:
        """Forget every row."""
        self._has_logits = False
        self._restkv.clear(self._ctx)

    @property
    def used(self) -> int:
        """Slots in use: the rows of the fullest segment."""
        return int(self._restkv.used(self._ctx))

    @property
    def room(self) -> int:
        """Tokens that every segment still has a row for."""
        return int(self._restkv.room(self._ctx))

    @property
    def n_observed(self) -> int:
        """Newest queries that can serve as a window."""
        return int(self._restkv.n_observed(self._ctx))

    @property
    def position(self) -> int:
        """Position of the newest row as the model sees it, -1 when empty."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, 0)) if self._opened else -1

    @property
    def _opened(self) -> Any:
        """The context; without one llama.cpp would end the process."""
        if not self._ctx and not isinstance(self._llama, _Closed):
            raise NativeError("there is no cache: open one first")
        return self._ctx

    # Scoring and compaction

    def set_factors(self, layer: int, factors: F32) -> None:
        """Upload the output factors of pool layer ``layer``: (n_head, d, d), applied as ``value @ factor``."""
        self._restkv.set_factors(
            self._ctx, layer, np.ascontiguousarray(factors.transpose(0, 2, 1), dtype=np.float32)
        )

    def score(
        self,
        *,
        flags: int,
        weights: F32,
        n_skip: int = 0,
        tau: float = 1.0,
        top_k: int = 0,
        positions: Sequence[I32] | None = None,
    ) -> tuple[list[F32], list[F32] | None, list[F32] | None]:
        """Run ``llama_restkv_score`` for all pool layers.

        Parameters
        ----------
        flags : int
            ``_bindings.MAX`` and its neighbours, or-ed.
        weights : ndarray of shape (n_weights, n_window)
            Linear reductions over the window, oldest query first.
        n_skip : int
            Queries newer than the window.
        positions : list of ndarray of shape (n_head_kv, n_used), optional
            True positions per layer, for DRIFT.

        Returns
        -------
        attention : list of ndarray of shape (n_weights + flagged rows, n_head, n_used)
        metric : list of ndarray of shape (n_head, n_used), or None
        drift : list of ndarray of shape (n_head, n_window), or None
        """
        n_used = self.used
        n_weights, n_window = weights.shape
        n_rows = n_weights + sum(bool(flags & flag) for flag in _bindings.ROWS.values())
        heads = [layer.n_head for layer in self.layers]
        attention = np.empty(n_rows * sum(heads) * n_used, np.float32)
        metric = drift = flat = None
        if flags & _bindings.METRICS:
            metric = np.empty(sum(heads) * n_used, np.float32)
        if flags & _bindings.DRIFT:
            assert positions is not None
            drift = np.empty(sum(heads) * n_window, np.float32)
            flat = np.concatenate([layer.ravel() for layer in positions]).astype(np.float32)
            if flat.size != n_used * sum(layer.n_head_kv for layer in self.layers):
                raise NativeError(f"{flat.size} positions are not those of {n_used} slots")
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        self._run(
            lambda: self._restkv.score(
                self._ctx, flags, n_window, n_skip, n_weights, weights, tau, top_k,
                flat, attention, metric, drift,
            )
        )  # fmt: skip

        def split(array: F32, rows: int, width: int) -> list[F32]:
            ends = np.cumsum([rows * head * width for head in heads])[:-1]
            parts = np.split(array, ends)
            return [
                part.reshape(rows, head, width) for part, head in zip(parts, heads, strict=True)
            ]

        return (
            split(attention, n_rows, n_used),
            None if metric is None else [part[0] for part in split(metric, 1, n_used)],
            None if drift is None else [part[0] for part in split(drift, 1, n_window)],
        )

    def key_direction(self) -> F32:
        """Return the cosine of each key to its head's mean direction: (n_layer, n_head_kv, n_used)."""
        out = np.empty((len(self.layers), self.layers[0].n_head_kv, self.used), np.float32)
        if self.used:
            self._run(lambda: self._restkv.key_direction(self._ctx, out))
        return out

    def query_moments(self, n_window: int, n_skip: int, basis: F32 | None) -> tuple[F32, F32]:
        """Sum ``q`` and ``q q'`` of observed queries, the newest but ``n_skip``, as they were before RoPE.

        Parameters
        ----------
        basis : ndarray of shape (d, d), optional
            Multiplies queries first, to undo the rotation of keys stored rotated.

        Returns
        -------
        first : ndarray of shape (n_layer, n_head, d)
        second : ndarray of shape (n_layer, n_head, d, d)
        """
        layer = self.layers[0]
        shape = (len(self.layers), layer.n_head, layer.head_dim_k)
        first = np.empty(shape, np.float32)
        second = np.empty((*shape, layer.head_dim_k), np.float32)
        self._run(
            lambda: self._restkv.query_moments(self._ctx, n_window, n_skip, basis, first, second)
        )
        return first, second

    def mean_rotation(self, layer: int, position: int, n: int) -> F32:
        """Return the mean RoPE matrix of ``n`` positions from ``position`` on, ``R @ x``: (d, d)."""
        d = self.layers[layer].head_dim_k
        out = np.empty((d, d), np.float32)
        self._run(lambda: self._restkv.mean_rotation(self._ctx, layer, position, n, out))
        return out.T

    def expected(self, mean: F32, root: F32) -> F32:
        """Return logits ``mean k + sum_r (root_r k)**2`` of every key: (n_layer, n_head, n_used).

        Parameters
        ----------
        mean : ndarray of shape (n_layer, n_head, d)
        root : ndarray of shape (n_layer, n_head, d, d)
        """
        mean = np.ascontiguousarray(mean, dtype=np.float32)
        root = np.ascontiguousarray(root, dtype=np.float32)
        out = np.empty((*mean.shape[:2], self.used), np.float32)
        self._run(lambda: self._restkv.expected(self._ctx, mean, root, out))
        return out

    def compact(self, keep: Bool, shift: I32 | I64 | None, position: int) -> None:
        """Move the survivors together, all layers or none.

        Parameters
        ----------
        keep : ndarray of shape (n_layer, n_head_kv, n_used), bool
            True for the slots that stay.
        shift : ndarray of integers, or None
            Positions to add to the rotation of each surviving key, in the order of ``keep``.
        position : int
            Position of the newest row afterwards.
        """
        n_keep = np.count_nonzero(keep, axis=-1).astype(np.int32)
        slots = (np.flatnonzero(keep) % keep.shape[-1]).astype(np.int32)
        if shift is not None:
            shift = np.ascontiguousarray(shift, dtype=np.int32)
        self._run(lambda: self._restkv.compact(self._ctx, n_keep, slots, shift, position))

    def state(self) -> bytes:
        """Return the sequence as bytes: rows, position of the newest one, observed queries.

        Raises
        ------
        NativeError
            For models with sliding-window layers.
        """
        size = self._restkv.state_size(self._ctx)
        buffer = bytearray(size)
        view = (ctypes.c_char * size).from_buffer(buffer)
        self._run(lambda: self._restkv.state_get(self._ctx, ctypes.addressof(view), size))
        return bytes(buffer)

    def state_rows(self, state: bytes) -> I32:
        """Return how many rows each layer and KV head has in what :meth:`state` returned: (n_layer, n_head_kv).

        Raises
        ------
        NativeError
            Where :meth:`set_state` would refuse the bytes.
        """
        n_rows = np.zeros((len(self.layers), self.layers[0].n_head_kv), np.int32)
        self._restkv.state_rows(self._ctx, state, len(state), n_rows)
        return n_rows

    def set_state(self, state: bytes) -> None:
        """Replace the sequence by one that :meth:`state` returned.

        Raises
        ------
        NativeError
            If the bytes are damaged or belong to another model, KV type or ring; nothing has changed then.
        """
        self._run(lambda: self._restkv.state_set(self._ctx, state, len(state)))
        self._has_logits = False

    def read(self, layer: int, tensor: str, n_window: int = 0) -> F32:
        """Return one tensor of pool layer ``layer`` as float32, for the NumPy oracle.

        Parameters
        ----------
        tensor : {"k", "v", "q"}
            K or V of shape (n_head_kv, n_used, head_dim), or the newest ``n_window`` queries of shape
            (n_head, n_window, head_dim). Rotated where the cache stores them rotated.
        """
        info = self.layers[layer]
        if tensor == "q":
            out = np.empty((n_window, info.n_head, info.head_dim_k), np.float32)
        else:
            head_dim = info.head_dim_k if tensor == "k" else info.head_dim_v
            out = np.empty((info.n_head_kv, self.used, head_dim), np.float32)
        self._restkv.read(self._ctx, layer, _bindings.TENSORS[tensor], n_window, out)
        return out.transpose(1, 0, 2) if tensor == "q" else out

    def attention_params(self, layer: int) -> tuple[float, float, bool]:
        """Return scale, soft-cap (0: none) and whether attention sinks exist, as the graph passed them."""
        scale, softcap, sinks = ctypes.c_float(), ctypes.c_float(), ctypes.c_int32()
        self._restkv.attention_params(
            self._ctx, layer, ctypes.byref(scale), ctypes.byref(softcap), ctypes.byref(sinks)
        )
        return scale.value, softcap.value, bool(sinks.value)


def _ggml_type(name: str) -> int:
    # The bindings name only the types of weights; these five numbers are ggml's.
    types = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
    return types[name]
