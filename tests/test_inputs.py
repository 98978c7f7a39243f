"""Broken parameter files, notebooks and corpora: a clear error or a valid run, no traceback, no file elsewhere."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hybridlib.study import chapters, execute, progress
from hybridlib.study.parameters import PARAMS, ROOT, load_study
from hybridlib.study.plan import TRAINING, Job, plan
from hybridlib.study.run import Source
from hybridlib.training import corpus

SMOKE = (PARAMS / "smoke.yaml").read_text()
WHOLE = yaml.safe_load(SMOKE)
NOTEBOOK = (ROOT / "notebooks" / f"{TRAINING}.ipynb").read_text()
SHARES = dict(values=0.5, text=0.3, corpora=0.15, notebooks=0.05)

scalars = st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=12)
hostile = st.sampled_from(
    ["../../x", "/etc/passwd", "a/b", "~", ".", "..", "\0", "x" * 300, "!!python/object:os.system", "${HOME}", "nan"]
)
anything = st.recursive(
    scalars | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | hostile, inner, max_size=3),
    max_leaves=6,
)


LONG = (ROOT / "README.md").read_text() * 5  # enough of it for both of a corpus's parts
texts = st.tuples(st.sampled_from(["", LONG]), st.text(max_size=60)).map(lambda given: "".join(given).encode())


def places(content: Any, above: tuple = ()) -> list[tuple]:
    """The path of every value in nested mappings and lists."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [(*above, key) for key, _ in inner] + [
        place for key, value in inner for place in places(value, (*above, key))
    ]


PLACES = places(WHOLE)


@st.composite
def mappings(draw: st.DrawFn) -> str:
    """The smoke study with some values replaced, keys renamed or taken away."""
    content = copy.deepcopy(WHOLE)
    for place in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        try:
            inner = content
            for key in place[:-1]:
                inner = inner[key]
            match draw(st.integers(0, 3)):
                case 0:
                    del inner[place[-1]]
                case 1 if isinstance(inner, dict):
                    inner[draw(st.text(max_size=8) | hostile)] = inner.pop(place[-1])
                case _:
                    inner[place[-1]] = draw(anything)
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took it away
    return yaml.safe_dump(content, allow_unicode=True)


@st.composite
def spliced(draw: st.DrawFn, text: str) -> bytes:
    """A text with pieces of it cut out, doubled, or replaced by any bytes."""
    data = text.encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        data = data[:start] + draw(st.binary(max_size=6) | st.just(data[start:end] * 2)) + data[end:]
    return data


def read(file: Path, data: str | bytes) -> None:
    """Loads a study and plans it, as the command does before it starts anything."""
    file.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    study = load_study(str(file))
    for job in plan(study, str(file)):
        if job.run:
            assert progress.run_folder(job.run).resolve().is_relative_to(progress.OUTPUTS.resolve()), job.run.id


def open_text(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    corpus.load_corpus(Source(kind="text", paths=[str(file)], tokenizer_vocab=300), 300).require(33)


def inspect(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    execute.check([Job("benchmark", file.stem, dict(study="smoke", arm="hybrid", data="text", seed=1, device="cpu"))])


@pytest.fixture(scope="module")
def outcomes() -> Counter:
    return Counter()


@pytest.mark.parametrize(
    ("kind", "given_", "name", "use"),
    [
        ("values", mappings(), "study.yaml", read),
        ("text", spliced(SMOKE), "study.yaml", read),
        ("corpora", st.binary(max_size=400) | texts, "text.txt", open_text),
        ("notebooks", spliced(NOTEBOOK), "broken.ipynb", inspect),
    ],
)
def test_an_input_is_used_or_refused_in_words(
    request, tmp_path, monkeypatch, outcomes, kind, given_, name, use: Callable
) -> None:
    monkeypatch.setattr(corpus, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(chapters, "NOTEBOOKS", tmp_path)
    unexpected: list[tuple[str, bytes | str]] = []

    @seed(request.config.getoption("seed"))
    @settings(
        max_examples=max(10, round(SHARES[kind] * request.config.getoption("inputs"))),
        deadline=None, database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(given_)
    def each(data: bytes | str) -> None:
        outcomes["inputs"] += 1
        outcomes[f"{kind} tried"] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                use(tmp_path / name, data)
                outcomes[f"{kind} used"] += 1
            except ValueError as error:  # ParameterError and CorpusError are
                if str(tmp_path / name) not in str(error):
                    unexpected.append((f"does not name the file: {error}", data))
            except Exception as error:  # what a user would see as a traceback
                unexpected.append((repr(error), data))

    each()
    outcomes["tracebacks"] += len(unexpected)
    assert not unexpected, f"{len(unexpected)}: {unexpected[0]}"
    there = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert there <= {name, "cache"}, "a file was written elsewhere"


def test_what_was_tried_is_written_down(outcomes, measured) -> None:
    assert outcomes["values used"] and outcomes["text used"] and outcomes["corpora used"], "some are sound"
    measured.add(
        inputs_fuzzed=outcomes["inputs"], tracebacks=outcomes["tracebacks"], corpora_tried=outcomes["corpora tried"]
    )
