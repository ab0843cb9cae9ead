"""A short run of the fuzzer, and a check that it finds known faults."""

import itertools
import random
import time
from pathlib import Path

import pytest

from splitattn.errors import InputError
from tests.fuzz import run
from tests.fuzz.faulty import KINDS
from tests.fuzz.mutate import LONGEST, mutated
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

# Number of inputs for each target; slow targets get fewer.
SHARE, SHARES = (
    280,
    {
        "command line": 60,
        "layouts": 100,
        "annotated data sets": 100,
        "ONNX files": 40,
        "OpenVINO files": 25,
        "answers of servers": 60,
    },
)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.filterwarnings("ignore")  # a warning is no fault: a person sees a line
def test_damaged_input_is_read_or_refused(target: Target, tmp_path: Path) -> None:
    seeds = target.seeds()
    said: list[str] = []
    for number in range(SHARES.get(target.name, SHARE)):
        content = target.make(seeds, random.Random(f"tests {target.name} {number}"))
        begin = time.process_time()
        try:
            target.read(content, tmp_path)
        except InputError as error:
            said.append(str(error))
        except BaseException:
            # pytest keeps and names the folder of a failed test.
            (tmp_path / "bug").write_bytes(content)
            raise
        assert time.process_time() - begin < run.SECONDS, content
    assert said
    if target.name == "annotated data sets":  # most must be readable, or their use is not tested
        assert len(said) < SHARES[target.name] / 2
    assert all(line.strip() for line in said)


def test_damage_is_the_same_for_the_same_seed_and_bounded() -> None:
    seeds = [b"", b"x", bytes(range(256)) * 10]
    first, second = (
        [mutated(seeds, random.Random(number)) for number in range(300)] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 120
    assert max(map(len, first)) <= LONGEST


def test_every_kind_of_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUGS", tmp_path)
    monkeypatch.setattr(run, "SECONDS", 1)
    monkeypatch.setattr(run, "SECONDS_WITH_WAITING", 4)
    monkeypatch.setattr(run, "MEMORY", 200_000_000)
    for seed in itertools.count():
        inputs = [random.Random(f"{seed} faulty {i}").choice(KINDS) for i in range(len(KINDS))]
        if set(inputs) == set(KINDS):
            break
    outcome = run.fuzzed("tests.fuzz.faulty", "faulty", len(inputs), seed)
    assert (outcome.inputs, outcome.accepted, outcome.refused) == (len(KINDS), 1, 1)
    faults = {}
    for bug in outcome.bugs:
        name, fault = bug.split(": ", maxsplit=1)
        faults[(tmp_path / name).read_bytes().decode()] = fault
    assert faults.pop("memory").endswith(" bytes")
    assert faults.pop("exception").startswith("KeyError: 'key' (faulty.py:")
    assert faults == {
        "silent": "a refusal that says nothing",
        "crash": "ended with status -6",
        "hang": "took more than 4 s",
        "loop": "took more than 1 s of the processor",
    }
