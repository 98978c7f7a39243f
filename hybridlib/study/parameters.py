"""Read a study from `params/`: its own file over the arms that all studies share; a bad one is refused by name."""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hybridlib.method.settings import instead
from hybridlib.study.schema import Study

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"
OUTPUTS = Path(os.environ.get("HYBRIDLIB_OUTPUTS", ROOT / "outputs"))


class ParameterError(ValueError):
    """A parameter file that can't be used: names the file, the key, the value and what would be right."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML without what surprises: a key given twice, and numbers that YAML 1.1 reads in base 8 or 60, are errors;
    `1e-3` is a number; a date is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def _number(self, node: yaml.ScalarNode) -> int | float:
        number = super().construct_yaml_int if node.tag.endswith("int") else super().construct_yaml_float
        value = number(node)
        if ":" in node.value or re.match(r"[-+]?0[0-7_]+$", node.value):
            base = "base 60" if ":" in node.value else "base 8"
            meant = (
                f'"{node.value}" for text' if ":" in node.value else f"{node.value.lstrip('+-0_') or 0} for a number"
            )
            problem = f"{node.value} is read in {base}, as {value}: write {value} for that, or {meant}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader._number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)
_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path`; raise `ParameterError` for a missing, unreadable or malformed one."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).replace('in "<unicode string>"', "in").split())
        raise ParameterError(f"{path}: not valid YAML: {said}") from None
    if not isinstance(value, dict):
        raise ParameterError(f"{path}: must hold `key: value` pairs")
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise ParameterError(f"{path}: key {wrong[0]!r} must be text, not {type(wrong[0]).__name__}: put it in quotes")
    return value


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
    hint = ""
    if fault["type"] == "literal_error" and isinstance(value, str):
        known = re.findall(r"'([^']+)'", fault["ctx"]["expected"])
        hint = instead(value, known) if instead(value, known).startswith("did") else ""
    elif fault["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"write {int(value)}"
    elif fault["type"] in ("int_type", "float_type") and isinstance(value, str) and _EXPONENT.match(f"{value}e0"):
        hint = "write it without quotes"
    elif fault["type"] == "string_type" and not isinstance(value, dict | list):
        hint = "put it in quotes"
    return ": ".join(filter(None, [f"{value!r}: {message}", hint]))


def study_path(name: str) -> Path:
    """Return the file of the study `name`: a name in params/ (`cpu`) or a path (`my/study.yaml`).

    Raises `ParameterError` where there is none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PARAMS / f"{name}.yaml"
    if not path.is_file():
        there = sorted(p.stem for p in PARAMS.glob("[!.]*.yaml") if p.stem not in ("arms", "criteria"))
        near = f"{instead(path.stem, there)} Known: {', '.join(there)}; or give a .yaml file"
        raise ParameterError(f"no study {name!r}: {path} is no file; {near}")
    return path


def load_study(name: str) -> Study:
    """Return the study `name` (see `study_path`), its arms over the shared ones, each over the one it is `like`.

    Raises `ParameterError`, which names the file, the key, the value and what would be right.
    """
    path = study_path(name)
    given = read_yaml(path)
    own = given.pop("arms", None) or {}
    shared = read_yaml(PARAMS / "arms.yaml")
    for file, arms in ((path, own), (PARAMS / "arms.yaml", shared)):
        if not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
            raise ParameterError(f"{file}: arms: must map each arm's name to its settings")
    arms = {arm: merged(shared.get(arm, {}), own.get(arm, {})) for arm in [*shared, *own]}
    given["arms"] = {arm: resolved(arm, arms, path) for arm in arms}
    try:
        return Study(**given)
    except ValidationError as error:
        raise refusal(path, error) from None


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
