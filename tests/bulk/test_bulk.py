"""Every image is labeled exactly once, as `predict` labels it, whatever happens meanwhile."""

import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import splitattn
from splitattn import libraries
from splitattn.bulk import bulk, shards, stores
from splitattn.bulk.clusters import ClusterError
from splitattn.bulk.listing import Entry, list_images, version_of
from splitattn.bulk.plan import Plan, Run, ShardReport, read_run, write_manifest
from splitattn.bulk.shards import ShardLabeler, TooManyErrorsError
from splitattn.bulk.stores import StoreError, open_store, read_object
from splitattn.bulk.summary import BulkReport, Totals
from splitattn.cli import main
from splitattn.cli.bulk import error_lines, summary_text
from splitattn.errors import DataError, ImageError, InputError, one_line
from splitattn.images.decode import decode
from splitattn.images.preprocess import preprocess
from splitattn.opening import open_network
from splitattn.weights.checkpoint import read_checkpoint, write_checkpoint
from splitattn.weights.resolve import resolve
from tests.bulk.bucket_server import (
    BUCKET,
    SECRET,
    BucketServer,
    environment,
    etag_of,
    serving,
)
from tests.bulk.photographs import ODD, assert_labeled_as_by_predict, picture, rows_at

# The engine that loads fastest.
label_bulk = partial(bulk.label_bulk, engine="onnxruntime")


@pytest.fixture
def bucket(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    """A bucket with the files of `photos` under the prefix `in/`."""
    with serving() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        stores._opened.cache_clear()
        for path in photos.rglob("*.jpg"):
            server.objects[f"in/{path.relative_to(photos)}"] = path.read_bytes()
        yield server
        stores._opened.cache_clear()


Told = list[tuple[ShardReport, int]]


@pytest.fixture(scope="module")
def labeled(
    photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BulkReport, Told]:
    """A finished run with shards of four images: its folder, report and progress calls."""
    target = tmp_path_factory.mktemp("labeled") / "out"
    told: Told = []
    report = label_bulk(photos, target, shard_size=4, on_shard=lambda *shard: told.append(shard))
    return target, report, told


def rows_at_part(target: Path, number: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(target / f"part-{number:05d}.parquet").to_pylist()
    return rows


def test_a_folder_becomes_parts_of_the_given_size(
    labeled: tuple[Path, BulkReport, Told], photos: Path
) -> None:
    target, report, told = labeled
    assert {path.name for path in target.iterdir()} == {
        *("part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "_manifest"),
        *("run.json", "_SUCCESS", "summary.html"),
    }
    sizes = [pq.read_metadata(part).num_rows for part in sorted(target.glob("part-*"))]
    assert sizes == [4, 4, 3]
    rows = rows_at(target)
    assert_labeled_as_by_predict(rows, str(photos), photos)
    assert [row["size"] for row in rows] == [Path(row["path"]).stat().st_size for row in rows]
    assert (report.images, report.errors, report.shards, report.labeled_now) == (11, 1, 3, 11)
    assert sum(report.classes.values()) == 10
    ((kind, errors),) = report.error_kinds.items()
    assert re.fullmatch(r"expected an image \(JPEG, .*\), got something else", kind)
    assert errors == 1
    assert report.error_paths == {kind: [str(photos / "broken.jpg")]}
    assert [(shard.images, of) for shard, of in told] == [(4, 3), (4, 3), (3, 3)]
    page = (target / "summary.html").read_text("utf-8")
    assert "10 labeled, 1 error, in 3 parts." in page
    assert f'<td class="paths">{photos / "broken.jpg"}</td>' in page
    assert page.count("data:image/jpeg;base64,") == 10


def test_features_are_those_of_the_classifier(photos: Path, tmp_path: Path) -> None:
    label_bulk(photos / "trip", tmp_path / "out", features=True, topk=1)
    rows = rows_at(tmp_path / "out")
    features = splitattn.Classifier().features([row["path"] for row in rows])
    np.testing.assert_allclose([row["features"] for row in rows], features, rtol=1e-4, atol=1e-5)
    assert all(len(row["labels"]) == 1 for row in rows)


@pytest.mark.parametrize(("scheme", "refusal"), [("s3", 503), ("gs", 429)])
def test_a_bucket_that_is_busy_is_labeled_all_the_same(
    scheme: str,
    refusal: int,
    bucket: BucketServer,
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bucket.page, bucket.refusal = 3, refusal
    bucket.busy.update({"LIST": 2, "GET .jpg": 3, "PUT": 1, "HEAD .parquet": 1})
    bucket.objects["in/.hidden/1.jpg"] = bucket.objects["in/notes.txt"] = b"no picture"
    bucket.objects["in/notes"] = b"no picture"
    bucket.objects["in/trip/"] = b""  # web consoles of stores create such an object for a folder
    passed_over: Counter[str] = Counter()
    target = f"{scheme}://{BUCKET}/out#1"
    report = label_bulk(f"{scheme}://{BUCKET}/in", target, shard_size=4, passed_over=passed_over)
    assert not bucket.busy.total()  # every refusal was sent, and the request repeated
    assert (report.images, report.errors) == (11, 1)
    assert passed_over == {"no ending": 1}
    out = {key for key in bucket.objects if key.startswith("out#1/")}
    assert {"out#1/_SUCCESS", "out#1/run.json", "out#1/part-00002.parquet"} <= out
    for key in out:
        (tmp_path / Path(key).name).write_bytes(bucket.objects[key])
    assert_labeled_as_by_predict(rows_at(tmp_path), f"{scheme}://{BUCKET}/in", photos)
    assert all(row["etag"] for row in rows_at(tmp_path))
    assert not any(SECRET.encode() in content for content in bucket.objects.values())
    assert SECRET not in "".join(capfd.readouterr())
    again = label_bulk(f"{scheme}://{BUCKET}/in", target, shard_size=4)
    assert again == replace(report, labeled_now=0, seconds=again.seconds)
    assert summary_text("out", again) == (
        "out: 11 images in 3 parts, 1 error, all listed and labeled before; see summary.html there"
    )
    assert " images/s; see summary.html" in summary_text("out", report)
    ((kind, _),) = report.error_kinds.items()
    first = f"{scheme}://{BUCKET}/in/broken.jpg"
    assert list(error_lines(again)) == [f"error: 1 image, the first {first}: {kind}"]


def test_three_images_of_each_error_are_kept_and_five_errors_are_told() -> None:
    totals = Totals()
    for number in range(2):
        kinds = {f"fault {letter}": 2 for letter in "abcdefg"}
        totals.add(
            ShardReport(
                number=number,
                images=20,
                labeled=20,
                errors=14,
                classes={},
                error_kinds=kinds,
                error_paths={kind: [f"{number}/{i}" for i in range(2)] for kind in kinds},
                examples=[],
            )
        )
    assert totals.error_paths["fault g"] == ["0/0", "0/1", "1/0"]
    report = BulkReport(
        images=40,
        errors=28,
        shards=2,
        labeled_now=40,
        seconds=1.0,
        classes={},
        error_kinds=dict(totals.error_kinds.most_common()),
        error_paths=totals.error_paths,
    )
    lines = list(error_lines(report))
    assert lines[0] == "error: 4 images, the first 0/0: fault a"
    assert len(lines) == 6
    assert lines[-1] == "error: 2 more kinds of errors: see summary.html"


def test_many_objects_are_read_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(16)

    def read(_: str) -> tuple[bytes, None]:
        together.wait(10)
        return (photos / "0.jpg").read_bytes(), None

    monkeypatch.setattr(shards, "read_object", read)
    (tmp_path / "list.txt").write_text("".join(f"s3://{BUCKET}/{n}.jpg\n" for n in range(32)))
    report = label_bulk(tmp_path / "list.txt", tmp_path / "out")
    assert (report.images, report.errors) == (32, 0)


def test_an_outage_leaves_no_part_and_the_same_call_completes_it(
    bucket: BucketServer, tmp_path: Path
) -> None:
    bucket.forbidden = "in/trip/7"
    arguments = (f"s3://{BUCKET}/in", tmp_path)
    with pytest.raises(StoreError, match=r"in/trip/7\.jpg: .*AccessDenied$"):
        label_bulk(*arguments, shard_size=4)
    done = len(rows_at(tmp_path))
    assert done < 11
    assert not (tmp_path / "_SUCCESS").exists()
    bucket.forbidden = "nothing"
    report = label_bulk(*arguments, shard_size=4)
    assert (report.images, report.labeled_now, report.errors) == (11, 11 - done, 1)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests time out after half a second, and repeat them only twice."""
    monkeypatch.setitem(stores._CLIENT, "timeout", timedelta(seconds=0.5))
    monkeypatch.setitem(stores._RETRIES, "max_retries", 2)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_request_that_stalls_or_is_cut_is_repeated(
    scheme: str, bucket: BucketServer, photos: Path, tmp_path: Path
) -> None:
    bucket.faults = {
        "in/0.jpg": ["silent"],
        "in/2.jpg": ["stalled"],
        "in/4.jpg": ["cut"],
        f"in/{ODD}": ["cut", "stalled"],
    }
    report = label_bulk(f"{scheme}://{BUCKET}/in", tmp_path / "out")
    assert not any(bucket.faults.values())
    assert (report.images, report.errors) == (11, 1)
    assert_labeled_as_by_predict(rows_at(tmp_path / "out"), f"{scheme}://{BUCKET}/in", photos)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", ["silent", "stalled", "cut"])
def test_a_store_that_keeps_failing_stops_the_run_with_one_line(
    fault: str, bucket: BucketServer, photos: Path, tmp_path: Path
) -> None:
    bucket.faults = {"in/4.jpg": [fault] * 99}
    arguments = (f"s3://{BUCKET}/in", tmp_path)
    with pytest.raises(StoreError, match=rf"^s3://{BUCKET}/in/4\.jpg: ") as stopped:
        label_bulk(*arguments, shard_size=4)
    assert len(str(stopped.value)) < 400
    bucket.faults = {}
    report = label_bulk(*arguments, shard_size=4)
    assert (report.images, report.errors) == (11, 1)
    assert_labeled_as_by_predict(rows_at(tmp_path), arguments[0], photos)


def test_an_image_that_changes_after_it_is_listed_has_the_version_that_was_read(
    bucket: BucketServer, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    file = Path(shutil.copy(photos / "0.jpg", tmp_path / "in"))
    changed = (photos / "2.jpg").read_bytes()

    def change(_: int) -> None:
        bucket.objects["in/0.jpg"] = changed
        file.write_bytes(changed)

    label_bulk(f"s3://{BUCKET}/in", tmp_path / "of bucket", on_listed=change)
    shutil.copy(photos / "0.jpg", file)
    label_bulk(tmp_path / "in", tmp_path / "of folder", on_listed=change)
    etags = {"of bucket": etag_of(changed), "of folder": version_of(str(file))["etag"]}
    expected = [one.label for one in splitattn.Classifier().predict(photos / "2.jpg")]
    for target, etag in etags.items():
        (row,) = (row for row in rows_at(tmp_path / target) if row["path"].endswith("/0.jpg"))
        assert (row["labels"], row["size"], row["etag"]) == (expected, len(changed), etag)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize(
    ("key", "reason"),
    [("in/a//b.jpg", "empty path segment"), ("in/a\tb.jpg", "illegal character sequence")],
)
def test_keys_that_the_library_cannot_read_are_named(
    key: str, reason: str, scheme: str, bucket: BucketServer
) -> None:
    bucket.objects[key] = b"no picture"
    root, shown = f"{scheme}://{BUCKET}", re.escape(key.replace("\t", "\\t"))
    rule = rf"no part of a key may be empty, .*, or hold control characters: .*{shown}.*rename it"
    with pytest.raises(StoreError, match=rule):
        list(stores.list_bucket(f"{root}/in"))
    with pytest.raises(ImageError, match=rf"^{root}/{shown}: .*{reason}"):
        read_object(f"{root}/{key}")


@pytest.mark.parametrize(
    ("scheme", "shown"),
    [("s3", r"AWS4-HMAC-SHA256 Credential=someone/.*"), ("gs", f"Bearer {SECRET}")],
)
def test_credentials_go_to_the_store_and_nowhere_else(
    scheme: str,
    shown: str,
    bucket: BucketServer,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.NOTSET)
    bucket.busy["GET .jpg"], bucket.forbidden = 1, "in/2"
    address = f"{scheme}://{BUCKET}/in"
    content, _ = read_object(f"{address}/0.jpg")
    assert content == bucket.objects["in/0.jpg"]
    with pytest.raises(StoreError, match=rf"^{address}/2\.jpg: .*403") as refused:
        read_object(f"{address}/2.jpg")
    assert len(bucket.credentials) == 3  # one request was repeated
    assert all(re.fullmatch(shown, credentials or "") for credentials in bucket.credentials)
    said = "".join([*traceback.format_exception(refused.value), *capfd.readouterr(), caplog.text])
    assert SECRET not in said
    assert SECRET not in repr(stores._opened(f"{scheme}://{BUCKET}"))


def test_a_key_file_of_google_is_read_and_a_wrong_one_is_not_shown(
    bucket: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_BASE_URL")
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    account = {"client_email": "", "private_key": SECRET, "private_key_id": SECRET}
    key = {**account, "gcs_base_url": bucket.url, "disable_oauth": True}
    (tmp_path / "key.json").write_text(json.dumps(key))
    assert len(list(stores.list_bucket(f"gs://{BUCKET}/in"))) == 11
    for wrong in (json.dumps(account), json.dumps(account)[:-1], SECRET):
        stores._opened.cache_clear()
        (tmp_path / "key.json").write_text(wrong)
        with pytest.raises(StoreError, match=rf"^gs://{BUCKET} cannot be opened: ") as refused:
            read_object(f"gs://{BUCKET}/in/0.jpg")
        assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "GOOGLE_BEARER_TOKEN"])
def test_credentials_that_end_in_a_line_break_are_refused_in_one_line(
    name: str, bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"{SECRET}\n")
    scheme = {"AWS": "s3", "GOOGLE": "gs"}[name.partition("_")[0]]
    rule = rf"^{name} must be one line of ASCII without spaces, got others among its 9 characters"
    with pytest.raises(InputError, match=rule):
        read_object(f"{scheme}://{BUCKET}/in/0.jpg")
    assert not bucket.credentials


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("scheme", "way_out"), [("s3", "AWS_ACCESS_KEY_ID"), ("gs", "GOOGLE_SERVICE_ACCOUNT")]
)
def test_missing_credentials_are_reported_with_where_to_set_them(
    scheme: str, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "GOOGLE_BEARER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stores, "installed", lambda _: False)
    # A machine in the cloud gets credentials from these addresses. Nothing listens here.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    stores._opened.cache_clear()
    with pytest.raises(StoreError) as refused:
        read_object(f"{scheme}://{BUCKET}/in/0.jpg")
    stores._opened.cache_clear()
    rule = rf"{scheme}://{BUCKET}/in/0\.jpg: no credentials in the environment, .*: set {way_out}"
    assert re.match(rule, str(refused.value))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "GOOGLE_BASE_URL")]
)
def test_a_store_that_cannot_be_reached_is_reported_with_what_to_check(
    scheme: str, variable: str, bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:1")  # nothing listens there
    stores._opened.cache_clear()
    with pytest.raises(StoreError, match=rf"; check the network and, if set, {variable}") as raised:
        read_object(f"{scheme}://{BUCKET}/in/0.jpg")
    stores._opened.cache_clear()
    assert str(raised.value) == one_line(str(raised.value))
    assert not bucket.credentials


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_public_bucket_needs_no_credentials(
    scheme: str, bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finds_none() -> None:
        raise ValueError("Received None from session.get_credentials")

    provider = SimpleNamespace(Boto3CredentialProvider=finds_none)
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", provider)  # type: ignore[misc]
    monkeypatch.setattr(stores, "installed", lambda _: True)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    # Without boto3's credentials the store still opens: the library looks for others when needed.
    stores._opened(f"{scheme}://{BUCKET}")
    stores._opened.cache_clear()
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    assert len(list(stores.list_bucket(f"{scheme}://{BUCKET}/in"))) == 11
    assert bucket.credentials == [None]


def test_an_object_that_is_gone_is_an_error_and_can_be_tried_again(
    bucket: BucketServer, tmp_path: Path
) -> None:
    content = bucket.objects["in/0.jpg"]
    (tmp_path / "list.csv").write_text(f"path\ns3://{BUCKET}/in/0.jpg\ns3://{BUCKET}/in/2.jpg\n")
    del bucket.objects["in/0.jpg"]
    report = label_bulk(tmp_path / "list.csv", tmp_path / "out")
    assert report.error_kinds == {"no such object": 1}
    bucket.objects["in/0.jpg"] = content
    del bucket.objects["in/2.jpg"]  # already labeled, so it is not requested again
    report = label_bulk(tmp_path / "list.csv", tmp_path / "out", retry_errors=True)
    assert (report.images, report.errors, report.labeled_now) == (2, 0, 1)
    assert [row["error"] for row in rows_at(tmp_path / "out")] == [None, None]


def test_finished_shards_are_not_labeled_again(
    labeled: tuple[Path, BulkReport, Told], photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    shutil.copytree(labeled[0], target)
    whole = rows_at(target)
    (target / "part-00001.parquet").unlink()
    (target / "_SUCCESS").unlink()
    kept = target / "part-00000.parquet"
    content = bytearray(kept.read_bytes())
    content[4:300] = bytes(296)  # damage that shows only if the rows of a finished part are read
    kept.write_bytes(content)
    report = label_bulk(photos, target, shard_size=4)
    assert report == replace(labeled[1], labeled_now=4, seconds=report.seconds)
    assert kept.read_bytes() == content
    assert rows_at_part(target, 1) == whole[4:8]
    assert (target / "_SUCCESS").exists()
    with pytest.raises(DataError, match="holds a run already"):
        label_bulk(photos, target, shard_size=4, resume=False)


def test_a_run_with_other_arguments_is_not_continued(
    labeled: tuple[Path, BulkReport, Told], photos: Path, tmp_path: Path
) -> None:
    splitattn.export(tmp_path / "other.onnx")
    changes: dict[str, Any] = {"topk": 2, "shard_size": 5, "features": True, "decoding": "exact"}
    changes |= {"weights": tmp_path / "other.onnx", "engine": "openvino"}
    for name, value in changes.items():
        began = "without topk, got 2: .* or leave out topk" if name == "topk" else f"with {name} "
        with pytest.raises(DataError, match=f"holds a run {began}"):
            label_bulk(photos, labeled[0], **{"shard_size": 4, name: value})


@pytest.mark.parametrize("name", ["source", "model", "preprocessing", "splitattn"])
def test_a_run_with_another_source_network_or_version_is_not_continued(
    name: str, labeled: tuple[Path, BulkReport, Told], photos: Path, tmp_path: Path
) -> None:
    run = json.loads((labeled[0] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, name: "another"}))
    with pytest.raises(DataError, match=f"holds a run with {name} 'another', got "):
        label_bulk(photos, tmp_path, shard_size=4)


def test_a_full_disk_leaves_no_half_of_a_part(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, parquet = Path.write_bytes, Counter[str]()

    def write_half_of_the_fourth(path: Path, content: bytes) -> int:
        parquet["written"] += content.startswith(b"PAR1")
        if parquet["written"] < 4:  # two manifest files and one part
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_half_of_the_fourth)
        with pytest.raises(OSError, match="No space left"):
            label_bulk(photos, tmp_path, shard_size=6)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run.json", "_manifest", "part-00000.parquet")
    }
    report = label_bulk(photos, tmp_path, shard_size=6)
    assert (report.images, report.labeled_now) == (11, 5)
    assert_labeled_as_by_predict(rows_at(tmp_path), str(photos), photos)


@pytest.mark.parametrize("change", [{"splitattn": "0.0.1"}, {"weights": "1234"}])
def test_a_worker_with_another_network_or_version_labels_nothing(
    change: dict[str, str], labeled: tuple[Path, BulkReport, Told]
) -> None:
    run = read_run(open_store(str(labeled[0])))
    assert run is not None
    run["preprocessing"] = splitattn.Classifier(engine="onnxruntime").preprocessing
    plan = Plan(
        run=Run(**{**run, **change}),
        target=str(labeled[0]),
        model=None,
        weights=None,
        most_errors=0.1,
        batch_size=32,
        workers=None,
    )
    ((name, value),) = change.items()
    with pytest.raises(DataError, match=f"all workers must have the run's {name}, {value}, got "):
        ShardLabeler(plan).label(2)


@pytest.mark.parametrize(
    ("environment", "allowed"),
    [
        ({}, False),
        ({"AWS_ENDPOINT_URL": "https://store"}, False),
        ({"AWS_ENDPOINT_URL": "http://store"}, True),
        ({"AWS_ENDPOINT": "http://store", "AWS_ALLOW_HTTP": "true"}, True),
    ],
)
def test_plain_http_is_allowed_only_on_request(
    environment: dict[str, str], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert stores._s3_options()["client_options"]["allow_http"] is allowed


def test_images_may_have_several_labels_or_none(photos: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(resolve(None, None).path)
    assert checkpoint.metadata is not None
    opened = open_network()
    pixels = [
        preprocess(decode(path), opened.preprocessing) for path in (photos / "trip").iterdir()
    ]
    logits = np.sort(opened.engine.run(np.stack(pixels), opened.preprocessing))
    # The threshold lies between the best of one image and the second best of another:
    # the first gets no label, the other two.
    shift = (logits[:, -1].min() + logits[:, -2].max()) / 2
    tensors = {**checkpoint.tensors, "fc.bias": checkpoint.tensors["fc.bias"] - shift}
    metadata = replace(checkpoint.metadata, activation="sigmoid")
    weights = tmp_path / "several.safetensors"
    write_checkpoint(weights, tensors, metadata)
    report = label_bulk(photos / "trip", tmp_path / "out", weights=weights)
    expected = splitattn.Classifier(weights=weights).predict(sorted((photos / "trip").iterdir()))
    numbers = [len(labels) for labels in expected]
    assert min(numbers) == 0
    assert max(numbers) > 1
    rows = rows_at(tmp_path / "out")
    assert [row["labels"] for row in rows] == [[one.label for one in each] for each in expected]
    assert sum(report.classes.values()) == sum(number > 0 for number in numbers)


def test_lists_and_parquet_of_paths_and_of_images(
    bucket: BucketServer, photos: Path, tmp_path: Path
) -> None:
    names = [f"{n}.jpg" for n in (0, 2)]
    paths = [str(photos / name) for name in names]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    (tmp_path / "list.csv").write_text("\n".join(["label,path", *(f",{path}" for path in paths)]))
    pq.write_table(pa.table({"path": paths}), tmp_path / "paths.parquet")
    images = [{"bytes": (photos / name).read_bytes(), "path": None} for name in names]
    layout = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(images, layout)}), tmp_path / "test-0.parquet")
    expected = splitattn.Classifier().predict([photos / name for name in names], topk=1)
    for source in ("list.txt", "list.csv", "paths.parquet", "test-0.parquet"):
        label_bulk(tmp_path / source, tmp_path / f"{source}.out", topk=1)
        rows = rows_at(tmp_path / f"{source}.out")
        assert [row["indices"] for row in rows] == [[one.index] for (one,) in expected]
    assert [row["path"] for row in rows] == [f"{tmp_path}/test-0.parquet#{n}" for n in (0, 1)]
    (tmp_path / "shards").mkdir()
    shutil.copy(tmp_path / "test-0.parquet", tmp_path / "shards" / "TEST-0.PARQUET")
    (tmp_path / "shards" / "below").mkdir()
    shutil.copy(tmp_path / "test-0.parquet", tmp_path / "shards" / "below")
    passed_over: Counter[str] = Counter()
    label_bulk(tmp_path / "shards", tmp_path / "shards.out", passed_over=passed_over)
    assert len(rows_at(tmp_path / "shards.out")) == 2
    assert passed_over == {".parquet": 1}, "the file in the subfolder is not read"
    # The same from a bucket: a list with paths relative to it, and a folder of Parquet files.
    bucket.objects["in/list.csv"] = b"path\n0.jpg\n2.jpg\n"
    bucket.objects["shards/TEST-0.PARQUET"] = (tmp_path / "test-0.parquet").read_bytes()
    for source in ("in/list.csv", "shards", "shards/TEST-0.PARQUET"):
        target = tmp_path / "bucket" / source
        label_bulk(f"s3://{BUCKET}/{source}", target, topk=1)
        assert [row["indices"] for row in rows_at(target)] == [[one.index] for (one,) in expected]
    bucket.objects["shards/0.jpg"] = bucket.objects["in/0.jpg"]
    for folder in (f"s3://{BUCKET}/shards", photos_beside_parquet(tmp_path)):
        with pytest.raises(
            DataError, match=r"(?i)images or Parquet, got both, .*0\.jpg and .*parquet"
        ):
            label_bulk(folder, tmp_path / "both")


def photos_beside_parquet(folder: Path) -> Path:
    (folder / "photos").mkdir()
    picture(0).save(folder / "photos" / "0.jpg")
    shutil.copy(folder / "test-0.parquet", folder / "photos" / "x.parquet")
    return folder / "photos"


def test_names_that_are_no_text_are_labeled_and_escaped(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"<i>.jpg", b"<i>\xff.jpg"):
        shutil.copy(photos / "0.jpg", folder / os.fsdecode(name))
    report = label_bulk(folder, tmp_path / "out")
    assert report.errors == 0
    paths = [row["path"] for row in rows_at(tmp_path / "out")]
    assert paths == [f"{folder}/<i>.jpg", f"{folder}/<i>\\udcff.jpg"]
    page = (tmp_path / "out" / "summary.html").read_text("utf-8")
    assert "<i>" not in page
    assert page.count("/&lt;i&gt;") == 2


def test_too_many_errors_stop_the_run_and_say_so(tmp_path: Path, photos: Path) -> None:
    good = f"{photos / '0.jpg'}\n"
    (tmp_path / "list.txt").write_text(good * 30 + "gone.jpg\n" * 11 + good * 29)
    run = partial(label_bulk, tmp_path / "list.txt", tmp_path / "out", shard_size=30)
    rule = (
        r"at most 10% of the images may be errors, got 11 of 30 in part-00001\.parquet: .*; "
        r"the first: .*/gone\.jpg: no such file"
    )
    with pytest.raises(TooManyErrorsError, match=rule):
        run()
    assert len(rows_at(tmp_path / "out")) == 30  # the finished part is kept, and nothing else
    assert run(most_errors=0.4).errors == 11
    (tmp_path / "out" / "_SUCCESS").unlink()
    # A later call counts the errors of earlier parts too.
    with pytest.raises(TooManyErrorsError, match=r"got 11 of 70 in all parts: see their column"):
        run()
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"cluster": "locl"}, r"cluster must be .*, got 'locl'; did you mean 'local'\?"),
        (
            {"cluster": "ray"},
            r'bulk on a cluster needs ray, not installed here: pip install "ray\[client\]"',
        ),
        ({"cluster": "ray://head:10001"}, r"bulk on a cluster needs ray"),
        ({"decoding": "quick"}, r"decoding must be 'exact' or 'fast', got 'quick'"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
        ({"workers": 0}, r"workers must be at least 1, got 0"),
        ({"topk": "5"}, r"topk must be a whole number, got '5'"),
        ({"most_errors": "0.1"}, r"most_errors must be a number, got '0.1'"),
        ({"on_shard": 5}, r"on_shard must be a function, got 5"),
        ({"features": True, "weights": "exported.onnx"}, r"exported\.onnx .* gives no features"),
        ({"weights": "exported.onnx", "engine": "openvino"}, r"runs in engine onnxruntime, got"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_listed(
    arguments: dict[str, Any],
    rule: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(libraries, "installed", lambda *names: "ray" not in names)
    if "weights" in arguments:
        splitattn.export(tmp_path / "exported.onnx")
    with pytest.raises(InputError, match=rule):
        label_bulk(photos, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["variable", "file"])
def test_an_address_of_a_ray_cluster_that_has_ended_is_named_at_once(
    where: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"  # nothing listens there
    note = tmp_path / "ray" / "ray_current_cluster"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if where == "file":
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        note.parent.mkdir()
        note.write_text(f"{address}\n")
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    errors = SimpleNamespace(RayError=RuntimeError)
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
    monkeypatch.setattr(libraries, "installed", lambda *_: True)
    says, fix = (note, "remove that file") if where == "file" else ("RAY_ADDRESS", "unset RAY_A")
    rule = rf"no Ray cluster answers at {address}, which {says} says: Connection refused; {fix}"
    with pytest.raises(ClusterError, match=rule):
        label_bulk(photos, tmp_path / "out", cluster="auto")
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("nothing", "neither a folder nor a file"),
        ("empty", "there must be images to label, got none"),
        ("words.csv", "must have a column path, got a, b"),
        ("numbers.parquet", "must have a column image or path, got n"),
        ("ftp://example.org/photos", "addresses are paths, file://, s3:// or gs://"),
        ("s3:/bucket/key", r"addresses begin with s3://.*, got s3:/bucket/key: write two slashes"),
        ("GS:bucket", r"addresses begin with s3://, gs:// .*, got GS:bucket: .* \./GS:bucket for"),
        ("s3://", r"an address must be s3://bucket/key, got s3://$"),
        ("gs:///key", r"an address must be gs://bucket/key, got gs:///key$"),
        ("s3://my bucket/key", r"an address must be s3://bucket/key, got s3://my bucket/key$"),
        ("s3://a:b@bucket/key", r"got one with credentials, which go into the environment$"),
        ("notes.md", "a source is a folder"),
    ],
)
def test_an_unusable_source_is_refused_in_one_line(
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


def test_a_mistyped_target_is_refused_and_makes_no_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"addresses begin with .*, got s3:/bucket/out"):
        label_bulk(photos, "s3:/bucket/out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("", "needs a source and a target"),
        ("s3://", "must be s3://bucket/key"),
        ("photos/", "another folder"),
    ],
)
def test_an_unusable_target_is_refused_in_one_line(
    target: str, rule: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=rule):
        label_bulk("photos", target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "way_out"),
    [
        ("part-00001.parquet", None, "remove it and continue"),
        ("part-00001.parquet", b"{", "remove it and continue"),
        ("_manifest/00001.parquet", None, "name another target"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_a_fix(
    name: str,
    content: bytes | None,
    way_out: str,
    labeled: tuple[Path, BulkReport, Told],
    photos: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "out"
    shutil.copytree(labeled[0], target)
    if name.startswith("_"):
        (target / "part-00001.parquet").unlink()
    if content is None:
        (target / name).write_bytes(b"PAR1")
    else:  # valid Parquet whose report is damaged
        part = pq.read_table(target / name)
        pq.write_table(part.replace_schema_metadata({b"splitattn.report": content}), target / name)
    with pytest.raises(DataError, match=rf"{name} is damaged: {way_out}$"):
        label_bulk(photos, target, shard_size=4)


def test_a_part_that_cannot_be_opened_is_not_called_damaged(
    labeled: tuple[Path, BulkReport, Told], photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    shutil.copytree(labeled[0], target)
    (target / "part-00001.parquet").unlink()
    # A folder, since permissions would not keep a test that runs as root from reading a file.
    (target / "part-00001.parquet").mkdir()
    with pytest.raises(OSError, match="not a file but a folder"):
        label_bulk(photos, target, shard_size=4)


def test_parts_of_something_else_are_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "part-1.parquet").write_bytes(b"somebody's")
    with pytest.raises(DataError, match=r"holds part-1.parquet and no run.json"):
        label_bulk(photos, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match=r"run.json is damaged"):
        label_bulk(photos, tmp_path)
    assert (tmp_path / "part-1.parquet").read_bytes() == b"somebody's"


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


def test_listing_a_folder_keeps_little_more_than_the_names_in_it(tmp_path: Path) -> None:
    images = 10_000
    for n in range(images):
        (tmp_path / f"{n:09d}.jpg").touch()

    def peak() -> int:
        tracemalloc.start()
        assert sum(1 for _ in list_images(str(tmp_path), Counter())) == images
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # Python's table of interned names grows at times, by megabytes, but not again at once.
    assert min(peak(), peak()) < 200 * images  # `Path` objects would take twice that


_LISTING = """
import sys
from collections import Counter
from splitattn.bulk.plan import write_manifest
from splitattn.bulk.listing import list_images
from splitattn.bulk.stores import open_store
from splitattn.environment import peak_memory
listed = list_images(sys.argv[1], Counter())
print(sum(write_manifest(open_store(sys.argv[2]), listed, 1000)), peak_memory())
"""


def test_listing_a_bucket_takes_no_more_memory_for_more_images(
    bucket: BucketServer, tmp_path: Path
) -> None:
    def peak(images: int) -> int:
        """Peak memory of a whole process: tracemalloc does not see the library's memory."""
        folder = f"{images} listed"
        bucket.objects.update({f"{folder}/{n:09d}.jpg": b"" for n in range(images)})
        command = [sys.executable, "-c", _LISTING, f"s3://{BUCKET}/{folder}", str(tmp_path)]
        listed, most = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()
        assert int(listed) == images
        return int(most)

    assert peak(60_000) - peak(2000) < 6e6  # keeping all entries would take 13 MB


def test_the_command_line_prints_a_summary(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bulk", str(photos), str(tmp_path / "out"), "--shard-size", "6"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1  # one is broken
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}/out: 11 images in 2 parts, 1 error, ")
    assert "2/2 parts  11 images  1 error  " in err


def parent_of(process: int) -> int | None:
    """The parent of a process, read from /proc; None if the process has ended."""
    try:
        state, parent, *_ = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


def processes_below(process: int) -> list[int]:
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [number for number in numbers if parent_of(number) == process]


def test_a_killed_run_leaves_no_process_and_loses_and_doubles_nothing(
    photos: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-m", "splitattn", "bulk", str(photos), str(target)]
    options = ["--shard-size=1", "--actors=2", "--engine=onnxruntime"]
    with subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(target.glob("part-*")):
            time.sleep(0.005)
        workers = processes_below(process.pid)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(workers) > 2  # the workers, and Python's own helper process
    ends = time.monotonic() + 10
    while alive := [number for number in workers if parent_of(number) is not None]:
        assert time.monotonic() < ends, alive
        time.sleep(0.01)
    report = label_bulk(photos, target, shard_size=1)
    assert report.labeled_now < report.images == 11
    assert_labeled_as_by_predict(rows_at(target), str(photos), photos)


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
        actors=3,
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
    assert replace(again, seconds=0, labeled_now=0) == replace(report, seconds=0, labeled_now=0)
    assert json.loads((target / "run.json").read_text())["images"] == 220
