"""Search the nearest neighbours of SCLG, equation (13), exactly or with FAISS.

Letters: N training utterances, R query rows, D feature width, K neighbours.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

# Distances in memory at once: 64 MiB of float32. Memory grows with N, not with N^2.
CELLS = 1 << 24
# With sclg.index=auto on a CPU, FAISS is used from this number of utterances on, if installed.
# Exact search costs N^2: below this, less than 1 percent of an epoch with BERT base.
FAISS_FROM = 60_000
# Parameters of the FAISS graph (HNSW): links per point, candidates in building and in searching.
LINKS, BUILD, SEARCH = 16, 40, 64


def check(index: str) -> None:
    """Raise a ValueError if ``sclg.index=faiss`` and FAISS is not installed."""
    if index == "faiss" and not _installed():
        raise ValueError("sclg.index=faiss needs a package: pip install 'semanticmac[faiss]'")


def nearest(
    features_ND: Tensor, knn: int, rows_R: Tensor | None = None, index: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Find the nearest other rows of some rows; equation (13).

    Args:
        features_ND: F.
        knn: K, less than N.
        rows_R: the query rows; None: all.
        index: "exact", "faiss" or "auto".

    Returns:
        ``D_ij = ||F_i - F_j||_2 / sqrt(D)`` and ``j``, both ``[R, K]``, nearest first. Distances
        are exact for either index.
    """
    # Distances are invariant to a shift; centred values lose less precision when squared.
    x_ND = features_ND.float() - features_ND.float().mean(0)
    if rows_R is None:
        rows_R = torch.arange(len(x_ND), device=x_ND.device)
    if index == "auto":
        large = len(x_ND) >= FAISS_FROM and x_ND.device.type == "cpu"
        index = "faiss" if large and _installed() else "exact"
    search = _by_faiss if index == "faiss" else _exactly
    neighbour_RK = search(x_ND, knn, rows_R)
    # Both rank by a rounded product; the distances are computed again exactly.
    rows = max(1, CELLS // (knn * x_ND.shape[1]))
    distances = [
        (x_ND[own_r, None] - x_ND[neighbour_rK]).norm(dim=2)
        for own_r, neighbour_rK in zip(rows_R.split(rows), neighbour_RK.split(rows), strict=True)
    ]
    distance_RK = torch.cat(distances) / x_ND.shape[1] ** 0.5
    distance_RK, order_RK = distance_RK.sort(dim=1, stable=True)
    return distance_RK, neighbour_RK.gather(1, order_RK)


def _exactly(x_ND: Tensor, knn: int, rows_R: Tensor) -> Tensor:
    squared_N = x_ND.square().sum(1)
    neighbours = []
    for own_r in rows_R.split(max(1, CELLS // len(x_ND))):
        # ||x_i||^2 is the same for all j and does not change the order.
        order_rN = torch.addmm(squared_N, x_ND[own_r], x_ND.T, alpha=-2.0)
        order_rN.scatter_(1, own_r[:, None], torch.inf)
        neighbours.append(order_rN.topk(knn, dim=1, largest=False).indices)
    return torch.cat(neighbours)


def _by_faiss(x_ND: Tensor, knn: int, rows_R: Tensor) -> Tensor:
    """Search approximately with an HNSW graph; may miss some of the nearest."""
    import faiss

    points = x_ND.cpu().contiguous().numpy()
    graph = faiss.IndexHNSWFlat(points.shape[1], LINKS)
    graph.hnsw.efConstruction = BUILD
    # With threads, the order of insertion and so the graph would differ from run to run.
    faiss.omp_set_num_threads(1)
    graph.add(points)
    faiss.omp_set_num_threads(torch.get_num_threads())
    graph.hnsw.efSearch = max(SEARCH, 2 * knn)
    found_RJ = torch.from_numpy(graph.search(points[rows_R.cpu().numpy()], knn + 1)[1])
    # One extra result: a row finds itself, though among duplicates not always first.
    itself_RJ = (found_RJ == rows_R.cpu()[:, None]).to(torch.uint8)
    others_RJ = found_RJ.gather(1, itself_RJ.argsort(dim=1, stable=True))
    neighbour_RK = others_RJ[:, :knn].to(x_ND.device)
    # Rows with too few results have -1.
    short_R = (neighbour_RK < 0).any(1)
    if short_R.any():
        neighbour_RK[short_R] = _exactly(x_ND, knn, rows_R[short_R])
    return neighbour_RK


def _installed() -> bool:
    return find_spec("faiss") is not None
