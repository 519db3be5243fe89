"Work in stages: finished or done again, whatever interrupts it; one folder answers one question, for one process at a time."
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENV

from medstrat.runs.stages import Stages, digest, finished, make_place, write_json

QUESTION = dict(folder="a", seed=0)


def write(text): return lambda folder: (folder / "x.txt").write_text(text)


def refuse(folder): pytest.fail("done already")


def test_a_finished_stage_is_found_and_an_unfinished_one_is_not(tmp_path):
    s = Stages(tmp_path / "r", QUESTION)
    s.do("one", write("1"))
    with pytest.raises(ZeroDivisionError): s.do("two", lambda folder: (write("half")(folder), 1 / 0))
    s.leave()
    again = Stages(tmp_path / "r", QUESTION)
    assert (again.do("one", refuse) / "x.txt").read_text() == "1"
    assert not list((tmp_path / "r.partial" / ".work").glob("two*")), "nothing half is left"
    assert (again.do("two", write("2")) / "x.txt").read_text() == "2" and again.found == ["one"]


@pytest.mark.parametrize("change", ["inputs", "an earlier stage", "a damaged file", "a lost file"])
def test_a_stage_is_done_again_when_what_it_stands_on_has_changed(tmp_path, change):
    s = Stages(tmp_path / "r", QUESTION)
    s.do("one", write("1"), inputs=1)
    two = s.do("two", write("2"))
    s.leave()
    if change == "a damaged file": (two / "x.txt").write_text("3")
    if change == "a lost file": (two / "x.txt").unlink()
    again = Stages(tmp_path / "r", QUESTION)
    again.do("one", write("4" if change == "an earlier stage" else "1"), inputs=2 if change == "inputs" else 1, always=change == "an earlier stage")
    assert (again.do("two", write("new")) / "x.txt").read_text() == "new"


def test_what_does_not_change_through_a_stage_that_is_always_done(tmp_path):
    s = Stages(tmp_path / "r", QUESTION)
    s.do("one", write("1"), always=True)
    s.do("two", write("2"))
    s.leave()
    again, done = Stages(tmp_path / "r", QUESTION), []
    again.do("one", lambda f: done.append(write("1")(f)), always=True)
    again.do("two", refuse)
    assert len(done) == 1


def test_an_unfinished_folder_comes_back_to_a_stage_that_resumes_and_to_no_other(tmp_path):
    def begin(folder):
        write("checkpoint")(folder)
        raise RuntimeError("power")
    s = Stages(tmp_path / "r", QUESTION)
    for resumes in (True, False):
        with pytest.raises(RuntimeError): s.do(f"fit-{resumes}", begin, resumes=resumes)
    s.leave()
    again, there = Stages(tmp_path / "r", QUESTION), []
    for resumes in (True, False): again.do(f"fit-{resumes}", lambda f: there.append(sorted(p.name for p in f.iterdir())), resumes=resumes)
    assert there == [["x.txt"], []]
    with pytest.raises(RuntimeError): again.do("other", begin, inputs=1, resumes=True)
    again.do("other", lambda f: there.append(sorted(p.name for p in f.iterdir())), inputs=2, resumes=True)
    assert there[-1] == [], "a checkpoint of other inputs is no beginning"


def test_one_folder_answers_one_question(tmp_path):
    out = tmp_path / "r"
    assert not finished(out, QUESTION)
    s = Stages(out, QUESTION)
    one = s.do("one", write("1"))
    s.leave()
    with pytest.raises(FileExistsError, match=r"seed \(there: 0, asked: 1\).*remove that one"): Stages(out, QUESTION | dict(seed=1))
    s = Stages(out, dict(reversed(QUESTION.items())))
    assert s.finish({"x.txt": s.do("one", refuse) / "x.txt"}, dict(more=1)) == out and not one.exists()
    assert sorted(p.name for p in out.iterdir()) == ["record.json", "x.txt"] and not s.partial.exists()
    record = json.loads((out / "record.json").read_text())
    assert record["question"] == QUESTION and record["more"] == 1 and set(record["seconds"]) == {"one"} and record["missing"] == {}
    assert finished(out, QUESTION)
    with pytest.raises(FileExistsError, match="answers the same question"): Stages(out, QUESTION)
    with pytest.raises(FileExistsError, match="another question"): Stages(out, QUESTION | dict(seed=1))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    s = Stages(tmp_path / "mine", QUESTION)      # empty: it may become the result
    s.finish({}, {})
    (tmp_path / "mine" / "record.json").unlink()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="holds no results"): Stages(tmp_path / "mine", QUESTION)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written to .*Give another folder"): Stages(tmp_path / "file" / "r", QUESTION)


def test_a_place_is_made_or_the_reason_given(tmp_path):
    make_place(tmp_path / "a" / "b" / "report")
    assert (tmp_path / "a" / "b").is_dir() and not (tmp_path / "a" / "b" / "report").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written to .*Give another folder"): make_place(tmp_path / "file" / "r" / "report")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions that bind")
def test_a_place_that_is_closed(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"cannot be written to .*no permission"): make_place(tmp_path / "report")
    finally: tmp_path.chmod(0o700)


def test_the_second_start_is_told_and_the_first_goes_on(tmp_path):
    s = Stages(tmp_path / "r", QUESTION)
    code = f"from medstrat.runs.stages import Stages; Stages({str(tmp_path / 'r')!r}, {QUESTION!r})"
    got = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert got.returncode == 1 and "somebody else is working on" in got.stderr
    s.do("one", write("1"))
    s.leave()
    assert subprocess.run([sys.executable, "-c", code], env=ENV).returncode == 0


def test_nothing_is_left_where_nothing_was_finished(tmp_path):
    s = Stages(tmp_path / "r", QUESTION)
    with pytest.raises(ZeroDivisionError): s.do("one", lambda f: 1 / 0)
    s.leave()
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_made_is_noted_and_found_again(tmp_path, capsys):
    s = Stages(tmp_path / "r", QUESTION)
    s.do("one", lambda f: s.attempt("a_figure", lambda: 1 / 0))
    assert "a figure: left out" in capsys.readouterr().out and s.missing == {"a_figure": "ZeroDivisionError: division by zero"}
    s.leave()
    again = Stages(tmp_path / "r", QUESTION)
    again.do("one", refuse)
    assert again.missing == s.missing


def test_a_full_disk_is_told_with_its_place_and_leaves_nothing_half(tmp_path):
    "The limit of a file's size stands in for the disk's; the kernel's answer is the same kind of error"
    s = Stages(tmp_path / "r", QUESTION)
    s.do("one", write("1"))
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        with pytest.raises(OSError, match=r"no space left .*r\.partial.*what is finished is kept"):
            s.do("two", lambda f: s.attempt("figure", lambda: (f / "big").write_bytes(bytes(20_000))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert s.missing == {} and not list(s.work.glob("two*"))
    s.leave()
    again = Stages(tmp_path / "r", QUESTION)
    again.do("one", refuse)
    assert (again.do("two", lambda f: (f / "big").write_bytes(bytes(20_000))) / "big").stat().st_size == 20_000


def test_a_damaged_journal_is_named(tmp_path):
    s = Stages(tmp_path / "r", QUESTION)
    s.do("one", write("1"))
    s.leave()
    (s.work / "journal.json").write_text("{")
    with pytest.raises(ValueError, match=r"journal\.json' is damaged"): Stages(tmp_path / "r", QUESTION)
    assert s.lock.acquire(timeout=0), "the lock is given back"


def test_write_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, dict(a=Path("b"), ü=1))
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "b", "ü": 1} and digest({"a": Path("b")}) == digest({"a": "b"})
    with pytest.raises(ValueError): write_json(path, dict(a=(loop := []), b=loop.append(loop)))
    assert json.loads(path.read_text(encoding="utf-8"))["ü"] == 1


KILLED = """
import sys, time
from pathlib import Path
from medstrat.runs.stages import Stages
out, log = Path(sys.argv[1]), Path(sys.argv[2])
print("started", flush=True)
s = Stages(out, dict(seed=0))
def work(i):
    def write(folder):
        for j in range(4):
            (folder / f"{j}.txt").write_text(f"{i} {j}" * 1000)
            time.sleep(.01)
        with open(log, "a") as f: f.write(f"{i}\\n")
    return write
folders = [s.do(f"stage{i}", work(i), resumes=i % 2 == 1) for i in range(4)]
s.finish({f"{i}{j}.txt": folders[i] / f"{j}.txt" for i in range(4) for j in range(4)}, {})
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_at_any_moment_the_next_start_ends_with_the_same(tmp_path):
    rng, log, out, kills = random.Random(0), tmp_path / "log", tmp_path / "r", 0
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    for _ in range(40):
        process = subprocess.Popen([sys.executable, str(script), str(out), str(log)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        try: process.wait(rng.uniform(0, .12))
        except subprocess.TimeoutExpired: process.kill()
        if process.wait() == 0: break
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
        kills += 1
        assert not out.exists() or (out / "record.json").exists(), "what bears the name is finished"
        if finished(out, dict(seed=0)): break
    assert kills >= 2 and finished(out, dict(seed=0))
    assert {p.name: p.read_text() for p in out.glob("*.txt")} == {f"{i}{j}.txt": f"{i} {j}" * 1000 for i in range(4) for j in range(4)}
    done = log.read_text().split()
    assert all(done.count(str(i)) <= 2 for i in range(4)), "once more at most for the kill between a stage's end and its note"
    assert sorted(set(done)) == ["0", "1", "2", "3"]
