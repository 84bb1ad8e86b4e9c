"""`Settings`: the user's choices for an extraction (encoder, sampling, cluster, shares)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from extract.encoders import Encoder, EncoderIdentity, EncoderSpec, check_device, load
from extract.job import Job
from extract.sampling import Sampling


@dataclass(frozen=True)
class ClusterSpec:
    """Where blocks run.

    Attributes:
        workers: processes (or SLURM jobs); None: one per GPU with ``device="cuda"``, else per core.
        memory_limit: of each local worker, such as ``8GB``; None: an equal share of the memory.
        scheduler: address of a running Dask scheduler, instead of local processes.
        slurm: profile of SLURM jobs (YAML, arguments of ``SLURMCluster``), instead of local
            processes.

    Raises:
        ValueError: a value is out of range, or two of them exclude each other.
    """

    workers: int | None = None
    memory_limit: str | None = None
    scheduler: str | None = None
    slurm: Path | None = None

    def __post_init__(self) -> None:
        if self.scheduler and self.slurm:
            raise ValueError("choose --scheduler or --slurm, not both")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; choose at least 1")
        if self.memory_limit is not None:
            from dask.utils import parse_bytes

            try:
                size = parse_bytes(self.memory_limit)
            except ValueError:
                raise ValueError(f"--memory-limit {self.memory_limit!r}: write 8GB") from None
            if size < 100e6:
                raise ValueError(f"--memory-limit {self.memory_limit}: no worker can start in that")

    @property
    def is_remote(self) -> bool:
        """Whether the workers are not processes that this one starts on its own machine."""
        return self.scheduler is not None or self.slurm is not None


@dataclass(frozen=True)
class Settings:
    """How to extract.

    The store's content depends only on ``encoder`` (its name, checkpoint and precision),
    ``sampling`` and ``dtype``.

    Attributes:
        encoder: the encoder to load.
        sampling: how frames and audio windows are taken.
        dtype: stored type, ``float16`` or ``float32``.
        cluster: where the blocks run.
        timeout: seconds that decoding one file may take.
        shares: URLs of shares to pull the store from instead of extracting it.
        retry_failed: extract the failed utterances of a published store again.
        rehash: hash all videos, also those that seem unchanged.
    """

    encoder: EncoderSpec
    sampling: Sampling = field(default_factory=Sampling)
    dtype: str = "float16"
    cluster: ClusterSpec = field(default_factory=lambda: ClusterSpec(workers=1))
    timeout: float = 600.0
    shares: tuple[str, ...] = ()
    retry_failed: bool = False
    rehash: bool = False

    def load_encoder(self) -> Encoder:
        """Load the workers' encoder on this process's CPU; the GPU is left to the workers.

        Raises:
            ValueError: it cannot be loaded, does not support ``sampling``, or local workers cannot
                compute on its device.
        """
        if not self.cluster.is_remote:
            check_device(self.encoder.device)
        encoder = load(replace(self.encoder, device="cpu"))
        longest, window = encoder.longest_window_s, self.sampling.window_s
        if longest is not None and window > longest:
            raise ValueError(
                f"the encoder {encoder.name} takes {longest:g} s of sound at most, a window of "
                f"{window:g} s would be cut: choose --window {longest:g} or less"
            )
        if self.sampling.vision == "tubelet" and not encoder.takes_pairs:
            raise ValueError(f"the encoder {encoder.name} takes single images, not tubelets")
        return encoder

    def job(self, place: Path, data: Path, store: Path | None = None) -> Job:
        """The job of extracting the videos below ``data``; ValueError as above.

        Args:
            place: parts are written next to this path.
            data: folder of the videos.
            store: as in :class:`extract.job.Job`.
        """
        return Job(
            data=data.resolve(),
            place=place.resolve(),
            store=store and store.resolve(),
            encoder=self.encoder,
            identity=EncoderIdentity.of(self.load_encoder()),
            sampling=self.sampling,
            dtype=self.dtype,
            timeout=self.timeout,
        )
