"""Labels every image of a folder or bucket, and continues where an earlier call stopped."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from splitattn.bulk.clusters import LOCAL, check_cluster, label_shards, reach_cluster
from splitattn.bulk.listing import list_images
from splitattn.bulk.plan import (
    RUN,
    SUCCESS,
    SUMMARY,
    Plan,
    Run,
    ShardReport,
    engine_name,
    hash_of_weights,
    part_name,
    parts_in,
    read_report,
    read_run,
    write_manifest,
)
from splitattn.bulk.shards import check_errors
from splitattn.bulk.stores import Store, absolute_address, open_store
from splitattn.bulk.summary import BulkReport, Totals, page
from splitattn.data.class_lists import ClassNames
from splitattn.engines.table import file_engine
from splitattn.errors import (
    DataError,
    InputError,
    WeightsError,
    check_callable,
    check_number,
    check_whole,
)
from splitattn.files import exists
from splitattn.images.loading import Decoding, check_decoding
from splitattn.libraries import require
from splitattn.opening import open_network

_READERS = 16  # threads that read the footers of parts; each read waits for the store


def label_bulk(
    source: str | Path,
    target: str | Path,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    engine: str = "auto",
    cluster: str = LOCAL,
    actors: int | None = None,
    shard_size: int = 10_000,
    topk: int | None = None,
    features: bool = False,
    resume: bool = True,
    retry_errors: bool = False,
    most_errors: float = 0.1,
    decoding: Decoding = "fast",
    class_names: ClassNames | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    passed_over: Counter[str] | None = None,
    on_listed: Callable[[int], None] = lambda _: None,
    on_shard: Callable[[ShardReport, int], None] = lambda _, __: None,
) -> BulkReport:
    """Label every image of `source` into Parquet files at `target`.

    To continue a call that was stopped or killed, repeat it: a part that exists is done. Parts
    are written whole or not at all. Each image is one row, in the order of the listing: path, size,
    etag, labels, indices, probabilities, features where they are asked for, and error, which says
    why an image has no labels. `_SUCCESS` is there once all parts are.

    Args:
        source: see `bulk.listing.list_images`.
        target: a folder, or an `s3://`, `gs://` or `file://` address. Workers on other machines
            need an address, or a folder that all of them share; so does `source`.
        model, weights, engine, decoding, class_names: see `Classifier`.
        cluster: "local", "ray" to start Ray on this machine, or the address of a Ray cluster.
        actors: how many shards are labeled at once; None is one, and on Ray one for every four
            processors.
        shard_size: images in each part but the last.
        topk: how many classes to name; None is as for `Classifier.predict`.
        features: keep what the network gives its classifier, too; the network then runs twice.
        resume: continue a run that was begun; False refuses a target that holds one.
        retry_errors: label again, of a run that is done, the images that could not be labeled.
        most_errors: the greatest share of errors, from 0 to 1, in a part and in all parts together.
            Ten errors are always allowed.
        batch_size, workers: see `Classifier.predict_stream`; for images in a bucket, None is at
            least 16 threads.
        passed_over: counts, by ending, files that may be images but are not read for their ending.
        on_listed: called while images are listed, with how many there are so far; if the run goes
            on after a stop, once with all.
        on_shard: called after each shard, with its report and how many this call labels.

    Raises:
        InputError: an argument is wrong, a library is missing, or the target cannot be written.
        DataError: there are no images, the list cannot be read, or the target holds another run.
        TooManyErrorsError: see `most_errors`. The part is not written; others are kept.
        StoreError: the store of an image does not answer or refuses. What was done is kept.
        ClusterError: a worker or the cluster is lost. What was done is kept.
        WeightsError: the weights cannot be had.
    """
    numbers = {"actors": actors, "shard_size": shard_size, "topk": topk}
    numbers |= {"batch_size": batch_size, "workers": workers}
    for name, number in numbers.items():
        if number is not None:
            check_whole(name, number, least=1)
    for name, told in (("on_listed", on_listed), ("on_shard", on_shard)):
        check_callable(name, told)
    check_number("most_errors", most_errors)
    if not 0 <= most_errors <= 1:
        raise InputError(f"most_errors must be from 0 to 1, got {most_errors}")
    if not str(source) or not str(target):  # a shell's variable may be unset
        raise InputError(f"bulk needs a source and a target, got {str(source)!r}, {str(target)!r}")
    check_decoding(decoding)
    check_cluster(cluster)
    require("bulk", "pyarrow")
    source, target = absolute_address(str(source)), absolute_address(str(target))
    if source == target:  # with parts in it, the source would hold images and Parquet
        raise InputError(f"the target must be another folder than the source, got {target} twice")
    named = None if weights is None else _absolute_if_file(str(weights))
    store = open_store(target)
    ours = Run(
        source=source,
        shard_size=shard_size,
        **_network(model, named, engine, class_names, features=features),
        decoding=decoding,
        topk=topk,
        features=features,
    )
    run = _existing_run(ours, store, resume=resume)
    if run is not None:
        on_listed(run.images)
    else:
        reach_cluster(cluster)
        run = _start_run(ours, store, Counter() if passed_over is None else passed_over, on_listed)
    plan = Plan(
        run=run,
        target=target,
        model=model,
        weights=named,
        most_errors=most_errors,
        batch_size=batch_size,
        workers=workers,
    )
    started, labeled = time.monotonic(), 0
    totals = Totals()
    shards = _remaining(run, store, totals, retry_errors=retry_errors)
    if shards:
        with closing(label_shards(plan, shards, cluster=cluster, actors=actors)) as work:
            for shard in work:
                labeled += shard.labeled
                totals.add(shard)
                on_shard(shard, len(shards))
    where = (
        "in all parts: see their column error; use retry_errors (--retry-errors), or raise "
        "most_errors (--most-errors)"
    )
    check_errors(totals.images, totals.errors, most_errors, where)
    report = BulkReport(
        images=totals.images,
        errors=totals.errors,
        shards=run.shards,
        labeled_now=labeled,
        seconds=time.monotonic() - started,
        classes=dict(totals.classes.most_common()),
        error_kinds=dict(totals.error_kinds.most_common()),
        error_paths=totals.error_paths,
    )
    store.write(SUMMARY, page(report, totals, run.preprocessing.white_level).encode())
    store.write(SUCCESS, b"")
    return report


def _network(
    model: str | None,
    weights: str | None,
    engine: str,
    class_names: ClassNames | None,
    *,
    features: bool,
) -> dict[str, Any]:
    """Open the network before anything is listed, and return the fields of `Run` about it.

    Raises:
        InputError, WeightsError: see `Classifier`; or it has no features and they are asked for.
    """
    opened = open_network(model, weights, engine=engine, class_names=class_names)
    if features and weights is not None and file_engine(weights):
        raise WeightsError(
            f"{weights} is an exported network, which gives no features: name the weights that it "
            "was exported from"
        )
    return {
        "model": opened.model,
        "weights": hash_of_weights(model, weights),
        "engine": engine_name(weights, engine),
        "preprocessing": opened.preprocessing,
        "class_names": None if class_names is None else opened.classes,
    }


def _existing_run(ours: Run, store: Store, *, resume: bool) -> Run | None:
    """The run at the target, or None if there is none.

    Raises:
        DataError: it is another one, or something else is there; or `resume` is false.
    """
    written = read_run(store)
    if written is not None:
        if not resume:
            raise DataError(f"{store.address} holds a run already: name another target")
        ours.check_same(written)
        return replace(ours, images=written["images"], shards=written["shards"])
    if parts := sorted(parts_in(store.names())):
        raise DataError(
            f"{store.address} holds {parts[0]} and no {RUN}, so the parts are of something else: "
            "name another target"
        )
    return None


def _start_run(
    ours: Run, store: Store, passed_over: Counter[str], on_listed: Callable[[int], None]
) -> Run:
    """List the images, write the lists and `run.json`, and return the run.

    Raises:
        DataError: there are no images.
        InputError: see `list_images`.
    """
    images = shards = 0
    for listed in write_manifest(store, list_images(ours.source, passed_over), ours.shard_size):
        images, shards = images + listed, shards + 1
        on_listed(images)
    if not images:
        raise DataError(f"there must be images to label, got none in {ours.source}")
    run = replace(ours, images=images, shards=shards)
    run.write(store)
    return run


def _remaining(run: Run, store: Store, totals: Totals, *, retry_errors: bool) -> list[int]:
    """The shards that are to be labeled; the others are added to `totals`."""
    here = store.names()
    done = [number for number in range(run.shards) if part_name(number) in here]
    remaining = set(range(run.shards)).difference(done)
    with ThreadPoolExecutor(_READERS) as pool:
        for shard in pool.map(partial(read_report, store), done):
            if retry_errors and shard.errors:
                remaining.add(shard.number)
            else:
                totals.add(shard)
    return sorted(remaining)


def _absolute_if_file(weights: str) -> str:
    """A file's absolute path, since workers may run in another folder; or another name."""
    return str(Path(weights).absolute()) if exists(weights) else weights
