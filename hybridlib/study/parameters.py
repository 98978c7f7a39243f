"""Reads a study from `params/`: its own file over the arms that all studies share, refused with a clear message if wrong."""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hybridlib.study.schema import Study

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"
OUTPUTS = Path(os.environ.get("HYBRIDLIB_OUTPUTS", ROOT / "outputs"))


class ParameterError(ValueError):
    """A parameter file that can't be used: names the file, the key, the value and what would be right."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML in which a key given twice is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value):
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} given twice", problem_mark=key_node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises `ParameterError` for a missing, unreadable or malformed one."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, RecursionError) as error:
        raise ParameterError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ParameterError(f"{path}: must hold `key: value` pairs with text as keys")
    return value


def study_path(name: str) -> Path:
    """The file of a study given by name (`cpu`) or by path (`my/study.yaml`)."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PARAMS / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in PARAMS.glob("*.yaml") if p.stem not in ("arms", "criteria")))
        raise ParameterError(f"no study {name!r}: {path} is no file; there are {there}, or give a .yaml file")
    return path


def load_study(name: str) -> Study:
    """A study by name or path, its arms merged over `params/arms.yaml`, its `like:` references resolved."""
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
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'study'}: {_said(e)}" for e in error.errors()]
        raise ParameterError("\n".join(lines)) from None


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping; a predictor of another name starts from nothing."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        renamed = both and value.get("name", out[key].get("name")) != out[key].get("name")
        out[key] = merged(out[key], value) if both and not renamed else value
    return out


def resolved(arm: str, arms: dict[str, dict], path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """An arm's settings with those of the arm that it is `like` underneath."""
    settings = dict(arms[arm])
    if (like := settings.pop("like", None)) is None:
        return settings
    if not isinstance(like, str) or like not in arms or like in (*seen, arm):
        why = "is like itself" if isinstance(like, str) and like in arms else f"there are {', '.join(arms)}"
        raise ParameterError(f"{path}: arms.{arm}.like: {like!r}: {why}")
    return merged(resolved(like, arms, path, (*seen, arm)), settings)


def _said(error: dict[str, Any]) -> str:
    value = error["input"] if error["type"] not in ("missing", "value_error") else None
    message = "unknown key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    return message if value is None else f"{value!r}: {message}"
