"""Flags and commands of timm, torchvision and Ultralytics, and what they are here."""

import re

_DATA = "the data set is the first argument, without a flag"
_WEIGHTS = "here it is --weights FILE"
_SIZE_INSIDE = "leave it out: the weights say the size of images"

# By verb. The empty verb has commands, the others have flags.
_ELSEWHERE: dict[str, dict[tuple[str, ...], str]] = {
    "": {
        ("val", "validate", "test", "eval"): "here it is evaluate",
        ("detect", "classify", "segment", "infer", "inference"): "here it is predict",
        ("finetune", "fit"): "here it is train",
        ("benchmark",): "here it is bench",
        ("convert",): "here it is weights convert, or export",
    },
    "predict": {
        ("--source", "--data", "--data-dir", "--input"): "images are arguments, without a flag",
        ("-k",): "here it is --topk 5",
        ("--conf",): "here it is --score, for detectors",
        ("--save", "--show"): "here it is --draw FOLDER",
        ("--checkpoint", "--ckpt"): _WEIGHTS,
        ("--imgsz", "--img-size", "--input-size"): _SIZE_INSIDE,
        ("--pretrained",): "leave it out: trained weights are the default",
    },
    "train": {
        ("--data", "--data-dir", "--data-path"): _DATA,
        ("--epochs",): "here it is --set epochs=20",
        ("--batch-size", "--batch", "-b"): "here it is --set batch_size=16",
        ("--lr", "--lr0"): "here it is --set learning_rate=0.01",
        ("--imgsz", "--img-size", "--input-size"): (
            "here it is --set train_size=96 --set test_size=96"
        ),
        ("--weight-decay", "--wd"): "here it is --set weight_decay=0.01",
        ("--gpus", "--devices", "--nproc-per-node"): (
            "here it is torchrun --nproc-per-node N -m splitattn train ..."
        ),
        ("--seed",): "here it is --set seed=1",
        ("--patience",): "here it is --set patience=5",
        ("--smoothing", "--label-smoothing"): "here it is --set label_smoothing=0.1",
        ("--mixup",): "here it is --set mixup_alpha=0.2",
        ("--cutmix",): "here it is --set cutmix_alpha=1.0",
        ("--amp", "--half"): "here it is --set precision=fp16",
        ("--project", "--name", "--output-dir", "--experiment"): "here it is --output FOLDER",
        ("--initial-checkpoint", "--checkpoint"): _WEIGHTS,
        ("--pretrained",): "leave it out: the recipe finetune starts from trained weights",
        ("--num-classes", "--nc"): "leave it out: the data set says the classes",
    },
    "evaluate": {
        ("--data", "--data-dir", "--data-path"): _DATA,
        ("--checkpoint", "--ckpt"): _WEIGHTS,
        ("--imgsz", "--img-size", "--input-size"): "here it is --size 96",
        ("--batch", "-b"): "here it is --batch-size 16",
        ("--conf", "--score"): "leave it out: COCO's figures count every score",
        ("--pretrained",): "leave it out: trained weights are the default",
    },
    "export": {
        ("--output", "--out"): "the file to write is the argument, without a flag",
        ("--checkpoint", "--ckpt"): _WEIGHTS,
        ("--int8",): "here it is --precision int8 --calibration DATA",
        ("--half", "--fp16"): "here it is --precision fp16",
        ("--dynamic",): "here it is --dynamic-size; batches are of any size by default",
        ("--data",): "here it is --calibration DATA",
        ("--batch", "-b"): "here it is --batch-size 1",
        ("--imgsz", "--img-size", "--input-size", "--size"): _SIZE_INSIDE,
    },
    "weights": {("list", "ls"): "splitattn weights alone lists them"},
}
# Of verbs that take one argument, what else people put beside it.
_ONE_ARGUMENT = {
    "train": "train takes one data set, and --resume takes no value",
    "evaluate": "evaluate takes one data set; the network is named by --model or --weights",
    "export": "export takes the file to write; the network is named by --model or --weights",
}
_UNKNOWN = re.compile(r"(no such (?:option|command):? '?(-{0,2}[\w-]+)'?)")


def with_our_name(message: str, verb: str) -> str:
    """A parser's `message` about a call of `verb`, with what its flag or command is called here.

    Names that are close to the unknown one are left out then: they mean something else.
    """
    if "unexpected extra argument" in message and verb in _ONE_ARGUMENT:
        return f"{message}; {_ONE_ARGUMENT[verb]}"
    unknown = _UNKNOWN.match(message)
    if not unknown:
        return message
    for names, ours in _ELSEWHERE.get(verb, {}).items():
        if unknown[2] in names:
            return f"{unknown[1]}; {ours}"
    if not verb and message.startswith("no such option"):
        message += "; options follow the verb, as in splitattn predict photo.jpg --device cpu"
    if verb == "train":
        if unknown[2].startswith("--"):
            field = unknown[2].lstrip("-").replace("-", "_")
            message += f"; if {field} is a field of the recipe, change it by --set {field}=VALUE"
        else:
            message += "; fields of the recipe are changed by --set, such as --set epochs=20"
    return message
