"""From a model's configuration to a loaded model: by short name or import path, once per process."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from nemo_mm_rank import imports
from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.errors import ConfigError, ModelError, PairError, UserError, nearest
from nemo_mm_rank.models.base import Describer, Encoder, Grounder, fulfil

SHORT_NAMES: dict[str, str] = {
    "hashed-text": "nemo_mm_rank.models.classical.text:HashedText",
    "image-features": "nemo_mm_rank.models.classical.image:ImageFeatures",
    "audio-features": "nemo_mm_rank.models.classical.audio:AudioFeatures",
    "video-features": "nemo_mm_rank.models.classical.video:VideoFeatures",
    "plain-words": "nemo_mm_rank.models.classical.describe:PlainWords",
    "sentence-transformers": "nemo_mm_rank.models.sentence_transformers:SentenceTransformersEncoder",
    "open-clip": "nemo_mm_rank.models.open_clip:OpenClipEncoder",
    "clip": "nemo_mm_rank.models.contrastive:ClipEncoder",
    "x-clip": "nemo_mm_rank.models.contrastive:XClipEncoder",
    "clap": "nemo_mm_rank.models.contrastive:ClapEncoder",
    "unite": "nemo_mm_rank.models.chat_models:UniteEncoder",
    "qwen-omni": "nemo_mm_rank.models.chat_models:QwenOmniEncoder",
    "omni-embed": "nemo_mm_rank.models.chat_models:OmniEmbedEncoder",
    "openai": "nemo_mm_rank.models.endpoint:EndpointDescriber",
    "vision-language": "nemo_mm_rank.models.vision_language:VisionLanguageDescriber",
    "visual-dependency": "nemo_mm_rank.models.dependency:VisualDependency",
    "whisper": "nemo_mm_rank.models.speech:WhisperDescriber",
    "text-regressor": "nemo_mm_rank.models.text_regressor:TextRegressor",
    "moments": "nemo_mm_rank.models.grounders:MomentGrounder",
    "grounding-dino": "nemo_mm_rank.models.grounders:GroundingDinoGrounder",
}
"""Every short name a configuration may use for a class; anything else is an import path ``package.module:Class``."""

STATISTICS = "statistics"
"""The argument that takes the path of what a model counted in the pool, for classes that count."""

_Key = tuple[str, str, str]
"""What was loaded (name, class, arguments), the device, and what was wrapped round it ("" for the model itself)."""

_loaded: dict[_Key, Any] = {}
_lock = threading.RLock()


def find_class(name: str) -> type[Any]:
    """Return the class that a configuration names.

    Raises:
        ConfigError: where there is no such module or class.
    """
    path = SHORT_NAMES.get(name, name)
    if ":" not in path:
        raise ConfigError(
            f"model class {name!r} is neither a short name ({', '.join(sorted(SHORT_NAMES))}) "
            f"nor an import path like 'package.module:Class'{nearest(name, SHORT_NAMES)}"
        )
    return imports.find_class(path, "model class")


def check_models(models: Mapping[str, ModelSpec]) -> None:
    """Refuse models that cannot be meant, before anything is written that holds their settings; nothing is loaded.

    Raises:
        UserError: a class or argument that does not exist, or a setting that the class refuses.
    """
    for spec in models.values():
        check_arguments(spec.class_, spec.arguments)


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the class does not take, with the nearest one that it does.

    A class may have a static ``check_settings(arguments)`` that refuses values, such as a key where its name belongs.

    Raises:
        UserError: naming the argument.
    """
    found = find_class(name)
    check_settings = getattr(found, "check_settings", None)
    if callable(check_settings):
        check_settings(arguments)
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(found).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for key in arguments:
        if key not in parameters:
            raise ConfigError(f"model class {name!r} takes no {key!r}{nearest(key, parameters)}")
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in arguments and key not in ("device", "name")
    ]
    if missing:
        raise ConfigError(f"model class {name!r} needs {', '.join(map(repr, missing))}")


def modalities(name: str, class_name: str, arguments: Mapping[str, Any]) -> frozenset[str]:
    """Return what the model takes: from its class where that says so, otherwise by loading it."""
    declared = getattr(find_class(class_name), "modalities", None)
    if isinstance(declared, frozenset):
        return declared
    taken: frozenset[str] = load(name, class_name, arguments).modalities
    return taken


def pick_device(device: str | None, here: bool = True) -> str:
    """Return ``device``, or CUDA where there is one and nothing was asked for.

    Args:
        device: its name.
        here: models run on this machine, so that the device has to be there; False: on those of a cluster.

    Raises:
        ConfigError: it is no device's name, or it is not there; those that are there are named.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        if here:
            torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ConfigError(f"device: {device!r} is not available here; the devices are {', '.join(names)}") from error
    return device


def identities(models: Mapping[str, ModelSpec]) -> dict[str, Any]:
    """Return what the models' results depend on: class, arguments and revision.

    The path of fitted statistics is left out: it says where a run lies, and the revision has their digest.
    """
    return {
        name: {
            "class": spec.class_,
            "arguments": {key: value for key, value in spec.arguments.items() if key != STATISTICS},
            "revision": revision(name, spec),
        }
        for name, spec in models.items()
    }


def revision(name: str, spec: ModelSpec) -> str:
    """Return what the weights are, from the class's ``revision_of`` where it has one, otherwise by loading."""
    revision_of = getattr(find_class(spec.class_), "revision_of", None)
    if revision_of is not None:
        return str(revision_of(**spec.arguments))
    return str(load(name, spec.class_, spec.arguments).revision)


M = TypeVar("M")


def load(
    name: str,
    class_name: str,
    arguments: Mapping[str, Any],
    device: str = "cpu",
    wrap: Callable[[str, Any], M] | None = None,
) -> Any:
    """Return the model, loading it where this process has not yet.

    ``name`` (what the configuration calls the model) and ``device`` are passed on to classes that take them.
    ``wrap`` is called once with the name and the loaded model (to check it, to put a cache round it) and its result
    kept beside it; a model that serves in two roles is wrapped for each of them.

    Raises:
        ConfigError: a class or argument that does not exist.
        ModelError: the class's own error, in one line.
    """
    what = _what(name, class_name, arguments)
    key = (what, device, "")
    with _lock:
        if key not in _loaded:
            check_arguments(class_name, arguments)
            found = find_class(class_name)
            taken = inspect.signature(found).parameters
            extra = {k: v for k, v in {"name": name, "device": device}.items() if k in taken}
            try:
                model = found(**{**extra, **arguments})
            except (UserError, PairError):
                raise
            except Exception as error:
                message = " ".join(str(error).split())
                raise ModelError(f"model {name!r} ({class_name}) cannot be loaded: {message}") from error
            _loaded[key] = model
        if wrap is None:
            return _loaded[key]
        wrapped = (what, device, f"{wrap.__module__}.{wrap.__qualname__}")
        if wrapped not in _loaded:
            _loaded[wrapped] = wrap(name, _loaded[key])
        return _loaded[wrapped]


def as_encoder(name: str, model: Any) -> Encoder:
    """Return ``model`` as an encoder; `ModelError` names what it lacks."""
    fulfil(name, model, Encoder)
    encoder: Encoder = model
    return encoder


def as_describer(name: str, model: Any) -> Describer:
    """Return ``model`` as a describer; `ModelError` names what it lacks."""
    fulfil(name, model, Describer)
    describer: Describer = model
    return describer


def as_grounder(name: str, model: Any) -> Grounder:
    """Return ``model`` as a grounder; `ModelError` names what it lacks."""
    fulfil(name, model, Grounder)
    grounder: Grounder = model
    return grounder


def _what(name: str, class_name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, class_name, dict(arguments)], sort_keys=True, default=str)


def prefetch(models: Mapping[str, ModelSpec]) -> None:
    """See that the files of ``models`` are on this machine; nothing is loaded, and what is there stays as it is.

    Concerns classes that tell their revision without loading (``revision_of``): they have to have the files for it.

    Raises:
        UserError: a model that cannot be had.
    """
    for name, spec in models.items():
        if hasattr(find_class(spec.class_), "revision_of"):
            revision(name, spec)


def release(models: Mapping[str, ModelSpec] | None = None) -> None:
    """Forget loaded models of this process, on every device, so that their memory can go.

    Whoever still needs one of them loads it again.

    Args:
        models: those to forget; default: all.
    """
    gone = None if models is None else {_what(name, spec.class_, spec.arguments) for name, spec in models.items()}
    with _lock:
        for key in [key for key in _loaded if gone is None or key[0] in gone]:
            del _loaded[key]


def forget_failures() -> None:
    """Have the caches round this process's models try again what has failed."""
    with _lock:
        for model in _loaded.values():
            getattr(model, "forget_failures", lambda: None)()


def computed() -> int:
    """Return how many items the models of this process were given, what caches round them knew left out."""
    with _lock:
        return sum(getattr(model, "computed", 0) for model in _loaded.values())
