"""A Dask cluster whose workers run in leased boxes on the peers, and whose scheduler runs in this program.

    from croft.dask import GridCluster
    from distributed import Client
    with GridCluster(workers=8, mem="4G") as cluster, Client(cluster) as client:
        client.submit(sum, [1, 2, 3]).result()

All of its connections are streams of a circle (`croft.compute.circle`), under addresses `croft://CIRCLE/MEMBER`. What
comes from workers is not unpickled in this program unless it says `trust="pickle"`.
"""

from __future__ import annotations

from croft.dask.cluster import GridCluster

__all__ = ["GridCluster"]
