"""Every kind of row that real sets hold, in small rows of our own: what it is read as, or the
reason why it is refused. Nothing is read wrongly in silence."""
import base64
import io

import datasets
import numpy as np
import pytest
from PIL import Image

from calibrl.data import as_images, load_problems


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "Tables that `datasets` writes on the way go to a folder of this run."
    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = usual


def problems_of(*rows, **how):
    "Problems of some rows, as a training run reads them."
    return load_problems(datasets.Dataset.from_list(list(rows)), **how)


def reason(row, good=None, **how):
    "Why a row is left out that stands beside a good one of the same kind."
    good = good or {"question": "How long?", "answer": "4"}
    found = problems_of(good, row, **how)
    assert len(found) == 1
    return found.skipped[0]["reason"]


def encoded(image, kind="PNG"):
    "The bytes of a picture's file."
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


# Pictures

def grey_at(image, place=(0, 0)):
    "The grey of a pixel of a picture, once it has been through a file and a cell."
    kind = "TIFF" if image.mode == "F" else "PNG"
    shown, = as_images(encoded(image, kind))
    red, green, blue = shown.getpixel(place)
    assert red == green == blue
    return red


@pytest.mark.parametrize("values, greys", [
    (np.array([[0, .5, 1]], "float32"), [0, 128, 255]),
    (np.array([[0, 128, 255]], "float32"), [0, 128, 255]),
    (np.array([[-1, 0, 1]], "float32"), [0, 128, 255]),
    (np.array([[0, 1e6, 2e6]], "float32"), [0, 128, 255]),
    (np.array([[0, np.nan, 1]], "float32"), [0, 0, 255]),
    (np.array([[0, np.inf, 1]], "float32"), [0, 255, 255]),
    (np.array([[0, 128, 255]], "int32"), [0, 128, 255]),
    (np.array([[0, 32768, 65535]], "int32"), [0, 128, 255]),
    (np.array([[0, 128, 255]], "uint16"), [0, 128, 255]),
    (np.array([[0, 2048, 4095]], "uint16"), [0, 128, 255]),
    (np.array([[0, 32768, 65535]], "uint16"), [0, 128, 255]),
    (np.array([[0, 0, 1]], "uint16"), [0, 0, 255]),
    (np.array([[0, 0, 0]], "uint16"), [0, 0, 0])], ids=str)
def test_a_picture_in_deep_grey_goes_from_black_to_white(values, greys):
    image = Image.fromarray(values)
    assert [grey_at(image, (i, 0)) for i in range(3)] == greys


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_small_picture_in_base64_is_no_path(kind):
    stored = encoded(Image.new("RGB", (6, 6), "white"), kind)
    text = base64.b64encode(stored).decode()
    lines = base64.encodebytes(stored).decode()
    for spelled in (text, lines, text.rstrip("="), f"data:image/x;base64,{text}"):
        assert as_images(spelled)[0].size == (6, 6)
    row = {"question": "How long?", "answer": "4", "image": text}
    assert problems_of(row)[0].images[0].size == (6, 6)


def test_a_path_is_still_a_path(tmp_path):
    name = "iVBORw0KGgo.png"
    (tmp_path/name).write_bytes(encoded(Image.new("RGB", (5, 5))))
    assert as_images(name, tmp_path)[0].size == (5, 5)
    assert len(as_images(f"['{name}', '{name}']", tmp_path)) == 2
    with pytest.raises(ValueError, match="is missing"):
        as_images("a/very/long/path/of/a/picture/that/is/not/there", tmp_path)
