"""Section `cluster`: the dask engine of prepare."""

from typing import Literal

from pydantic import Field

from llmcfsr_merlin.config.section import Section


class ClusterConfig(Section):
    """The dask engine of prepare. Unset values are derived from the machine and logged. ingest uses `workers` only."""

    kind: Literal["auto", "single", "local", "cuda"] = "auto"
    """auto: cuda if cudf, cupy and a GPU are available, else single (in-process); local: a dask LocalCluster."""
    scheduler: str | None = None
    """Address of an existing dask scheduler to join, e.g. tcp://10.0.0.1:8786."""
    workers: int | None = Field(None, ge=1)
    """Processes (local), threads (single), or GPUs (cuda: one is used by this process, several by a LocalCUDACluster);
    unset: one per core or GPU."""
    memory_limit: str | None = None
    """Memory per worker, e.g. "4GB"."""
    partition_size: str | None = None
    """Target size of a partition, e.g. "128MB"."""
    rmm_pool_size: str | None = None
    """Several GPUs: device memory per worker reserved at the start, e.g. "20GB"; unset: half of the free memory."""
    device_memory_limit: str | None = None
    """Several GPUs: device memory above which a worker spills to the host; unset: 80% of the free memory."""
    spill: bool = True
    """Several GPUs: whether workers may spill to the host."""
