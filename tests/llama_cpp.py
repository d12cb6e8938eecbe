"""Real llama.cpp in this process, through the C functions that xllamacpp's library carries: tokens in, logits out.

Parameters are passed by value in structures whose fields change between versions; here they are opaque bytes, taken
from the library's own defaults, with the first fields of the context set (n_ctx, n_batch, n_ubatch).
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

BYTES = 1024  # more than either structure has


class Opaque(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint8 * BYTES),)


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


@cache
def library() -> Any:
    import xllamacpp

    found = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("llama_model_default_params", Opaque, []),
        ("llama_context_default_params", Opaque, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Opaque]),
        ("llama_init_from_model", pointer, [pointer, Opaque]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_set_n_threads", None, [pointer, ctypes.c_int32, ctypes.c_int32]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_batch_init", Batch, [ctypes.c_int32] * 3),
        ("llama_batch_free", None, [Batch]),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    tokenize = found.llama_tokenize
    tokenize.restype = ctypes.c_int32
    tokenize.argtypes = [
        pointer,
        ctypes.c_char_p,
        ctypes.c_int32,
        pointer,
        ctypes.c_int32,
        ctypes.c_bool,
        ctypes.c_bool,
    ]
    found.llama_log_set.argtypes = [pointer, pointer]
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
    found.kept_alive = silent
    found.llama_log_set(silent, None)
    found.llama_backend_init()
    return found


class LlamaCpp:
    """A GGUF file as llama.cpp runs it, on the CPU."""

    def __init__(self, path: Path, window_tokens: int) -> None:
        self.lib = library()
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        assert self.model, f"llama.cpp cannot load {path}"
        parameters = self.lib.llama_context_default_params()
        sizes = ctypes.cast(ctypes.pointer(parameters), ctypes.POINTER(ctypes.c_uint32))
        for field in range(3):  # n_ctx, n_batch, n_ubatch
            sizes[field] = max(window_tokens, 64)
        self.context = self.lib.llama_init_from_model(self.model, parameters)
        threads = torch.get_num_threads()  # its own four wait for each other in loops where cores are fewer
        self.lib.llama_set_n_threads(self.context, threads, threads)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocab)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """[tokens, vocabulary] float32, of one sequence from its beginning."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = int(token), place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        assert self.lib.llama_decode(self.context, batch) == 0
        found = np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (len(tokens), self.size)).copy()
        self.lib.llama_batch_free(batch)
        return found

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; `special` adds what the model puts around a text."""
        data = text.encode()
        room = len(data) + 16
        out = (ctypes.c_int32 * room)()
        count = self.lib.llama_tokenize(
            self.vocab, data, len(data), ctypes.cast(out, ctypes.c_void_p), room, special, False
        )
        assert count >= 0
        return list(out[:count])

    def close(self) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)
