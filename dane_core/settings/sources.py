"""Where settings come from: defaults, files, the environment, the command line."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import InitSettingsSource

from dane_core.errors import BadSettings, Fault
from dane_core.settings.sections import SERVER_SECTIONS, Section, Settings
from dane_core.settings.values import home_folder, masked

S = TypeVar("S", bound=Settings)

#: Where each value was set, by `SECTION.KEY`; what is not in it is a default.
Origins = Mapping[str, str]

_PREFIX: Final = "DANE_"
#: The one variable that is shorter than its setting.
_API_URL: Final = "DANE_API_URL"
#: What Kubernetes and Docker set for a service that is called dane-something.
_SERVICE_LINK: Final = ("tcp://", "udp://", "sctp://")

_ADDRESS_KEYS: Final = ("URL", "HOST", "PORT", "USER", "PASSWORD", "DATABASE", "VHOST")


@dataclass(frozen=True, slots=True)
class _Layer:
    """One source: its values by section and key, and the place each of them stands at."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def put(self, section: str, key: str, value: Any, place: str) -> None:
        self.values.setdefault(section, {})[key] = value
        self.places[f"{section}.{key}"] = place

    def known_to(self, kind: type[Settings]) -> dict[str, Any]:
        """The values without the server's sections, for a reader that has none of them."""
        foreign = set(SERVER_SECTIONS) - set(kind.model_fields)
        return {name: keys for name, keys in self.values.items() if name not in foreign}


def load(
    kind: type[S],
    *,
    files: Sequence[Path] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[S, Origins]:
    """Merge every source, later ones first in importance, and check the result.

    The sources are the defaults, `$DANE_HOME/config.yml` (`~/.dane/config.yml`),
    `./config.yml`, `files`, the environment and `overrides`, which is the command line; an
    override of None is one that was not given. Raises: BadSettings, with every fault in every
    source.
    """
    layers = [_read_file(path) for path in (*usual_files(), *files)]
    layers += [_read_environment(os.environ), _read_overrides(overrides or {})]
    origins = {name: place for layer in layers for name, place in layer.places.items()}
    faults = [fault for layer in layers for fault in layer.faults]
    sources = tuple(InitSettingsSource(kind, layer.known_to(kind)) for layer in reversed(layers))
    try:
        settings = kind(_build_sources=(sources, {}))
    except ValidationError as error:
        raise BadSettings([*faults, *_faults(kind, error, origins)]) from None
    if faults:
        raise BadSettings(faults)
    return settings, origins


def usual_files() -> list[Path]:
    """The configuration files that are read without being named, if they exist."""
    places = (home_folder() / "config.yml", Path("config.yml"))
    return [path.absolute() for path in places if path.is_file()]


# --- reading -----------------------------------------------------------------------------------


def _read_file(path: Path) -> _Layer:
    path = path.expanduser().absolute()
    layer = _Layer()
    try:
        text = path.read_text("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        layer.faults.append(Fault(str(path), f"cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        layer.faults.append(Fault(str(path), "is not UTF-8 text"))
    except yaml.YAMLError as error:
        layer.faults.append(_broken_yaml(path, error))
    else:
        if isinstance(root, yaml.MappingNode):
            _fill(layer, path, content, _lines(layer, path, root))
        elif content is not None:
            layer.faults.append(Fault(str(path), "expected sections, each with its keys"))
    return layer


def _broken_yaml(path: Path, error: yaml.YAMLError) -> Fault:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        problem = error.problem or "a syntax error"
        return Fault(f"{path} line {error.problem_mark.line + 1}", f"is not YAML: {problem}")
    return Fault(str(path), "is not YAML")


def _lines(layer: _Layer, path: Path, root: yaml.MappingNode) -> dict[str, str]:
    """The place of every section and key; a key that stands twice is a fault."""
    places: dict[str, str] = {}

    def note(name: str, node: yaml.Node) -> None:
        place = f"{path} line {node.start_mark.line + 1}"
        if name in places:
            # YAML would take the last one and say nothing of the other.
            layer.faults.append(Fault(place, f"{name}: stands twice, first at {places[name]}"))
        places.setdefault(name, place)

    for section, keys in root.value:
        note(str(section.value), section)
        for key, _ in keys.value if isinstance(keys, yaml.MappingNode) else ():
            note(f"{section.value}.{key.value}", key)
    return places


def _fill(layer: _Layer, path: Path, content: Mapping[Any, Any], places: dict[str, str]) -> None:
    for section, keys in content.items():
        place = places.get(str(section), str(path))
        if keys is None:  # every key below it is commented out
            layer.values.setdefault(str(section), {})
        elif isinstance(keys, Mapping):
            layer.values.setdefault(str(section), {})
            for key, value in keys.items():
                layer.put(str(section), str(key), value, places.get(f"{section}.{key}", place))
        elif str(section) in (*Settings.model_fields, *SERVER_SECTIONS):
            layer.faults.append(Fault(place, f"{section}: expected keys below it"))
        else:
            layer.values[str(section)] = keys  # and pydantic will not know it
        layer.places.setdefault(str(section), place)


def _read_environment(environ: Mapping[str, str]) -> _Layer:
    layer = _Layer()
    if address := environ.get(_API_URL):
        layer.put("DANE", "API_URL", address, f"environment {_API_URL}")
    for name, text in environ.items():
        section, divided, key = name.removeprefix(_PREFIX).partition("__")
        if name.startswith(_PREFIX) and divided:
            layer.put(section, key, text, f"environment {name}")
            layer.places.setdefault(section, f"environment {name}")
        elif name.startswith(_PREFIX) and name != _API_URL and not text.startswith(_SERVICE_LINK):
            layer.faults.extend(_single_underscore(name))
    return layer


def _single_underscore(name: str) -> Iterable[Fault]:
    """`DANE_STORE_URL` would be passed over in silence, and the wrong store used."""
    for section in (*Settings.model_fields, *SERVER_SECTIONS):
        key = name.removeprefix(f"{_PREFIX}{section}_")
        if key in _ADDRESS_KEYS:
            yield Fault(f"environment {name}", f"did you mean {_PREFIX}{section}__{key}?")


def _read_overrides(overrides: Mapping[str, Mapping[str, Any]]) -> _Layer:
    layer = _Layer()
    for section, keys in overrides.items():
        for key, value in keys.items():
            if value is not None:
                layer.put(section, key, value, "command line")
    return layer


# --- checking ----------------------------------------------------------------------------------


def _faults(kind: type[Settings], error: ValidationError, origins: Origins) -> Iterable[Fault]:
    for found in error.errors(include_url=False, include_context=False):
        if found["type"] == "default_factory_not_called":
            continue  # it follows from another fault
        name = ".".join(str(part) for part in found["loc"][:2])
        place = origins.get(name) or origins.get(str(found["loc"][0]), "default")
        if found["type"] == "extra_forbidden":
            yield Fault(place, f"{name}: {_unknown(kind, *map(str, found['loc'][:2]))}")
        else:
            # What our own kinds do not say, pydantic says: "Input should be …".
            message = found["msg"].replace("Input should be", "expected it to be")
            yield Fault(place, f"{name}: {message}{_instead(name, found['input'])}")


def _instead(name: str, value: Any) -> str:
    # A URL that is not one may still hold a password, anywhere.
    secret = "PASSWORD" in name or ("@" in str(value) and "://" not in str(value))
    return "" if secret else f", not {masked(value)!r:.80}"


def _unknown(kind: type[Settings], section: str, key: str | None = None) -> str:
    known = [*kind.model_fields, *SERVER_SECTIONS] if key is None else _keys(kind, section)
    what, name = ("section", section) if key is None else ("key", key)
    if near := difflib.get_close_matches(name.upper(), known, n=1):
        return f"unknown {what}; did you mean {near[0]}?"
    holders = [holder for holder in kind.model_fields if name in _keys(kind, holder)]
    if holders:
        return f"unknown {what}; {name} is a key of {' and of '.join(holders)}"
    return f"unknown {what}; expected one of {', '.join(dict.fromkeys(known))}"


def _keys(kind: type[Settings], section: str) -> list[str]:
    model = kind.model_fields[section].annotation
    if isinstance(model, type) and issubclass(model, Section):
        return list(model.model_fields)
    return []
