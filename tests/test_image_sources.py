"""Sources of images: order, labels, what is read and when, hostile files, kinds of pixels,
sizes.
"""

import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import uturn as ut
from uturn.core.protocols import Variable
from uturn.sources import images as image_sources
from uturn.sources.images import ArraySource, ImageFolderSource


def noise_image(seed, height=6, width=6, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, **options)


def eight_bits(images):
    """Images (batch, channels, height, width) in [-1, 1] as (batch, height, width, channels) in
    0..255.
    """
    return np.rint((images.astype(float) + 1) * 127.5).astype(int).transpose(0, 2, 3, 1)


def number_of(images):
    """The numbers that `numbered` images hold."""
    return eight_bits(images)[:, 0, 0, 0].tolist()


def numbered(path, number):
    save(path, np.full((4, 4), number, np.uint8))


def first_images(source, number):
    """The first so many images and their labels."""
    return source.images_at(np.arange(min(number, source.count())))


def folder_source(path, **options):
    return ImageFolderSource(path=str(path), **({"channels": 1} | options))


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded so far."""
    found, original = [], image_sources.pixels_of
    monkeypatch.setattr(
        image_sources,
        "pixels_of",
        lambda path, *options: found.append(path) or original(path, *options),
    )
    return found


@pytest.fixture
def uneven(tmp_path):
    """Classes b, a and c/d with 3, 1 and 2 images, numbered by class and rank; and what is to be
    ignored.
    """
    for name, class_number, count in [("b", 1, 3), ("a", 0, 1), ("c/d", 2, 2)]:
        for rank in range(count):
            numbered(tmp_path / "data" / name / f"image{rank}.png", 10 * class_number + rank)
    numbered(tmp_path / "data" / ".hidden" / "x.png", 99)
    numbered(tmp_path / "data" / "a" / ".hidden.png", 99)
    return tmp_path / "data"


# -- order and labels ------------------------------------------------------------------------------
def test_classes_come_in_turn(uneven):
    source = folder_source(uneven)
    images, labels = first_images(source, 6)
    assert number_of(images) == [0, 10, 20, 11, 21, 12]
    assert labels.tolist() == [0, 1, 2, 1, 2, 1]
    assert source.count() == 6
    assert source.num_labels() == 3
    assert source.class_names() == ["a", "b", "c/d"]
    files = source.coordinates(0, 4)["file"].tolist()
    assert files == ["a/image0.png", "b/image0.png", "c/d/image0.png", "b/image1.png"]


def test_without_sub_folders_files_are_sorted_and_unlabelled(tmp_path):
    for number, name in enumerate(["a.png", "b.png", "c10.png", "c9.png"]):
        numbered(tmp_path / name, number)
    source = folder_source(tmp_path)
    images, labels = first_images(source, 10)  # all, if there are fewer
    assert number_of(images) == [0, 1, 2, 3]
    assert labels.tolist() == [-1] * 4
    assert source.num_labels() is None
    assert source.class_names() is None


def test_class_list_keeps_the_labels_of_the_classifier(uneven, tmp_path):
    (tmp_path / "classes.txt").write_text("z\r\nc/d\r\ny\r\na\r\nb\r\n\r\n", encoding="utf-8-sig")
    source = folder_source(uneven, classes=str(tmp_path / "classes.txt"))
    images, labels = first_images(source, 3)
    assert number_of(images) == [0, 10, 20]  # the order of items does not depend on it
    assert labels.tolist() == [3, 4, 1]
    assert source.num_labels() == 5
    assert source.class_names() == ["z", "c/d", "y", "a", "b"]
    assert source.fingerprint() != folder_source(uneven).fingerprint()


def test_links_are_followed_once(uneven, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a").symlink_to(uneven / "b")
    (uneven / "b" / "loop").symlink_to(uneven / "b")
    (uneven / "b" / "nowhere.png").symlink_to(uneven / "absent.png")
    assert number_of(first_images(folder_source(tmp_path / "linked"), 9)[0]) == [10, 11, 12]


# -- what is read, and when ------------------------------------------------------------------------
def test_only_the_images_asked_for_are_decoded(tmp_path, decoded, monkeypatch):
    for number in range(40):
        numbered(tmp_path / f"{number % 4}" / f"{number:02}.png", number)
    listings, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listings.append(path) or scandir(path))
    source = folder_source(tmp_path, size=4)
    assert source.image_shape() == (1, 4, 4)
    assert (source.count(), source.num_labels()) == (40, 4)
    source.fingerprint()
    assert len(decoded) == 0
    source.coordinates(0, 12)
    assert len(decoded) == 12
    source.coordinates(0, 12)
    assert len(decoded) == 12  # known by now
    assert number_of(next(source.blocks(np.array([5, 3]), 0, 12)).images) == [5, 3]
    assert len(decoded) == 14
    source.images_at([20])
    assert len(decoded) == 15
    assert len(listings) == 5  # the folder and its four classes, once


def test_fingerprint_knows_the_files_not_the_place(uneven, tmp_path):
    before = folder_source(uneven).fingerprint()
    uneven.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path, (1, 1))
    assert folder_source(tmp_path / "moved").fingerprint() == before
    numbered(tmp_path / "moved" / "b" / "image3.png", 5)
    added = folder_source(tmp_path / "moved").fingerprint()
    (tmp_path / "moved" / "b" / "image3.png").rename(tmp_path / "moved" / "a" / "image3.png")
    renamed = folder_source(tmp_path / "moved").fingerprint()
    with open(tmp_path / "moved" / "a" / "image3.png", "ab") as file:
        file.write(b"more")
    assert len({before, added, renamed, folder_source(tmp_path / "moved").fingerprint()}) == 4


def test_items_do_not_change_while_a_source_lives(uneven):
    source = folder_source(uneven)
    before = source.coordinates(0, 6)["file"].tolist()
    numbered(uneven / "a" / "an earlier name.png", 1)
    assert source.coordinates(0, 6)["file"].tolist() == before
    with open(uneven / "b" / "image0.png", "ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"bytes of .*image0\.png = "):
        source.images_at([1])


# -- files that are no images ----------------------------------------------------------------------
def png_of_size(width, height):
    """A PNG file that claims a size, and hardly holds anything."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("b.png", lambda jpeg, png: b"", "empty"),
        ("b.jpg", lambda jpeg, png: jpeg[: len(jpeg) // 2], ".*truncated.*"),
        ("b.txt", lambda jpeg, png: b"notes", "not an image"),
        ("b.png", lambda jpeg, png: png_of_size(30_000, 30_000), ".*decompression bomb.*"),
        (
            "b.eps",
            lambda jpeg, png: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n",
            "not an image",
        ),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name, content, reason):
    """Before a run, and where it is read; the items before it are not affected."""
    for other in ("whole.jpg", "whole.png"):
        save(tmp_path / other, noise_image(0, 64, 64))
    whole = [(tmp_path / other).read_bytes() for other in ("whole.jpg", "whole.png")]
    save(tmp_path / "data" / "a.png", np.full((64, 64), 7, np.uint8))
    (tmp_path / "data" / name).write_bytes(content(*whole))
    source = folder_source(tmp_path / "data")
    for ask in (lambda: source.coordinates(0, 2), lambda: source.images_at([1])):
        with pytest.raises(
            ValueError,
            match=rf"{re.escape(name)} cannot be read \({reason}\); mend it, or move it away",
        ):
            ask()
    assert number_of(first_images(source, 1)[0]) == [7]
    with pytest.raises(ValueError, match=r"items = 3: expected at most 2, the files of "):
        source.coordinates(0, 3)


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        folder_source(tmp_path / "absent").count()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="it holds no files"):
        folder_source(tmp_path / "empty").count()
    (tmp_path / "a.png").write_bytes(b"no image")
    for ask in (
        lambda s: first_images(s, 3),
        lambda s: s.coordinates(0, 1),
        lambda s: s.image_shape(),
        lambda s: s.images_at([0]),
    ):
        with pytest.raises(ValueError, match=r"a\.png cannot be read \(not an image\)"):
            ask(folder_source(tmp_path))


# -- pixels ----------------------------------------------------------------------------------------
def one_image(path, **options):
    return eight_bits(
        first_images(folder_source(path.parent, **({"channels": 3} | options)), 1)[0]
    )[0]


def test_colours_and_grey_are_exact(tmp_path):
    pixels = noise_image(1)
    save(tmp_path / "rgb" / "a.png", pixels)
    np.testing.assert_array_equal(one_image(tmp_path / "rgb" / "a.png"), pixels)
    grey = one_image(tmp_path / "rgb" / "a.png", channels=1)[..., 0]
    assert np.abs(grey - pixels @ [0.299, 0.587, 0.114]).max() <= 0.51  # ITU-R BT.601
    save(tmp_path / "grey" / "a.png", pixels[..., 0])
    np.testing.assert_array_equal(
        one_image(tmp_path / "grey" / "a.png"), np.repeat(pixels[..., :1], 3, axis=2)
    )
    np.testing.assert_array_equal(
        one_image(tmp_path / "grey" / "a.png", channels=1), pixels[..., :1]
    )


def test_an_array_of_too_many_numbers_is_not_read(tmp_path):
    header = np.lib.format.header_data_from_array_1_0(np.zeros(1, np.uint8)) | {
        "shape": (3000, 1000, 1000)
    }
    with open(tmp_path / "holes.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 3 * 10**9)
    with pytest.raises(ValueError, match="size = 3000000000"):
        ArraySource(path=str(tmp_path / "holes.npy")).count()


def test_transparency_is_laid_on_white(tmp_path):
    pixels = noise_image(3, channels=4)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    share = pixels[..., 3:] / 255
    expected = share * pixels[..., :3] + (1 - share) * 255
    save(tmp_path / "rgba" / "a.png", pixels)
    found = one_image(tmp_path / "rgba" / "a.png")
    assert np.abs(found - expected).max() <= 1
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1], pixels[1, :, :3])
    (tmp_path / "la").mkdir()
    Image.fromarray(pixels[..., [0, 3]], mode="LA").save(tmp_path / "la" / "a.png")
    assert np.abs(one_image(tmp_path / "la" / "a.png", channels=1) - expected[..., :1]).max() <= 1
    (tmp_path / "palette").mkdir()
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.save(tmp_path / "palette" / "a.png", transparency=0)
    assert one_image(tmp_path / "palette" / "a.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_is_rounded(tmp_path, ending):
    deep = np.random.default_rng(5).integers(0, 2**16, (6, 6)).astype(np.uint16)
    deep[0, :2] = 0, 2**16 - 1
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(
        one_image(tmp_path / f"a.{ending}", channels=1)[..., 0], np.rint(deep / 257)
    )


def test_several_images_in_a_file_are_an_error(tmp_path):
    pages = [Image.fromarray(noise_image(k, 8, 8)) for k in range(2)]
    for ending in ("tif", "gif", "png", "webp"):
        pages[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=pages[1:])
        with pytest.raises(
            ValueError,
            match=rf"a\.{ending} cannot be read \(images in the {ending.upper()[:4]}.* = 'several'",
        ):
            one_image(tmp_path / f"a.{ending}")
        (tmp_path / f"a.{ending}").unlink()


def test_numbers_without_a_known_range_are_an_error(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(
        ValueError, match=r"a\.tif cannot be read .*expected one whose range is known"
    ):
        first_images(folder_source(tmp_path), 1)
    # White is 0.
    Image.fromarray(np.full((4, 4), 2**15, np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with pytest.raises(
        ValueError,
        match=r"a\.tif cannot be read \(bits and photometric interpretation = \(\(16,\), 0\)",
    ):
        first_images(folder_source(tmp_path), 1)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_orientation_is_applied(tmp_path, ending):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :16] = 255  # the upper left quarter
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the quarter moves to the upper right
    save(
        tmp_path / f"a.{ending}", pixels, exif=exif, **({} if ending == "png" else {"quality": 100})
    )
    found = one_image(tmp_path / f"a.{ending}", channels=1)[..., 0]
    assert found.shape == (32, 16)
    assert found[2:14, 10:14].min() > 250
    assert max(found[18:].max(), found[:, :6].max()) < 5


# -- sizes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("height", "width", "size"), [(40, 60, 16), (48, 48, 7), (8, 12, 16)])
def test_resizing_is_the_antialiased_bicubic_of_another_library(tmp_path, height, width, size):
    # Pillow clips to 0..255 in between, after the rows.
    pixels = 64 + noise_image(7, height, width) // 2
    save(tmp_path / "a.png", pixels)
    # Sizes for which the resized long side, and what is cut from it, are whole numbers of pixels.
    rows, columns = height * size // min(height, width), width * size // min(height, width)
    whole = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        whole, (rows, columns), mode="bicubic", antialias=True, align_corners=False
    )
    top, left = (rows - size) // 2, (columns - size) // 2
    expected = (
        resized[0, :, top : top + size, left : left + size].permute(1, 2, 0).clamp(0, 255).numpy()
    )
    found = one_image(tmp_path / "a.png", size=size)
    assert found.shape == (size, size, 3)
    assert np.abs(found - expected).max() <= 1.01  # rounded after the rows, and after the columns


def test_images_of_different_sizes_need_a_size(tmp_path):
    save(tmp_path / "a.png", noise_image(0, 6, 8))
    save(tmp_path / "b.png", noise_image(1, 6, 8))
    save(tmp_path / "c.png", noise_image(2, 8, 6))
    source = folder_source(tmp_path, channels=3)
    assert first_images(source, 2)[0].shape == (2, 3, 6, 8)
    for _ in range(2):  # the error stays
        with pytest.raises(
            ValueError,
            match=r"c\.png = '6 x 8 pixels': expected 8 x 6 pixels, as .*a\.png; give `size`",
        ):
            source.coordinates(0, 3)
    assert first_images(folder_source(tmp_path, size=5), 3)[0].shape == (3, 1, 5, 5)


# -- in memory -------------------------------------------------------------------------------------
def test_arrays(tmp_path):
    images = noise_image(8, 6, 6, 4).transpose(2, 0, 1)
    np.save(tmp_path / "images.npy", images)
    source = ArraySource(path=str(tmp_path / "images.npy"))
    loaded, labels = source.load()
    assert loaded.shape == (4, 1, 6, 6)
    assert np.allclose((loaded[:, 0] + 1) * 127.5, images, atol=1e-4)
    assert (labels == -1).all()
    assert (source.count(), source.image_shape(), source.num_labels(), source.class_names()) == (
        4,
        (1, 6, 6),
        None,
        None,
    )
    np.testing.assert_array_equal(source.images_at([2, 0])[0], loaded[[2, 0]])
    np.testing.assert_array_equal(first_images(source, 9)[0], loaded)
    np.save(tmp_path / "labels.npy", np.array([3, -1, 0, 1]))
    labelled = ArraySource(path=str(tmp_path / "images.npy"), labels=str(tmp_path / "labels.npy"))
    assert labelled.num_labels() == 4
    assert first_images(labelled, 2)[1].tolist() == [3, -1]
    np.save(tmp_path / "labels.npy", np.array([3, -2, 0, 1]))
    with pytest.raises(ValueError, match=r"label = .*-2.*: expected 0, 1"):
        first_images(labelled, 2)
    np.save(tmp_path / "wrong.npy", np.full((2, 6, 6), 7.0))
    with pytest.raises(
        ValueError, match=r"holds float64 images, values in .*7.*7.*; expected uint8"
    ):
        ArraySource(path=str(tmp_path / "wrong.npy")).load()
    np.save(tmp_path / "gaps.npy", np.array([np.nan, -7.0, np.inf, 9.0]).reshape(1, 2, 2))
    with pytest.raises(ValueError, match=r"values in .*nan.*; expected uint8"):
        ArraySource(path=str(tmp_path / "gaps.npy")).load()
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a readable"):
        ArraySource(path=str(tmp_path / "object.npy")).load()


def test_arrays_that_have_changed_are_read_again(tmp_path):
    source = ArraySource(path=str(tmp_path / "images.npy"))
    images = np.zeros((4, 6, 6), np.uint8)
    np.save(tmp_path / "images.npy", images)
    assert (source.all_images()[0] == -1).all()
    before = source.fingerprint()
    np.save(tmp_path / "images.npy", images + 255)
    assert (source.all_images()[0] == 1).all()
    assert source.fingerprint() != before


# -- in an experiment ------------------------------------------------------------------------------
class FirstPixel(ut.Probe):
    """Reads the first pixel of the reconstructions, 0..255."""

    outputs = ()

    def variables(self, source):
        return {"first": Variable(("noise", "item", "trajectory"), "first pixel")}

    def coordinates(self, source):
        return {}

    def fingerprint(self):
        return "none"

    def read(self, u_turns, source):
        return {"first": np.rint((np.asarray(u_turns.reconstructions)[:, :, 0, 0, 0] + 1) * 127.5)}


def test_results_record_the_file_of_every_item(tmp_path):
    for number in range(6):
        save(
            tmp_path / "data" / f"class{number % 2}" / f"{number}.png",
            np.full((28, 28), number, np.uint8),
        )
    spec = {
        "items": 5,
        "chunk": 2,
        "source": {"type": "images", "path": str(tmp_path / "data"), "channels": 1},
        "corruption": {"type": "diffusion", "noise": [0.0]},  # U-turns of no length
        "backward": {"type": "diffusion", "steps": 2},
        "probes": [{"type": f"{__name__}:FirstPixel"}],
    }
    run = ut.run(ut.Experiment.from_dict(spec), tmp_path / "store").load()
    assert run.file.values.tolist() == [
        "class0/0.png",
        "class1/1.png",
        "class0/2.png",
        "class1/3.png",
        "class0/4.png",
    ]
    assert run.label.values.tolist() == [0, 1, 0, 1, 0]
    assert run["first"].values[0, :, 0].tolist() == [0, 1, 2, 3, 4]
    again = ut.run(ut.Experiment.from_dict(spec), tmp_path / "store").load()
    assert again.identical(run)
    save(tmp_path / "data" / "class0" / "9.png", np.zeros((28, 28), np.uint8))
    with pytest.raises(ValueError, match="another experiment"):
        ut.run(ut.Experiment.from_dict(spec), tmp_path / "store")
