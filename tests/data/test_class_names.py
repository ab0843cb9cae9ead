"""Classes of a data set are matched with the outputs of a network."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from splitattn.data.class_lists import ClassNames, class_list, name_outputs
from splitattn.data.class_names import Match, check_same, in_order, match, match_names
from splitattn.errors import DataError
from splitattn.weights.catalogue import class_names, lemmas, wordnet_ids

IMAGENET = class_names("imagenet1k")
IDS = wordnet_ids("imagenet1k")
NUMBERS = tuple(map(str, range(12)))


def test_numbers_are_sorted_by_value_and_names_by_alphabet() -> None:
    assert in_order(["10", "9", "1", "9"]) == ("1", "9", "10")
    assert in_order(["010", "9"]) == ("9", "010")
    assert in_order(["b", "10", "9"]) == ("10", "9", "b")


@pytest.mark.parametrize(
    ("names", "outputs", "indices"),
    [
        (("10", "2"), NUMBERS, (10, 2)),
        (("010", "002"), NUMBERS, (10, 2)),
        (("10", "2"), IMAGENET, (10, 2)),
        # Numbers from 1 are accepted if there is one for each output.
        (tuple(map(str, range(1, 13))), NUMBERS, tuple(range(12))),
        (tuple(map(str, range(1, 1001))), IMAGENET, tuple(range(1000))),
        # A network trained on folders 1 to 12 has the numbers as names, here sorted as text.
        (("2", "10"), ("1", "10", "11", "12", "2"), (4, 1)),
        (("01", "2"), ("01", "1", "2"), (0, 2)),
    ],
)
def test_a_number_means_an_output(
    names: tuple[str, ...], outputs: tuple[str, ...], indices: tuple[int, ...]
) -> None:
    assert match(names, outputs).indices == indices


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (("0", "12"), NUMBERS),
        (("1", "01"), NUMBERS),
        (("0", "2"), ("1", "2", "3")),
        (("3", "4", "5"), ("a", "b", "c")),
        (("1000",), IMAGENET),
    ],
)
def test_a_number_that_means_no_output_is_refused(
    names: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match=r"output numbers of the model.*; use these numbers"):
        match(names, outputs)


def test_names_are_matched_by_name_in_any_order_and_part() -> None:
    assert match(("espresso", "tench"), IMAGENET).indices == (967, 0)
    composed, decomposed = "t\xeate", "te\u0302te"
    assert match(("a", composed), (decomposed, "a")).indices == (1, 0)


def test_names_are_matched_in_any_case_and_with_any_mark_between_words() -> None:
    outputs = ("ant", "Red panda", "zebra")
    assert match(("Zebra", "red_panda"), outputs).indices == (2, 1)
    assert match(("red-panda", "red panda"), ("red panda", "red-panda")).indices == (1, 0)


def test_full_names_are_matched_by_their_first_lemma() -> None:
    names = ("goldfish, Carassius auratus", "tench, Tinca tinca")
    assert match(names, IMAGENET).indices == (1, 0)
    assert match(("goldfish",), names).indices == (0,)
    with pytest.raises(DataError, match="such as 'crane, bird'"):  # two outputs begin with "crane"
        match(("crane, bird", "tench"), ("crane, lifting", "crane, wading", "tench"))


def test_imagenets_classes_may_be_named_as_in_wordnet() -> None:
    """torchvision uses these names, and so do data sets that took theirs from it."""
    names = lemmas("imagenet1k")
    assert match(names, IMAGENET).indices == tuple(range(1000))
    assert match(("lesser panda", "crane bird", "Cardigan"), IMAGENET).indices == (387, 134, 264)
    assert match(tuple(reversed(names)), IMAGENET).indices == tuple(range(999, -1, -1))
    assert match(IMAGENET, names).indices == tuple(range(1000))


def test_a_part_of_imagenets_full_names_is_matched_by_their_first_lemmas() -> None:
    names = ("lesser panda, red panda, panda, Ailurus fulgens", "tench, Tinca tinca")
    found = match(names, IMAGENET)
    assert (found.indices, found.how) == ((387, 0), "lemma")


def test_the_two_cranes_of_imagenet_stay_two() -> None:
    twice = list(IMAGENET)
    twice[134], twice[639] = "crane", "maillot"
    found = match(twice, IMAGENET)
    assert found.indices == tuple(range(1000))
    assert found.how == "wordnet"
    assert match(IMAGENET, twice).indices == tuple(range(1000))
    assert match(twice, twice).indices == tuple(range(1000))
    with pytest.raises(DataError, match="must be different"):
        match(("crane", "crane"), ("crane", "maillot"))


@pytest.mark.parametrize("name", ["crane", "crane, lifting machine"])
def test_a_crane_is_refused_unless_the_other_crane_is_there_too(name: str) -> None:
    with pytest.raises(DataError, match=r"may be 'crane \(bird\)' or 'crane \(machine\)'; rename"):
        match((name, "espresso"), IMAGENET)
    assert match((name, "crane bird"), IMAGENET).indices == (517, 134)
    assert match(("crane (machine)", "espresso"), IMAGENET).indices == (517, 967)


@pytest.mark.parametrize("suffix", ["", "-Chihuahua"])
def test_wordnet_ids_are_matched_with_imagenets_names(suffix: str) -> None:
    names = tuple(f"{IDS[index]}{suffix}" for index in (500, 3))
    assert match(names, IMAGENET).indices == (500, 3)
    assert match(names, IDS).indices == (500, 3)
    with pytest.raises(DataError, match="such as 'n99999999'"):
        match(("n99999999",), IMAGENET)


def test_tiny_imagenet_is_a_part_of_imagenet() -> None:
    ids = wordnet_ids("tiny_imagenet200")
    found = match(ids, IMAGENET).indices
    assert [IDS[index] for index in found] == list(ids)
    assert match(ids, class_names("tiny_imagenet200")).indices == tuple(range(200))


@pytest.mark.parametrize(
    "names",
    [
        ("0_rocket", "1_coffee", "2_astronaut"),
        ("c7 rocket", "c8: Coffee", "c9.astronaut"),
        ("n02119789 rocket", "n02100735,coffee", "n01440764\tastronaut"),
    ],
)
def test_names_after_numbers_or_ids_are_matched_by_name(names: tuple[str, ...]) -> None:
    outputs = ("astronaut", "coffee", "rocket")
    assert match(names, outputs) == Match(indices=(2, 1, 0), how="name")
    assert match(outputs, names) == Match(indices=(2, 1, 0), how="name")
    with pytest.raises(DataError, match=r"got '.*rocket' for output 0, which is 'astronaut'"):
        named(names, outputs)


def test_a_part_of_the_classes_may_have_numbers_before_them() -> None:
    outputs = ("astronaut", "camera", "chelsea", "coffee", "rocket")
    numbered = tuple(f"{number}_{name}" for number, name in enumerate(outputs))
    assert match(("3_coffee", "4_rocket"), outputs) == Match(indices=(3, 4), how="name")
    assert match(("1. Rocket",), outputs) == Match(indices=(4,), how="name")
    assert match(("rocket", "coffee"), numbered) == Match(indices=(4, 3), how="name")
    assert match(("7 lesser panda", "8 crane bird"), IMAGENET).indices == (387, 134)
    with pytest.raises(DataError, match=r"may be 'crane \(bird\)' or 'crane \(machine\)'; rename"):
        match(("0_crane", "1_espresso"), IMAGENET)


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (("2 euro",), ("1 euro", "2 dollar", "5 pound")),  # another coin
        (("10 cents", "20 cents"), ("cents", "euros", "dollars")),  # two classes of one name
        (("3_coffee", "rocket"), ("coffee", "rocket", "camera")),  # only one has a number
        (("3_coffee", "4_rockets"), ("coffee", "rocket", "camera")),  # another name
        (("4_rocket",), ("rocket launcher", "coffee")),  # a longer name
        (("4_rocket",), ("Rocket", "ROCKET", "coffee")),  # several
        (("f1 car", "mp3 player"), ("car", "player", "bus")),  # these are no numbers
        (("nv: nevus",), ("nv", "mel", "bcc")),
    ],
)
def test_a_part_of_the_classes_is_not_matched_by_chance(
    names: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="classes must be among the model's"):
        match(names, outputs)


def test_names_beside_the_classes_are_matched_both_ways() -> None:
    """A network that learned from such a list is measured on data without it."""
    classes = ("akiec", "basal cell", "nv")
    listed = ("nv: nevus", "akiec: keratosis", "basal_cell: carcinoma")
    assert match(classes, listed) == Match(indices=(1, 2, 0), how="name")
    assert match(listed, classes) == Match(indices=(2, 0, 1), how="name")
    with pytest.raises(DataError, match="got 'nv: nevus' for output 0, which is 'akiec'"):
        named(listed, classes)


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (("bad", "good"), ("not good", "not bad")),  # a last word is no key
        (("akiec", "mel"), ("mel: melanoma", "akeic: keratosis")),  # one is misspelled
    ],
)
def test_names_that_hold_other_names_by_chance_are_matched_by_order(
    names: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    assert match(names, outputs).how == "order"


def test_numbers_are_no_keys() -> None:
    listed = ("grade: 2", "grade: 1", "grade: 0")
    assert match_names(("0", "1", "2"), listed) is None
    assert match_names(("a", "b", "c"), ("x: a", "y: b", "z: c")) is not None


def test_first_lemmas_after_ids_are_matched() -> None:
    names = ("n02119789 rocket, projectile", "n02100735 coffee, espresso")
    assert match(names, ("coffee", "rocket")) == Match(indices=(1, 0), how="lemma")


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (("1_a", "2_b", "3_a"), ("b", "a", "c")),  # not unique
        (("1_a", "2_b"), ("b", "c")),  # not the same set
        (("1_a", "2_b"), ("2_c", "1_d")),
        (("1a", "2b"), ("b", "a")),  # no separator
        (("1.0", "2.5"), ("1.5", "2.0")),  # decimals
        (("0-2 years", "3-6 years"), ("0-6 years", "3-2 years")),  # ranges
    ],
)
def test_names_that_differ_without_their_numbers_are_matched_by_order(
    names: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    found = match(names, outputs)
    assert (found.indices, found.how) == (tuple(range(len(names))), "order")


def test_other_names_are_matched_by_order() -> None:
    found = match(("n1", "n2"), ("a", "b"))
    assert (found.indices, found.how) == ((0, 1), "order")
    ten = tuple(sorted(f"class{k}" for k in range(1, 13)))  # class1, class10, class11, ...
    with pytest.raises(DataError, match="got names such as 'class10'"):
        match(ten, tuple("abcdefghijkl"))
    with pytest.raises(DataError, match="got names such as 'class10'"):
        match(ten, NUMBERS)
    with pytest.raises(DataError, match="must be numbers like the model's, such as '1'"):
        match(("a", "b"), ("1", "2"))


def test_classes_of_one_split_only_are_named_with_the_split() -> None:
    check_same("abc", "cba", "")
    with pytest.raises(DataError) as raised:
        check_same(["Cat", "dog"], ["dog", *"abcdefg"], "rename them")
    assert str(raised.value) == (
        "train and val must have the same classes, got 'Cat' only in train and 'a', 'b', 'c', "
        "'d', 'e' and 2 more only in val; use the same names in both; rename them"
    )


def named(given: ClassNames, outputs: Sequence[str]) -> tuple[str, ...]:
    return name_outputs(class_list(given), outputs)


def test_outputs_take_other_names_of_the_same_classes() -> None:
    """Difficult names: "Cardigan" (dog) and "cardigan" (garment), and two classes "maillot"."""
    assert named(lemmas("imagenet1k"), IMAGENET) == lemmas("imagenet1k")
    assert named(IDS, IMAGENET) == IDS
    assert named(IMAGENET, IDS) == IMAGENET
    maillots = ("maillot", "one-piece swimsuit")
    described = ("maillot, a jersey", "maillot, a tank suit")
    assert named(described, maillots) == described
    assert named(("Katze", "Hund"), ("cat", "dog")) == ("Katze", "Hund")


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (IMAGENET[::-1], IMAGENET),
        (IDS[::-1], IMAGENET),
        (("Dog", "Cat"), ("cat", "dog")),
        (("dog", "Katze"), ("cat", "dog")),
        (("Dog", "Katze"), ("cat", "dog")),
        (("dog, a pet", "cat, a pet"), ("cat", "dog")),
        ((*IMAGENET[:3], IMAGENET[4], IMAGENET[3], *IMAGENET[5:-1], "new"), IMAGENET),
    ],
)
def test_names_of_other_outputs_are_refused(names: Sequence[str], outputs: Sequence[str]) -> None:
    with pytest.raises(
        DataError, match=r"in the order of the network's outputs, got .* for output"
    ):
        named(names, outputs)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"0": "a", "1": "b"}', ("a", "b")),
        ('{"2": "b", "1": "a"}', ("a", "b")),
        ('{"0": "a", "2": "b"}', None),
        ('{"5": "a", "6": "b"}', None),
    ],
)
def test_numbers_of_a_list_are_those_of_all_outputs(
    text: str, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / "names.json"
    path.write_text(text)
    if names:
        assert named(path, ("0", "1")) == names
    else:
        with pytest.raises(DataError, match="numbers of class names must be 0 to 1 or 1 to 2, got"):
            named(path, ("0", "1"))


def test_names_that_look_alike_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text('{"0": "caf\u00e9", "1": "cafe\u0301"}', "utf-8")
    with pytest.raises(DataError, match="different names"):
        class_list(path)


def test_ids_of_other_outputs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text('[["n02119789", "fox"], ["n01440764", "fish"]]')
    assert named(path, ("n02119789", "n01440764")) == ("fox", "fish")
    with pytest.raises(DataError, match="got 'n02119789' for output 0, which is 'n01440764'"):
        named(path, ("n01440764", "n02119789"))


@pytest.mark.parametrize("first", ["0", 0])
def test_pairs_with_a_number_are_ordered_by_it(first: object, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps([[type(first)(1), "cat"], [first, "dog"]]))
    assert class_list(path).names == ("dog", "cat")
    assert named(path, ("0", "1")) == ("dog", "cat")
    path.write_text(json.dumps([[type(first)(3), "cat"], [type(first)(2), "dog"]]))
    assert class_list(path).numbers == (2, 3)


def test_outputs_without_names_take_any() -> None:
    assert named(["2", "1", "0"], ["0", "1", "2"]) == ("2", "1", "0")


@pytest.mark.parametrize("given", [7, {"a", "b"}, {"a": 1}, ["a", 1], ["a", " "]])
def test_class_names_are_a_file_or_a_list(given: object) -> None:
    with pytest.raises(DataError, match="must be a file or a list of names, got"):
        class_list(given)  # type: ignore[arg-type]
