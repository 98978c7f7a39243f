"""Any file that the study writes, damaged anywhere: whatever reads it says so by name, or does without it.

Hypothesis chooses the file and the damage. What reads a kind of file is what a user would type: the plan, the chapters,
a run that goes on.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from chapter import READING, run_chapter
from conftest import ARMS, SEEDS, FakeStudy
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import run_all
from hybridlib.analysis import results
from hybridlib.analysis.load import read_records
from hybridlib.study import chapters, parameters, progress
from hybridlib.study.plan import plan
from hybridlib.study.run import Source
from hybridlib.training import corpus, experiment
from hybridlib.training.checkpoint import CheckpointFile

JUDGING = ["00_question", "06_benchmark", "09_report"]  # they read what other chapters left


@dataclass(frozen=True)
class Kind:
    """A kind of file: where such files lie, the share of all damages that they get, and what reads them."""

    files: Callable[[], list[Path]]
    share: float
    read: Callable[[Path], None]


@st.composite
def damages(draw: st.DrawFn, size: int) -> Callable[[bytes], bytes]:
    """Draw a change of a file of `size` bytes: cut at any byte, noise over any part, a part left out or doubled."""
    start = draw(st.integers(0, max(0, size - 1)))
    end = min(size, start + draw(st.integers(1, max(1, size))))
    noise = draw(st.randoms(use_true_random=False)).randbytes(end - start)
    cuts: list[Callable[[bytes], bytes]] = [
        lambda sound: sound[:start],
        lambda sound: sound[:start] + noise + sound[end:],
        lambda sound: noise,
        lambda sound: sound[:start] + sound[end:],
        lambda sound: sound[:end] + sound[start:],
        lambda sound: bytes(size),
        lambda sound: b"{}" if size % 2 else b"[1]",
    ]
    return draw(st.sampled_from(cuts))


def use_outputs(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let every module of the project that knows where outputs lie take `folder` for it."""
    real = parameters.OUTPUTS
    for name, module in list(sys.modules.items()):
        if (name == "run_all" or name.startswith("hybridlib")) and getattr(module, "OUTPUTS", None) == real:
            patch.setattr(module, "OUTPUTS", folder)


class Everything:
    """A study of which everything was made: records, executed chapters, results, figures; a corpus; checkpoints."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.fake = FakeStudy(folder)
        self.study, self.text = self.fake.study, folder / "text.txt"
        self.text.write_text("The quick brown fox jumps over the lazy dog, and says so.\n" * 2000)
        self.cache = folder / "cache"
        for one in SEEDS:
            for arm in ARMS:
                self.fake.write(arm, one)
        for name in READING:
            run_chapter(name, self.fake, patch)
        use_outputs(patch, self.fake.outputs)
        patch.setattr(corpus, "CACHE", self.cache)
        self.jobs = [job for job in plan(self.study, self.fake.name, device="cpu") if not job.run]
        for job in self.jobs:
            out = chapters.chapter_path(job, "fake")
            out.parent.mkdir(parents=True, exist_ok=True)
            chapters.stamp(chapters.source(job), out, made_by=chapters.made_by(job))
        self.run = tiny.run(study="cut_off")
        self.cut_off()
        self.tokens()

    def cut_off(self) -> None:
        """Leave a run as a kill leaves it: two checkpoints, and records beyond them."""
        saves, save = [], CheckpointFile.save

        def until_the_third(file: CheckpointFile, *state: object) -> None:
            saves.append(1)
            if len(saves) == 3:
                raise KeyboardInterrupt
            save(file, *state)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(CheckpointFile, "save", until_the_third)
            experiment.train(self.run, "cpu")

    def tokens(self) -> str:
        """Return the checksum of the corpus, made or from the cache."""
        return corpus.load_corpus(Source(kind="text", tokenizer_vocab=300, paths=[str(self.text)]), 300).sha256

    def below(self, *patterns: str) -> Callable[[], list[Path]]:
        """Return what lists the study's files that match."""
        return lambda: sorted(file for pattern in patterns for file in self.fake.folder.glob(pattern) if file.is_file())

    def planned(self, file: Path) -> None:
        """Print the plan, and choose a run to verify."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = run_all.main(["--study", self.fake.name, "--dry-run", "--reproduce"])  # the plan comes first
            assert status in (0, 2)
            if status:  # there is no run to verify
                assert run_all.main(["--study", self.fake.name, "--dry-run"]) == 0

    def analysed(self, file: Path) -> None:
        """Print the plan, read all records, as every chapter does, and what was left out of them."""
        self.planned(file)
        read_records(self.fake.name)

    def argued(self, file: Path) -> None:
        """Execute the chapters that read records, and renew the README's figures."""
        self.planned(file)
        with pytest.MonkeyPatch.context() as patch:
            for name in JUDGING if file.parent.name == "results" else JUDGING[-1:]:
                run_chapter(name, self.fake, patch, pipeline=False, draw=False)
        results.readme_blocks()

    def resumed(self, file: Path) -> None:
        """Go on with the run that was cut off."""
        assert experiment.train(self.run, "cpu")["last_step"] == self.run.steps

    def cached(self, file: Path) -> None:
        """Open the corpus again."""
        assert self.tokens() == self.sha256

    def kinds(self) -> dict[str, Kind]:
        """Return every kind of file that the project writes."""
        self.sha256, cut_off = self.tokens(), progress.run_folder(self.run)
        return {
            "records": Kind(self.below("runs/*/*.json", "runs/*/*.csv"), 0.45, self.analysed),
            "chapters": Kind(self.below("notebooks/*.ipynb"), 0.2, self.planned),
            "results": Kind(self.below("results/*", "results.json"), 0.02, self.argued),
            "shown": Kind(self.below("shown/*"), 0.03, self.argued),
            "cut-off runs": Kind(lambda: sorted(f for f in cut_off.glob("*") if f.is_file()), 0.15, self.resumed),
            "corpora": Kind(lambda: sorted(f for f in self.cache.rglob("*") if f.is_file()), 0.15, self.cached),
        }


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    with pytest.MonkeyPatch.context() as patch:
        yield Everything(tmp_path_factory.mktemp("everything"), patch)


tried: dict[str, int] = {}
tracebacks: dict[str, int] = {}


@pytest.mark.parametrize("name", ["records", "chapters", "results", "shown", "cut-off runs", "corpora"])
def test_whatever_reads_a_damaged_file_says_so_or_does_without_it(request, everything, name: str) -> None:
    kind = everything.kinds()[name]
    folders = sorted({file.parent for file in kind.files()})
    assert folders, "there is such a file"
    sound = {file: file.read_bytes() for folder in folders for file in folder.iterdir() if file.is_file()}
    unexpected: list[str] = []

    @seed(request.config.getoption("seed"))
    @settings(
        max_examples=max(4, round(kind.share * request.config.getoption("damages"))),
        deadline=None, database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def each(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(set(kind.files()) & set(sound))))
        file.write_bytes(data.draw(damages(len(sound[file])))(sound[file]))
        tried[name] = tried.get(name, 0) + 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(file)
        except (ValueError, OSError) as error:
            if str(file) not in str(error):
                unexpected.append(f"{file}: {error!r}")
        except BaseException as error:
            unexpected.append(f"{file}: {error!r}")
        finally:
            for folder in folders:
                for there in list(folder.iterdir()):
                    if there not in sound and there.is_file():
                        there.unlink()
            for there, content in sound.items():
                there.write_bytes(content)

    each()
    tracebacks[name] = len(unexpected)
    assert not unexpected, f"{len(unexpected)}: {unexpected[:3]}"


def test_what_was_damaged_is_written_down(measured) -> None:
    assert len(tried) == 6, "every kind was tried"
    measured.add(files_damaged=sum(tried.values()), damage_tracebacks=sum(tracebacks.values()))
    rows = [dict(kind=kind, files_damaged=count, tracebacks=tracebacks[kind]) for kind, count in tried.items()]
    measured.table("damage", rows)
