"""Mistakes of newcomers get one line with the rule, the value and the fix."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from splitattn.cli import main
from splitattn.weights import layouts

# Each row: a call, and a pattern that its error line matches.
MISTAKES = [
    ("predict 'nothing/*.png'", "got none: no file matches nothing/[*].png; check the path"),
    ("features 'nothing/*.png'", "features needs images, got none: no file matches nothing/"),
    ("features empty", "features needs images, got none in the folder empty"),
    ("explain empty --output why.html", "explain needs images, got none in the folder empty"),
    ("predict photo.png --score 0.3 --weights notes.txt", "got notes.txt: leave them out"),
    ("predict photo.png --class-maps new --weights notes.txt", "got notes.txt: leave it out"),
    ("predict photo.png --draw data --weights tiny", "--draw must be a new or empty folder, so"),
    ("predict photo.png --class-maps data --weights a.pt", "--class-maps must be a new or empty"),
    ("evaluate data --weights tiny --answers -", "--answers must be a file here, got -: name one"),
    ("explain photo.png --output -", "--output must be a folder, got -: pictures cannot go to"),
    ("predict photo.png --format json --output a.csv", "got a.csv with --format json: leave out"),
    ("predict photo.png --format table --output a.json", "got a.json with --format table: leave"),
    ("predict photo.png --format coco --output a.csv", "got a.csv with --format coco: leave out"),
    ("evaluate data --split trian", "trian/, got train/, val/ in data; did you mean 'train'[?]"),
    ("train data --output new --head fcos", "a detector needs .*'data': a folder without them; na"),
    ("train data --output new --head fpn", "a segmenter needs images and masks, .*'data': a folde"),
    ("train nowhere --output new --head fcos", "'nowhere': no such file or folder"),
    ("weights verify resnest5", "no model is called 'resnest5'; did you mean 'resnest50'"),
    ("weights fetch resnest50:in21k", "in21k.*did you mean 'in1k'"),
    ("weights verify empty", "empty must be a folder with model.safetensors or"),
    ("bench --batch-size 0", "'--batch-size': 0 is not in the range x>=1"),
    ("bench --rounds 1", "'--rounds': 1 is not in the range x>=2"),
    ("bench --size 16", "'--size': 16 is not in the range x>=32"),
    ("train data --output new --recipe distill", "needs a teacher, got none; add --set teacher="),
    (
        "train data --output new --recipe distill --set teacher=a.onnx --set imitation=features",
        "imitation=features needs the teacher's classifier, which the exported file a.onnx does",
    ),
    ("train data --output new --lr=1e-3", "--lr; here it is --set learning_rate=1e-3; see"),
    ("train data --output new --seed", "--seed; here it is --set seed=N; see"),
    ("train data --output new --lr cosine", "--lr; here it is --set learning_rate=N; see"),
    ("modles", "no such command 'modles'. Did you mean 'models'[?]; see splitattn --help"),
    ("--device cpu predict photo.png", "--device; options follow the verb, as in splitattn pr"),
    ("predict photo.png --class-maps maps --weights a.pt", "--class-maps .* got a.pt: no such"),
    ("predict photo.png --score 0.5 --weights a.pt", "need a detector's .* got a.pt: no such"),
    ("predict", "predict needs images, got none; name files, folders, globs or URLs"),
    (
        "predict notes.txt",
        "got notes.txt: a list of names is read from stdin, as in splitattn predict - < not",
    ),
    ("predict photo.png --top-k 3", "no such option: --top-k .*--topk.*splitattn predict --h"),
    ("predict photo.png --topk five", "'--topk': 'five' is not a whole number; see"),
    ("evaluate data --batch-size x", "'x' is not a whole number; see"),
    ("predict photo.png --score high", "'high' is not a number; see"),
    ("serve --max-wait -1", "-1.0 is not in the range x>=0.0"),
    ("predict photo.png --topk 0", "'--topk': 0 is not in the range x>=1"),
    ("predict photo.png --format xml", "'xml' is not one of 'table', 'json', 'csv'"),
    ("predict photo.png --min-probability 30", "30.0 is not in the range 0.0<=x<=1.0"),
    ("predict photo.png --device gpu", "'gpu' cannot be used: .* did you mean 'cuda'"),
    ("predict photo.png --engine tensorrt", "engine must be one of .*, got 'tensorrt'"),
    ("predict photo.png --model resnet50", "'resnet50'; did you mean 'resnest50'"),
    ("predict photo.png --weights best.pth", "'best.pth' is neither a tag .* nor a file"),
    ("predict photo.png --weights notes.txt", "notes.txt is not .*; if it is an exported network"),
    ("predict photo.png --weights empty", "empty must be a folder with model.safetensors or"),
    ("predict photo.png --output data", "--output must be a file, got data, a folder"),
    ("evaluate", "missing argument 'data'; see splitattn evaluate --help"),
    ("evaluate dta", "data must be a folder, .* got 'dta': no such .*; did you mean 'data'[?]"),
    ("evaluate no/dta", "got 'no/dta': no such file or folder$"),
    ("predict photo.png --weights note.txt", "nor a file or folder; did you mean 'notes.txt'[?]"),
    ("evaluate photo.png", "'photo.png': a single picture; to label it use splitattn predict"),
    ("train notes.txt --output run", "got 'notes.txt': a file of another kind"),
    ("evaluate data --device auto:1", "device 'auto:1' cannot be used: it must be auto, cpu, "),
    ("predict photo.png --device cuda:99999999999999999999", "cannot be used: it must be auto, "),
    ("evaluate data --device 0", "device '0' cannot be used: .*; did you mean 'cuda:0'[?]"),
    ("evaluate data --split tset", "must have a folder tset/, got train/, val/ in data"),
    ("evaluate data --size 8", "'--size': 8 is not in the range x>=32"),
    ("train data", "missing option '--output'; see splitattn train --help"),
    ("train data --output run --epochs 5", "no such option: --epochs; .* --set epochs=5;"),
    ("train data --output run --teacher big", "such option: --teacher; .* --set teacher=VALUE"),
    ("train data --output run --label-weight 1", "; if .* --set label_weight=VALUE"),
    ("train data --output", "'--output' requires an argument; see splitattn train --help"),
    ("train data --output run -e 5", "no such option: -e; .* such as --set epochs=20"),
    ("train data --output run --set lr=0.1", "'lr'; did you mean 'learning_rate'"),
    ("train data --output run --set epochs", "--set must be key=value, got 'epochs'"),
    ("train data --output run --set epochs=0", "epochs must be 1 to 100000, got 0"),
    ("train data --output run --set epochs=ten", "epochs must be a whole number, got 'ten'"),
    ("train data --output run --recipe mine.toml", "a TOML file, got 'mine.toml': no such file"),
    ("train data --output run --recipe finetun", "got 'finetun'; did you mean 'finetune'"),
    ("train data --output run --fold 6/5", "a fold must be 1/N to N/N, .* got 6/5"),
    ("train empty --output run", "must have one folder per class, got none in empty"),
    (
        "train data --output run",
        "at most the number of training images, 2, got 64; set batch_size to 2",
    ),
    ("export", "missing argument 'OUT': the file to write, such as net.onnx; see splitattn expor"),
    ("bulk photos", "missing argument 'DST': where to write; see splitattn bulk --help"),
    (
        "weights convert --to timm",
        "missing argument 'SRC': what to read; see splitattn weights con",
    ),
    (
        "weights card",
        "missing argument 'FILE.*: a file of weights, or a name that splitattn weights",
    ),
    ("weights verify", "missing argument 'PATH.*: a file of weights, or a name that splitattn"),
    ("weights fetch", "missing argument 'MODEL.*: a name that splitattn weights lists, such as"),
    ("models resnest50", r"extra argument.*\(resnest50\); models takes no name and lists all"),
    ("bench resnest50", r"extra argument.*\(resnest50\); bench takes no argument; .* by --model"),
    ("bench --engines tensorrt", "no such option: --engines; bench measures every installed"),
    ("predict photo.png --verbose", "--verbose; leave it out: warnings are always shown; --debug"),
    ("train data --output new -q", "-q; leave it out: 2> FILE takes progress and warnings off"),
    ("weights convert notes.txt a.pth --to mmcls", "detectron2, got 'mmcls'$"),
    ("export net.tflite", r"must end in one of .xml, .onnx, .pt2, got net.tflite"),
    ("export net.onnx --precision int8", "int8 needs images .*: pass --calibration DATA"),
    ("export net.onnx --precision fp8", "'fp8' is not one of 'fp32', 'fp16', 'int8'"),
    ("weights convert notes.txt a.pth --to tmm", "layout must be one of .* did you mean 'timm"),
    ("predict photo.png --engine onnx", "engine must be .* did you mean 'onnxruntime'[?]"),
    ("predict photo.png --weights resnest50", "which is a model: .* --model resnest50"),
    ("predict photo.png --weights net.bin", "second file of net.xml, .* network: name that"),
    ("predict photo.png --weights ''", "--weights must not be empty"),
    ("predict photo.png --output no/a.csv", "cannot write --output no/a.csv: there is no folder /"),
    ("evaluate data --answers no/a.csv", "cannot write --answers no/a.csv: there is no folder /"),
    ("export no/net.onnx", "cannot write no/net.onnx: there is no folder /"),
    ("predict photo.png --output a.xlsx", ".jsonl, .csv, .txt or have no ending, got a.xlsx"),
    ("evaluate data --output a.csv", "end in .json, .jsonl or have no ending, got a.csv"),
    ("evaluate ''", "(?i:data) must not be empty"),
    (
        "train data/val/cats --output run",
        "class, got none in .*, only images: .*; for boxes or",
    ),
    ("evaluate photos.zip", "got 'photos.zip': an archive; unpack it and name the folder"),
    ("predict photo.png --model notes.txt", "a file or folder: pass it as the weights .--weights"),
    ("train '' --output run", "(?i:data) must not be empty"),
    ("train data --output run --set aim=1", "no field is called 'aim'; docs/reference/recipes"),
    ("bulk '' labels", "must not be empty"),
    (
        "train data --output run --imgsz 64",
        "--imgsz; here it is --set train_size=64 --set test_size=64;",
    ),
    ("train data --output run -b 64", "-b; here it is --set batch_size=64;"),
    ("train --data data --output run", "--data; the data set is the first argument"),
    ("train data --output run --mixup 1", "--mixup; here it is --set mixup_alpha=1;"),
    ("train data --output run --cutmix 1", "--cutmix; here it is --set cutmix_alpha=1;"),
    ("train data --output run --resume run/last.pt", r"\(run/last.pt\); .* takes no value"),
    ("val data", "no such command 'val'; here it is evaluate; see splitattn --help"),
    ("predict --source photo.png", "--source; images are arguments, without a flag"),
    ("predict photo.png --conf 0.5", "--conf; here it is --score, for detectors"),
    ("evaluate data --img-size 64", "--img-size; here it is --size 64;"),
    ("export run net.onnx", "the network is named by --model or --weights"),
    ("export net.onnx --half", "--half; here it is --precision fp16"),
    ("train coco.yaml --output run", "a YAML file; name the folder of the data set, such as"),
    ("train only --output run", "images of at least two classes, got only those of 'cats'"),
    ("predict photo.png --model owner/name", "'owner/name'; did you mean 'hf-hub:owner/name'"),
    ("predict photo.png --model local-dir:none", "none .* weights: there is no such folder"),
    ("train ~nobody/data --output run", "data must be a folder, .* got '~nobody/data': no such"),
    ("data show ~nobody/data --output s.png", "data must be a folder, .* got '~nobody/data': no"),
    ("data show data --output data/val/cats/1.png", "--output must be outside the data set, got"),
    ("predict photo.png --format json --output photo.png", "must not be an image, .* --draw FOLD"),
    ("predict photo.png -k 3", "no such option: -k; here it is --topk 3;"),
    ("predict photo.png --weights resnest50d", "which is a model: .* --model resnest50d"),
    ("evaluate boxes", r"boxes \(COCO\): evaluate needs weights of a detector .*, got none"),
    ("evaluate street --weights w.pt", r"weights of a segmenter .* got w.pt: no such file or fol"),
    ("train labels.xlsx --output run", "got 'labels.xlsx': a spreadsheet; save it as CSV"),
    ("evaluate street", "street has masks: evaluate needs weights of a segmenter .*, got none"),
    ("train data --output notes.txt", "output must be a folder, got notes.txt, a file"),
    ("bench --model vit", "no model is called 'vit'"),
    ("weights list", "no such command 'list'; splitattn weights alone lists them"),
    ("train data --output used", "must be a new folder, got used with a training .*--resume to"),
    ("train data --output run --device gpu", "'gpu' cannot be used: .* did you mean 'cuda'"),
    ("predict photo.png --device CPU", "device 'CPU' cannot be used: .*; did you mean 'cpu'[?]"),
    ("weights convert a.pth b.pth", "missing option '--to': one of official, timm, .*; see"),
    ("serve --trusted-host http://x/y", "without a scheme, port or path, .* got 'http://x/y'"),
    ("data toy data", "must be a new or empty folder, got data"),
    ("train data --output ''", "--output must not be empty, got ''; is it a shell variable that"),
    ("predict photo.png --draw=", "--draw must not be empty"),
    ("train data --output run --set ''", "--set must not be empty"),
    ("evaluate data --split ''", "--split must not be empty"),
    ("data toy ''", "(?i:folder) must not be empty"),
    ("weights convert '' new.pth --to timm", "SRC must not be empty"),
    ("train data --output run --checkpoint-minutes nan", "--checkpoint-minutes must be a finite n"),
    ("train data --output run --checkpoint-minutes inf", "must be a finite number, got inf"),
    ("predict photo.png --min-probability nan", "--min-probability must be a finite number, got"),
]
# Calls whose mistake shows only once PyTorch is loaded: the batch depends on the network and the
# device, and so does which images can be used.
NEED_PYTORCH = ["train data --output run", "train only --output run"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with everything that the calls name."""
    for name in ("cats", "dogs"):
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / "data" / split / name / "0.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    (tmp_path / "only" / "dogs").mkdir(parents=True)
    (tmp_path / "only" / "cats").mkdir()
    for number in range(9):
        Image.new("RGB", (40, 40)).save(tmp_path / "only" / "cats" / f"{number}.png")
    for folder in ("boxes", "street/images", "street/masks"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (40, 40)).save(tmp_path / folder / "0.png")
    (tmp_path / "boxes" / "train.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "labels.xlsx").write_bytes(b"PK")
    (tmp_path / "coco.yaml").write_text("names: [cat, dog]")
    (tmp_path / "net.bin").write_bytes(bytes(100))
    (tmp_path / "net.xml").write_text("<net/>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "last.pt").write_bytes(bytes(100))
    (tmp_path / "notes.txt").write_text("no weights")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("call", "line"), MISTAKES)
def test_a_mistake_is_reported_in_one_line_with_status_2(
    call: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(shlex.split(call))
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    before = r"(loading PyTorch\n)?" if call in NEED_PYTORCH else ""
    assert re.fullmatch(rf"{before}error: .*{line}.*\n", err), err


def test_a_missing_layout_is_answered_with_all_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(layouts.BY_NAME, "a_new_one", layouts.OFFICIAL)
    with pytest.raises(SystemExit):
        main(["weights", "convert", "a.pth", "b.pth"])
    assert f"one of {', '.join(layouts.BY_NAME)}; see" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_mistake_is_reported_before_any_slow_library_is_loaded() -> None:
    code = """
import json, shlex, sys
from splitattn.cli import main
loading = []
for call in json.load(sys.stdin):
    try:
        main(shlex.split(call))
    except SystemExit:
        pass
    if sys.modules.keys() & {"torch", "openvino", "onnxruntime"}:
        loading.append(call)
print(json.dumps(loading))
"""
    calls = [call for call, _ in MISTAKES if call not in NEED_PYTORCH]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert len(done.stderr.splitlines()) == len(calls)


def test_a_bare_call_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for call in ([], ["data"]):
        with pytest.raises(SystemExit) as end:
            main(call)
        out, err = capsys.readouterr()
        assert end.value.code == 2
        assert "Usage" in out + err
        assert "error" not in err
