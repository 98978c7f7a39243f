"""Which predictors there are, and what each takes: read from their source, so that a plan needs no torch."""

import ast
from pathlib import Path


def predictor_settings() -> dict[str, set[str]]:
    """Every predictor's settings, read from the source of `training/predictors/` without importing it.

    They are the arguments of its `__init__`, or of that of the predictor that it derives from.
    """
    folder = Path(__file__).parent / "training" / "predictors"
    trees = {path.stem: ast.parse(path.read_text()) for path in sorted(folder.glob("[a-z]*.py"))}
    classes = {n.name: n for tree in trees.values() for n in tree.body if isinstance(n, ast.ClassDef)}

    def settings(cls: ast.ClassDef) -> set[str]:
        for node in cls.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return {a.arg for a in node.args.args + node.args.kwonlyargs} - {"self"}
        return set().union(*(settings(classes[b.id]) for b in cls.bases if getattr(b, "id", "") in classes))

    named = {stem: stem.title().replace("_", "") for stem in trees if stem != "base"}
    return {stem: settings(classes[name]) for stem, name in named.items() if name in classes}
