"""The examples of the site's pages work. Building the site runs the guide and checks references."""

import ast
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import typer.main
from PIL import ExifTags, Image
from safetensors.torch import load_file

import splitattn
from splitattn.architectures import architecture
from splitattn.cli import create_app
from splitattn.training.recipe_files import load_recipe
from splitattn.weights.hub import is_reference
from splitattn.weights.metadata import ModelMetadata
from tests.cli.networks import CLASSES, PREPROCESSING, network
from tests.examples import blocks, furnish
from tests.hub_server import Hub

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    page.stem: page.read_text(encoding="utf-8")
    for page in (DOCS / "index.md", *sorted(DOCS.glob("howto/*.md")))
}
PACKAGE = Path(splitattn.__file__).parent
GUIDE = DOCS / "guide.ipynb"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the examples use."""
    furnish(tmp_path, "".join(PAGES.values()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    return tmp_path


def test_the_guide_is_a_notebook_without_outputs() -> None:
    """Building the site runs the notebook, so that outputs are fresh and diffs readable."""
    notebook = nbformat.read(GUIDE, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 10
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_the_tree_of_the_architecture_names_every_module() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("```text\nsrc/splitattn/\n")[1].split("```")[0]
    named, package = set(), ""
    for indent, name in re.findall(r"^( +)(\S+)", tree, re.MULTILINE):
        package = package if len(indent) > 2 else ""
        named.add(f"{package}{name}")
        package = name if name.endswith("/") else package
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    modules = {name for name in files if not name.endswith(("__init__.py", "__main__.py"))}
    verbs = {name for name in modules if name.startswith("cli/")}
    assert {name for name in named if name.endswith(".py")} == modules - verbs


def test_links_of_the_guide_lead_somewhere() -> None:
    """Sphinx checks the links of the other pages, but not all links of a notebook."""
    text = "\n".join(cell.source for cell in nbformat.read(GUIDE, as_version=4).cells)
    targets = re.findall(r"\]\(((?!http)[^)#]+)\)", text)
    assert "howto/train.md" in targets
    assert all((DOCS / target).is_file() for target in targets)


@pytest.mark.parametrize("in_checkout", [True, False])
def test_the_guide_installs_the_checkout_or_the_distribution(
    in_checkout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Colab there is no checkout around the notebook: `..` is the root of the disk."""
    (tmp_path / "docs").mkdir()
    if in_checkout:
        (tmp_path / "src" / "splitattn").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "docs")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    cells = nbformat.read(GUIDE, as_version=4).cells
    (install,) = (cell.source for cell in cells if "%pip" in cell.source)
    installed: list[str] = []
    code = install.replace("%pip install --quiet {SOURCE}", "installed.append(SOURCE) #")
    exec(code, {"installed": installed})
    assert installed == [".." if in_checkout else "splitattn"]


def test_the_container_copies_what_the_package_is_built_from() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    copies = re.findall(r"^COPY (?!--)(.+) \S+$", PAGES["serve"], re.MULTILINE)
    copied = {name for names in copies for name in names.split()}
    assert copied == {"pyproject.toml", project["readme"], *project["license-files"], "src"}


@pytest.mark.parametrize("name", splitattn.__all__)
def test_public_names_are_in_the_reference(name: str) -> None:
    reference = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    kinds = "autoclass|autofunction|autoexception"
    assert re.search(rf"^\.\. (?:{kinds}):: splitattn\.{name}$", reference, re.MULTILINE)


def test_every_code_block_of_a_page_is_closed() -> None:
    """An unclosed block would contain the rest of the page, which only building the site shows."""
    for page in sorted(DOCS.rglob("*.md")):
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]), page  # opening fences name the language
        assert not any(fences[1::2]), page
        assert len(fences) % 2 == 0, page


def commands() -> list[str]:
    """Every call of splitattn in the shell examples, without pipes and redirections."""
    shell = "".join(block for page in PAGES.values() for block in blocks(page, "sh"))
    lines = shell.replace("\\\n", " ").splitlines()
    calls = (re.search(r"\bsplitattn ([^|>]+)(?: [|>] .*)?$", line) for line in lines)
    return sorted({call[1] for call in calls if call})


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("command", commands())
def test_commands_have_known_options_and_values(command: str) -> None:
    """Commands are only parsed, since some train for days. Those of README.md are run."""
    verb, *arguments = shlex.split(command)
    known = typer.main.get_command(create_app()).commands[verb]
    if arguments and arguments[0] in getattr(known, "commands", ()):
        known = known.commands[arguments.pop(0)]
    # Raises if an option or a value is unknown.
    asked = known.make_context(verb, arguments).params
    if asked.get("model") and not is_reference(asked["model"]):
        architecture(asked["model"])
    if verb == "train":
        load_recipe(asked["recipe"], asked["overrides"] or (), model=asked["model"])


def test_no_two_commands_write_into_the_same_folder() -> None:
    """`train` and `--draw` refuse a folder that is not empty, so pages could not be followed."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    texts = [block for page in (readme, *PAGES.values()) for block in blocks(page, "sh")]
    lines = "".join(texts).replace("\\\n", " ").splitlines()
    once = "\n".join(line for line in lines if "--resume" not in line)
    outputs = re.findall(r"--(?:output|draw|class-maps) ([^\s.]+)(?:\s|$)", once)
    assert len(outputs) > 20
    assert [name for name, count in Counter(outputs).items() if count > 1] == []


def three_guesses(output: str) -> None:
    best, *others = output.splitlines()
    assert re.fullmatch(r" *\d+\.\d%  espresso", best)
    assert len(others) == 2


def labels(output: str) -> None:
    best, *lists = output.splitlines()
    assert best.startswith("espresso ")
    assert lists[0].startswith("['espresso', ")
    assert len(lists) == 3


def goes_on_after_an_error(output: str) -> None:
    assert re.fullmatch(r"espresso\nerror: missing.jpg: .*\n", output)


def explains(output: str) -> None:
    assert output == "espresso layercam (8, 8)\n"
    assert Path("espresso.html").is_file()


def labels_a_folder(output: str) -> None:
    assert output == "2 images, 0 errors\n"
    assert Path("labels-python/_SUCCESS").exists()


def trains(output: str) -> None:
    first, second, result = output.splitlines()
    for number, line in enumerate((first, second), 1):
        assert re.fullmatch(rf"epoch {number}/2  128 px  loss .*  top-1 .*", line)
    assert re.fullmatch(r"\d+\.\d % of 4 images; weights in from-python/model.safetensors", result)


def trains_another_network(output: str) -> None:
    first, second, result = output.splitlines()
    assert all(re.fullmatch(r"64 px  loss .*  top-1 .*", line) for line in (first, second))
    assert re.fullmatch(r"\d+\.\d % of 4 images", result)
    assert "fc.weight" in load_file("own/model.safetensors")


def finds_every_image(output: str) -> None:
    assert output == "4 ('espresso', 'tabby')\n"


def store_a_cat_as_a_phone_does() -> None:
    """Write photo.jpg on its side, with EXIF data that say so. As it lies, it is a lion."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise makes it upright
    lying = Image.open("photos/trip/chelsea.jpg").transpose(Image.Transpose.ROTATE_90)
    lying.save("photo.jpg", exif=exif)


def labels_as_the_classifier_does(output: str) -> None:
    (best,) = splitattn.Classifier(engine="torch").predict("photo.jpg", topk=1)
    assert output == f"{best.label}\n"


def labels_with_confidence(output: str) -> None:
    assert re.fullmatch(r"espresso \d+%\n", output)


def says_what_was_written(output: str) -> None:
    assert output == "model.onnx fp32 True\n"
    assert Path("model.onnx.parity.json").is_file()


def says_what_it_is(output: str) -> None:
    assert output == f"resnest14 {CLASSES}\n"


def train_as_the_page_has_done() -> None:
    metadata = ModelMetadata(model="resnest14", classes=CLASSES, preprocessing=PREPROCESSING)
    splitattn.save_pretrained(network(), "run", metadata=metadata)


def unpack_as_kaggle_packs() -> None:
    folder = Path("flowers")
    folder.mkdir()
    (folder / "train.csv").write_text("id,label\n1f3a,daisy\n20bc,tulip\n", encoding="utf-8")
    (folder / "sample_submission.csv").write_text("id,label\n2,?\n1,?\n", encoding="utf-8")
    header, *cells = "path,rank,label", "flowers/test/1.jpg,1,tulip", "flowers/test/2.jpg,1,daisy"
    Path("answers.csv").write_text("\n".join([header, *cells]), encoding="utf-8")


def unpacks_as_kaggle_does(_: str) -> None:
    """The next steps work with it: here with the labels of the model inside the package."""
    assert sorted(path.name for path in Path("flowers").iterdir()) == [
        "sample_submission.csv",
        "test",
        "train",
    ]
    answers = ["--topk", "1", "--format", "csv", "--output", "answers.csv"]
    create_app()(["predict", "flowers/test", *answers], standalone_mode=False)
    (submit,) = (block for block in blocks(PAGES["deploy"], "python") if "answers.csv" in block)
    exec(compile(submit, "deploy.md", "exec"), {})
    header, *rows = Path("submission.csv").read_text(encoding="utf-8").splitlines()
    assert header == "id,label"
    assert [row.split(",")[0] for row in rows] == [f"{number:04}" for number in range(1, 51)]


def writes_paths_and_labels(_: str) -> None:
    lines = Path("flowers/labels.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["path,label", "train/1f3a.jpg,daisy", "train/20bc.jpg,tulip"]


def writes_what_to_submit(_: str) -> None:
    lines = Path("submission.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["id,label", "2,daisy", "1,tulip"]


SHOWS: list[tuple[str, str, Callable[[str], None]]] = [
    ("index", "Classifier", three_guesses),
    ("label", "anything", labels),
    ("label", "predict_stream", goes_on_after_an_error),
    ("explain", "explain(", explains),
    ("bulk", "label_bulk", labels_a_folder),
    ("train", "splitattn.train(", trains),
    ("train", "resnet18", trains_another_network),
    ("data", "parquet", finds_every_image),
    ("export", "splitattn.export(", says_what_was_written),
    ("export", "InferenceSession", labels_as_the_classifier_does),
    ("weights", "read_metadata", says_what_it_is),
    ("deploy", "train.csv", writes_paths_and_labels),
    ("deploy", "flowers/val", unpacks_as_kaggle_does),
    ("deploy", "answers.csv", writes_what_to_submit),
    ("deploy", "Classifier", labels_with_confidence),
]


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(("page", "about", "check"), SHOWS)
def test_python_examples_do_what_they_say(
    page: str, about: str, check: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = (block for block in blocks(PAGES[page], "python") if about in block)
    if (file := re.search(r"\w+\.onnx", example)) and "splitattn.export" not in example:
        create_app()(["export", file[0]], standalone_mode=False)
        capsys.readouterr()
    if "InferenceSession" in example:
        store_a_cat_as_a_phone_does()
    if "run/model.safetensors" in example or '("run")' in example:
        train_as_the_page_has_done()
    if "flowers/val" in example:
        create_app()(["data", "toy", "flowers"], standalone_mode=False)
    elif "flowers/" in example:
        unpack_as_kaggle_packs()
    exec(compile(example, f"{page}.md", "exec"), {})
    check(capsys.readouterr().out)


@pytest.mark.usefixtures("desk")
def test_examples_with_a_hub_do_what_they_say(hub: Hub) -> None:
    train_as_the_page_has_done()
    files = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    for repository, revision in (("timm/resnest50d.in1k", "main"), ("owner/name", "revision")):
        hub.add(repository, files, revision)
    hub.add("owner/name", {})
    (there,) = (block for block in blocks(PAGES["weights"], "python") if "read_metadata" in block)
    (example,) = (block for block in blocks(PAGES["weights"], "py") if "hf-hub:" in block)
    exec(compile(there + example, "weights.md", "exec"), {})
    pushed = hub.repositories["owner/name"]["main"]
    assert pushed["model.safetensors"] == files["model.safetensors"]
    assert "hf-hub:owner/name" in pushed["README.md"].decode()


def test_examples_can_be_pasted_into_pythons_prompt() -> None:
    """There, until Python 3.12, a blank line ends a loop or a `with`, and nothing else does."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for page in (readme, *PAGES.values()):
        for block in (*blocks(page, "python"), *blocks(page, "py")):
            lines = ["", *block.splitlines()]
            for statement in ast.parse(block).body:
                after = lines[statement.end_lineno + 1 :][:1]
                assert not hasattr(statement, "body") or after in ([], [""]), after


def test_every_python_example_is_tested() -> None:
    examples = [block for page in PAGES.values() for block in blocks(page, "python")]
    assert len(examples) == len(SHOWS)


def tree() -> list[str]:
    """The paths in the file tree of docs/architecture.md, relative to src/splitattn."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    (block,) = (block for block in blocks(page, "text") if block.startswith("src/splitattn/\n"))
    paths, folders = [], [""]
    for line in block.splitlines()[1:]:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        paths.append("".join(folders))
    return paths


@pytest.mark.parametrize("path", tree())
def test_every_path_in_the_file_tree_exists(path: str) -> None:
    there = PACKAGE / path
    assert there.is_dir() if path.endswith("/") else there.is_file()


def test_every_package_and_top_module_is_in_the_file_tree() -> None:
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("[a-z]*.py")}
    assert packages | modules <= set(tree())


def test_files_to_touch_exist() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## To add X")[2].partition("## ")[0]
    root = DOCS.parent
    names = re.findall(r"`([\w/]+(?:\.\w+|/))`", table)
    assert len(names) > 20
    for name in names:
        assert (root / name).exists() or (PACKAGE / name).exists(), name
