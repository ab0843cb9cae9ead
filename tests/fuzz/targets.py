"""The targets of fuzzing: readers of outside input, each with the files to start from.

A reader returns or raises an `InputError`; anything else is a bug. A new reader is one entry of
`TARGETS`.
"""

import io
import os
import pickle
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, features
from safetensors.torch import save

from splitattn import workflows
from splitattn.architectures import ARCHITECTURES
from splitattn.bench import measure
from splitattn.cli import main
from splitattn.convert import convert
from splitattn.create import load_trained
from splitattn.data.sources import open_data
from splitattn.engines.engine import Engine
from splitattn.engines.table import engine_names
from splitattn.errors import ImageError, InputError
from splitattn.images.decode import FORMATS, decode, decode_planes
from splitattn.images.preprocess import preprocess
from splitattn.images.samples import sample_photographs
from splitattn.libraries import installed
from splitattn.opening import TrainedNetwork
from splitattn.preprocessing import center_crop
from splitattn.training import loop
from splitattn.training.presets import PRESETS
from splitattn.training.recipe_files import load_recipe
from splitattn.training.resume import State, restore
from splitattn.training.resume import save as save_training
from splitattn.weights.cache import local_path
from splitattn.weights.catalogue import embedded_entry
from splitattn.weights.checkpoint import read_checkpoint
from splitattn.weights.layouts import LAYOUTS
from splitattn.weights.metadata import METADATA_KEY, ModelMetadata, read_metadata
from splitattn.weights.resolve import resolve
from tests.attacks.make import FOLDER as ATTACKS
from tests.attacks.make import chunk, png
from tests.data.datasets import encoded, write_shard
from tests.fuzz.annotated import annotated_seeds, annotated_set, read_annotated
from tests.fuzz.annotations import annotation_seeds, read_annotations
from tests.fuzz.answers import answer_seeds, read_answer
from tests.fuzz.bodies import body_seeds, read_body
from tests.fuzz.graphs import (
    damaged_onnx,
    damaged_open_vino,
    onnx_seeds,
    open_vino_seeds,
    read_onnx,
    read_open_vino,
)
from tests.fuzz.target import Target

METADATA = ModelMetadata(
    model="resnest14",
    classes=("cat", "tête-à-tête"),
    preprocessing=center_crop(224),
    recipe={"epochs": 3, "schedule": {"warmup": 1}},
    metrics={"top1": 51.5},
)


def attacks(*patterns: str) -> list[bytes]:
    return [path.read_bytes() for pattern in patterns for path in sorted(ATTACKS.glob(pattern))]


def image_seeds() -> list[bytes]:
    photograph = decode(sample_photographs()[0]).resize((24, 20))
    options: dict[str, list[dict[str, Any]]] = {
        "JPEG": [{}, {"progressive": True}],
        "TIFF": [{"compression": name} for name in ("raw", "tiff_lzw", "tiff_adobe_deflate")],
        "GIF": [{"save_all": True, "append_images": [photograph.rotate(90)]}],
        "WEBP": [{"lossless": True}, {"save_all": True, "append_images": [photograph.rotate(90)]}],
        "PNG": [{}, {"save_all": True, "append_images": [photograph.rotate(90)]}],
    }
    modes = {"PNG": ("1", "L", "LA", "P", "RGBA", "I;16"), "TIFF": ("F", "CMYK"), "JPEG": ("CMYK",)}
    seeds = []
    for name in FORMATS:
        if name in ("WEBP", "AVIF") and not features.check(name.lower()):
            continue
        seeds += [saved(photograph, name, **chosen) for chosen in options.get(name, [{}])]
        gray = photograph.convert("L").convert("I")
        seeds += [saved(gray.convert(mode), name) for mode in modes.get(name, ())]
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds += [saved(photograph, name, exif=exif.tobytes()) for name in ("JPEG", "PNG", "WEBP")]
    deep = b"".join(b"\0" + bytes(range(24 * 6)) for _ in range(20))
    seeds += [
        png(24, 20, deep, depth=16),
        png(24, 20, deep, depth=16, before=chunk(b"sBIT", b"\x0c")),
    ]
    for dtype in (np.uint8, np.uint16, np.float32):
        stream = io.BytesIO()
        pixels = np.asarray(photograph)
        np.save(stream, pixels / np.float32(255) if dtype is np.float32 else pixels.astype(dtype))
        seeds.append(stream.getvalue())
    return seeds * 4 + attacks("images/*")


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def read_image(content: bytes, _: Path) -> None:
    image = decode(content)
    assert image.mode == "RGB"
    planes = decode_planes(content, 1)
    assert planes.shape == (1, image.height, image.width)
    assert 0 <= planes.min() <= planes.max() <= 1
    assert preprocess(image, center_crop(64)).shape == (3, 64, 64)


def tensors() -> dict[str, torch.Tensor]:
    return {"conv1.0.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(2, 2048)[:, :40]}


def torch_seeds() -> list[bytes]:
    contents = (tensors(), {"model": tensors(), "epoch": 3, "optimizer": {"lr": 0.1}})
    seeds = []
    for content in contents:
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=zipped)
            seeds.append(stream.getvalue())
    training = {"identity": {}, "metadata": METADATA.to_json(), "model": tensors()}
    stream = io.BytesIO()
    torch.save(training, stream)
    return [*seeds * 8, *[stream.getvalue()] * 4, *attacks("weights/*.p*")]


def safetensors_seeds() -> list[bytes]:
    compact = {key: value.contiguous() for key, value in tensors().items()}
    own = [save(compact, {METADATA_KEY: METADATA.to_json()}), save(compact)]
    return own * 16 + attacks("weights/*.safetensors")


def read_weights(content: bytes, folder: Path) -> None:
    path = folder / "weights"
    path.write_bytes(content)
    # Refusals here do not count: a valid file may have too few tensors for a network.
    for model in (None, "resnest14"):
        with suppress(InputError):
            load_trained(resolve(model, path))
    read_metadata(path)
    read_checkpoint(path)


@cache
def layout_seeds() -> list[bytes]:
    """Files of every layout, with correct keys and tiny tensors."""
    with torch.device("meta"):
        keys = list(ARCHITECTURES["resnest14"].shapes())
    seeds = []
    for layout in LAYOUTS:
        names = [name for key in keys if (name := layout.key_mapping.own(key))]
        stream = io.BytesIO()
        torch.save({layout.wrapper or "model": dict.fromkeys(names, torch.ones(1))}, stream)
        arrays = {"model": dict.fromkeys(names, np.ones(1, np.float32))}
        seeds += [stream.getvalue(), *(pickle.dumps(arrays, protocol) for protocol in (2, 4))]
    return seeds


def read_layout(content: bytes, folder: Path) -> None:
    path = folder / "weights"
    path.write_bytes(content)
    for layout in LAYOUTS:
        with suppress(InputError):
            convert(path, folder / "other.pth", to=layout.names[0], model="resnest14")
    read_checkpoint(path)


class Part:
    """An object with a state dict, as a training saves it."""

    def state_dict(self) -> dict[str, Any]:
        return {"weight": torch.ones(3), "step": 7}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert set(state) == {"weight", "step"}


IDENTITY = {"recipe": {"epochs": 3, "seed": 0}, "classes": ["a", "b"]}


def training_seeds() -> list[bytes]:
    with TemporaryDirectory() as name:
        path = Path(name) / "last.pt"
        save_training(path, IDENTITY, State(step=3), {"network": Part().state_dict()})
        return [path.read_bytes()]


def read_training(content: bytes, folder: Path) -> None:
    path = folder / "last.pt"
    path.write_bytes(content)
    restore(path, IDENTITY, {"network": Part()})


def metadata_seeds() -> list[bytes]:
    return [METADATA.to_json().encode(), b"{}", b"[[{}]]"]


def read_metadata_text(content: bytes, _: Path) -> None:
    ModelMetadata.from_json(content.decode(errors="surrogateescape"))


def recipe_seeds() -> list[bytes]:
    presets = [load_recipe(name, model="resnest50").to_toml().encode() for name in PRESETS]
    short = [b'preset = "modern"\nepochs = 3\nwarmup_epochs = 1', b"seed = 1", b"epochs = 9"] * 4
    return [*presets * 4, *short, *attacks("recipes/*")]


def read_recipe(content: bytes, folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(content)
    recipe = load_recipe(str(path), model="resnest50")
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(str(path), model="resnest50") == recipe


@cache
def data_seeds() -> list[bytes]:
    with TemporaryDirectory() as name:
        images = [encoded(label, 0) for label in range(3)]
        shard = write_shard(Path(name) / "train.parquet", images, [0, 1, 2])
        return [shard.read_bytes(), *attacks("data/*")]


def read_data(content: bytes, folder: Path) -> None:
    path = folder / "train.parquet"
    path.write_bytes(content)
    data = open_data(str(path), "train")
    for index in range(min(len(data), 3)):
        with suppress(ImageError):
            decode(data.images[index], name=data.names[index])


# Words for damaged calls: valid ones and wrong ones.
_WORDS = (
    *("predict", "evaluate", "train", "export", "bench", "models", "weights", "verify", "fetch"),
    *(
        "convert",
        "card",
        "--to",
        "mmdet",
        "detectron2",
        "hf-hub:a/b",
        "local-dir:data",
        "timm/resnest50d.in1k",
    ),
    *("--help", "--version", "--debug", "--json", "--resume", "--nope", "-h", "-", "--", "---"),
    *("--model", "--weights", "--topk", "--device", "--engine", "--batch-size", "--workers"),
    *("--format", "--output", "--split", "--size", "--recipe", "--set", "--class-names", "--only"),
    *("--calibration", "--precision", "--dynamic-size", "--rounds", "--peers", "--no-memory"),
    *("--checkpoint-minutes", "--batch-per-device", "--topk=2", "--format=json", "--set=epochs=1"),
    *("photo.jpg", "photos", "photos/*.png", "data", "shard.parquet", "recipe.toml", "names.txt"),
    *("tiny.safetensors", "net.onnx", "net.xml", "net.pt2", "out", "out.csv", "out.onnx", "."),
    *(
        "resnest14",
        "resnest50",
        "resnest26_tiny",
        "resnest26_tiny:distilled_in1k",
        "in1k",
        "nobody",
    ),
    *("timm/resnest50d.in1k", "resnest101e", "resnest14d.nope"),
    *("torch", "compile", "onnxruntime", "openvino", "auto", "cpu", "cuda", "cuda:99", "abacus"),
    *("json", "csv", "table", "fp16", "int8", "onnx", "train", "val", "paper", "modern", "plain"),
    *("0", "1", "2", "-1", "3.5", "1e9", "nan", "inf", "9" * 30, "0x10", "true", "None", "", " "),
    *("epochs=1", "epochs", "=", "a=b=c", "epochs=[[", "seed=" + "9" * 5_000, 'crop="x\\n"'),
    *("é", "日本", "\n", "\x1b[2J", "\udcff", "\udcff.jpg", "a\nb.pth", "x" * 300, "x" * 5_000),
    *("/dev/null", "/nowhere/at/all", "~nobody/x", "[", "[a", "**", "*" * 50, "?", "{a,b}", "%s"),
    *(
        "http://127.0.0.1:9/x.jpg",
        "http://",
        "http://[::1",
        "https://\udcff",
        "file:///x",
        "HTTP://",
    ),
    *("torchvision:", "torchvision:Nope", "torchvision:__all__", "torchvision:FakeData"),
)
_CALLS = (
    ("predict", "photo.jpg", "--engine", "torch"),
    ("predict", "photos", "--engine", "torch", "--format", "json", "--topk", "2"),
    ("predict", "photo.jpg", "--engine", "torch", "--output", "out.csv", "--format", "csv"),
    ("predict", "photo.jpg", "--weights", "net.onnx"),
    ("explain", "photo.jpg", "--output", "why.html", "--method", "cam", "--engine", "torch"),
    ("evaluate", "data", "--weights", "tiny.safetensors", "--workers", "0"),
    ("evaluate", "shard.parquet", "--split", "train", "--workers", "0", "--json"),
    ("train", "data", "--output", "out", "--model", "resnest14", "--set", "batch_size=2"),
    ("train", "data", "--output", "out", "--recipe", "recipe.toml", "--class-names", "names.txt"),
    ("export", "out.onnx", "--model", "resnest26_tiny", "--precision", "fp16"),
    ("export", "net.xml", "--precision", "int8", "--calibration", "photos"),
    ("bench", "--model", "resnest14", "--batch-size", "1", "--rounds", "2", "--json"),
    ("models", "--json"),
    ("weights", "verify", "tiny.safetensors", "resnest26_tiny"),
    ("weights", "fetch", "resnest14", "resnest26_tiny:distilled_in1k"),
    ("weights", "convert", "tiny.safetensors", "out.pth", "--to", "mmpretrain"),
    ("weights", "card", "tiny.safetensors"),
)


def call_seeds() -> list[bytes]:
    return [_as_bytes(call) for call in _CALLS]


def damaged_call(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """A call with words removed, inserted, replaced, joined by "=" or shuffled."""
    call = dice.choice(seeds).decode(errors="surrogateescape").split("\0")
    for _ in range(dice.choice((1, 1, 2, 2, 3, 5))):
        where = dice.randrange(len(call) + 1)
        word = dice.choice(_WORDS)
        match dice.randrange(5):
            case 0:
                call.insert(where, word)
            case 1:
                call[where : where + 1] = [word]
            case 2:
                del call[where : where + 1]
            case 3:
                call[where : where + 2] = ["=".join(call[where : where + 2])]
            case 4:
                dice.shuffle(call)
    return _as_bytes(call)


def _as_bytes(call: Sequence[str]) -> bytes:
    return "\0".join(call).encode(errors="surrogateescape")


def run_call(content: bytes, folder: Path) -> None:
    """Run a command line until its real work begins; a reported failure is an `InputError`."""
    call = content.decode(errors="surrogateescape").split("\0")
    _set_up_desk(folder)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    stdin = io.TextIOWrapper(io.BytesIO(b"photo.jpg\n\xff.jpg\n"), "utf-8")
    status: object = 0
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            patch("sys.stdin", stdin),
            _no_work(folder),
        ):
            main(call)
    except SystemExit as end:
        status = end.code or 0
    finally:
        os.chdir(before)
    err.flush()
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert status in (0, 1, 2), f"status {status!r}: {said}"
    assert "--debug" in call or "Traceback" not in said, said
    if status:
        assert said, "a failure must be explained"
        raise InputError(said)


def _set_up_desk(folder: Path) -> None:
    """Write the files that `_CALLS` name; an earlier call may have overwritten them."""
    photo = _small_photo()
    files = {
        "photo.jpg": photo,
        "photos/one.png": encoded(0, 0),
        "photos/two.jpg": photo[:300],
        "data/train/red/0.jpg": photo,
        "data/train/red/1.jpg": photo,
        "data/train/blue/2.jpg": photo,
        "data/val/red/3.jpg": photo,
        "data/val/blue/4.jpg": photo,
        "shard.parquet": data_seeds()[0],
        "recipe.toml": b"epochs = 2\nwarmup_epochs = 1\nbatch_size = 2\n",
        "names.txt": b"sea\nsky\n",
        "net.onnx": (ATTACKS / "exported" / "speechless.onnx").read_bytes(),
        "net.xml": (ATTACKS / "exported" / "empty.xml").read_bytes(),
        "net.pt2": (ATTACKS / "exported" / "code.pt2").read_bytes(),
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    weights, own = local_path(embedded_entry()), folder / "tiny.safetensors"
    if not own.exists() or own.stat().st_size != weights.stat().st_size:
        shutil.copyfile(weights, own)


@cache
def _small_photo() -> bytes:
    return saved(decode(sample_photographs()[0]).resize((40, 40)), "JPEG")


@contextmanager
def _no_work(folder: Path) -> Iterator[None]:
    """Stop calls before work that takes minutes, after their arguments have been checked."""

    def stop(*_: object, **__: object) -> None:
        raise InputError("stopped where the work begins")

    load = TrainedNetwork.load

    def load_plain(network: TrainedNetwork, engine: str, device: str, **rest: Any) -> Engine:
        plain = "torch" if engine in engine_names() else engine
        return load(network, plain, device, **rest)

    own = {"SPLITATTN_OFFLINE": "1", "SPLITATTN_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    with (
        patch.dict(os.environ, own),
        patch.object(loop, "train", stop),
        patch.object(measure, "measure", stop),
        patch.object(workflows, "export_network", stop),
        patch.object(workflows, "measure", stop),
        patch.object(TrainedNetwork, "load", load_plain),
    ):
        yield


TARGETS = (
    Target(name="images", seeds=image_seeds, read=read_image),
    Target(name="torch checkpoints", seeds=torch_seeds, read=read_weights),
    Target(name="safetensors", seeds=safetensors_seeds, read=read_weights),
    Target(name="layouts", seeds=layout_seeds, read=read_layout),
    Target(name="training states", seeds=training_seeds, read=read_training),
    Target(name="metadata", seeds=metadata_seeds, read=read_metadata_text),
    Target(name="recipes", seeds=recipe_seeds, read=read_recipe),
    Target(name="data sets", seeds=data_seeds, read=read_data),
    Target(name="annotations", seeds=annotation_seeds, read=read_annotations),
    Target(
        name="annotated data sets", seeds=annotated_seeds, read=read_annotated, make=annotated_set
    ),
    Target(name="ONNX files", seeds=onnx_seeds, read=read_onnx, make=damaged_onnx),
    Target(
        name="OpenVINO files", seeds=open_vino_seeds, read=read_open_vino, make=damaged_open_vino
    ),
    Target(name="answers of servers", seeds=answer_seeds, read=read_answer),
    Target(name="command line", seeds=call_seeds, read=run_call, make=damaged_call),
    *(
        [Target(name="bodies of requests", seeds=body_seeds, read=read_body)]
        if installed("starlette", "python_multipart")
        else []
    ),
)
