#!/usr/bin/env python3
"""What LRU and the best possible policy make of a trace, computed without larder.

An independent check of `larder replay`: other data structures (an OrderedDict, a scan over the cache for
each victim), written from the definitions. Slow on purpose; for traces of some ten thousand accesses.

    oracle.py TRACE keys|columns|lis entries|bytes CAPACITY...

prints one JSON object per capacity: {"capacity": .., "lru": hits, "best": hits}. By entries `best` is
Belady's optimum, where the entry with the furthest next use goes, the new one included. By bytes it is the
upper bound PFOO-L: reuse intervals by rising size times length, as many as fit into capacity times accesses.
"""

import json
import sys
from collections import OrderedDict, defaultdict


def read(path, form):
    """Pairs of key and size."""
    accesses = []
    with open(path, "rb") as trace:
        for line in trace:
            fields = line.split()
            if not fields or fields[0].startswith(b"#"):
                continue
            if form == "keys":
                accesses.append((line.rstrip(b"\r\n"), 1))
            elif form == "columns":
                accesses.append((fields[1], max(1, int(fields[2]))))
            else:
                first, count = int(fields[0]), int(fields[1])
                accesses.extend((block, 1) for block in range(first, first + count))
    return accesses


def lru(accesses, capacity):
    cache, held, hits = OrderedDict(), 0, 0
    for key, size in accesses:
        if key in cache:
            cache.move_to_end(key)
            hits += 1
        elif size <= capacity:
            cache[key] = size
            held += size
            while held > capacity:
                held -= cache.popitem(last=False)[1]
    return hits


def belady(accesses, capacity):
    uses = defaultdict(list)
    for at, (key, _) in enumerate(accesses):
        uses[key].append(at)
    for positions in uses.values():
        positions.append(float("inf"))
        positions.reverse()
    cache, hits = {}, 0
    for key, _ in accesses:
        uses[key].pop()
        if key in cache:
            hits += 1
        cache[key] = uses[key][-1]
        if len(cache) > capacity:
            del cache[max(cache, key=cache.get)]
    return hits


def pfoo_l(accesses, capacity):
    smallest, last, intervals = {}, {}, []
    for key, size in accesses:
        smallest[key] = min(size, smallest.get(key, size))
    for at, (key, _) in enumerate(accesses):
        if key in last and smallest[key] <= capacity:
            intervals.append(smallest[key] * (at - last[key]))
        last[key] = at
    left, hits = capacity * len(accesses), 0
    for cost in sorted(intervals):
        left -= cost
        if left < 0:
            break
        hits += 1
    return hits


def main():
    path, form, by, *capacities = sys.argv[1:]
    accesses = read(path, form)
    best = belady if by == "entries" else pfoo_l
    for capacity in map(int, capacities):
        found = {"capacity": capacity, "lru": lru(accesses, capacity), "best": best(accesses, capacity)}
        print(json.dumps(found))


if __name__ == "__main__":
    main()
