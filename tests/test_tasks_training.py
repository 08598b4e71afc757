"""Training: models learn, runs go on where they stopped, broken checkpoints are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

torch = pytest.importorskip("torch")
for needed in ("lightning", "tokenizers", "sacrebleu", "sacremoses", "safetensors"):
    pytest.importorskip(needed)

from regard.errors import FileFormatError, OptionError  # noqa: E402
from regard.tasks import checkpoints, curve, runs  # noqa: E402
from regard.tasks.checkpoints import Checkpoint  # noqa: E402
from regard.tasks.interruption import Interruption  # noqa: E402
from regard.tasks.sequences import SequenceUse  # noqa: E402
from regard.tasks.training import Learner  # noqa: E402
from regard.tasks.translation import Translation  # noqa: E402
from small_tasks import SETTINGS, write_text  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def silent(_: str) -> None:
    """Says nothing."""


def train(folder, given):
    return runs.start(Translation, {**SETTINGS, **given}, folder, tell=silent)


def again(folder, given=None):
    return runs.start(Translation, given or {}, folder, resume=True, tell=silent)


@pytest.mark.parametrize("model", ["transformer", "rnn", "rnn-without-attention"])
def test_a_model_learns_its_training_data_by_heart(model, tmp_path):
    text = write_text(tmp_path, 60)
    trained = train(tmp_path / "run", {**text, "model": model, "epochs": 50})
    points = curve.read(tmp_path / "run" / "curve.jsonl")
    assert points[0]["training_loss"] > 3
    assert points[-1]["training_loss"] < 0.1
    sources, references = zip(*trained.task.pairs("train"), strict=True)
    for beam in (1, 4):
        answers = trained.task.predict(trained.model, sources, SequenceUse(beam=beam))
        right = sum(a == b for a, b in zip(answers, references, strict=True))
        assert right >= 0.9 * len(references), answers[:3]


SHORT = {"epochs": 3, "tokens": 128, "dropout": 0.2, "average": 0.9, "layers": 1}


def weights(checkpoint: Checkpoint):
    return checkpoint.weights(), checkpoint.state()["current_model_state"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    text = write_text(folder, 100)
    torch.set_num_threads(1)
    train(folder / "run", {**text, **SHORT})
    return text, folder / "run"


def without_time(folder):
    return [
        {name: value for name, value in point.items() if not name.endswith("minutes")}
        for point in curve.read(folder / "curve.jsonl")
    ]


@pytest.mark.parametrize("stop", ["middle", "last batch", "epoch", "later", "twice"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(stop, uninterrupted, tmp_path, monkeypatch):
    text, whole = uninterrupted
    steps = without_time(whole)[0]["step"]
    assert steps > 5
    stops = {
        "middle": [steps // 2],
        "last batch": [steps - 1],
        "epoch": [steps],
        "later": [2 * steps + 3],
        "twice": [3, steps + 4],
    }[stop]
    given = {**text, **SHORT, "save_every": 2}
    step = Learner.training_step
    for n, at in enumerate(stops):

        def killed(self, batch, index, at=at):
            if self.trainer.global_step == at:
                raise MemoryError("killed")
            return step(self, batch, index)

        monkeypatch.setattr(Learner, "training_step", killed)
        with pytest.raises(MemoryError):
            again(tmp_path / "run") if n else train(tmp_path / "run", given)
        monkeypatch.setattr(Learner, "training_step", step)
    again(tmp_path / "run")
    assert without_time(tmp_path / "run") == without_time(whole)
    ends = [checkpoints.newest(run / "checkpoints")[0][0] for run in (tmp_path / "run", whole)]
    assert ends[0].step == ends[1].step == 3 * steps
    for one, other in zip(*map(weights, ends), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_settings_that_would_make_it_another_run_are_refused(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[1], folder)
    with pytest.raises(OptionError, match="--width 64 differs from the 32 that the run began with"):
        again(folder, {"width": 64})
    with pytest.raises(OptionError, match="holds a run already"):
        train(folder, {})
    longer = again(folder, {"epochs": 4})
    assert len(curve.read(folder / "curve.jsonl")) == 4
    assert longer.checkpoint.about["settings"]["epochs"] == 4


def test_the_seed_decides(uninterrupted, tmp_path):
    text, whole = uninterrupted
    train(tmp_path / "other", {**text, **SHORT, "epochs": 1, "seed": 2})
    assert without_time(tmp_path / "other")[0] != without_time(whole)[0]


def test_early_stop(tmp_path):
    text = write_text(tmp_path, 40)
    train(tmp_path / "run", {**text, "epochs": 50, "rate": 1e-9, "patience": 2})
    assert len(curve.read(tmp_path / "run" / "curve.jsonl")) < 10


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("weights.safetensors", "cut", r"weights\.safetensors was cut short or changed: it has"),
        ("state.pt", "cut", r"state\.pt was cut short or changed"),
        ("weights.safetensors", "flip", "checksum is not what it was"),
        ("manifest.json", "cut", "is no checkpoint"),
        ("task.json", "remove", "is no checkpoint: No such file"),
    ],
)
def test_a_broken_checkpoint_is_refused_and_the_one_before_is_used(
    file, damage, message, uninterrupted, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[1], folder)
    last, before = checkpoints.newest(folder / "checkpoints")[0][:2]
    path = last.path / file
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        path.write_bytes(content[:half] if damage == "cut" else flipped)
    with pytest.raises(FileFormatError, match=message):
        runs.load(last.path)
    trained = runs.load(folder)
    assert trained.checkpoint.path == before.path
    assert "Passed over" in trained.notes[0]
    told = []
    runs.start(Translation, {}, folder, resume=True, tell=told.append)
    assert f"Going on from step {before.step}" in told[1]
    assert without_time(folder) == without_time(uninterrupted[1])


def test_a_checkpoint_cannot_run_code(uninterrupted, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(runs.load(uninterrupted[1]).checkpoint.path, folder)
    torch.save({"harm": shutil.rmtree}, folder / "state.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.pt"] = (
        (folder / "state.pt").stat().st_size,
        checkpoints._digest(folder / "state.pt"),
    )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        Checkpoint.open(folder).state()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="there is no directory"):
        runs.load(tmp_path / "nothing")
    with pytest.raises(FileFormatError, match="is no checkpoint"):
        runs.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileFormatError, match="holds no checkpoint"):
        runs.load(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    text = write_text(tmp_path, 60)
    for folder in (text["source"], text["source"] / "run"):
        with pytest.raises(FileFormatError, match=r"text\.en.* cannot be made"):
            train(folder, text)


def test_the_report_says_how_to_get_the_figures_again(uninterrupted):
    trained = runs.load(uninterrupted[1], Translation)
    command = ["regard", "evaluate"]
    found = json.loads(json.dumps(runs.report(trained, "validation", SequenceUse(), command)))
    assert found["command"] == command
    assert found["training"]["settings"]["seed"] == 1
    assert found["machine"]["torch"] == torch.__version__
    assert len(found["curve"]) == 3
    assert found["figures"]["sentences"] == len(trained.task.pairs("validation"))
    assert 0 <= found["figures"]["alignment"]["error_rate"] <= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_python_loses_is_raised_again():
    class Loses:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    interruption, went_on = Interruption(), False
    with pytest.raises(KeyboardInterrupt), interruption.heard():
        Loses()
        went_on = True
        interruption.on_train_batch_end()
    assert went_on


def test_an_interruption_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption().heard():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_checkpoints_name_no_files_elsewhere(tmp_path):
    (tmp_path / "manifest.json").write_text('{"../secret": [1, "a"]}')
    about = {"task": "translation", "settings": {}, "step": 1, "validation_loss": 1, "tied": {}}
    (tmp_path / "task.json").write_text(json.dumps({**about, "assets": []}))
    with pytest.raises(FileFormatError, match=r"\.\./secret is no name of a file beside it"):
        Checkpoint.open(tmp_path)
    (tmp_path / "task.json").write_text(json.dumps({"assets": []}))
    with pytest.raises(FileFormatError, match=r"task\.json lacks settings, step, task"):
        Checkpoint.open(tmp_path)
