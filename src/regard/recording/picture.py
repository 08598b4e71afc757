"""Pictures and the models that read them patch by patch, such as ViT: from a file to attention.

Nothing is downloaded. Pictures are decoded with Pillow, which is imported when one is read.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.errors import FileFormatError, ModelError
from regard.operator import AttentionWeights
from regard.recording.models import first_line, pretrained
from regard.recording.record import Recording
from regard.recording.watching import watch
from regard.viewer import Text
from regard.viewer.png import encode

__all__ = ["Look", "PictureReader", "decode", "load"]

Floats = npt.NDArray[np.float64]

_WANTED = "a Hugging Face directory: config.json, preprocessor_config.json and the weights"


@dataclass(frozen=True)
class Look:
    """What a model attended to in a picture. text: its tokens, the patches with the picture."""

    recording: Recording
    text: Text
    grid: tuple[int, int]

    @property
    def reader(self) -> str:
        """Whose attention `patches` shows."""
        return "[CLS]" if self.text.special[0] else "the mean of all patches"

    def patches(self, call: int) -> Floats:
        """(H, rows, columns): the share of attention that goes to each patch.

        Of [CLS], which stands first and sums the picture up; in models without it, of all patches
        in the mean.
        """
        weights = self.recording[call]
        assert isinstance(weights, AttentionWeights)
        if self.text.special[0]:
            read = as_numpy(weights[0].rows([0]))[:, 0]
        else:
            read = as_numpy(weights[0].received()) / len(self.text.tokens)
        first = sum(self.text.special)
        return np.asarray(read[:, first:], np.float64).reshape(-1, *self.grid)


@dataclass(frozen=True)
class PictureReader:
    """A vision model with its image processor. patch: (height, width) of a patch in pixels."""

    name: str
    processor: Any
    model: Any
    patch: tuple[int, int]
    notes: tuple[str, ...] = ()

    def look(self, image: Any) -> Look:
        """What attends to what while the model reads a picture of `decode`. Raises ModelError."""
        import torch

        try:
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
            with torch.no_grad(), watch(self.model) as seen:
                self.model(pixel_values=pixels)
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
            raise ModelError(
                f"{self.name} failed to read the picture: {first_line(error)}"
            ) from error
        rows, columns = (n // size for n, size in zip(pixels.shape[-2:], self.patch, strict=True))
        shapes = {weights.shape[-2:] for weights in seen}
        lengths = {length for shape in shapes for length in shape}
        if len(lengths) != 1 or (special := lengths.pop() - rows * columns) < 0:
            raise ModelError(
                f"{self.name} does not attend from every patch to every patch",
                f"a model such as ViT, with {rows} × {columns} patches in every layer",
            )
        before = ["[CLS]", *(f"[extra {n}]" for n in range(1, special))][:special]
        data = encode(self._as_seen(as_numpy(pixels)[0]))
        return Look(seen, Text.of_picture(data, rows, columns, before=before), (rows, columns))

    def _as_seen(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """(3, height, width) as the model got them → (height, width, 3) from 0 to 255."""
        if getattr(self.processor, "do_normalize", False):
            mean, std = self.processor.image_mean, self.processor.image_std
            pixels = pixels * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
        return np.round(pixels.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def load(directory: str | Path) -> PictureReader:
    """A vision model and its image processor from a local directory; of CLIP, the vision part.

    Raises: ModelError when the directory is missing or holds no model that reads patches.
    """
    from transformers import AutoImageProcessor

    path = Path(directory)
    processor, model, notes = pretrained(path, AutoImageProcessor.from_pretrained, _WANTED)
    model = getattr(model, "vision_model", model)
    patch = getattr(model.config, "patch_size", None)
    if model.main_input_name != "pixel_values" or not patch:
        raise ModelError(f"the model in {path} does not read pictures in patches", _WANTED)
    height, width = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    return PictureReader(path.resolve().name, processor, model, (height, width), tuple(notes))


def decode(content: bytes, name: str) -> Any:
    """The picture in a file, upright, in red, green and blue. Raises FileFormatError."""
    from PIL import Image, ImageOps

    try:
        upright: Any = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        return upright.convert("RGB")
    except Exception as error:  # whatever a foreign file can bring about
        raise FileFormatError(f"{name} is no picture that can be read", "a PNG or JPEG") from error
