"""Every image is labeled exactly once, as `predict` labels it, whatever happens meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import splitattn
from splitattn.bulk import stores
from splitattn.bulk.bulk import TooManyErrorsError, label_bulk
from splitattn.bulk.plan import write_manifest
from splitattn.bulk.shards import ShardReport
from splitattn.bulk.sources import Entry
from splitattn.bulk.stores import open_store
from splitattn.bulk.summary import BulkReport
from splitattn.cli import main
from splitattn.errors import DataError, InputError
from tests.bulk.s3_server import BUCKET, S3Server, environment, serving


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((80, 60))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures and a file that is none, below two folders."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "trip").mkdir()
    for number in range(10):
        where = folder / "trip" if number % 2 else folder
        picture(number).save(where / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def bucket(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The same in a bucket, below `in/`."""
    with serving() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        stores._opened.cache_clear()
        for path in photos.rglob("*.jpg"):
            server.objects[f"in/{path.relative_to(photos)}"] = path.read_bytes()
        yield server
        stores._opened.cache_clear()


def rows_at(target: Path) -> list[dict[str, Any]]:
    return [
        row for part in sorted(target.glob("part-*")) for row in pq.read_table(part).to_pylist()
    ]


def assert_labeled_as_by_predict(rows: list[dict[str, Any]], folder: str, photos: Path) -> None:
    """Each image once, and the same labels."""
    names = [row["path"].removeprefix(f"{folder}/") for row in rows]
    assert sorted(names) == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.jpg"))
    good = [(name, row) for name, row in zip(names, rows, strict=True) if row["error"] is None]
    assert len(good) == 10
    predicted = splitattn.Classifier().predict([photos / name for name, _ in good])
    for (_, row), labels in zip(good, predicted, strict=True):
        assert row["labels"] == [label.label for label in labels]
        assert row["indices"] == [label.index for label in labels]
        expected = [label.probability for label in labels]
        assert row["probabilities"] == pytest.approx(expected, rel=1e-5)
    (bad,) = (row for row in rows if row["error"] is not None)
    assert bad["labels"] is None
    assert bad["error"].startswith(f"{bad['path']}: ")


def test_a_folder_becomes_parts_of_the_given_size(photos: Path, tmp_path: Path) -> None:
    told: list[tuple[ShardReport, int]] = []
    report = label_bulk(
        photos, tmp_path / "out", shard_size=4, on_shard=lambda *shard: told.append(shard)
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "_manifest"),
        *("run.json", "_SUCCESS", "summary.html"),
    }
    sizes = [pq.read_metadata(part).num_rows for part in sorted((tmp_path / "out").glob("part-*"))]
    assert sizes == [4, 4, 3]
    rows = rows_at(tmp_path / "out")
    assert_labeled_as_by_predict(rows, str(photos), photos)
    assert [row["size"] for row in rows] == [Path(row["path"]).stat().st_size for row in rows]
    assert (report.images, report.errors, report.shards, report.labeled_now) == (11, 1, 3, 11)
    assert sum(report.classes.values()) == 10
    assert sum(report.error_kinds.values()) == 1
    assert [(shard.images, of) for shard, of in told] == [(4, 3), (4, 3), (3, 3)]
    page = (tmp_path / "out" / "summary.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == 10


def test_features_are_those_of_the_classifier(photos: Path, tmp_path: Path) -> None:
    label_bulk(photos / "trip", tmp_path / "out", features=True, topk=1)
    rows = rows_at(tmp_path / "out")
    features = splitattn.Classifier().features([row["path"] for row in rows])
    np.testing.assert_allclose([row["features"] for row in rows], features, rtol=1e-4, atol=1e-5)
    assert all(len(row["labels"]) == 1 for row in rows)


def test_a_bucket_that_is_busy_is_labeled_all_the_same(
    bucket: S3Server, photos: Path, tmp_path: Path
) -> None:
    bucket.busy, bucket.page = 0.05, 3
    bucket.objects["in/.hidden/1.jpg"] = bucket.objects["in/notes.txt"] = b"no picture"
    report = label_bulk(f"s3://{BUCKET}/in", f"s3://{BUCKET}/out", shard_size=4)
    assert (report.images, report.errors) == (11, 1)
    out = {key for key in bucket.objects if key.startswith("out/")}
    assert {"out/_SUCCESS", "out/run.json", "out/part-00002.parquet"} <= out
    for key in out:
        (tmp_path / Path(key).name).write_bytes(bucket.objects[key])
    assert_labeled_as_by_predict(rows_at(tmp_path), f"s3://{BUCKET}/in", photos)
    assert all(row["etag"] for row in rows_at(tmp_path))


def test_an_object_that_is_gone_is_an_error_and_can_be_tried_again(
    bucket: S3Server, tmp_path: Path
) -> None:
    content = bucket.objects["in/0.jpg"]
    (tmp_path / "list.csv").write_text(f"path\ns3://{BUCKET}/in/0.jpg\ns3://{BUCKET}/in/2.jpg\n")
    del bucket.objects["in/0.jpg"]
    report = label_bulk(tmp_path / "list.csv", tmp_path / "out")
    assert report.error_kinds == {"no such object": 1}
    bucket.objects["in/0.jpg"] = content
    del bucket.objects["in/2.jpg"]  # was labeled, so it is not asked for again
    report = label_bulk(tmp_path / "list.csv", tmp_path / "out", retry_errors=True)
    assert report.errors == 0
    assert [row["error"] for row in rows_at(tmp_path / "out")] == [None, None]


def test_what_is_done_is_not_done_again(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    label_bulk(photos, target, shard_size=4)
    whole = rows_at(target)
    (target / "part-00001.parquet").unlink()
    (target / "_SUCCESS").unlink()
    kept = (target / "part-00000.parquet").stat().st_mtime_ns
    report = label_bulk(photos, target, shard_size=4)
    assert report.labeled_now == 4
    assert rows_at(target) == whole
    assert (target / "part-00000.parquet").stat().st_mtime_ns == kept
    assert (target / "_SUCCESS").exists()
    with pytest.raises(DataError, match="holds a run already"):
        label_bulk(photos, target, shard_size=4, resume=False)


def test_another_run_does_not_go_on(photos: Path, tmp_path: Path) -> None:
    splitattn.export(tmp_path / "other.onnx")
    label_bulk(photos / "trip", tmp_path / "out")
    changes: dict[str, Any] = {"topk": 2, "shard_size": 5, "features": True, "decoding": "exact"}
    for name, value in {**changes, "weights": tmp_path / "other.onnx"}.items():
        with pytest.raises(DataError, match=f"holds a run with {name} "):
            label_bulk(photos / "trip", tmp_path / "out", **{name: value})


def test_lists_and_parquet_of_paths_and_of_images(photos: Path, tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in (0, 2)]
    text = "".join(f"{photos / name}\n" for name in names)
    (tmp_path / "list.txt").write_text(text)
    (tmp_path / "list.csv").write_text(
        "label,path\n" + text.replace("/", ",/", 1).replace("\n/", "\n,/")
    )
    pq.write_table(pa.table({"path": text.split()}), tmp_path / "paths.parquet")
    images = [{"bytes": (photos / name).read_bytes(), "path": None} for name in names]
    layout = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(images, layout)}), tmp_path / "test-0.parquet")
    expected = splitattn.Classifier().predict([photos / name for name in names], topk=1)
    for source in ("list.txt", "list.csv", "paths.parquet", "test-0.parquet"):
        label_bulk(tmp_path / source, tmp_path / f"{source}.out", topk=1)
        rows = rows_at(tmp_path / f"{source}.out")
        assert [row["indices"] for row in rows] == [[one.index] for (one,) in expected]
    assert [row["path"] for row in rows] == [f"{tmp_path}/test-0.parquet#{n}" for n in (0, 1)]


def test_names_that_are_no_text_are_labeled_and_escaped(photos: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "in")
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/\xff.jpg")).write_bytes((photos / "0.jpg").read_bytes())
    report = label_bulk(tmp_path / "in", tmp_path / "out")
    assert report.errors == 0
    (row,) = rows_at(tmp_path / "out")
    assert row["path"] == f"{tmp_path}/in/\\udcff.jpg"


def test_too_many_errors_stop_the_run_and_say_so(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.jpg\n" * 100 + f"{photos / '0.jpg'}\n" * 100)
    with pytest.raises(TooManyErrorsError, match=r"at most 10% of the images .* got 100 of 100"):
        label_bulk(tmp_path / "list.txt", tmp_path / "out", shard_size=50)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert len(rows_at(tmp_path / "out")) == 100  # kept
    report = label_bulk(tmp_path / "list.txt", tmp_path / "out", shard_size=50, most_errors=0.5)
    assert (report.images, report.errors, report.labeled_now) == (200, 100, 100)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("nothing", "neither a folder nor a file"),
        ("empty", "there must be images to label, got none"),
        ("words.csv", "must have a column path, got a, b"),
        ("numbers.parquet", "must have a column image or path, got n"),
        ("ftp://example.org/photos", "addresses are paths, file://, s3:// or gs://"),
        ("notes.md", "a source is a folder"),
    ],
)
def test_what_is_no_source_is_refused_in_a_line(
    source: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.csv").write_text("a,b\n1,2\n")
    (tmp_path / "notes.md").write_text("a.jpg\n")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(InputError, match=rule):
        label_bulk(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/part-*"))


def test_parts_of_something_else_are_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "part-1.parquet").write_bytes(b"somebody's")
    with pytest.raises(DataError, match=r"holds part-1.parquet and no run.json"):
        label_bulk(photos, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match=r"run.json is damaged"):
        label_bulk(photos, tmp_path)


def test_listing_takes_no_more_memory_for_more_images(tmp_path: Path) -> None:
    def peak(images: int) -> int:
        entries = (Entry(path=f"s3://bucket/{n:09d}.jpg", size=n) for n in range(images))
        tracemalloc.start()
        assert sum(write_manifest(open_store(str(tmp_path)), entries, 500)) == images
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1000)
    assert peak(10_000) < 1.2 * peak(1000)


def test_the_command_line_tells_what_came_of_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bulk", str(photos), str(tmp_path / "out"), "--shard-size", "6"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1  # one is broken
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}/out: 11 images in 2 parts, 1 errors, ")
    assert "2/2 parts  11 images  1 errors" in err


def test_a_killed_run_goes_on_and_loses_and_doubles_nothing(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-m", "splitattn", "bulk", str(photos), str(target)]
    killed = 0
    for _ in range(3):
        before = len(list(target.glob("part-*")))
        with subprocess.Popen([*command, "--shard-size=1"], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(target.glob("part-*"))) <= before:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    assert killed
    report = label_bulk(photos, target, shard_size=1)
    assert report.labeled_now < report.images == 11
    assert_labeled_as_by_predict(rows_at(target), str(photos), photos)


def test_several_processes_do_what_one_does(photos: Path, tmp_path: Path) -> None:
    label_bulk(photos, tmp_path / "one", shard_size=4)
    label_bulk(photos, tmp_path / "two", shard_size=4, actors=2)
    for one, two in zip(rows_at(tmp_path / "one"), rows_at(tmp_path / "two"), strict=True):
        # Another number of threads adds up in another order.
        ours, theirs = (row.pop("probabilities") or [] for row in (one, two))
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert one == two


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_ray_cluster_loses_workers_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    import psutil  # type: ignore[import-untyped]

    (tmp_path / "list.txt").write_text(
        "".join(f"{p}\n" for p in sorted(photos.rglob("*.jpg"))) * 20
    )
    killed: list[int] = []

    def kill_a_worker(_: ShardReport, __: int) -> None:
        workers = [p for p in psutil.process_iter(["name"]) if "ShardLabeler" in p.info["name"]]
        if workers and len(killed) < 5:
            killed.append(workers[0].pid)
            workers[0].kill()

    target = tmp_path / "out"
    report: BulkReport = label_bulk(
        tmp_path / "list.txt",
        target,
        shard_size=11,
        cluster="ray",
        actors=2,
        on_shard=kill_a_worker,
    )
    assert killed
    assert (report.images, report.errors) == (220, 20)
    assert Counter(row["path"] for row in rows_at(target)) == dict.fromkeys(
        map(str, photos.rglob("*.jpg")), 20
    )
    again = label_bulk(tmp_path / "list.txt", tmp_path / "alone", shard_size=11)
    ours, alone = rows_at(target), rows_at(tmp_path / "alone")
    assert [(row["path"], row["labels"]) for row in ours] == [
        (row["path"], row["labels"]) for row in alone
    ]
    assert replace(again, seconds=0) == replace(report, seconds=0)
    assert json.loads((target / "run.json").read_text())["images"] == 220
