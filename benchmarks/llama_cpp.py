"""llama.cpp as a peer, through its own library: `LlamaCpp(folder, "model.gguf")`.

The folder holds a prebuilt libllama, such as that of the npm package @node-llama-cpp/linux-x64:

    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    export SLM_LLAMA_CPP=$PWD/package/bins/linux-x64

Called by ctypes. Its structures grow from version to version, so they are passed as blocks of bytes that are larger
than any of them, and the few fields that are set are first held against the defaults that they must have.
"""

import ctypes
import functools
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

VARIABLE = "SLM_LLAMA_CPP"
# Byte offsets in llama_context_params: the field's place and its default.
CONTEXT, BATCH, MICRO_BATCH, SEQUENCES = (0, 512), (4, 2048), (8, 512), (12, 1)
THREADS, THREADS_BATCH, FLASH, TYPE_K, TYPE_V = (28, 4), (32, 4), (52, -1), (104, 1), (108, 1)
F32 = 0


class _Block(ctypes.Structure):
    """A structure of llama.cpp by value; the ABI passes those of more than 16 bytes in memory."""

    _fields_ = (("bytes", ctypes.c_ubyte * 512),)

    def set(self, field: tuple[int, int], value: int) -> None:
        place, default = field
        found = struct.unpack_from("<i", self.bytes, place)[0]
        if found != default:
            raise RuntimeError(
                f"libllama has {found} at byte {place}, not {default}: it is of another version"
            )
        struct.pack_into("<i", self.bytes, place, value)


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def folder() -> Path | None:
    """Return the folder that the variable names, or None."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


@functools.cache
def library(path: Path) -> ctypes.CDLL:
    """Load libllama and its backends, without the messages that it prints."""
    ggml = ctypes.CDLL(str(next(path.glob("libggml.*so*"))), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(next(path.glob("libllama.*so*"))))
    llama.silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama.llama_log_set(llama.silence, None)
    ggml.ggml_backend_load_all_from_path(str(path).encode())
    pointers = ("model_load_from_file", "init_from_model", "model_get_vocab", "get_logits_ith", "get_memory")
    for name in pointers:
        getattr(llama, f"llama_{name}").restype = ctypes.c_void_p
    llama.llama_batch_init.restype = _Batch
    for name in ("model", "context"):
        getattr(llama, f"llama_{name}_default_params").restype = _Block
    llama.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Block]
    llama.llama_init_from_model.argtypes = [ctypes.c_void_p, _Block]
    llama.llama_decode.argtypes = [ctypes.c_void_p, _Batch]
    llama.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    llama.llama_memory_clear.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    llama.llama_batch_free.argtypes = [_Batch]
    for name in (
        "model_get_vocab",
        "get_memory",
        "free",
        "model_free",
        "vocab_n_tokens",
        "vocab_eos",
        "vocab_bos",
    ):
        getattr(llama, f"llama_{name}").argtypes = [ctypes.c_void_p]
    llama.llama_tokenize.argtypes = [
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32),
        *(ctypes.c_bool, ctypes.c_bool),
    ]
    return llama


class LlamaCpp:
    """A GGUF model in llama.cpp. With `exact`, keys and values are float32 and attention is not its fused one."""

    def __init__(
        self, path: Path, model: Path, *, context: int, rows: int = 1, threads: int = 1, exact: bool = False
    ):
        self.llama = library(path)
        self.model = self.llama.llama_model_load_from_file(
            str(model).encode(), self.llama.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        params = self.llama.llama_context_default_params()
        params.set(CONTEXT, context * rows)
        params.set(SEQUENCES, rows)
        params.set(THREADS, threads)
        params.set(THREADS_BATCH, threads)
        if exact:
            for field in (FLASH, TYPE_K, TYPE_V):
                params.set(field, F32)
        self.context = self.llama.llama_init_from_model(self.model, params)
        self.vocab = self.llama.llama_model_get_vocab(self.model)
        self.size = self.llama.llama_vocab_n_tokens(self.vocab)
        self.batch = self.llama.llama_batch_init(2048, 0, 1)

    def close(self) -> None:
        """Free everything."""
        self.llama.llama_batch_free(self.batch)
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text, without those that begin every text."""
        data = text.encode()
        found = (ctypes.c_int32 * (len(data) + 8))()
        count = self.llama.llama_tokenize(self.vocab, data, len(data), found, len(found), False, special)
        return list(found[:count])

    def clear(self) -> None:
        """Forget all keys and values."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def read(self, contexts: Sequence[Sequence[int]], start: int, *, every: bool = False) -> np.ndarray:
        """Return the logits (rows, V) after the last token of each row, whose first is at `start`; or after `every`."""
        batch, place, wanted = self.batch, 0, []
        for row, ids in enumerate(contexts):
            for number, id in enumerate(ids):
                batch.token[place], batch.pos[place] = id, start + number
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
                is_wanted = every or number == len(ids) - 1
                batch.logits[place] = is_wanted
                wanted += [place] if is_wanted else []
                place += 1
        batch.n_tokens = place
        if self.llama.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp cannot decode this batch")
        pointers = (self.llama.llama_get_logits_ith(self.context, each) for each in wanted)
        rows = [
            np.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(ctypes.c_float)), (self.size,))
            for p in pointers
        ]
        return np.stack(rows)

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Continue prompts of one length by `count` tokens each, all in one batch."""
        self.clear()
        start, new = len(prompts[0]), [[] for _ in prompts]
        logits = self.read(prompts, 0)
        for step in range(count):
            for row, id in zip(new, logits.argmax(-1).tolist(), strict=True):
                row.append(id)
            if step < count - 1:
                logits = self.read([row[-1:] for row in new], start + step)
        return new
