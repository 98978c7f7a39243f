"""Read a study from `params/`: its own file over the arms that all studies share; a bad one is refused by name."""

import os
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hybridlib.method.settings import instead
from hybridlib.study.schema import Study

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"
OUTPUTS = Path(os.environ.get("HYBRIDLIB_OUTPUTS") or ROOT / "outputs").absolute()


class ParameterError(ValueError):
    """A parameter file that can't be used: names the file, the key, the value and what would be right."""


DEEPEST = 30  # levels of mappings and lists
LARGEST = 2**64  # no setting is larger, and what is computed from larger ones may be no float
_short = reprlib.Repr()  # of a value in a message: a value may be as large as its file, or hold itself
_short.maxstring, _short.maxother, _short.maxlevel = 80, 80, 2


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML without what surprises: a key given twice, numbers that YAML 1.1 reads in base 8 or 60, and whole
    numbers of more than 64 bits are errors; `1e-3` is a number; a date is text."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what `node` merges (`<<: *other`) into it, once; refuse a key that it gives twice itself."""
        if hasattr(node, "is_flat"):  # as another mapping that merges it left it
            return
        node.is_flat, seen = True, set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key_node.start_mark)
            is_merge = key_node.tag == "tag:yaml.org,2002:merge"
            key = key_node.value if is_merge else self.construct_object(key_node)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        super().flatten_mapping(node)

    def _number(self, node: yaml.ScalarNode) -> int | float:
        number = super().construct_yaml_int if node.tag.endswith("int") else super().construct_yaml_float
        value = number(node)
        if isinstance(value, int) and abs(value) > LARGEST:
            said = f"{_short.repr(value)} is too large: whole numbers go up to {LARGEST}"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        if ":" in node.value or re.match(r"[-+]?0[0-7_]+$", node.value):
            is_octal, text = ":" not in node.value, f'"{node.value}" for text'
            meant = f"{node.value.lstrip('+-0_') or 0} for a number, or {text}" if is_octal else f"or {text}"
            base = "base 8" if is_octal else "base 60"
            said = f"{node.value} is read in {base}, as {value}: write {value} for that, {meant}"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader._number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$")
_EXPONENT = re.compile(_NUMBER.pattern.replace("?$", "$"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path`; raise `ParameterError` for a missing, unreadable or malformed one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        _require_shallow(text)
        value = yaml.load(text, _Loader)
        _require_finite(value)
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).replace('in "<unicode string>"', "in").split())
        hint = ": a tab? Indent with spaces" if "cannot start any token" in said else ""
        raise ParameterError(f"{path}: not valid YAML: {said}{hint}") from None
    if not isinstance(value, dict):
        raise ParameterError(f"{path}: must hold `key: value` pairs")
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise ParameterError(f"{path}: key {wrong[0]!r} must be text, not {type(wrong[0]).__name__}: put it in quotes")
    return value


def _require_shallow(text: str) -> None:
    """Raise `ValueError` for YAML `text` that is nested too deep: libyaml's composer would overflow the stack."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        opens = isinstance(event, yaml.events.CollectionStartEvent)
        depth += opens - isinstance(event, yaml.events.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels of mappings and lists, in line {event.start_mark.line + 1}")


def _require_finite(value: Any, above: tuple[int, ...] = ()) -> None:
    """Raise `ValueError` for an alias in what it stands for; `value` is in the values whose numbers are `above`."""
    if isinstance(value, dict | list):
        if id(value) in above or len(above) >= DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels, or an alias inside of what it stands for")
        for inner in value.values() if isinstance(value, dict) else value:
            _require_finite(inner, (*above, id(value)))


def refusal(path: Path, error: ValidationError, above: str = "") -> ParameterError:
    """Return the error to raise for the faults that `error` found in the file `path`, under the key `above`."""
    return ParameterError("\n".join(f"{path}: {fault}" for fault in faults(error, above)))


def faults(error: ValidationError, above: str = "") -> list[str]:
    """Return, for each fault in `error`, found under the key `above`, the key, the value and what would be right."""
    found = []
    for fault in error.errors():
        place = [above] * bool(above) + [*map(str, fault["loc"])]
        for key, said in (fault["ctx"]["said"] if fault["type"] == "unknown_keys" else {"": _said(fault)}).items():
            found.append(": ".join(filter(None, [".".join([*place, *[key] * bool(key)]), said])))
    return found


def _said(fault: Any) -> str:
    """Return the value that is wrong, what would be right, and a hint where one can be given."""
    message, value = fault["msg"].removeprefix("Value error, "), fault["input"]
    if fault["type"] in ("missing", "value_error"):
        return message
    hint, shown = "", _short.repr(value)
    if fault["type"] == "literal_error" and isinstance(value, str):
        known = re.findall(r"'([^']+)'", fault["ctx"]["expected"])
        hint = instead(value, known) if instead(value, known).startswith("did") else ""
    elif fault["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"write {int(value)}"
    elif fault["type"] in ("int_type", "float_type") and isinstance(value, str) and _NUMBER.match(value):
        hint = f"write {int(value) if value.isdigit() else value} without quotes"
    elif fault["type"] == "list_type" and isinstance(value, str | int | float):
        hint = f"write [{value}]"
    elif fault["type"] == "string_type" and not isinstance(value, dict | list):
        hint = "put it in quotes"
    return ": ".join(filter(None, [f"{shown}: {message}", hint]))


def known_studies() -> list[str]:
    """Return the names of the studies in params/."""
    return sorted(p.stem for p in PARAMS.glob("[!.]*.yaml") if p.stem not in ("arms", "criteria"))


def study_path(name: str) -> Path:
    """Return the file of the study `name`: a name in params/ (`cpu`) or a path (`my/study.yaml`).

    Raises `ParameterError` where there is none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PARAMS / f"{name}.yaml"
    if not os.path.isfile(path):  # Path.is_file raises for a folder that may not be looked into
        there = known_studies()
        near = f"{instead(path.stem, there)} Known: {', '.join(there)}; or give a .yaml file"
        raise ParameterError(f"no study {name!r}: {path} is no file; {near}")
    return path


def load_study(name: str) -> Study:
    """Return the study `name` (see `study_path`), its arms over the shared ones, each over the one it is `like`.

    Raises `ParameterError`, which names the file, the key, the value and what would be right.
    """
    path = study_path(name)
    given = read_yaml(path)
    own = {} if given.get("arms") is None else given["arms"]
    shared = read_yaml(PARAMS / "arms.yaml")
    for file, arms in ((path, own), (PARAMS / "arms.yaml", shared)):
        if not isinstance(arms, dict):
            raise ParameterError(f"{file}: arms: {_short.repr(arms)}: must map each arm's name to its settings")
        for arm, settings in arms.items():
            if not isinstance(settings, dict):
                raise ParameterError(f"{file}: arms.{arm}: {_short.repr(settings)}: must be settings, {{}} for none")
    arms = {arm: merged(shared.get(arm, {}), own.get(arm, {})) for arm in [*shared, *own]}
    given["arms"] = {arm: resolved(arm, arms, path) for arm in arms}
    try:
        study = Study(**given)
    except ValidationError as error:
        raise refusal(path, error) from None
    there = known_studies() if study.also_reads else []
    for other in study.also_reads:
        if other not in there and not os.path.isdir(OUTPUTS / other):
            raise ParameterError(f"{path}: also_reads: no study {other!r}: {instead(other, there)}")
    return study


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `above` over `below`, mapping by mapping; a predictor or optimizer of another name starts from nothing."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        renamed = both and value.get("name", out[key].get("name")) != out[key].get("name")
        out[key] = merged(out[key], value) if both and not renamed else value
    return out


def resolved(arm: str, arms: dict[str, dict], path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the settings of `arm`, one of `arms`, over those of the arm that it is `like`.

    `seen` are the arms that led here. Raises `ParameterError`, which names `path`, for an unknown arm and for a circle.
    """
    settings = dict(arms[arm])
    if (like := settings.pop("like", None)) is None:
        return settings
    if not isinstance(like, str) or like not in arms or like in (*seen, arm):
        why = "is like itself" if isinstance(like, str) and like in arms else instead(str(like), arms)
        raise ParameterError(f"{path}: arms.{arm}.like: {like!r}: {why}")
    return merged(resolved(like, arms, path, (*seen, arm)), settings)
