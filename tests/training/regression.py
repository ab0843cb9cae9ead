"""A regression task for tests: vectors to vectors, by a network that is not a ResNeSt.

Batches are lists of dictionaries and losses are a dictionary, as for detectors.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from splitattn import distributed
from splitattn.data.loading import epoch_batches
from splitattn.training.loop import train
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from splitattn.training.task import Figure, Measurement, StepOutput, Task

Example = dict[str, Tensor]
RECIPE = Recipe(
    epochs=3, batch_size=12, learning_rate=0.5, warmup_epochs=1.0, ema_decay=0.5, clip_norm=5.0
)


class Regressor(nn.Module):
    """Three layers. Returns a dictionary of losses in training, and the vectors in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, inputs: list[Tensor], targets: list[Tensor] | None = None) -> Any:
        outputs = self.layers(torch.stack(inputs))
        if targets is None:
            return outputs
        error = outputs - torch.stack(targets)
        return {"loss_square": error.square().mean(), "loss_linear": error.abs().mean()}


class Regression(Task[list[Example]]):
    """Learn a fixed linear map from inputs with noise, which is drawn in each step."""

    name: ClassVar[str] = "regression"
    unit: ClassVar[str] = "vectors"
    formats: ClassVar = {"loss": Figure(label="loss"), "distance": Figure(label="distance")}
    best: ClassVar[str | None] = "distance"
    higher_is_better: ClassVar[bool] = False

    def __init__(self, *, noise: float = 0.1) -> None:
        self.noise = noise
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(60, 4, generator=generator)
        self.targets = self.inputs[:, :2] - self.inputs[:, 2:]

    @property
    def examples(self) -> int:
        return len(self.inputs)

    def identity(self) -> dict[str, Any]:
        return {"vectors": len(self.inputs)}

    def batches(self, run: Run, epoch: int, first_step: int) -> Iterator[list[Example]]:
        for indices in epoch_batches(
            self.examples,
            batch_size=run.recipe.batch_size,
            seed=run.recipe.seed,
            epoch=epoch,
            first_step=first_step,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            accumulation=run.accumulation,
        ):
            yield [{"input": self.inputs[i], "target": self.targets[i]} for i in indices]

    def forward(self, network: Callable[..., Any], batch: list[Example], _: Run) -> StepOutput:
        inputs = [example["input"] + self.noise * torch.randn(4) for example in batch]
        losses = network(inputs, [example["target"] for example in batch])
        loss: Tensor = losses["loss_square"] + losses["loss_linear"]
        sums = {name: value.detach() * len(batch) for name, value in losses.items()}
        return StepOutput(loss, {"loss": loss.detach() * len(batch), **sums})

    def measure(
        self, network: nn.Module, _: Run, on_measured: Callable[[int, int], None]
    ) -> Measurement:
        on_measured(1, 1)
        with torch.no_grad():
            outputs = network(list(self.inputs))
        return Measurement(figures={"distance": float((outputs - self.targets).norm(dim=1).mean())})


def make_run(output: Path, recipe: Recipe = RECIPE, *, batch_per_device: int = 128) -> Run:
    return Run(
        recipe=recipe,
        output=output,
        device=torch.device("cpu"),
        batch_per_device=batch_per_device,
    )


def train_together(output: Path) -> None:
    """The training that each of two processes runs."""
    train(Regressor(), Regression(noise=0.0), make_run(output, batch_per_device=3))
