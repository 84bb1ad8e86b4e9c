"""What a user chooses: the encoder, the sampling, and the machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from extract.cluster import ClusterSpec
from extract.encoders import Encoder, check_device, load
from extract.sampling import Sampling


@dataclass(frozen=True)
class Settings:
    """How to extract.

    What is stored depends on ``encoder`` and its checkpoint, ``precision``, ``sampling`` and
    ``dtype`` alone.
    """

    encoder: str
    checkpoint: Path | None = None
    device: str = "cpu"
    precision: str = "fp32"
    backend: str = "transformers"
    sampling: Sampling = field(default_factory=Sampling)
    dtype: str = "float16"
    workers: int | None = 1
    memory_limit: str | None = None
    scheduler: str | None = None
    slurm: Path | None = None
    timeout: float = 600.0
    shares: tuple[str, ...] = ()
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint is not None:  # workers may be in another folder
            # not resolve(): a link's name tells the file's format, its target's may not
            object.__setattr__(self, "checkpoint", self.checkpoint.expanduser().absolute())

    def load_encoder(self) -> Encoder:
        """The encoder that the workers will have, on this process's CPU; theirs takes the GPU.

        Raises:
            ValueError: it cannot be loaded, does not take what ``sampling`` gives, or there is no
                such device here for local workers.
        """
        if not self.machines.elsewhere:
            check_device(self.device)
        encoder = load(self.encoder, self.checkpoint, "cpu", self.precision, self.backend)
        longest, window = encoder.longest_window_s, self.sampling.window_s
        if longest is not None and window > longest:
            raise ValueError(
                f"the encoder {encoder.name} hears {longest:g} s of sound at once, a window of "
                f"{window:g} s would be cut: choose --window {longest:g} or less"
            )
        if self.sampling.vision == "tubelet" and not encoder.takes_pairs:
            raise ValueError(f"the encoder {encoder.name} takes single images, not tubelets")
        return encoder

    @cached_property
    def machines(self) -> ClusterSpec:
        """Where the blocks run."""
        return ClusterSpec(self.workers, self.memory_limit, self.scheduler, self.slurm)
