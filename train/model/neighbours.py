"""The nearest neighbours of SCLG, equation (13): exact, or by FAISS for very large training sets.

Letters: N training utterances, R rows that are asked for, D feature width, K neighbours.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

# Distances held at once: 64 MiB of float32, whatever N is. Memory grows with N, not its square.
CELLS = 1 << 24
# With sclg.index=auto, FAISS from so many utterances on, where it is installed and there is no GPU.
# Exact search costs N^2: below this less than 1 percent of an epoch with a BERT of the base size.
FAISS_FROM = 60_000
# Of FAISS's graph (HNSW): links of a point, candidates kept while building and while searching.
LINKS, BUILD, SEARCH = 16, 40, 64


def check(index: str) -> None:
    """Complain early.

    Raises:
        ValueError: FAISS is asked for and is not installed.
    """
    if index == "faiss" and not _installed():
        raise ValueError("sclg.index=faiss needs a package: pip install 'semanticmac[faiss]'")


def nearest(
    features_ND: Tensor, knn: int, rows_R: Tensor | None = None, index: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The nearest other rows of some rows; equation (13).

    Args:
        features_ND: F.
        knn: K, less than N.
        rows_R: the rows that are asked for; None: all.
        index: "exact", "faiss" or "auto".

    Returns:
        ``D_ij = ||F_i - F_j||_2 / sqrt(D)`` and ``j``, both ``[R, K]``, nearest first. Distances
        are exact even where FAISS chose the neighbours.
    """
    # Distances do not change under a shift, and small numbers lose less when squared.
    x_ND = features_ND.float() - features_ND.float().mean(0)
    if rows_R is None:
        rows_R = torch.arange(len(x_ND), device=x_ND.device)
    if index == "auto":
        large = len(x_ND) >= FAISS_FROM and x_ND.device.type == "cpu"
        index = "faiss" if large and _installed() else "exact"
    search = _by_faiss if index == "faiss" else _exactly
    neighbour_RK = search(x_ND, knn, rows_R)
    # Both rank by an inexact product; the distance itself is not inexact.
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
    """Walks a graph of near points from link to link; may miss some of the nearest."""
    import faiss

    points = x_ND.cpu().contiguous().numpy()
    graph = faiss.IndexHNSWFlat(points.shape[1], LINKS)
    graph.hnsw.efConstruction = BUILD
    # Threads would insert points in an order, and so give a graph, that differs from run to run.
    faiss.omp_set_num_threads(1)
    graph.add(points)
    faiss.omp_set_num_threads(torch.get_num_threads())
    graph.hnsw.efSearch = max(SEARCH, 2 * knn)
    found_RJ = torch.from_numpy(graph.search(points[rows_R.cpu().numpy()], knn + 1)[1])
    # One more than asked for: a row finds itself, though among twins not always first.
    itself_RJ = (found_RJ == rows_R.cpu()[:, None]).to(torch.uint8)
    others_RJ = found_RJ.gather(1, itself_RJ.argsort(dim=1, stable=True))
    neighbour_RK = others_RJ[:, :knn].to(x_ND.device)
    # A row from which the graph leads to too few others has -1 in their place.
    short_R = (neighbour_RK < 0).any(1)
    if short_R.any():
        neighbour_RK[short_R] = _exactly(x_ND, knn, rows_R[short_R])
    return neighbour_RK


def _installed() -> bool:
    return find_spec("faiss") is not None
