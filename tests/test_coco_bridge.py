"""METEOR and SPICE through their programs: what can go wrong with stand-ins, the real METEOR where Java is.

A stand-in is a Python script called `java`, first on the PATH, beside a package folder with empty jars.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from showtell.errors import ArgumentError, MissingPackageError, RunError
from showtell.metrics import coco, ptb_tokenize, score_captions
from showtell.metrics.coco import coco_problem, coco_scores
from showtell.metrics.jar import JavaProgram

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for java is a script with a first line")

LINUX = sys.platform == "linux"

PROTOCOL = """
    import sys
    photos = []
    for line in sys.stdin:
        log(line)
        kind, *parts = line.rstrip("\\n").split("|||")
        if kind == "SCORE ":
            print(len(parts) - 1, len(parts[-1].split()), flush=True)
        else:
            values = [float(part.split()[1]) / 10 for part in parts]
            for value in values + [max(values)]:
                print(value, flush=True)
"""


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Call it with the text of a Python program and that is `java`; it gives the file the program's `log` writes."""
    package = tmp_path / "site" / "pycocoevalcap"
    for name in ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz", "spice/spice-1.0.jar"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / "spice" / "lib").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    log = tmp_path / "log"

    def install(program: str, version: str = "sys.exit(0)") -> Path:
        text = f"""\
            #!{sys.executable} -ES
            import os, sys
            if "-version" in sys.argv:
                {version}
            def log(text):
                with open({str(log)!r}, "a", encoding="utf-8") as file:
                    file.write(str(text))
            """
        script = tmp_path / "bin" / "java"
        script.write_text(textwrap.dedent(text) + textwrap.dedent(program), encoding="utf-8")
        script.chmod(0o755)
        return log

    return install


def parser(tmp_path: Path) -> None:
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "site" / "pycocoevalcap" / "spice" / "lib" / name).touch()


def gone(pid: int) -> bool:
    """Whether a process has ended within ten seconds (a zombie has: nobody runs any more)."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            if LINUX and ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


def test_the_program_gets_the_words_and_its_numbers_come_back(java: Callable[[str], Path]) -> None:
    log = java(PROTOCOL)
    scores = coco_scores(["A dog, running!", "a cat"], [["The dog runs."], ["A cat.", "It's a cat!"]])
    assert scores.corpus == {"METEOR": 0.3}
    assert scores.each == {"METEOR": (0.3, 0.2)}
    assert log.read_text().splitlines() == [
        "SCORE ||| the dog runs ||| a dog running",
        "SCORE ||| a cat ||| it 's a cat ||| a cat",
        "EVAL ||| 1 3 ||| 2 2",
    ]


def test_no_text_can_make_two_lines_or_another_reference(java: Callable[[str], Path]) -> None:
    texts = [
        "a|||b",
        "a ||| b",
        "||||||",
        "|| |",
        "a\nb",
        "a\r\nb",
        "a\x85b\u2028c\u2029d\x0be\x0cf",
        "",
        "\ud800",
        "\0",
    ]
    java(PROTOCOL)
    scores = coco_scores(texts, [[text, "a dog"] for text in texts])
    log = java(PROTOCOL).read_text(encoding="utf-8").split("\n")
    assert len(scores.each["METEOR"]) == len(texts)
    assert [line.count("|||") for line in log[: len(texts)]] == [3] * len(texts)
    assert log[len(texts)].split(" ||| ")[1:] == [f"2 {round(10 * v)}" for v in scores.each["METEOR"]]


def test_score_captions_gives_meteor_beside_the_others(java: Callable[[str], Path]) -> None:
    java(PROTOCOL)
    scores = score_captions(["a dog"], [["a dog"]], metrics=("BLEU-1", "METEOR"))
    assert scores.corpus == {"BLEU-1": pytest.approx(1.0), "METEOR": 0.2}
    assert list(scores.each) == ["BLEU-1", "METEOR"]


def test_numbers_are_asked_for_in_english(java: Callable[[str], Path]) -> None:
    log = java("log(sys.argv)\n" + textwrap.dedent(PROTOCOL))
    coco_scores(["a"], [["a"]])
    assert "'-Duser.language=en'" in log.read_text()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    assert 'pip install "showtell[coco]"' in str(coco_problem("METEOR"))
    with pytest.raises(MissingPackageError, match="SPICE needs pycocoevalcap"):
        coco_scores(["a"], [["a"]], ["SPICE"])


def test_without_java_it_says_so(java: Callable[[str], Path], tmp_path: Path) -> None:
    assert 'no "java" on the PATH' in str(coco_problem("METEOR"))
    with pytest.raises(MissingPackageError, match="METEOR needs Java"):
        coco_scores(["a"], [["a"]])
    with pytest.raises(MissingPackageError, match="METEOR needs Java"):
        score_captions(["a"], [["a"]], metrics=["METEOR"])


def test_a_java_that_is_only_a_stub_is_no_java(java: Callable[[str], Path]) -> None:
    java("", version="sys.exit('Unable to locate a Java Runtime.')")
    assert "Unable to locate a Java Runtime" in str(coco_problem("METEOR"))


def test_a_file_called_java_that_cannot_run_is_no_java(java: Callable[[str], Path], tmp_path: Path) -> None:
    java("")
    (tmp_path / "bin" / "java").write_bytes(b"\x7fELF nonsense")
    assert "doesn't work" in str(coco_problem("METEOR"))


def test_a_missing_jar_is_named(java: Callable[[str], Path], tmp_path: Path) -> None:
    java(PROTOCOL)
    (tmp_path / "site" / "pycocoevalcap" / "meteor" / "meteor-1.5.jar").unlink()
    assert "meteor-1.5.jar" in str(coco_problem("METEOR"))
    assert "--force-reinstall" in str(coco_problem("METEOR"))


def test_spices_missing_parser_is_named_with_its_place_and_what_to_do(
    java: Callable[[str], Path], tmp_path: Path
) -> None:
    java(PROTOCOL)
    problem = str(coco_problem("SPICE"))
    assert "stanford-corenlp-3.6.0-models.jar" in problem
    assert str(tmp_path / "site" / "pycocoevalcap" / "spice" / "lib") in problem
    assert "get_stanford_models" in problem
    assert coco_problem("METEOR") is None
    with pytest.raises(MissingPackageError, match="Stanford parser"):
        coco_scores(["a"], [["a"]], ["METEOR", "SPICE"])


def test_a_program_that_dies_is_an_error_with_what_it_said(java: Callable[[str], Path]) -> None:
    java("import sys; sys.stdin.readline(); sys.exit('Exception in thread main: OutOfMemoryError')")
    with pytest.raises(RunError, match=r"before it answered photo 0 \(exit code 1\): Exception .* OutOfMemoryError"):
        coco_scores(["a", "b"], [["a"], ["b"]])


def test_a_program_that_dies_at_once_without_a_word_is_an_error(java: Callable[[str], Path]) -> None:
    java("os._exit(3)")
    with pytest.raises(RunError, match=r"exit code 3\) without a message"):
        coco_scores(["a"] * 3000, [["a dog " * 20]] * 3000)


def test_a_program_that_hangs_is_given_up_and_killed_with_its_children(java: Callable[[str], Path]) -> None:
    log = java("""
        import subprocess, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        log(f"{os.getpid()} {child.pid}")
        time.sleep(60)
    """)
    with pytest.raises(RunError, match=r"gave no answer to photo 0 for 1\.5 seconds"):
        coco_scores(["a"], [["a"]], patience=1.5)
    assert all(gone(int(pid)) for pid in log.read_text().split())


def test_an_interrupted_call_leaves_no_program_behind(
    java: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = java("log(os.getpid())\n" + textwrap.dedent(PROTOCOL))

    def interrupted(self: JavaProgram, question: str) -> str:
        while not log.exists() or not log.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(JavaProgram, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        coco_scores(["a"], [["a"]])
    assert gone(int(log.read_text().split("SCORE")[0]))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("print('Error: specify SCORE or EVAL', flush=True); sys.stdin.read()", "Error: specify"),
        ("print('', flush=True); sys.stdin.read()", "counts of a photo"),
        ("print('1 2', flush=True); print('0,5', flush=True); sys.stdin.read()", "'0,5'"),
        ("print('1 2', flush=True); print('nan', flush=True); sys.stdin.read()", "'nan'"),
        ("print('1 2', flush=True); print('1.5', flush=True); sys.stdin.read()", "'1.5'"),
        ("print('1 2', flush=True); print('0.5', flush=True)", "before it answered the last question"),
    ],
)
def test_answers_that_are_no_scores_are_an_error(java: Callable[[str], Path], program: str, says: str) -> None:
    java(program)
    with pytest.raises(RunError, match=says):
        coco_scores(["a"], [["a"]])


def test_full_pipes_stop_nobody(java: Callable[[str], Path]) -> None:
    java("""
        sys.stderr.write("a note\\n" * 100_000)
        for _ in range(2000):
            sys.stdin.readline()
        for _ in range(2000):
            print("1 " * 200)
        sys.stdout.flush()
        sys.stdin.readline()
        print("0.5\\n" * 2001, flush=True)
    """)
    scores = coco_scores(["a dog " * 50] * 2000, [["a dog " * 50]] * 2000, patience=60)
    assert scores.each["METEOR"] == (0.5,) * 2000


def test_several_calls_at_a_time_do_not_disturb_each_other(java: Callable[[str], Path]) -> None:
    java(PROTOCOL)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: coco_scores(["a " * n] * 50, [["a"]] * 50), range(1, 9)))
    assert [scores.corpus["METEOR"] for scores in found] == [n / 10 for n in range(1, 9)]


SPICE = """
    import json
    log(os.environ["JDK_JAVA_OPTIONS"])
    given = json.load(open(sys.argv[sys.argv.index("-out") - 1]))
    rows = [
        {"image_id": row["image_id"], "scores": {"All": {"f": len(row["test"].split()) / 10}}} for row in given[::-1]
    ]
    CHANGE
    json.dump(rows, open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


def test_spice_is_matched_by_photo_and_its_corpus_value_is_the_mean(
    java: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser(tmp_path)
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Dmine=1")
    log = java(SPICE.replace("CHANGE", ""))
    scores = coco_scores(["a dog", "a"], [["a"], ["b"]], ["SPICE"])
    assert scores.each == {"SPICE": (0.2, 0.1)}
    assert scores.corpus["SPICE"] == pytest.approx(0.15)
    assert log.read_text().startswith("-Dmine=1 --add-opens=java.base/java.lang=ALL-UNNAMED")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("sys.exit('java.lang.reflect.InaccessibleObjectException')", r"SPICE failed .*InaccessibleObjectException"),
        ("rows.pop()", "other photos"),
        ("rows[0]['image_id'] = 7", "other photos"),
        ("rows[0]['scores']['All']['f'] = None", "SPICE answered None"),
        ("rows[0]['scores']['All']['f'] = float('nan')", "SPICE answered nan"),
        ("rows[0]['scores'] = {}", "can't be read"),
        ("rows = 5", "can't be read"),
        ("rows = [[]]", "can't be read"),
        ("sys.exit(0)", "can't be read"),
    ],
)
def test_a_spice_that_fails_or_writes_nonsense_is_an_error(
    java: Callable[[str], Path], tmp_path: Path, change: str, says: str
) -> None:
    parser(tmp_path)
    java(SPICE.replace("CHANGE", change))
    with pytest.raises(RunError, match=says):
        coco_scores(["a dog", "a"], [["a"], ["b"]], ["SPICE"])


def test_a_spice_that_hangs_is_given_up(
    java: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser(tmp_path)
    monkeypatch.setattr(coco, "_SPICE_SECONDS", 0.0)
    java("import time; time.sleep(60)")
    with pytest.raises(RunError, match="didn't end within 1 seconds"):
        coco_scores(["a"], [["a"]], ["SPICE"], patience=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: coco_scores(["a"], [["a"]], "METEOR"),
        lambda: coco_scores(["a"], [["a"]], []),
        lambda: coco_scores(["a"], [["a"]], 5),  # type: ignore[arg-type]
        lambda: coco_scores(["a"], [["a"]], ["CIDEr"]),
        lambda: coco_scores(["a"], [["a"]], patience=0),
        lambda: coco_scores([], []),
        lambda: coco_scores(["a"], [["a"], ["b"]]),
        lambda: coco_scores(["a"], [[]]),
        lambda: coco_scores(["a"], ["a"]),
        lambda: coco_scores("a", [["a"]]),
        lambda: coco_scores([None], [["a"]]),  # type: ignore[list-item]
        lambda: coco_scores(["a"], [[3]]),  # type: ignore[list-item]
        lambda: coco_problem("meteor"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_program_starts(
    java: Callable[[str], Path], call: Callable[[], Any]
) -> None:
    log = java("log('started')")
    with pytest.raises(ArgumentError):
        call()
    assert not log.exists()


@pytest.fixture
def meteor() -> None:
    problem = coco_problem("METEOR")
    if problem:
        pytest.skip(problem)


@pytest.mark.slow
@pytest.mark.parametrize("suite", range(4))
def test_meteor_is_that_of_the_conformance_kit(meteor: None, shared: Path, suite: int) -> None:
    cases = json.loads((shared / "metrics" / "cases.json").read_text(encoding="utf-8"))["suites"][suite]
    images = cases["images"]
    scores = coco_scores([image["cand"] for image in images], [image["refs"] for image in images])
    assert scores.each["METEOR"] == tuple(image["scores"]["METEOR"] for image in images)
    assert scores.corpus["METEOR"] == cases["corpus"]["METEOR"]


@pytest.mark.slow
def test_meteor_takes_any_text_and_any_language_of_the_machine(meteor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    long = " ".join(f"dog{i}" for i in range(3000))
    texts = ["a|||b", "a\nb", "a\x85b\u2028c\x0cd", "", "|||", "\ud800 a", "\0", "日本 café", "22\u00a03/4 (x)", long]
    scores = coco_scores([*texts, "a dog"], [*([text, "a dog"] for text in texts), ["", "!"]])
    has_words = [bool(ptb_tokenize(text)) for text in texts]
    assert scores.each["METEOR"] == (*map(float, has_words), 0.0)


@pytest.mark.slow
def test_two_processes_score_at_the_same_time(meteor: None) -> None:
    program = (
        "from showtell.metrics.coco import coco_scores\n"
        "print(coco_scores(['a man rides a horse'] * 20, [['a man is riding a brown horse']] * 20).corpus['METEOR'])"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300)[0] for process in both]
    assert answers[0] == answers[1]
    assert 0.3 < float(answers[0]) < 0.9
