import builtins
import copy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from splitattn import libraries
from splitattn.engines import engine as runtime
from splitattn.engines.engine import ENGINES, EngineRuntime, load_runtime
from splitattn.engines.onnx_runtime import OnnxEngine
from splitattn.engines.pytorch import TorchEngine, plain_engine
from splitattn.errors import InputError
from splitattn.libraries import telemetry_off
from tests.engines.networks import PREPROCESSING, network, photographs
from tests.nn.networks import small

# torch.compile starts a C++ compiler, which takes longer than all other engines together.
ENGINES_TESTED = [
    "torch",
    "openvino",
    "onnxruntime",
    pytest.param("compile", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
]


@pytest.fixture(scope="module", params=ENGINES_TESTED)
def loaded(request: pytest.FixtureRequest) -> EngineRuntime:
    return load_runtime(network(), PREPROCESSING, device="cpu", engine=request.param)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    probabilities = EngineRuntime(plain_engine(network()), PREPROCESSING).run(photographs())
    assert probabilities.argmax(1).unique().numel() > 1, "the photographs must differ to it"
    assert 0.2 < probabilities.max() < 0.999
    return probabilities


def test_threads_may_share_an_engine(loaded: EngineRuntime, expected: torch.Tensor) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(loaded.run, [photographs()] * 24))
    for probabilities in answers:
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


def test_batches_of_any_size_may_come_in_any_order(
    loaded: EngineRuntime, expected: torch.Tensor
) -> None:
    pixels = photographs()
    for size in (1, 1, 3, 1, 3, 3, 2, 2, 1):
        torch.testing.assert_close(loaded.run(pixels[:size]), expected[:size], atol=1e-5, rtol=0)


def test_images_of_another_size_are_refused_each_time() -> None:
    engine = load_runtime(network(), PREPROCESSING, device="cpu", engine="openvino").engine
    larger = torch.zeros(1, 3, PREPROCESSING.size + 32, PREPROCESSING.size + 32)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            engine(larger)


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make libraries seem not to be installed."""
    find = libraries.find_spec

    def hidden(*names: str) -> None:
        monkeypatch.setattr(
            libraries, "find_spec", lambda name: None if name in names else find(name)
        )

    return hidden


def test_every_engine_labels_photographs_as_the_plain_network(
    loaded: EngineRuntime, expected: torch.Tensor
) -> None:
    probabilities = loaded.run(photographs())
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    assert probabilities.argmax(1).equal(expected.argmax(1))
    # Alone, in pairs and in batches that are not full, the answers are the same.
    for size in (1, 2):
        parts = torch.cat([loaded.run(part) for part in photographs().split(size)])
        torch.testing.assert_close(parts, expected, atol=1e-5, rtol=0)
    # What an engine gave stays as it was when the engine goes on.
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


def test_every_engine_says_what_it_is(loaded: EngineRuntime) -> None:
    loaded.warm_up(2)
    assert loaded.name.endswith(" on cpu")
    assert any(digit in loaded.name for digit in "123456789"), "its version is missing"


def test_telemetry_stays_unloaded() -> None:
    load_runtime(network(), PREPROCESSING, device="cpu", engine="openvino")
    assert "openvino" in sys.modules
    assert "openvino_telemetry" not in sys.modules
    with telemetry_off(), pytest.raises(ImportError):
        builtins.__import__("openvino_telemetry")
    assert "openvino_telemetry" not in sys.modules, "others may import it as before"


def test_the_model_stays_as_it_is() -> None:
    model = copy.deepcopy(network()).train()
    before = copy.deepcopy(model.state_dict())
    load_runtime(model, PREPROCESSING, device="cpu", engine="torch").run(photographs())
    plain_engine(model)
    assert model.training
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert value.equal(before[key])
        assert value.stride() == before[key].stride()


def test_pytorch_computes_in_channels_last() -> None:
    engine = TorchEngine(network(seed=1), torch.device("cpu"))
    seen: list[torch.Tensor] = []
    handle = network(seed=1).layer1.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.inference_mode():
        engine(torch.zeros(2, 3, 40, 40))
    handle.remove()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("missing", "taken"),
    [
        ((), "openvino"),
        (("openvino",), "onnxruntime"),
        (("openvino", "onnxscript"), "torch"),
    ],
)
def test_auto_takes_the_fastest_that_is_installed(
    missing: tuple[str, ...],
    taken: str,
    hide: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = {"cpu": ("openvino", "onnxruntime", "torch")}
    monkeypatch.setattr(runtime, "FASTEST", order)
    hide(*missing)
    assert runtime._fastest(torch.device("cpu")) == taken
    assert runtime._fastest(torch.device("meta")) == "torch", "a device without an order of its own"


def test_every_engine_in_the_order_exists() -> None:
    for engines in runtime.FASTEST.values():
        assert set(engines) <= set(ENGINES) - {"auto"}
        assert engines[-1] == "torch", "nothing else is always installed"


@pytest.mark.parametrize(
    ("engine", "missing", "complaint"),
    [
        ("openvino", ["openvino"], r"engine openvino needs openvino, .*'splitattn\[openvino\]'"),
        ("onnxruntime", ["onnxruntime"], r"needs onnxruntime, .*install 'splitattn\[onnx\]'"),
        ("onnxruntime", ["onnx", "onnxscript"], r"needs onnx and onnxscript, .*\[onnx\]'"),
    ],
)
def test_a_missing_library_is_one_line_that_names_the_extra(
    engine: str, missing: list[str], complaint: str, hide: Callable[..., None]
) -> None:
    hide(*missing)
    with pytest.raises(InputError, match=complaint) as raised:
        load_runtime(network(), PREPROCESSING, engine=engine)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("engine", "device", "complaint"),
    [
        ("steam", "cpu", "engine must be one of auto, torch, .*, got 'steam'"),
        ("openvino", "cuda", "engine openvino runs on cpu, got device 'cuda'"),
        ("onnxruntime", "mps", "engine onnxruntime runs on cpu, .*, got device 'mps'"),
        ("torch", "tpu9000", "device 'tpu9000' cannot be used"),
    ],
)
def test_an_engine_that_does_not_run_there_is_one_line(
    engine: str, device: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        load_runtime(network(), PREPROCESSING, engine=engine, device=device)
    assert str(raised.value).isprintable()


def test_onnx_runtime_says_when_it_fell_back_to_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(InputError, match="cannot use device 'cuda'"):
        OnnxEngine(b"", device="cuda")


def test_cuda_computes_without_tf32_and_else_as_a_person_chose(
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
    engine(torch.zeros(1, 3, 2, 2))
    assert seen == [(False, True, False)]
    assert torch.backends.cudnn.allow_tf32


def test_compiling_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(InputError, match="engine compile needs a C\\+\\+ compiler, found none"):
        load_runtime(network(), PREPROCESSING, device="cpu", engine="compile")


def test_a_fused_network_of_each_radix_is_what_engines_get() -> None:
    """Nothing here depends on radix 2, the commonest."""
    for radix in (1, 4):
        model = network(radix)
        assert model.architecture == small(radix)
        plain = EngineRuntime(plain_engine(model), PREPROCESSING).run(photographs())
        eager = load_runtime(model, PREPROCESSING, device="cpu", engine="torch")
        torch.testing.assert_close(eager.run(photographs()), plain, atol=1e-5, rtol=0)


SIGNALLED = """
import gc, os, signal
from splitattn.engines.open_vino import OpenVinoEngine, product
engines = [OpenVinoEngine(product(8, eight_bits=False)) for _ in range(2)]
while engines:
    del engines[0]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_the_last_network_is_handled() -> None:
    """With a core for each, their plug-ins would leave a stack for signals that is gone."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
