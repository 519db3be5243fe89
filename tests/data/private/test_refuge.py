"REFUGE in folders: small photographs of that layout, good ones and broken ones."
import numpy as np
import pandas as pd
import pytest
from conftest import photograph
from PIL import Image

from medstrat.data.private.refuge import read_refuge
from medstrat.data.sources import load_dataset


pytestmark = pytest.mark.usefixtures("alone")


def test_refuge_images_labels_and_devices(refuge):
    s = read_refuge(refuge, image_size=10)
    assert (len(s), s.image_shape, s.images.dtype) == (12, (10, 10, 3), np.uint8) and s.classes == {0: "non-glaucoma", 1: "glaucoma"}
    assert s.labels.tolist() == [1] * 4 + [0] * 8 and s.table.file[0] == "Training400/Glaucoma/g0000.jpg"
    assert set(s.table.device) == {"unknown, 40×36"}
    for image, file in zip(s.images, s.table.file, strict=True):   # 2 rows of black above and below
        square = np.pad(np.asarray(Image.open(refuge / file)), [(2, 2), (0, 0), (0, 0)])
        assert np.array_equal(image, np.asarray(Image.fromarray(square).resize((10, 10), Image.Resampling.BILINEAR)))
        assert abs(image[2:8].mean() - square[8:32].mean()) < 3   # away from the black
    assert read_refuge(refuge).image_shape == (128, 128, 3)


def test_sizes_tell_the_device(tmp_path):
    for kind, size in (("Glaucoma", (2124, 2056)), ("non glaucoma", (1634, 1634))):
        (tmp_path / kind).mkdir()
        Image.new("RGB", size, (90, 60, 30)).save(tmp_path / kind / "a.JPG")
    s = read_refuge(tmp_path, 32)
    assert s.table.device.to_list() == ["Zeiss Visucam 500", "Canon CR-2"]
    assert np.abs(s.images[1].astype(int) - [90, 60, 30]).max() <= 2


def test_gray_photographs_become_colour_and_hidden_files_are_passed_over(refuge):
    Image.new("L", (40, 36), 77).save(refuge / "Training400" / "Glaucoma" / "gray.jpeg")
    (refuge / "Training400" / "Glaucoma" / "._g0000.jpg").write_bytes(b"resource fork")
    s = read_refuge(refuge, 10)
    assert len(s) == 13 and (s.images[4][5, 5] == 77).all()


def test_a_table_beside_the_images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "REFUGE-Validation400"
    for i in range(6): photograph(folder / f"V{i}.jpg", rng)
    pd.DataFrame({"ID": range(6), "ImgName": [f"V{i}.jpg" for i in range(6)], "Label(Glaucoma=1)": [1, 0, 0, 1, 0, 0]}).to_csv(folder / "labels.csv", index=False)
    (folder / "fovea.csv").write_text("image,x,y\nV0.jpg,1,2\n")   # another table
    assert read_refuge(tmp_path, 10).labels.tolist() == [1, 0, 0, 1, 0, 0]
    for text, says in (("ImgName,Label(Glaucoma=1)\nV0.jpg,1\nV1.jpg,0\n", "V2.jpg is not in the table"), ("ImgName,Label\nV0.jpg,2\n", "row 2 says: V0.jpg, 2"),
                       ("ImgName,Label\nV0.jpg,\n", "label 0 or 1"), ("ImgName,x\nV0.jpg,1\n", "one column of labels"), ("ImgName,Label\nV0.jpg,1\nV0.jpg,0\n", "row 3")):
        (folder / "labels.csv").write_text(text)
        with pytest.raises(ValueError, match=says): read_refuge(tmp_path, 10)


def test_images_without_labels_are_left_out_with_a_notice(refuge):
    photograph(refuge / "Test400" / "T0001.jpg", np.random.default_rng(0))
    (refuge / "Glaucoma_label.xlsx").touch()
    said = []
    with pytest.warns(UserWarning, match=r"1 of 13 images were left out.*Glaucoma_label.xlsx.*as .csv"): assert len(read_refuge(refuge, 10, said)) == 12
    assert len(said) == 1
    with pytest.raises(ValueError, match="0 with glaucoma, 0 without, 1 without a label"): read_refuge(refuge / "Test400")
    with pytest.raises(ValueError, match="0 with glaucoma, 8 without"): read_refuge(refuge / "Training400" / "Non-Glaucoma")


def test_damaged_images_are_named(refuge):
    path = refuge / "Training400" / "Non-Glaucoma" / "n0003.jpg"
    good = path.read_bytes()
    for content in (good[:len(good) // 2], b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="n0003.jpg cannot be read as an image"): read_refuge(refuge, 10)


def test_refuge_is_split_by_label(refuge):
    s = load_dataset(refuge, image_size=16)
    assert (len(s.train), len(s.test)) == (9, 3) and np.bincount(s.test.labels).tolist() == [2, 1]
    assert "1,200 images; this copy has 12" in s.notices[0] and "stratified by label" in s.notices[1]


def test_two_tables_of_labels_are_one_too_many(tmp_path):
    for i in range(2): photograph(tmp_path / f"V{i}.jpg", np.random.default_rng(0))
    for name in ("a", "b"): (tmp_path / f"{name}.csv").write_text("ImgName,Label\nV0.jpg,1\nV1.jpg,0\n")
    with pytest.raises(ValueError, match="several tables of labels: a.csv, b.csv. Keep one"): read_refuge(tmp_path, 10)
    for text in ("V0\n", "a,b\n1,2\n"):   # no table of labels
        (tmp_path / "b.csv").write_text(text)
        assert read_refuge(tmp_path, 10).labels.tolist() == [1, 0]
    (tmp_path / "b.csv").write_bytes(b"ImgName,Label\n\xff,1\n")
    with pytest.raises(ValueError, match="b.csv cannot be read as a table"): read_refuge(tmp_path, 10)
