"""Flags and commands of timm, torchvision and Ultralytics, and what they are here."""

import re
from collections.abc import Sequence

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
        ("-k",): "here it is --topk N",
        ("--conf",): "here it is --score, for detectors",
        ("--save", "--show"): "here it is --draw FOLDER",
        ("--checkpoint", "--ckpt"): _WEIGHTS,
        ("--imgsz", "--img-size", "--input-size"): _SIZE_INSIDE,
        ("--pretrained",): "leave it out: trained weights are the default",
    },
    "train": {
        ("--data", "--data-dir", "--data-path"): _DATA,
        ("--epochs",): "here it is --set epochs=N",
        ("--batch-size", "--batch", "-b"): "here it is --set batch_size=N",
        ("--lr", "--lr0"): "here it is --set learning_rate=N",
        (
            "--imgsz",
            "--img-size",
            "--input-size",
        ): ("here it is --set train_size=N --set test_size=N"),
        ("--weight-decay", "--wd"): "here it is --set weight_decay=N",
        ("--gpus", "--devices", "--nproc-per-node"): (
            "here it is torchrun --nproc-per-node N -m splitattn train ..."
        ),
        ("--seed",): "here it is --set seed=N",
        ("--patience",): "here it is --set patience=N",
        ("--smoothing", "--label-smoothing"): "here it is --set label_smoothing=N",
        ("--mixup",): "here it is --set mixup_alpha=N",
        ("--cutmix",): "here it is --set cutmix_alpha=N",
        ("--amp", "--half"): "here it is --set precision=fp16",
        ("--project", "--name", "--output-dir", "--experiment"): "here it is --output FOLDER",
        ("--initial-checkpoint", "--checkpoint"): _WEIGHTS,
        ("--pretrained",): "leave it out: the recipe finetune starts from trained weights",
        ("--num-classes", "--nc"): "leave it out: the data set says the classes",
    },
    "evaluate": {
        ("--data", "--data-dir", "--data-path"): _DATA,
        ("--checkpoint", "--ckpt"): _WEIGHTS,
        ("--imgsz", "--img-size", "--input-size"): "here it is --size N",
        ("--batch", "-b"): "here it is --batch-size N",
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
        ("--batch", "-b"): "here it is --batch-size N",
        ("--imgsz", "--img-size", "--input-size", "--size"): _SIZE_INSIDE,
    },
    "bench": {
        ("--engine", "--engines", "--format", "--formats"): (
            "bench measures every installed engine; --only TEXT keeps the lines with that text"
        ),
    },
    "weights": {("list", "ls"): "splitattn weights alone lists them"},
}
# Flags that no verb has.
_ANYWHERE = {
    ("--verbose", "-v"): "leave it out: warnings are always shown; --debug adds the traceback",
    ("--quiet", "-q"): "leave it out: 2> FILE takes progress and warnings off the screen",
}
# Of verbs that take one argument or none, what else people put beside it.
_ARGUMENTS = {
    "train": "train takes one data set, and --resume takes no value",
    "evaluate": "evaluate takes one data set; the network is named by --model or --weights",
    "export": "export takes the file to write; the network is named by --model or --weights",
    "models": "models takes no name and lists all; splitattn models | grep NAME shows some",
    "bench": "bench takes no argument; the network is named by --model",
}
# Of arguments and options that are missing, by how the help calls them, what they are.
_MISSING = {
    "'DST'": "where to write",
    "'FILE|MODEL[:TAG]'": "a file of weights, or a name that splitattn weights lists",
    "'MODEL[:TAG]...'": "a name that splitattn weights lists, such as resnest50",
    "'OUT'": "the file to write, such as net.onnx",
    "'PATH|MODEL[:TAG]...'": "a file of weights, or a name that splitattn weights lists",
    "'SRC'": "what to read",
}
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+([eE]-?[0-9]+)?")
_UNKNOWN = re.compile(r"(no such (?:option|command):? '?(-{0,2}[\w-]+)'?)")


def with_our_name(message: str, verb: str, arguments: Sequence[str]) -> str:
    """A parser's `message` about a call of `verb`, with what its flag or command is called here.

    The number that came with the flag, which is looked up in `arguments`, is in the hint too.

    Names that are close to the unknown one are left out then: they mean something else.
    """
    if "unexpected extra argument" in message and verb in _ARGUMENTS:
        return f"{message}; {_ARGUMENTS[verb]}"
    if what := _missing(re.sub("^missing (argument|option) ", "", message)):
        return f"{message}: {what}"
    unknown = _UNKNOWN.match(message)
    if not unknown:
        return message
    for names, ours in (_ELSEWHERE.get(verb, {}) | _ANYWHERE).items():
        if unknown[2] in names:
            return f"{unknown[1]}; {_with_number(ours, unknown[2], arguments)}"
    if not verb and message.startswith("no such option"):
        message += "; options follow the verb, as in splitattn predict photo.jpg --device cpu"
    if verb == "train":
        if unknown[2].startswith("--"):
            field = unknown[2].lstrip("-").replace("-", "_")
            message += f"; if {field} is a field of the recipe, change it by --set {field}=VALUE"
        else:
            message += "; fields of the recipe are changed by --set, such as --set epochs=20"
    return message


def _missing(name: str) -> str | None:
    """What the argument or option is that the help calls `name`."""
    if name != "'--to'":
        return _MISSING.get(name)
    from splitattn.weights.layouts import BY_NAME  # here, since few calls need it

    return f"one of {', '.join(BY_NAME)}"


def _with_number(hint: str, flag: str, arguments: Sequence[str]) -> str:
    """`hint` with the number that follows `flag` in place of each N, or with N if there is none."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == flag and (number := _NUMBER.fullmatch(value if equals else following)):
            return re.sub(r"\bN\b", number[0], hint)
    return hint
