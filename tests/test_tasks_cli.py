"""regard train, evaluate, predict and explain: what they print, and how they fail."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
for needed in ("lightning", "tokenizers", "sacrebleu", "sacremoses", "safetensors", "typer"):
    pytest.importorskip(needed)

from regard.cli import main  # noqa: E402
from regard.tasks import curve, runs  # noqa: E402
from small_tasks import SETTINGS, write_text  # noqa: E402


def options(given):
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, as the command made it."""
    folder = tmp_path_factory.mktemp("cli")
    torch.set_num_threads(1)
    given = {**SETTINGS, **write_text(folder, 60), "epochs": 25}
    with pytest.raises(SystemExit) as caught:
        main(["train", "translation", f"--output={folder / 'run'}", *options(given)])
    assert caught.value.code == 0
    return folder / "run"


@pytest.fixture
def run(capsys):
    """Runs the command: (exit code, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return caught.value.code, *capsys.readouterr()

    return call


def test_help_names_tasks_and_their_settings(run):
    for verb in ("train", "evaluate", "predict"):
        for arguments in ([verb], [verb, "--help"]):
            code, out, err = run(*arguments)
            assert code == 0 and not err
            assert "translation" in out and "pronunciation" in out
    code, out, _ = run("train", "translation", "--help")
    assert code == 0
    assert all(name in out for name in ("--languages", "--dropout", "--resume", "--precision"))
    assert "--beam" in run("predict", "translation", "--help")[1]


def test_training_leaves_all_there_is_to_know(trained):
    about = json.loads((trained / "training.json").read_text())
    assert about["command"][:3] == ["regard", "train", "translation"]
    assert about["settings"]["width"] == SETTINGS["width"]
    assert "shifted" in json.loads((trained / "calibration.json").read_text())["alignment"]
    assert len(curve.read(trained / "curve.jsonl")) == 25
    assert len(list((trained / "checkpoints").iterdir())) in (2, 3)  # the last, and the best


def test_predict_from_arguments_stdin_and_files(trained, run, tmp_path, monkeypatch):
    task = runs.load(trained).task
    sources, targets = zip(*task.pairs("train")[:5], strict=True)
    given = ("predict", "translation", "--checkpoint", trained)
    code, out, _ = run(*given, *sources, "")
    answers = out.splitlines()
    assert code == 0 and len(answers) == 6 and answers[5] == ""
    assert sum(a == b for a, b in zip(answers, targets, strict=False)) >= 3
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{s}\n" for s in sources)))
    assert run(*given)[1].splitlines() == answers[:5]
    (tmp_path / "in.txt").write_text("".join(f"{s}\n" for s in [*sources, ""]), "utf-8")
    files = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--batch", 2)
    assert run(*given, *files) == (0, "", "")
    assert (tmp_path / "out.txt").read_text("utf-8").splitlines() == answers
    best = runs.load(trained).checkpoint.path
    assert (
        run("predict", "translation", "--checkpoint", best, *sources)[1].splitlines()
        == (answers[:5])
    )


def test_evaluate_prints_figures_and_writes_a_report(trained, run, tmp_path):
    report = tmp_path / "report.json"
    given = ("--split", "validation", "--report", report, "--beam", 2)
    code, out, _ = run("evaluate", "translation", "--checkpoint", trained, *given)
    assert code == 0
    figures, written = json.loads(out), json.loads(report.read_text("utf-8"))
    assert figures["bleu_13a"] == written["figures"]["bleu_13a"]
    assert written["use"]["beam"] == 2
    assert written["parameters"] > 10_000


def test_explain_shows_the_alignment(trained, run, tmp_path):
    source = runs.load(trained).task.pairs("train")[0][0]
    given = ("--checkpoint", trained, "--html", tmp_path / "page.html")
    code, out, _ = run("explain", "translation", source, *given)
    assert code == 0
    assert "Alignment: " in out and "chosen on validation data" in out
    assert "Content-Security-Policy" in (tmp_path / "page.html").read_text("utf-8")
    forced = "Hier sieht hund."
    given = ("--checkpoint", trained, "--target", forced, "--json")
    found = json.loads(run("explain", "translation", source, *given)[1])
    assert found["target"] == forced.split()
    assert len(found["alignment"].split()) == len(forced.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "poetry"], "there is no task 'poetry'. Wanted: one of translation"),
        (["train", "translation"], "Missing option '--output'"),
        (["train", "translation", "--output=NEW", "--colour=3"], "No such option: --colour"),
        (
            ["train", "translation", "--output=NEW", "--width=x"],
            "'--width': Input should be a valid integer",
        ),
        (["train", "translation", "--output=NEW", "--model=lstm"], "--model is 'lstm'"),
        (["train", "translation", "--output=NEW", "--source=missing"], "one of --source and"),
        (["train", "translation", "--output=RUN"], "holds a run already"),
        (["train", "translation", "--output=RUN", "--resume", "--width=8"], "--width 8 differs"),
        (["train", "pronunciation", "--output=RUN", "--resume"], "is of the task translation"),
        (["predict", "translation", "--checkpoint=NEW", "a"], "there is no directory"),
        (["predict", "pronunciation", "--checkpoint=RUN", "a"], "is of the task translation"),
        (["predict", "translation", "--checkpoint=RUN", "a", "--input=b"], "texts and --input"),
        (["predict", "translation", "--checkpoint=RUN", "--input=b"], "b cannot be read"),
        (
            ["predict", "translation", "--checkpoint=RUN", "a", "--beam=0"],
            "--beam is 0. Wanted: 1 or more",
        ),
        (["evaluate", "translation", "--checkpoint=RUN", "--split=x"], "--split x"),
        (["evaluate", "translation", "--checkpoint=RUN"], "for a model of your own text"),
        (["explain", "translation", "--checkpoint=RUN"], "a task's name and one text"),
        (["explain", "translation", "", "--checkpoint=RUN"], "is empty"),
        (["explain", "one", "two"], "2 texts. Wanted: one text, in quotes"),
        (["explain", "one", "--target=two"], "--target without --checkpoint"),
    ],
)
def test_errors_are_one_line(arguments, message, trained, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"NEW": str(tmp_path / "new"), "RUN": str(trained)}
    given = [a.replace("NEW", paths["NEW"]).replace("RUN", paths["RUN"]) for a in arguments]
    code, out, err = run(*given)
    assert code == 2 and not out
    lines = [line for line in err.splitlines() if line.startswith("regard:")]
    assert len(lines) == 1 and message in lines[0], err
    assert not (tmp_path / "new").exists()


def test_what_is_not_installed_is_named(run, monkeypatch):
    import regard.tasks

    monkeypatch.setattr(regard.tasks, "_NEEDED", ("torch", "not_there"))
    code, _, err = run("train", "translation", "--output=x")
    assert code == 2
    assert 'not installed: not_there. To do: pip install "regard[tasks]"' in err


def start(tmp_path) -> tuple[subprocess.Popen, str]:
    """A long run in a process of its own, once it has written checkpoints; its --output."""
    given = {**SETTINGS, **write_text(tmp_path, 60), "epochs": 400, "save_every": 3}
    output = f"--output={tmp_path / 'run'}"
    command = [sys.executable, "-m", "regard.cli", "train", "translation", output]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options(given)], env=environment, stderr=subprocess.PIPE, text=True
    )
    while len(list((tmp_path / "run").glob("checkpoints/step-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    return process, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_stop_does_not_say_that_it_is_done(tmp_path, number):
    process, _ = start(tmp_path)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 130 and said.splitlines()[-1] == "regard: interrupted"
    assert not (tmp_path / "run" / "calibration.json").exists()


def test_a_process_that_was_killed_goes_on(tmp_path):
    process, output = start(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(SystemExit) as caught:
        main(["train", "translation", output, "--resume", "--epochs=20"])
    assert caught.value.code == 0
    points = curve.read(tmp_path / "run" / "curve.jsonl")
    assert [point["epoch"] for point in points][-1] >= 20
    assert [point["step"] for point in points] == sorted({point["step"] for point in points})
