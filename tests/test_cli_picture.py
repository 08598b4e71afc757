"""regard explain with a picture: maps of patches, the page with the picture, and errors."""

import json

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("PIL")
pytest.importorskip("transformers")
import torch
import transformers
from PIL import Image

from regard.cli import main, sources
from regard.cli.picture import heat
from regard.recording.picture import decode, load

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A tiny ViT of 3 × 4 patches, made at random, on disk."""
    path = tmp_path_factory.mktemp("models") / "vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **SIZES, intermediate_size=48, image_size=(24, 32), patch_size=8, initializer_range=0.6
    )
    transformers.ViTModel(config).save_pretrained(path)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 24, "width": 32},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.2, 0.1],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(capsys):
    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return caught.value.code, *capsys.readouterr()

    return call


def eager(vit, photo):
    """The weights that transformers gives: a layer each, (4, 13, 13)."""
    model = transformers.AutoModel.from_pretrained(vit, attn_implementation="eager").eval()
    pixels = load(vit).processor(images=decode(photo.read_bytes(), ""), return_tensors="pt")
    with torch.no_grad():
        found = model(**pixels, output_attentions=True).attentions
    return [weights[0].numpy() for weights in found]


def test_maps_are_what_cls_reads(run, vit, photo):
    weights = eager(vit, photo)
    code, out, err = run("explain", photo, "--model", vit, "--json")
    assert code == 0 and err == ""
    found = json.loads(out)
    assert (found["grid"], found["reader"], len(found["heads"])) == ([3, 4], "[CLS]", 8)
    for layer, shown in zip(weights, found["maps"], strict=True):
        wanted = layer[:, 0, 1:].mean(0).reshape(3, 4)
        np.testing.assert_allclose(shown["patches"], wanted, atol=1e-5)
    out = run("explain", photo, "--model", vit, "--json", "--layer", 1, "--head", 2)[1]
    (shown,) = json.loads(out)["maps"]
    np.testing.assert_allclose(shown["patches"], weights[1][2, 0, 1:].reshape(3, 4), atol=1e-5)
    code, out, err = run("explain", photo, "--model", vit)
    assert code == 0 and err == "" and "\x1b" not in out
    assert "photo.png: 3 × 4 patches, read by vit" in out
    assert "layer 0" in out and "██" in out and f"{weights[0][:, 0, 1:].mean(0).max():.1%}" in out


def test_without_cls_the_mean_of_all_patches(vit, photo):
    look = load(vit).look(decode(photo.read_bytes(), "photo"))
    text = type(look.text).of_picture(look.text.picture.data, 1, 13, before=())
    mean = type(look)(look.recording, text, (1, 13))
    wanted = eager(vit, photo)[1].mean(axis=1)
    assert mean.reader == "the mean of all patches"
    np.testing.assert_allclose(mean.patches(1)[:, 0], wanted, atol=1e-5)


def test_the_page_shows_the_picture_as_the_model_saw_it(run, vit, photo, tmp_path):
    target = tmp_path / "page.html"
    code, out, _ = run("explain", photo, "--model", vit, "--html", target)
    assert code == 0 and "Page written" in out
    assert "data:image/png;base64," in target.read_text(encoding="utf-8")
    image = decode(photo.read_bytes(), "photo")
    picture = load(vit).look(image).text.picture
    seen = np.asarray(decode(picture.data, "seen")).astype(int)
    assert (picture.rows, picture.columns, picture.first) == (3, 4, 1)
    assert seen.shape == (24, 32, 3)
    assert abs(seen - np.asarray(image.resize((32, 24), 2))).max() <= 1


def test_maps_in_characters():
    shares = np.array([[0.0, 0.5], [1.0, 0.25], [0.25, 0.0]])
    assert heat(shares, coloured=False).plain == "  ▒▒\n██░░\n░░  "
    drawn = heat(shares)
    assert drawn.plain == "▀▀\n▀▀"
    first, *_, last = (span.style for span in drawn.spans)
    assert first.color.name == "#121228" and first.bgcolor.name == "#fff5c8"
    assert last.color.name == "#121228" and last.bgcolor is None


def test_errors_are_one_line_and_exit_with_2(run, vit, photo, tmp_path, monkeypatch):
    transformers.BertModel(
        transformers.BertConfig(**SIZES, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path / "bert")
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:99])
    (tmp_path / "words.png").write_text("no picture")
    cases = [
        ([photo], "a picture without --model"),
        ([tmp_path / "none.jpg", "--model", vit], "cannot be read: no such file"),
        ([tmp_path / "words.png", "--model", vit], "words.png is no picture"),
        ([tmp_path / "broken.jpg", "--model", vit], "broken.jpg is no picture"),
        ([photo, "--model", tmp_path], "config.json is missing"),
        ([photo, "--model", tmp_path / "bert"], "the model in"),
        ([photo, "--model", vit, "--layer", 2], "--layer 2"),
        ([photo, "--model", vit, "--head", 2], "--head without --layer"),
        ([photo, "--model", vit, "--html", photo], "would replace"),
    ]
    for arguments, message in cases:
        code, out, err = run("explain", *arguments)
        assert code == 2 and out == "" and message in err, err
        assert err.startswith("regard: ") and err.count("\n") == 1
    known = sources.find_spec
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name == "PIL" else known(name))
    code, _, err = run("explain", photo, "--model", vit)
    assert code == 2 and "not installed: PIL" in err and "pip install pillow" in err
