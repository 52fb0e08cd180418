"""The verifier: labelled cases by category, hostile input, processes and threads, properties."""
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import calibrl
from calibrl.tasks import INSTRUCTION, Problem, Score, messages, score, verifier_stats
from calibrl.verify import decide, sandbox
from calibrl.verify.clean import clean
from calibrl.verify.judge import judge_here, judge_text, numbers_only
from calibrl.verify.truth import MAX_TRUTH, read_truth
from score_cases import all_cases, read_cases

wrap = "<think>t</think><answer>{}</answer>".format
INTEGRAL = (wrap(r"\int_0^1 x\,dx"), r"\frac{1}{2}")

# ---------------------------------------------------------------- labelled cases

CATEGORIES = defaultdict(list)
for case in all_cases():
    CATEGORIES[case[0]].append(case[1:])

@pytest.mark.parametrize("category", CATEGORIES)
def test_category(category):
    cases = CATEGORIES[category]
    wrong = []
    for truth, response, expected, options, _ in cases:
        verdict = score(response, truth, options)
        if verdict.correct != expected:
            wrong.append((truth, response[:120], verdict.how))
    lines = "\n".join(map(str, wrong))
    assert not wrong, f"{category}: {len(wrong)} of {len(cases)} wrong\n{lines}"

def test_verdicts_on_golds_of_real_data_sets():
    """Rows of public data sets with answers written for them, where the folder is at hand."""
    folder = os.environ.get("CALIBRL_REALDATA")
    if not folder:
        pytest.skip("CALIBRL_REALDATA does not name the folder of real rows")
    with open(os.path.join(folder, "cases.jsonl"), encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    wrong = []
    for row in rows:
        s = score(wrap(row["answer"]), row["gold"], row["options"])
        if s.correct != row["expected"]:
            wrong.append((row["gold"], row["answer"], s.how))
    assert len(rows) > 50 and not wrong, f"{len(wrong)} of {len(rows)} wrong: {wrong}"


def test_format_flag():
    whole = [case for case in all_cases() if case[-1] is not None]
    assert len(whole) > 40
    for _, truth, response, _, _, formatted in whole:
        assert score(response, truth).formatted == formatted, response[:100]

def test_enough_cases_and_rules_decide_most():
    cases = [c for c in all_cases() if c[0] != "hostile"]
    assert len(cases) > 1500
    verifier_stats(reset=True)
    for _, truth, response, _, options, _ in cases:
        score(response, truth, options)
    stats = verifier_stats()
    assert stats["rules"] + stats["tags"] + stats["judge"] == len(cases)
    assert stats["judge"] <= .15 * len(cases)

# ---------------------------------------------------------------- the score and its truth

def test_score_fields():
    s = score(wrap("12"), "12")
    assert (s.correct, s.formatted, s.total, s.answer) == (True, True, 1.1, "12")
    assert s.how.startswith("rules")
    assert score("<answer>13</answer>", "12") == Score(False, False, "13", "rules: value")
    assert score("12", "12").answer is None and score("12", "12").how.startswith("tags")
    assert isinstance(s.correct, bool) and isinstance(s.formatted, bool)

@pytest.mark.parametrize("bad", ["", "  ", None, ["12"]])
def test_bad_truth_is_an_error(bad):
    with pytest.raises(ValueError, match="answer must be a non-empty string"):
        score(wrap("12"), bad)

def test_unreadable_truth_is_an_error():
    with pytest.raises(ValueError, match="no readable text"):
        score(wrap("12"), "\x00")

def test_numeric_truth():
    assert score(wrap("12"), 12).correct and score(wrap("2.5"), 2.5).correct

@pytest.mark.parametrize("response", [None, 12, b"<answer>12</answer>", [], {}])
def test_not_a_text(response):
    assert score(response, "12") == Score(False, False, None, "tags: not a text")

def test_options_as_text_is_an_error():
    with pytest.raises(ValueError, match="options must be a list"):
        score(wrap("A"), "A", "ABCD")

@pytest.mark.parametrize("truth, options, answer_is, right, wrong", [
    ("D", ["F", "D", "B", "I"], None, ["D", "(d)", "D. I", "I"], ["B", "D. D", "B. D", "A"]),
    ("D", ["F", "D", "B", "I"], "letter", ["D", "Option D", "I"], ["B", "B. D"]),
    ("D", ["F", "D", "B", "I"], "text", ["B", "B. D", "(B)"], ["D", "D. I", "I", "A"]),
    ("b", ["b", "c", "a"], "letter", ["B", "c", "B. c"], ["A", "C", "a"]),
    ("b", ["b", "c", "a"], "text", ["A", "b", "A. b"], ["B", "C", "a", "c"]),
    ("AC", ["AC", "BC", "AB"], None, ["A", "AC", "A. AC"], ["B", "C", "A, C"]),
    ("AC", ["AC", "BC", "AB"], "letter", ["A, C", "A and C"], ["A", "B", "A or C", "A, B"]),
    ("b", None, "letter", ["B", "(b)", "Option B", "B. 12"], ["A", "b = 2", "A. b"]),
    ("dca", None, "letter", ["A, C, D", "CAD", "A C D"], ["A, C", "A", "A, B, C, D"]),
    ("C", None, "text", ["C", "The answer is C"], ["Option C: 12", "(C) 12", "C. 12", "D"]),
    ("BDE", None, "text", ["BDE", "bde"], ["B, D, E", "EDB"]),
])
def test_a_loader_that_knows_says_what_the_answer_is(truth, options, answer_is, right, wrong):
    def paid(text):
        return score(wrap(text), truth, options, answer_is=answer_is).correct
    assert [text for text in right if not paid(text)] == []
    assert [text for text in wrong if paid(text)] == []


def test_what_the_answer_is_must_be_a_letter_or_a_text():
    with pytest.raises(ValueError, match='answer_is must be "letter", "text" or None'):
        score(wrap("A"), "A", answer_is="word")


ECHOES = [ # question, truth, only said back, right
    ("What is 37*41?", "1517", ["37*41", "37 \\times 41", "The answer is 37*41.", "x = 37*41",
        "$37*41$", "37 · 41", "41*37"], ["1517", "37*41 = 1517", "37*41 is 1517", "1500+17"]),
    ("Compute $\\frac{3}{4}+\\frac{1}{8}$.", "7/8", [r"\frac{3}{4}+\frac{1}{8}", "3/4 + 1/8"],
        ["7/8", "0.875", "14/16", "3/4 + 1/8 = 7/8"]),
    ("Factor $x^2-1$.", "(x-1)(x+1)", ["x^2-1", "x^{2} - 1"], ["(x+1)(x-1)", "x^2-1 = (x-1)(x+1)"]),
    ("Simplify $2x + 3x$.", "5x", ["2x+3x"], ["5x", "x*5"]),
    ("Evaluate $\\int_0^1 x\\,dx$.", r"\frac{1}{2}", [r"\int_0^1 x\,dx", r"$\int_0^1 x \, dx$"],
        ["1/2", "0.5"]),
    ("Convert 2.5 hours to minutes.", "150 minutes", ["2.5 hours"], ["150", "150 min", "9000 s"]),
    ("Write 45% as a decimal.", "0.45", ["45%"], ["0.45", "9/20"]),
    ("Write 0.75 as a fraction.", r"\frac{3}{4}", ["0.75"], ["3/4", "6/8"]),
    ("How many radians are 60°?", r"\frac{\pi}{3}", ["60°", "60 degrees"], ["π/3"]),
    ("Simplify $\\sqrt{12}$.", r"2\sqrt{3}", [r"\sqrt{12}", "√12"], [r"2\sqrt3", "√12 = 2√3"]),
    ("Write x > 5 as an interval.", r"(5, \infty)", ["x > 5", "x>5"], ["(5, ∞)"]),
    ("Solve $x + y = 3$ for y.", "y = 3 - x", ["x + y = 3"], ["y = 3 - x", "3 - x", "y = -x + 3"]),
    ("Which is larger, 3/4 or 2/3?", r"\frac{3}{4}", [], ["3/4", "0.75", "6/8"]),
    ("A side is 5 cm. How long is the other side of the square?", "5", [], ["5", "5 cm", "5.0 cm"]),
    ("What is the area of a 3 by 4 rectangle?", "12", [], ["3*4", "12"]),
    ("Is 37*41 even?", "No", [], ["No"]),
]

@pytest.mark.parametrize("question, truth, back, right", ECHOES)
def test_the_question_said_back_is_no_answer(question, truth, back, right):
    def paid(text, **more):
        return score(wrap(text), truth, **more).correct
    assert [text for text in back if paid(text, question=question)] == []
    assert [text for text in right if not paid(text, question=question)] == []
    assert all(map(paid, back)) # where the question is not known, it is only another spelling


def test_a_question_of_any_kind_does_no_harm():
    for question in ("", " ", "\x00", "(" * 10**5, "37*41 " * 10**4, "$" * 999):
        assert score(wrap("1517"), "1517", question=question).correct
    assert score(wrap("(" * 400 + "1"), "1", question="(" * 10**5 + "1").correct is False


def test_a_fault_of_ours_pays_nothing_and_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(decide, "judge_choice", lambda *a: 1 / 0)
    with caplog.at_level(logging.ERROR):
        s = score(wrap("A"), "A", ["1", "2"])
    assert not s.correct and s.how == "rules: fault ZeroDivisionError"
    assert "verifier fault" in caplog.text

# ---------------------------------------------------------------- problems and prompts

def test_problem_normalises():
    p = Problem("q?", "1", images=None, options={"B": "b", "A": "a"}, tags={"level": 2})
    assert p.images == () and p.options == ("a", "b") and p.tags == {"level": "2"}
    assert p.judged_by == ("1", ("a", "b"), "q?", None)
    assert Problem("q?", "1", images="one").images == ("one",)
    assert hash(Problem("q?", "1")) == hash(Problem("q?", "1"))
    assert Problem("q?", "1", options=["(A) red", "(B) blue"]).options == ("red", "blue")
    assert Problem("q?", "1", options=["A. red", "blue"]).options == ("A. red", "blue")

@pytest.mark.parametrize("field, kw", [
    ("question", dict(question=" ")),
    ("answer", dict(answer=None)),
])
def test_problem_names_the_field_and_row(field, kw):
    with pytest.raises(ValueError, match=f"Problem row-3: {field} must be"):
        Problem(**{"question": "q?", "answer": "1", "id": "row-3", **kw})

def test_messages():
    def kinds(p, **kw):
        return [c["type"] for c in messages(p, **kw)[0]["content"]]
    assert kinds(Problem("q?", "1")) == ["text"]
    assert kinds(Problem("q?", "1", images=("a", "b"))) == ["image", "image", "text"]
    assert kinds(Problem("<image>q?", "1", images=("a",))) == ["image", "text"]
    assert kinds(Problem("see <image>", "1", images=("a",))) == ["text", "image", "text"]
    text = messages(Problem("q?", "1", options=("x", "y")))[0]["content"][-1]["text"]
    assert text == "q?\nA. x\nB. y\n" + INSTRUCTION
    assert messages(Problem("q?", "1"), instruction="")[0]["content"][0]["text"] == "q?"
    with pytest.raises(ValueError, match="1 <image> placeholders but 2 images"):
        messages(Problem("<image>?", "1", images=("a", "b")))

# ---------------------------------------------------------------- hostile input

def test_hostile_is_quick_and_harmless(tmp_path):
    mark = tmp_path / "touched"
    payloads = [case["text"] for case in read_cases() if case["category"] == "hostile"]
    payloads += [
        f"__import__('pathlib').Path({str(mark)!r}).touch()",
        rf"\mathrm{{__import__('os').system('touch {mark}')}}",
        f"$({mark})`touch {mark}`",
        rf"\frac{{open('{mark}','w')}}{{1}}",
    ]
    truths = ["12", r"\frac{1}{2}", "x > 5", "A", "yes", "24 cm^2", "(1, 2)", r"\int_0^1 x\,dx"]
    score(*INTEGRAL) # the judge is warm
    for truth in truths:
        for text in payloads:
            begin = time.process_time() # of this process: the judge's is limited by its own timer
            s = score(wrap(text), truth)
            took = time.process_time() - begin
            assert not s.correct and "fault" not in s.how, (truth, text[:80], s)
            assert took < 1.5, (truth, text[:80], took)
    assert not mark.exists()
    for _, pid in sandbox.JUDGES.idle:
        if not os.path.exists(f"/proc/{pid}/status"):
            continue
        with open(f"/proc/{pid}/status") as status:
            peak = next(line for line in status if line.startswith("VmPeak"))
        assert int(peak.split()[1]) < 1 << 20 # kB

def test_judge_never_sees_dangerous_text():
    refused = ["10^{10^{10}}", "9^9^9", "1000!", "3!!", "9" * 16, r"\input{x}", r"\write18{ls}",
        "__import__('os')", "exec(1)", "{" * 20 + "}" * 20, "x" * 301, "a\x00", "x^{1234567}", "(1"]
    for text in refused:
        assert judge_text(text) is None, text
    for text in [r"\int_0^1 x\,dx", r"\begin{cases}1\\2\end{cases}", "x ≤ 2", r"\sum_{k=1}^n k"]:
        assert judge_text(text), text

def test_only_numbers_replaces_parse_expr():
    assert numbers_only("12") == 12 and abs(float(numbers_only("0.5")) - .5) < 1e-12
    for s in ("__import__('os')", "x", "1+1", "1e5", 5):
        with pytest.raises(ValueError):
            numbers_only(s)

def test_judge_here():
    assert judge_here(r"\int_0^1 x\,dx", r"\frac12")
    assert not judge_here(r"\int_0^1 x\,dx", "1")
    assert not judge_here("", "1")

# ---------------------------------------------------------------- the judge's processes

def test_judge_off_the_main_thread():
    with ThreadPoolExecutor(8) as pool:
        out = list(pool.map(lambda _: score(*INTEGRAL), range(24)))
    assert all(s.correct and s.how == "judge: Math-Verify" for s in out)
    assert len({pid for _, pid in sandbox.JUDGES.idle}) == len(sandbox.JUDGES.idle) <= 8

def test_a_kill_is_counted_logged_and_survived(monkeypatch, caplog):
    assert score(*INTEGRAL).correct
    pid = sandbox.JUDGES.idle[-1][1]
    before = verifier_stats()["killed"]
    with monkeypatch.context() as m, caplog.at_level(logging.WARNING):
        m.setattr(sandbox, "DEADLINE", 0)
        s = score(*INTEGRAL)
    assert not s.correct and s.how.startswith("judge: killed")
    assert verifier_stats()["killed"] == before + 1 and "verifier killed" in caplog.text
    assert pid not in [p for _, p in sandbox.JUDGES.idle]
    assert score(*INTEGRAL).correct

def test_a_worker_that_died_is_replaced():
    assert score(*INTEGRAL).correct
    before = verifier_stats()["died"]
    for _, pid in sandbox.JUDGES.idle:
        os.kill(pid, signal.SIGKILL)
    time.sleep(.2)
    sandbox.JUDGES.idle[:] = sandbox.JUDGES.idle[-1:]
    assert score(*INTEGRAL).correct and verifier_stats()["died"] == before + 1

def test_a_nursery_that_died_is_replaced():
    assert score(*INTEGRAL).correct
    sandbox.JUDGES.nursery.kill()
    sandbox.JUDGES.nursery.wait()
    for conn, _ in sandbox.JUDGES.idle:
        conn.close()
    sandbox.JUDGES.idle.clear()
    assert score(*INTEGRAL).correct

def test_no_judge_is_loud(monkeypatch, caplog):
    judges = sandbox.Judges()
    monkeypatch.setattr(sandbox, "JUDGES", judges)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.ERROR):
        s = score(*INTEGRAL)
    assert not s.correct and s.how == "judge: unavailable"
    assert judges.stats["unavailable"] == 1 and "does not start" in caplog.text

def test_two_deaths_in_a_row_give_up(monkeypatch):
    judges = sandbox.Judges()
    def dead():
        mine, theirs = socket.socketpair()
        theirs.close()
        return mine, 0
    monkeypatch.setattr(judges, "worker", dead)
    assert judges.ask("1", "1") == (False, "judge: died") and judges.stats["died"] == 2

def test_an_error_inside_the_worker_is_a_verdict(monkeypatch):
    judges = sandbox.Judges()
    def odd():
        mine, theirs = socket.socketpair()
        def answer():
            theirs.recv(100)
            theirs.sendall(b'"MemoryError"\n')
        threading.Thread(target=answer, daemon=True).start()
        return mine, 0
    monkeypatch.setattr(judges, "worker", odd)
    assert judges.ask("1", "1") == (False, "judge: MemoryError")

def _in_child(queue):
    s = score(*INTEGRAL)
    queue.put((s.correct, s.how, score(wrap("12"), "12").correct))

@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_daemonic_children(method):
    """DataLoader workers are daemonic processes: these have no children of multiprocessing's."""
    score(*INTEGRAL) # the parent has workers, which a forked child must not share
    ctx = multiprocessing.get_context(method)
    queue = ctx.Queue()
    children = [ctx.Process(target=_in_child, args=(queue,), daemon=True) for _ in range(2)]
    for c in children:
        c.start()
    got = [queue.get(timeout=120) for _ in children]
    for c in children:
        c.join(20)
    assert got == [(True, "judge: Math-Verify", True)] * 2
    assert score(*INTEGRAL).correct

ROOT = os.path.dirname(os.path.dirname(calibrl.__file__))
# A judge whose lines are traced takes two to three times the processor's time: not as users have it
HERE = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
HERE["PYTHONPATH"] = ROOT
ENDLESS = r"\prod_{k=1}^{99999} k!", "1"

BUSY = r"""
import multiprocessing, sys
from calibrl.tasks import score

SLOW = [ # right answers that cost the judge a quarter of a second or more
    (r"\int_0^{\pi} x\sin x\,dx", r"\pi"), (r"\int_0^{\pi} \sin^4 x\,dx", r"\frac{3\pi}{8}"),
    (r"\int_0^1 \frac{1}{1+x^2}\,dx", r"\frac{\pi}{4}")]

def spin():
    while True: pass

def grade(queue):
    queue.put([score(f"<answer>{text}</answer>", truth) for text, truth in SLOW])

if sys.argv[1] == "warm": assert score(r"<answer>\int_0^1 x\,dx</answer>", r"\frac{1}{2}").correct
context = multiprocessing.get_context("fork")
queue = context.Queue()
loops = [context.Process(target=spin, daemon=True) for _ in range(4)]
graders = [context.Process(target=grade, args=(queue,), daemon=True) for _ in range(12)]
for process in loops + graders: process.start()
verdicts = [verdict for _ in graders for verdict in queue.get(timeout=300)]
for process in loops: process.kill()
print(sum(v.correct for v in verdicts), *sorted({v.how for v in verdicts}), sep="|")
"""


@pytest.mark.parametrize("start", ["warm", "cold"])
def test_load_makes_no_right_answer_wrong(start):
    """Twelve forked processes grade at once, beside four that only burn the processors."""
    command = [sys.executable, "-c", BUSY, start]
    out = subprocess.run(command, capture_output=True, text=True, timeout=400, env=HERE)
    assert out.stdout.strip() == "36|judge: Math-Verify", out.stdout + out.stderr


def _runs(pid):
    """Is there such a process, and is it no zombie?"""
    try:
        state = open(f"/proc/{pid}/stat").read()
    except OSError:
        return False
    return state.rsplit(")", 1)[1].split()[0] != "Z"


def _ends(pid, seconds=60):
    end = time.monotonic() + seconds
    while _runs(pid) and time.monotonic() < end:
        time.sleep(.05)
    return not _runs(pid)


def test_an_endless_request_is_ended():
    score(*INTEGRAL)
    pid = sandbox.JUDGES.idle[-1][1]
    before = verifier_stats()["killed"]
    assert sandbox.JUDGES.ask(*ENDLESS) == (False, f"judge: killed after {sandbox.DEADLINE:g} s")
    assert verifier_stats()["killed"] == before + 1 and _ends(pid)
    assert score(*INTEGRAL).correct


@pytest.mark.parametrize("caller", ["listens", "is gone"])
def test_the_limit_is_kept_by_the_worker_itself(caller):
    """Nobody kills it: its own timer says that it ended, and ends it."""
    conn, pid = sandbox.JUDGES.worker()
    conn.sendall(json.dumps([*ENDLESS, .2]).encode() + b"\n")
    if caller == "listens":
        with pytest.raises(ValueError):
            json.loads(sandbox.read_line(conn, 60))
    conn.close()
    assert _ends(pid)


def test_a_worker_that_stands_still_is_given_up_and_another_asked(monkeypatch):
    assert score(*INTEGRAL).correct
    pid = sandbox.JUDGES.idle[-1][1]
    os.kill(pid, signal.SIGSTOP)
    sandbox.JUDGES.idle[:] = sandbox.JUDGES.idle[-1:]
    monkeypatch.setattr(sandbox, "PATIENCE", 5)
    try:
        assert score(*INTEGRAL).correct and _ends(pid)
    finally:
        if _runs(pid):
            os.kill(pid, signal.SIGKILL)


def _sockets():
    """The sockets that this process holds open, by inode."""
    fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return {os.readlink(fd) for fd in fds if os.path.lexists(fd) and "socket:" in os.readlink(fd)}


def _own_workers(queue, parents):
    correct = score(*INTEGRAL).correct
    queue.put((correct, _sockets() & parents, [pid for _, pid in sandbox.JUDGES.idle]))


def test_a_forked_child_has_a_nursery_and_workers_of_its_own():
    held = sandbox.JUDGES.worker() # as in a thread that waits for its verdict
    assert score(*INTEGRAL).correct
    judges = [sandbox.JUDGES.control, held[0], *(conn for conn, _ in sandbox.JUDGES.idle)]
    mine = {f"socket:[{os.fstat(conn.fileno()).st_ino}]" for conn in judges}

    ctx = multiprocessing.get_context("fork")
    queue = ctx.Queue()
    child = ctx.Process(target=_own_workers, args=(queue, mine), daemon=True)
    child.start()
    correct, shared, pids = queue.get(timeout=120)
    child.join(20)

    assert correct and not shared
    own = {pid for _, pid in sandbox.JUDGES.idle}
    assert pids and not own & set(pids) and all(map(_ends, pids))
    assert score(*INTEGRAL).correct
    held[0].close()
    assert _ends(held[1])


def test_a_worker_ends_with_its_caller_though_a_forked_child_lives_on():
    code = """if True:
        import os, time
        from calibrl.verify import sandbox
        conn, worker = sandbox.JUDGES.worker() # a request is under way
        child = os.fork()
        if not child: time.sleep(120)
        else: print(worker, child, flush=True)
        os._exit(0)"""
    # the child holds the output open: read one line only
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=HERE) as caller:
        worker, child = map(int, caller.stdout.readline().split())
        try:
            assert _ends(worker, 20) and _runs(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_limits_and_deaths_leak_nothing(monkeypatch):
    assert score(*INTEGRAL).correct
    sandbox.JUDGES.idle[:] = sandbox.JUDGES.idle[-1:]
    before = len(os.listdir("/proc/self/fd"))
    pids = []
    for _ in range(4):
        pids.append(sandbox.JUDGES.idle[-1][1])
        with monkeypatch.context() as m:
            m.setattr(sandbox, "DEADLINE", 0)
            assert not score(*INTEGRAL).correct
        assert score(*INTEGRAL).correct
        pids.append(sandbox.JUDGES.idle[-1][1])
        os.kill(pids[-1], signal.SIGKILL)
        assert score(*INTEGRAL).correct
    assert len(os.listdir("/proc/self/fd")) == before and all(map(_ends, pids))


def test_script_without_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(r"""
        from calibrl.tasks import score
        print("started")
        print(score(r"<answer>\int_0^1 x\,dx</answer>", r"\frac{1}{2}").how)"""))
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
        timeout=120, cwd=tmp_path, env=HERE)
    assert out.stdout.split("\n")[:2] == ["started", "judge: Math-Verify"], out.stderr

def test_nursery_ends_with_its_process():
    code = r"""if True:
        from calibrl.tasks import score
        from calibrl.verify import sandbox
        score(r'<answer>\int_0^1 x\,dx</answer>', r'\frac{1}{2}')
        print(sandbox.JUDGES.nursery.pid, sandbox.JUDGES.idle[0][1])"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
        timeout=120, env=HERE)
    pids = list(map(int, out.stdout.split()))
    assert len(pids) == 2, out.stderr
    assert all(_ends(pid, 20) for pid in pids)

def test_import_is_light():
    heavy = {"torch", "sympy", "math_verify", "transformers", "PIL", "numpy"}
    code = f"import sys, calibrl.tasks; print(sorted(set(sys.modules) & {heavy!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=HERE)
    assert out.stdout.strip() == "[]"

# ---------------------------------------------------------------- properties

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck))
FRAGMENTS = r"""1 2 12 0.5 , . ; : + - * / ^ = < > ( ) [ ] { } \{ \} \frac \sqrt \pi \text{ \boxed{
    $ % ° cm ^2 x y or and not is the answer A B <answer> </answer> <think> </think> √ ± ∞ ² ½ ! | "
    ' \\ \int_ \begin{pmatrix} & yes no hour minutes square thousand twenty ∪ ∈ ≤ _ ~ ... e5 # @ \
    1,234""".split()
pieces = st.lists(st.sampled_from(FRAGMENTS), max_size=25)
separators = st.sampled_from(["", " "])
soup = pieces.flatmap(lambda drawn: separators.map(lambda separator: separator.join(drawn)))
truths = st.sampled_from(["12", "1/2", "3.14", r"\sqrt{2}", "x > 5", "A", "A, C", "yes",
    "isosceles", "24 cm^2", "(1, 2)", r"\{1,2\}", "3:4", "y=2x+1", "[1,2)", "50%", "x^2+1", "60°"])

@quick
@given(st.text(max_size=200), truths, st.sampled_from([None, ["1", "2", "12"], ["x", "A"]]))
def test_any_text_is_scored(text, truth, options):
    for response in (text, wrap(text)):
        assert isinstance(score(response, truth, options), Score)

@quick
@given(soup, truths, st.sampled_from([None, ["12", "x", "1/2"]]))
def test_any_soup_is_scored(text, truth, options):
    for response in (text, wrap(text)):
        s = score(response, truth, options)
        assert isinstance(s, Score) and "fault" not in s.how
        assert s.answer is not None or not s.correct

@quick
@given(soup)
def test_soup_as_truth(text):
    try:
        read_truth(text)
        read_truth(clean(text, MAX_TRUTH)) # of some nothing is left then, see the next test
    except ValueError:
        return
    s = score(wrap("12"), text if text.strip() else "12")
    assert "fault" not in s.how

def test_a_truth_of_which_cleaning_twice_leaves_nothing():
    assert "fault" not in score(wrap("12"), r"\\.").how
    assert score(wrap(r"\\."), r"\\.").correct


def test_a_choice_without_text_is_no_fault():
    assert score(wrap("12"), "B", ["", "12 cm", "\x00"]).correct
    assert not score(wrap("12"), "A", ["", "12 cm"]).correct

WRAPS = ["{}", " {} ", "\n{}\n", "${}$", "$${}$$", r"\({}\)", r"\[{}\]", r"\boxed{{{}}}",
    r"$\boxed{{{}}}$", "{}.", "**{}**", "`{}`", "The answer is {}", "The answer is {}.",
    "Answer: {}", "So the answer is ${}$.", "\u200b{}", "{}\u00a0"]
wraps = st.sampled_from(WRAPS)
ints = st.integers(-10**6, 10**6)

WIDE = {ord("0") + digit: 0xFF10 + digit for digit in range(10)} # full-width digits

def spellings(n):
    "Return ways to write an integer."
    return [str(n), f"{n}.0", f"{n:,}", f"{2*n}/2", rf"\frac{{{3*n}}}{{3}}", f"{n-1}+1", f"x = {n}",
        f"{n} cm", str(n).replace("-", "−"), str(n).translate(WIDE)]

def is_paid(text, truth, options=None):
    "Return whether a text between answer tags is right."
    return score(wrap(text), truth, options).correct

@quick
@given(ints, wraps, st.data())
def test_right_stays_right(n, w, data):
    text = data.draw(st.sampled_from(spellings(n)))
    assert is_paid(w.format(text), str(n)), w.format(text)

@quick
@given(ints, ints.filter(bool), wraps, st.data())
def test_wrong_stays_wrong(n, d, w, data):
    text = data.draw(st.sampled_from(spellings(n + d)))
    assert not is_paid(w.format(text), str(n)), w.format(text)

@quick
@given(st.integers(1, 500), st.integers(1, 500), wraps)
def test_fractions(a, b, w):
    assert is_paid(w.format(rf"\frac{{{a}}}{{{b}}}"), f"{a}/{b}")
    assert is_paid(w.format(f"{2*a}/{2*b}"), rf"\frac{{{a}}}{{{b}}}")
    assert not is_paid(w.format(f"{a+1}/{b}"), f"{a}/{b}")

@quick
@given(st.integers(2, 200), st.integers(1, 9), wraps)
def test_roots(n, k, w):
    assert is_paid(w.format(rf"{k}\sqrt{{{n}}}"), f"√{k*k*n}")
    assert not is_paid(w.format(rf"{k}\sqrt{{{n+1}}}"), f"√{k*k*n}")

@quick
@given(st.lists(ints, min_size=2, max_size=6, unique=True), wraps,
    st.randoms(use_true_random=False))
def test_lists_in_any_order(items, w, rnd):
    def listed(items):
        return ", ".join(map(str, items))
    truth = listed(items)
    rnd.shuffle(items)
    assert is_paid(w.format(listed(items)), truth)
    assert not is_paid(w.format(listed(items[1:])), truth)
    assert not is_paid(w.format(listed([*items, 10**7])), truth)

CHOICES = ["12 cm", "red", "x > 5", "1/2"]
letter_wraps = st.sampled_from(["{}", "({})", "{}.", r"\boxed{{{}}}", "The answer is {}",
    "Option {}", "**{}**", "${}$"])

@quick
@given(st.integers(0, 3), st.integers(0, 3), letter_wraps)
def test_letters(i, j, w):
    assert is_paid(w.format("ABCD"[j]), "ABCD"[i], CHOICES) == (i == j)

letter_separators = st.sampled_from([", ", " ", "", " or ", "/", "; ", " and "])

@quick
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), letter_separators)
def test_listing_letters_never_pays(picks, separator):
    text = separator.join("ABCD"[pick] for pick in picks)
    for letter in "ABCD":
        assert not is_paid(text, letter, CHOICES)

number_separators = st.sampled_from([", ", " ", " or ", "; ", " and ", " | ", "\n", " maybe "])

@quick
@given(st.lists(st.integers(0, 99), min_size=2, max_size=8, unique=True), number_separators)
def test_listing_numbers_never_pays(items, separator):
    text = separator.join(map(str, items))
    for item in items:
        assert not is_paid(text, str(item))


class _Graded:
    "A data set that grades while it loads: the judge is needed for the second answer."
    def __len__(self):
        return 8
    def __getitem__(self, i):
        judged = score(r"<answer>\int_0^1 2x dx</answer>", "1")
        return [score("<answer>5</answer>", "5").correct, judged, i]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_torch_dataloader_workers(context):
    from torch.utils.data import DataLoader
    loader = DataLoader(_Graded(), batch_size=2, num_workers=2, collate_fn=list,
        multiprocessing_context=context)
    rows = [row for batch in loader for row in batch]
    assert sorted(i for *_, i in rows) == list(range(8)) and all(ok for ok, *_ in rows)
    assert all(judged.correct and judged.how.startswith("judge") for _, judged, _ in rows)
