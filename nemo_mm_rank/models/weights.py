"""Where a model's weights come from: a folder or the Hugging Face hub, safetensors only, nothing made up."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from nemo_mm_rank.errors import ModelError, nearest, require

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
UNUSED = (*PICKLES, "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf", "onnx/*", "openvino/*")
"""What is never downloaded: pickles can run code when opened, and the rest is for other frameworks."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SAFETENSORS = "*.safetensors"
WEIGHTS_AND_SETTINGS = {".safetensors", ".json", ".txt", ".model", ".jinja", ".py"}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError)
"""What libraries raise over settings and weights that do not fit them or each other."""


def resolve(path: str, revision: str | None = None, ignore: Sequence[str] = (), code: bool = False) -> Path:
    """Return the folder of a model, downloading it from the hub where ``path`` is no local folder.

    With ``HF_HUB_OFFLINE=1`` in the environment the hub's local cache is all there is.

    Args:
        path: a local folder, or ``owner/name`` on the hub.
        revision: branch, tag or commit on the hub.
        ignore: patterns of further files that are not downloaded.
        code: download the code that comes with the model as well.

    Raises:
        ModelError: neither a folder nor a model on the hub, no weights, or weights that are pickles.
    """
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"{path} is a folder: it has no revision {revision!r}")
    else:
        folder = _download(path, revision, [*UNUSED, *ignore, *([] if code else ["*.py"])])
    refuse_pickles(folder, path)
    if not any(folder.rglob(SAFETENSORS)):
        raise ModelError(f"{path}: contains no safetensors weights, and no other weights are loaded")
    return folder


def refuse_pickles(folder: Path, path: str) -> None:
    """Refuse weights that can run code: a pickle with no safetensors beside it, which are what is read otherwise.

    Raises:
        ModelError: naming the first of them below ``folder``, which the user calls ``path``.
    """
    for pickle in sorted(file for pattern in PICKLES for file in folder.rglob(pattern)):
        if not any(pickle.parent.glob(SAFETENSORS)):
            raise ModelError(
                f"{path}: {pickle.relative_to(folder)} is a pickle, which can run code when it is opened; "
                "only safetensors weights are loaded"
            )


def _download(path: str, revision: str | None, ignore: list[str]) -> Path:
    if not HUB_NAME.fullmatch(path):
        raise ModelError(f"{path}: there is no such folder, and it is not the name of a model on the hub")
    download = require("huggingface_hub", "models").snapshot_download
    try:
        return Path(download(path, revision=revision, ignore_patterns=ignore))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: there is no such folder, and it cannot be downloaded from the hub: {one_line(error)}"
        ) from error


def folder_revision(folder: Path) -> str:
    """Return the commit of a snapshot from the hub, or a digest of the files that make a model what it is."""
    if folder.parent.name == "snapshots":
        return folder.name
    files = sorted(file for file in folder.rglob("*") if file.suffix in WEIGHTS_AND_SETTINGS and file.is_file())
    return _digest(folder, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _digest(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:40]


def pick_dtype(dtype: str | None, device: str) -> torch.dtype:
    """Return what a model computes in: ``dtype``, or else float32 on a CPU and bfloat16 elsewhere.

    Raises:
        ModelError: naming the nearest type that there is.
    """
    if dtype is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}{nearest(dtype, DTYPES)}")
    return DTYPES[dtype]


def loading_arguments(trust_remote_code: bool = False) -> dict[str, Any]:
    """Return what every ``from_pretrained`` of transformers is told: what lies in the folder, and no pickle of it."""
    return {"use_safetensors": True, "local_files_only": True, "trust_remote_code": trust_remote_code}


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Turn what a library raises over a folder that is not what it should be into one line.

    Raises:
        ModelError: naming ``path``.
    """
    try:
        yield
    except (*UNREADABLE, SafetensorError) as error:
        raise ModelError(f"{path}: {one_line(error)}") from error


def load_pretrained(
    model_class: Any,
    folder: Path,
    path: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Any:
    """Load a transformers model whole: ready to run, and with every weight from the folder.

    Args:
        model_class: a model class of transformers, or one of its ``Auto`` classes.
        folder: from `resolve`.
        path: what the user calls it.
        device: where it is put.
        dtype: what it computes in.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: it does not load, or lacks weights, which the library would make up at random.
    """
    with opening(path):
        model, info = model_class.from_pretrained(
            str(folder), dtype=dtype, output_loading_info=True, **loading_arguments(trust_remote_code)
        )
    if lacking := sorted(map(str, info["missing_keys"])):
        raise ModelError(
            f"{path}: its files hold no weights for {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''} "
            f"({len(lacking)} missing): not the weights of {type(model).__name__}"
        )
    return model.to(device).eval()


def load_processor(kind: Any, folder: Path, path: str, trust_remote_code: bool = False) -> Any:
    """Load what prepares a transformers model's inputs.

    Args:
        kind: a processor or tokenizer class of transformers, or one of its ``Auto`` classes.
        folder: from `resolve`.
        path: what the user calls it.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: it does not load.
    """
    # As 5 does in any case: 4 would take the height of a picture of three rows for its colours.
    fast = {"use_fast": True} if library_version() < (5, 0) else {}
    with opening(path):
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code, **fast)


def library_version() -> tuple[int, int]:
    """Return the version of transformers."""
    major, minor = map(int, require("transformers", "models").__version__.split(".")[:2])
    return major, minor


def check_version(path: str, least: tuple[int, int], why: str) -> None:
    """Check that transformers is new enough for a model.

    Raises:
        ModelError: it is not; with ``why`` that matters.
    """
    if library_version() < least:
        wanted, there = ".".join(map(str, least)), require("transformers", "models").__version__
        raise ModelError(
            f"{path}: this model needs transformers {wanted} or later, {why}, not {there}: "
            f"pip install 'transformers>={wanted}'"
        )


def chat_class(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the class of transformers for a model that reads a chat: 5 has one for all, in 4 the model says which."""
    library = require("transformers", "models")
    if library_version() >= (5, 0):
        return library.AutoModelForMultimodalLM
    config = library.AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    return getattr(library, next(iter(config.architectures or ()), ""), library.AutoModelForImageTextToText)


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    said = " ".join(str(error).split())
    return f"there is no {said}" if isinstance(error, KeyError) else said
