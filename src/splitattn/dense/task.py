"""What tasks on annotated images have in common: loading, and images that cannot be read."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from splitattn import distributed
from splitattn.data.loading import epoch_batches
from splitattn.dense.resizing import Sides
from splitattn.errors import DataError, InputError, counted
from splitattn.images.decode import RGB
from splitattn.training.recipes import Recipe
from splitattn.training.run import Run
from splitattn.training.task import DISTILLATION_FIELDS, Batch, Measurement, Step, Task
from splitattn.training.unreadable import Unreadable
from splitattn.weights.metadata import ModelMetadata


class Split(Protocol):
    """One split of annotated images."""

    @property
    def origin(self) -> str:
        """Where the images were found; two splits with the same origin are the same images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by label."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or changed, one line for each rule."""

    def __len__(self) -> int: ...


Data = TypeVar("Data", bound=Split)


@dataclass(frozen=True, kw_only=True)
class DenseTask(Task[Batch], Generic[Batch, Data]):
    """A task on annotated images.

    Attributes:
        model: name of the backbone, written into the result.
        head: what is built on the backbone.
        train: the images to learn from.
        val: the images to measure on after each epoch, of the same classes in the same order.
    """

    unit: ClassVar[str] = "images"

    model: str
    head: str
    train: Data
    val: Data
    _unreadable: Unreadable = field(default_factory=Unreadable, init=False, repr=False)

    @property
    def unread(self) -> dict[str, str]:
        others = (
            *("mixup_alpha", "cutmix_alpha", "dropout", "drop_path", "drop_block", "crop"),
            *("crop_scale", "interpolation", "auto_augment", "lighting", "random_erasing"),
            *("test_crop_fraction", "test_interpolation", "test_order", "white_level"),
        )
        return dict.fromkeys(others, "leave it out") | DISTILLATION_FIELDS

    @property
    def examples(self) -> int:
        return len(self.train)

    def check(self, run: Run) -> None:
        super().check(run)
        if run.recipe.in_chans != RGB:
            raise InputError(f"in_chans must be {RGB} for {self.name}, got {run.recipe.in_chans}")
        if run.recipe.sampling != "uniform":
            raise InputError(
                f"sampling must be 'uniform' for {self.name}, got {run.recipe.sampling!r}: an "
                "image may have objects of several classes"
            )
        if self.train.origin == self.val.origin:
            raise DataError(
                "train and val must be different images, got the same ones for both, from "
                f"{self.train.origin}"
            )

    def begin(self) -> None:
        """Begin a new training: forget which images were unreadable."""
        self._unreadable.clear()

    def indices(self, run: Run, epoch: int, first_step: int) -> list[list[int]]:
        """The images of this process's micro-batches from `first_step` of `epoch` on."""
        return epoch_batches(
            len(self.train),
            batch_size=run.recipe.batch_size,
            seed=run.recipe.seed,
            epoch=epoch,
            first_step=first_step,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            accumulation=run.accumulation,
        )

    def own_images(self) -> Iterable[int]:
        """The validation images of this process.

        Each is measured alone, so that neither padding nor the number of processes changes a
        figure.
        """
        return range(distributed.rank(), len(self.val), distributed.world_size())

    def note_train(self, problems: Iterable[str]) -> int:
        """Remember training images that could not be read; returns how many are new."""
        return self._unreadable.note("train", problems)

    def note_val(self, problems: tuple[str, ...], run: Run) -> None:
        """Remember the validation images that could not be read, and stop if there are many."""
        self._unreadable.note("val", problems)
        self._unreadable.check("val", len(problems), of=len(self.val), folder=run.output)

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        return {name: value / examples for name, value in sums.items() if name != "unreadable"}

    def watch(self, step: Step, sums: Mapping[str, float], run: Run) -> None:  # noqa: ARG002
        found = self._unreadable
        found.in_train += round(sums["unreadable"])
        found.check("train", found.in_train, of=len(self.train), folder=run.output)

    def end_epoch(self, epoch: int, run: Run) -> dict[str, float]:
        unreadable = self._unreadable.end_epoch(run.output)
        return {"size": run.recipe.size_in(epoch), "unreadable": unreadable}

    def metadata(self, run: Run, measured: Measurement | None) -> ModelMetadata:
        figures = {**measured.figures, "n": measured.details.scores.images} if measured else {}
        recipe = run.recipe
        found = sides(recipe, recipe.test_size)
        return ModelMetadata(
            model=self.model,
            task=self.name,
            classes=self.train.classes,
            preprocessing=recipe.preprocessing,
            recipe=asdict(recipe),
            metrics=figures,
            head={
                "name": self.head,
                "channels": recipe.head_channels,
                **self.head_facts(recipe),
                "short_side": found.short,
                "long_side": found.long,
            },
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report: what was left out of the data, and how many training images at decoding.

        Those of the validation split are in the measurement.
        """
        notes = (*self.train.notes, *self.val.notes)
        count = [*self._unreadable.lines.values()].count("train")
        if not count:
            return notes
        return (*notes, f"{counted(count, 'training image')} unreadable, see unreadable.txt")

    def head_facts(self, recipe: Recipe) -> dict[str, Any]:  # noqa: ARG002
        """Further entries of the result's metadata about its head."""
        return {}

    def write_files(self, folder: Path) -> None:
        self._unreadable.write(folder)

    def state_dict(self) -> dict[str, Any]:
        return {"unreadable": self._unreadable.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._unreadable.load_state_dict(state["unreadable"])


def sides(recipe: Recipe, short: int, multiple: int = 1) -> Sides:
    """The sides of images: `short` pixels, and `recipe.longest_side` times as many."""
    return Sides(short=short, long=round(short * recipe.longest_side), multiple=multiple)
