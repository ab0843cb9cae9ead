import builtins
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from splitattn import libraries
from splitattn.engines import open_vino, table
from splitattn.engines.engine import Engine, FileSettings, softmax
from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.engines.pytorch import TorchEngine, choose_device
from splitattn.errors import InputError
from splitattn.libraries import home_folder, telemetry_off
from tests.engines.networks import (
    METADATA,
    PREPROCESSING,
    network,
    photographs,
    plain_logits,
    plain_probabilities,
    trained,
)
from tests.nn.networks import small

# torch.compile starts a C++ compiler, which takes longer than all other engines together.
SLOW = {"compile": [pytest.mark.slow, pytest.mark.timeout(600)]}
EVERY_ENGINE = [pytest.param(row.name, marks=SLOW.get(row.name, ())) for row in table.ENGINES]


@pytest.fixture(scope="module", params=EVERY_ENGINE)
def loaded(request: pytest.FixtureRequest) -> Engine:
    return trained().load(request.param, "cpu")


def probabilities(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return softmax(engine.run(pixels, PREPROCESSING))


def assert_close(outputs: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


def test_the_network_labels_the_photographs_differently() -> None:
    expected = plain_probabilities()
    assert len(set(expected.argmax(1))) > 1
    assert 0.2 < expected.max() < 0.999


def test_every_engine_labels_photographs_as_the_plain_network(loaded: Engine) -> None:
    expected = plain_probabilities()
    outputs = probabilities(loaded, photographs())
    assert outputs.dtype == np.float32
    assert_close(outputs, expected)
    # Single images, pairs and a batch that is not full give the same answers.
    for size in (1, 2):
        starts = range(0, len(photographs()), size)
        parts = [probabilities(loaded, photographs()[i : i + size]) for i in starts]
        assert_close(np.concatenate(parts), expected)
    # Later runs do not overwrite what an engine returned before.
    assert_close(outputs, expected)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_quick_start_answers_the_same(name: str) -> None:
    quick = trained().load(name, "cpu", quick_start=True)
    assert_close(probabilities(quick, photographs()), plain_probabilities())


def test_threads_may_share_an_engine(loaded: Engine) -> None:
    expected = plain_probabilities()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: probabilities(loaded, photographs()), range(24)))
    for outputs in answers:
        assert_close(outputs, expected)


def test_batches_of_any_size_may_come_in_any_order(loaded: Engine) -> None:
    expected = plain_probabilities()
    for size in (1, 1, 3, 1, 3, 3, 2, 2, 1):
        assert_close(probabilities(loaded, photographs()[:size]), expected[:size])


def test_every_engine_describes_itself_with_its_version(loaded: Engine) -> None:
    loaded.warm_up(2, PREPROCESSING)
    assert loaded.name.endswith(" on cpu")
    assert any(digit in loaded.name for digit in "123456789"), "its version is missing"


@pytest.mark.parametrize("threads", ["1", "2"])
def test_images_of_another_size_are_refused_each_time(
    threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    engine = trained().load("openvino", "cpu")
    larger = np.zeros((1, 3, PREPROCESSING.size + 32, PREPROCESSING.size + 32), np.float32)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="takes images"):
            engine.logits(larger)


class Doubling(Engine):
    """An engine that doubles its input and takes batches of one size only."""

    def __init__(self, batch: int) -> None:
        super().__init__("doubling", batch=batch)
        self.batches: list[int] = []

    def _infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        return 2 * images.reshape(len(images), 3)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_pytorch_on_cuda_runs_the_form_for_cuda(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_cuda_devices", lambda: 1)
    monkeypatch.setattr(table, "_torch_sees_cuda", lambda: True)
    row = table.find_engine("torch")
    assert row.form_on(device) == row.cuda_form
    assert row.form_on("cpu") == row.form
    assert table.find_engine("openvino").form_on("auto") == table.find_engine("openvino").form


def count_compilations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """A list that grows by each model that OpenVINO compiles and its number of streams."""
    compiled: list[tuple[Any, int]] = []
    compile_model = open_vino._compile

    def counted(model: object, *, streams: int = 1) -> object:
        compiled.append((model, streams))
        return compile_model(model, streams=streams)

    monkeypatch.setattr(open_vino, "_compile", counted)
    return compiled


def test_openvino_soon_stops_compiling_for_mixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = count_compilations(monkeypatch)
    engine = trained().load("openvino", "cpu")
    for _ in range(8):
        for batch in (1, 1, 2, 2, 3, 3):
            engine.run(photographs()[:batch], PREPROCESSING)
    assert len(compiled) == 2, (
        "one network for any shape, one for the first shape that came twice in a row"
    )
    for _ in range(5):
        engine.run(photographs()[:4], PREPROCESSING)
    assert len(compiled) == 3, "a shape that keeps coming gets its own network"


def test_openvino_compiles_a_fixed_shape_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.xml"
    row = table.find_engine("openvino")
    settings = FileSettings(metadata=METADATA, batch=2)
    row.load_file_module().write(trained().fold(row.form), path, settings)
    compiled = count_compilations(monkeypatch)
    engine = open_vino.OpenVinoEngine(path)
    for _ in range(3):
        engine.run(photographs()[:2], PREPROCESSING)
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("threads", "batch", "parts"),
    [(1, 8, 1), (2, 1, 1), (2, 2, 2), (2, 3, 1), (2, 8, 2), (4, 6, 2), (3, 6, 3), (4, 8, 4)],
)
def test_openvino_divides_a_batch_among_the_cores(
    threads: int, batch: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    pixels = np.concatenate([photographs(), photographs()])[:batch]
    engine = trained().load("openvino", "cpu")
    compiled = count_compilations(monkeypatch)
    engine.fix_batches([batch], PREPROCESSING)
    for _ in range(3):  # repeated, since a part might return what an earlier batch left
        assert_close(probabilities(engine, pixels), softmax(plain_logits(pixels)))
        pixels = np.roll(pixels, 1, axis=0)
    ((model, streams),) = [each for each in compiled if not each[0].is_dynamic()]
    assert (model.input(0).shape[0], streams) == (batch // parts, parts)


def test_openvino_goes_on_after_a_part_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    engine: Any = trained().load("openvino", "cpu")
    engine.fix_batches([2], PREPROCESSING)
    (network,) = engine._fixed.values()

    class Failing:
        def start_async(self, _: object) -> None:
            raise RuntimeError("out of memory")

    turns = [network._turns.get() for _ in range(2)]
    for started, _ in turns:
        network._turns.put([started, Failing()])
    for _ in turns:
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.run(photographs()[:2], PREPROCESSING)
    for _ in range(4):
        assert_close(probabilities(engine, photographs()[:2]), plain_probabilities()[:2])


def test_threads_may_share_an_engine_that_divides_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    engine = trained().load("openvino", "cpu")
    engine.fix_batches([4], PREPROCESSING)
    orders = [np.random.default_rng(seed).permutation(5)[:4] for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda order: probabilities(engine, photographs()[order]), orders)
        for order, outputs in zip(orders, answers, strict=True):
            assert_close(outputs, plain_probabilities()[order])


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_a_fixed_batch_is_filled_up(count: int) -> None:
    engine = Doubling(4)
    images = np.arange(3 * count, dtype=np.float32).reshape(count, 3, 1, 1)
    np.testing.assert_array_equal(engine.logits(images), 2 * images.reshape(count, 3))
    assert set(engine.batches) == {4 if count else 0}


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes libraries seem not to be installed."""
    find = libraries.find_spec

    def hidden(*names: str) -> None:
        monkeypatch.setattr(
            libraries, "find_spec", lambda name: None if name in names else find(name)
        )

    return hidden


def test_telemetry_stays_unloaded() -> None:
    trained().load("openvino", "cpu")
    assert "openvino" in sys.modules
    assert "openvino_telemetry" not in sys.modules
    with telemetry_off(), pytest.raises(ImportError):
        builtins.__import__("openvino_telemetry")
    assert "openvino_telemetry" not in sys.modules, "after the block, others can import it again"


def test_pytorch_computes_in_channels_last() -> None:
    model = network(seed=1)
    engine = TorchEngine(model, torch.device("cpu"))
    seen: list[torch.Tensor] = []
    handle = model.layer1.register_forward_hook(lambda *call: seen.append(call[-1]))
    engine.run(photographs(), PREPROCESSING)
    handle.remove()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_pytorch_normalizes_bytes_as_numpy_does() -> None:
    engine = TorchEngine(network(seed=1), torch.device("cpu"))
    assert_close(engine.run(photographs(), PREPROCESSING), plain_logits(model=network(seed=1)))


@pytest.mark.parametrize(
    ("missing", "taken"),
    [((), "openvino"), (("openvino",), "onnxruntime"), (("openvino", "onnx"), "torch")],
)
def test_auto_takes_the_fastest_that_is_installed(
    missing: tuple[str, ...],
    taken: str,
    hide: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "_cuda_devices", lambda: 0)
    hide(*missing)
    assert table.fastest_engine("cpu").name == taken
    assert table.fastest_engine("auto").name == taken


def test_auto_takes_pytorch_where_it_sees_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_cuda_devices", lambda: 1)
    monkeypatch.setattr(table, "_torch_sees_cuda", lambda: True)
    assert table.fastest_engine("auto").name == "torch"
    assert table.fastest_engine("cuda:1").name == "torch"
    assert table.fastest_engine("cpu").name != "torch"
    monkeypatch.setattr(table, "_torch_sees_cuda", lambda: False)
    assert table.fastest_engine("auto").name != "torch", "PyTorch was built without CUDA"


@pytest.mark.parametrize("missing", [["openvino"], ["onnxruntime"], ["onnxruntime", "onnx"]])
def test_a_missing_library_is_reported_in_one_line_with_the_command(
    missing: list[str], hide: Callable[..., None]
) -> None:
    hide(*missing)
    engine = "openvino" if "openvino" in missing else "onnxruntime"
    complaint = rf"engine {engine} needs {' and '.join(missing)}.*pip install {' '.join(missing)}"
    with pytest.raises(InputError, match=complaint) as raised:
        trained().load(engine)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("engine", "device", "complaint"),
    [
        ("steam", "cpu", "engine must be one of auto, openvino, .*, got 'steam'"),
        ("openvino", "cuda", "engine openvino runs on cpu, got device 'cuda'"),
        ("onnxruntime", "mps", "engine onnxruntime runs on cpu, .*, got device 'mps'"),
        ("torch", "tpu9000", "device 'tpu9000' cannot be used"),
        ("torch", "gpu", "device 'gpu' cannot be used: .*; did you mean 'cuda'"),
        ("torch", "1", "device '1' cannot be used: it must be auto, .*did you mean 'cuda:1'"),
        ("torch", "xpu:a", "device 'xpu:a' cannot be used: it must be"),
    ],
)
def test_an_engine_that_does_not_run_there_is_reported_in_one_line(
    engine: str, device: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        trained().load(engine, device)
    assert str(raised.value).isprintable()


def test_onnx_runtime_says_when_it_fell_back_to_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(shape=["batch", 3, 40, 40])]

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(InputError, match="cannot use device 'cuda'"):
        OnnxEngine(b"", device="cuda")


def test_cuda_computes_without_tf32_and_keeps_other_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class Network(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            cudnn = torch.backends.cudnn
            seen.append((cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark))
            return images

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    engine = TorchEngine(Network(), torch.device("cpu"))
    engine.device = torch.device("cuda")
    engine._logits(torch.zeros(1, 3, 2, 2))
    assert seen == [(False, True, False)]
    assert torch.backends.cudnn.allow_tf32


def test_compiling_without_a_compiler_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(InputError, match="engine compile needs a C\\+\\+ compiler, found none"):
        trained().load("compile", "cpu")


@pytest.mark.parametrize("radix", [0, 1, 4])
def test_engines_take_networks_of_any_radix(radix: int) -> None:
    model = network(radix)
    assert model.architecture == small(radix)
    expected = softmax(plain_logits(model=model))
    for engine in ("torch", "onnxruntime"):
        assert_close(probabilities(trained(model).load(engine, "cpu"), photographs()), expected)


SIGNALLED = """
import gc, os, signal
from splitattn.engines.open_vino import OpenVinoEngine
from tests.engines.networks import trained
engines = [trained().load("openvino", "cpu") for _ in range(2)]
while engines:
    del engines[0]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_the_last_network_is_handled() -> None:
    """With an OpenVINO core for each network, plug-ins would restore a freed signal stack."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_libraries_get_a_temporary_home_folder_if_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Path.home()
    with home_folder():
        assert Path.home() == own
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])  # a user without a name
    with home_folder():
        told = Path.home()
        assert list(told.iterdir()) == []
    assert not told.exists()
    with pytest.raises(RuntimeError):
        Path.home()


def test_an_unavailable_device_is_refused_with_the_available_ones() -> None:
    expected = r"^device 'xpu' cannot be used: .*; here there are auto, cpu"
    with pytest.raises(InputError, match=expected) as raised:
        choose_device("xpu")
    assert len(str(raised.value)) < 200


def test_a_device_that_pytorch_is_built_without_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def empty(*_: object, **__: object) -> None:
        raise NotImplementedError("Could not run 'aten::empty.memory_format' with arguments")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(InputError, match=r"^device 'mps' cannot be used: this PyTorch is built"):
        choose_device("mps")


@pytest.mark.parametrize("name", ["gpu", "0", "", "meta"])
def test_an_unknown_device_is_refused_with_the_names_of_devices(name: str) -> None:
    expected = f"^device '{name}' cannot be used: it must be auto, cpu, cuda"
    with pytest.raises(InputError, match=expected):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "setting", "threads"),
    [("onnxruntime", "3,1", 3), ("onnxruntime", "many", 0), ("openvino", "1", 1)],
)
def test_a_network_uses_as_many_threads_as_the_environment_says(
    name: str, setting: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    engine: Any = trained().load(name, "cpu")
    if name == "onnxruntime":
        assert engine._session.get_session_options().intra_op_num_threads == threads
    else:
        network = engine._for_any_shape.network
        assert network.get_property("INFERENCE_NUM_THREADS") == threads
