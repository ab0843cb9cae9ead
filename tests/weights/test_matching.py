from dataclasses import replace

import pytest

from splitattn.architectures import ARCHITECTURES
from splitattn.errors import WeightsError
from splitattn.weights.matching import Fit, check_match, fitting_models
from tests.weights.networks import Shapes, shapes_of


def refusal(found: Shapes, model: str) -> str:
    with pytest.raises(WeightsError) as error:
        check_match(found, ARCHITECTURES[model], model=model, origin="file.pth")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"file.pth does not fit {model}: ")
    return message


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_a_checkpoint_is_recognized_by_its_shapes(model: str) -> None:
    # These two differ only in where they pool, which weights do not show.
    twins = {"resnest50", "resnest50_fast_2s1x64d"}
    assert set(fitting_models(shapes_of(model))) == (twins if model in twins else {model})


def test_a_models_own_checkpoint_fits() -> None:
    shapes = shapes_of("resnest14")
    check_match(shapes, ARCHITECTURES["resnest14"], model="resnest14", origin="file.pth")


def test_batch_counters_may_be_missing() -> None:
    shapes = shapes_of("resnest14")
    old = {key: shape for key, shape in shapes.items() if "num_batches_tracked" not in key}
    assert len(old) < len(shapes)
    check_match(old, ARCHITECTURES["resnest14"], model="resnest14", origin="file.pth")


def test_a_checkpoint_of_another_model_is_refused_with_its_name() -> None:
    message = refusal(shapes_of("resnest101"), "resnest50")
    assert "unexpected (layer3.6.conv1.weight, layer3.6.bn1.weight, layer3.6.bn1.bias)" in message
    assert message.endswith("it is a checkpoint of resnest101: name that model (--model)")
    assert "of 476 keys are missing" in refusal(shapes_of("resnest26"), "resnest50")


@pytest.mark.parametrize("model", ["resnest50", "resnest50_fast_2s1x64d"])
def test_an_incomplete_checkpoint_is_not_said_to_be_of_the_models_twin(model: str) -> None:
    shapes = shapes_of(model)
    del shapes["fc.bias"]
    assert refusal(shapes, model).endswith("(fc.bias); get weights of this model")


def test_wrong_shapes_are_refused_with_the_first_of_them() -> None:
    message = refusal(shapes_of("resnest50_fast_4s1x64d"), "resnest50")
    assert (
        "layer1.0.conv2.conv.weight has shape (256, 16, 3, 3) instead of (128, 32, 3, 3)" in message
    )
    assert "it is a checkpoint of resnest50_fast_4s1x64d" in message


def test_a_single_wrong_shape_is_named_with_both_shapes() -> None:
    shapes = shapes_of("resnest14")
    message = refusal(shapes | {"fc.weight": (10, 2048)}, "resnest14")
    assert "fc.weight has shape (10, 2048) instead of (1000, 2048)" in message
    assert "missing" not in message


def test_weights_of_another_family_are_refused_as_such() -> None:
    message = refusal({"embeddings.weight": (8, 8)}, "resnest50")
    assert "missing (conv1.0.weight, conv1.1.weight, conv1.1.bias)" in message
    assert "1 are unexpected (embeddings.weight)" in message
    assert message.endswith("get weights of this model")


def begins(model: str, stages: int) -> Shapes:
    """The shapes of a backbone that ends after `stages` stages."""
    ends = {"fc", *(f"layer{stage}" for stage in range(stages + 1, 5))}
    return {key: v for key, v in shapes_of(model).items() if key.partition(".")[0] not in ends}


@pytest.mark.parametrize("stages", range(4))
def test_a_checkpoint_without_the_last_stages_fits_what_does_not_need_them(stages: int) -> None:
    architecture, found = ARCHITECTURES["resnest50"], begins("resnest50", stages)
    for needed in range(stages + 1):
        fit = check_match(found, architecture, model="resnest50", origin="f", stages=needed)
        assert fit == Fit(num_classes=0, in_chans=3)
    names = ", ".join(f"layer{stage}" for stage in range(stages + 1, 5))
    indices = {0: "(0,)", 1: "(1,)", 2: "(1, 2)", 3: "(1, 2, 3)"}[stages]
    assert refusal(found, "resnest50") == (
        f"file.pth does not fit resnest50: {4 - stages} of 4 stages are missing ({names}); get "
        f"weights of this model, or load it with create_backbone(..., out_indices={indices})"
    )


def test_a_stage_that_a_checkpoint_has_must_be_whole() -> None:
    found = without(begins("resnest50", 3), "layer3.5.bn3.bias")
    with pytest.raises(WeightsError, match=r"1 of \d+ keys are missing \(layer3.5.bn3.bias\)"):
        check_match(found, ARCHITECTURES["resnest50"], model="resnest50", origin="f", stages=2)


def test_a_checkpoint_without_the_last_stages_fits_no_whole_model() -> None:
    found = begins("resnest101", 3)
    assert fitting_models(found) == []
    assert fitting_models(found, stages=3) == fitting_models(found, stages=0) == ["resnest101"]
    assert fitting_models(begins("resnest50", 3), stages=3) == [
        "resnest50",
        "resnest50_fast_2s1x64d",
    ]


@pytest.mark.parametrize(
    ("stages", "names", "indices"),
    [
        (0, "resnest101 or resnest152 or resnest200 or resnest269", "(0,)"),
        (1, "resnest101 or resnest152 or resnest200 or resnest269", "(1,)"),
        (3, "resnest101", "(1, 2, 3)"),
    ],
)
def test_a_model_is_offered_only_if_the_checkpoint_has_all_stages_needed(
    stages: int, names: str, indices: str
) -> None:
    found = begins("resnest101", stages)
    assert refusal(found, "resnest50").endswith(
        f"; it begins as {names}: get complete weights, or load it with that model's "
        f"create_backbone(..., out_indices={indices})"
    )
    with pytest.raises(WeightsError, match=f"it is a checkpoint of {names}: name that model"):
        check_match(found, ARCHITECTURES["resnest50"], model="resnest50", origin="f", stages=stages)


def without(found: Shapes, *keys: str) -> Shapes:
    return {key: shape for key, shape in found.items() if key not in keys}


@pytest.mark.parametrize("plain", [False, True])
def test_classes_and_channels_may_differ_from_the_models(plain: bool) -> None:
    architecture = replace(ARCHITECTURES["resnest14"], deep_stem=not plain)
    expected = architecture.shapes()
    stem = "conv1.weight" if plain else "conv1.0.weight"
    outputs, _, *kernel = expected[stem]
    found = expected | {
        stem: (outputs, 1, *kernel),
        "fc.weight": (3, 2048),
        "fc.bias": (3,),
    }
    for checkpoint, classes in ((found, 3), (without(found, "fc.weight", "fc.bias"), 0)):
        fit = check_match(checkpoint, architecture, model="resnest14", origin="file.pth")
        assert fit == Fit(num_classes=classes, in_chans=1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fc.weight": None}, "1 of 174 keys are missing (fc.weight)"),
        ({"fc.bias": None}, "1 of 174 keys are missing (fc.bias)"),
        ({"fc.weight": None, "fc.bias": (10,)}, "1 of 174 keys are missing (fc.weight)"),
        ({"fc.weight": (10, 2048), "fc.bias": None}, "1 of 174 keys are missing (fc.bias)"),
        ({"fc.weight": (10, 2048)}, "fc.weight has shape (10, 2048) instead of (1000, 2048)"),
        ({"fc.weight": ()}, "fc.weight has shape () instead of (1000, 2048)"),
        ({"fc.bias": (9, 9)}, "fc.bias has shape (9, 9) instead of (1000,)"),
        ({"fc.weight": (0, 2048), "fc.bias": (0,)}, "fc.weight has shape (0, 2048) instead of"),
        ({"fc.weight": (2**62, 0)}, "fc.weight has shape (4611686018427387904, 0) instead of"),
        ({"conv1.0.weight": (32, 0, 3, 3)}, "shape (32, 0, 3, 3) instead of (32, 3, 3, 3)"),
        ({"conv1.0.weight": (0, 2**62, 3, 3)}, "3, 3) instead of (32, 3, 3, 3)"),
        ({"conv1.0.weight": (32, 3, 7, 7)}, "shape (32, 3, 7, 7) instead of (32, 3, 3, 3)"),
    ],
)
def test_half_a_classifier_or_an_odd_stem_is_a_fault_like_another(
    changes: dict[str, tuple[int, ...] | None], told: str
) -> None:
    whole = shapes_of("resnest14")
    found = without(whole, *changes) | {k: v for k, v in changes.items() if v is not None}
    assert told.replace("174", str(len(whole))) in refusal(found, "resnest14")
