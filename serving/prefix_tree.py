"""Pages that were computed before, found again by their tokens: a radix tree with a page of tokens on each edge.

What the model computes for a token depends on the tokens before it alone, so a text that begins as an earlier one did
can list the same pages. Edges are compared token by token, not by a hash alone: no two texts are ever mixed up. Zheng
et al. 2024 (RadixAttention).

    tree.find(ids)             the pages of the longest known beginning, for the caller to hold
    tree.insert(ids, pages)    remember the whole pages of a text
    tree.evict(count)          forget what was used longest ago and no text holds
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serving.paged_cache import PAGE, PagePool


@dataclass
class Node:
    """One page of a known text; the pages before it are those of its parents."""

    parent: "Node | None" = None
    tokens: tuple[int, ...] = ()
    page: int = -1
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    used: int = 0
    """When it was last part of a text that was found or inserted, counted in such calls."""


class PrefixTree:
    """The texts whose pages are still there. The tree holds every page that it lists once."""

    def __init__(self, pool: PagePool):
        self._pool, self._root, self._now = pool, Node(), itertools.count(1)

    def find(self, ids: Sequence[int]) -> list[int]:
        """Return the pages of the longest known beginning of `ids`, each with the caller as a further holder.

        At least one token is left over: only computing one gives logits.
        """
        pages, node, now = [], self._root, next(self._now)
        for first in range(0, len(ids) - PAGE, PAGE):
            node = node.children.get(tuple(ids[first : first + PAGE]))
            if node is None:
                break
            node.used = now
            self._pool.share(node.page)
            pages.append(node.page)
        return pages

    def insert(self, ids: Sequence[int], pages: Sequence[int]) -> list[int]:
        """Remember the pages that `ids` fill; return the caller's pages afterwards.

        A page that the tree knows already takes the place of the caller's, which is given back. So whoever holds a page
        of the tree holds those before it too, and a node that only the tree holds has no child that is held.
        """
        kept, node, now = list(pages), self._root, next(self._now)
        for number in range(len(ids) // PAGE):
            tokens = tuple(ids[number * PAGE : (number + 1) * PAGE])
            known = node.children.get(tokens)
            if known is None:
                known = node.children[tokens] = Node(node, tokens, kept[number])
                self._pool.share(known.page)
            elif known.page != kept[number]:
                self._pool.share(known.page)
                self._pool.give_back(kept[number])
                kept[number] = known.page
            node = known
            node.used = now
        return kept

    def evict(self, count: int) -> int:
        """Forget up to `count` pages that only the tree holds, those used longest ago first; return how many."""
        leaves = [(node.used, id(node), node) for node in self._nodes() if self._is_loose(node)]
        heapq.heapify(leaves)
        gone = 0
        while leaves and gone < count:
            _, _, node = heapq.heappop(leaves)
            del node.parent.children[node.tokens]
            self._pool.give_back(node.page)
            gone += 1
            if node.parent is not self._root and self._is_loose(node.parent):
                heapq.heappush(leaves, (node.parent.used, id(node.parent), node.parent))
        return gone

    def evictable(self) -> int:
        """Return how many pages only the tree holds."""
        return sum(self._pool.holders[node.page] == 1 for node in self._nodes())

    def _is_loose(self, node: Node) -> bool:
        return not node.children and self._pool.holders[node.page] == 1

    def _nodes(self) -> Iterator[Node]:
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()
