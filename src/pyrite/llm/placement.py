"""Which server a query's requests go to. Pure."""

import hashlib
from collections.abc import Iterable, Sequence


def ranked(affinity: str, servers: Sequence[str]) -> list[int]:
    """Positions in ``servers``, best first, by rendezvous hashing (Thaler and Ravishankar, 1998).

    All requests of one ``affinity`` (a query id) find the same order, so that its prefix lies in one server's cache;
    where that server is gone, its queries spread evenly over the others, and no other query moves.
    """
    weights = [hashlib.blake2b(f"{affinity}\0{name}".encode(), digest_size=8).digest() for name in servers]
    return sorted(range(len(servers)), key=weights.__getitem__, reverse=True)


def first_usable(order: Iterable[int], usable: Sequence[bool]) -> int | None:
    """The first position of ``order`` that is usable; None where none is."""
    return next((position for position in order if usable[position]), None)
