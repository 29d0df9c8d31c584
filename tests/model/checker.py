"""Walk through every state that a model can reach, and show the way to one that is wrong."""

from __future__ import annotations

from collections import deque

TROUBLE = "trouble: "
"""How steps begin that nobody may rely on: the world must get on without them."""


class Broken(Exception):
    """A property does not hold; ``path`` is the shortest way there."""

    def __init__(self, what: str, path: list[str]) -> None:
        super().__init__(f"{what}, after: {'; '.join(path)}")
        self.path = path


def explore(start, successors, wrong, is_final, limit: int = 2_000_000) -> int:
    """Return the number of states reached, breadth first.

    Args:
        start: a hashable state.
        successors: gives (what happened, next state) of a state.
        wrong: says in words what is wrong with a state, or an empty string.
        is_final: whether nothing more need happen in a state.
        limit: more states than this are an error of the model.

    Raises:
        Broken: a state is wrong, or nothing can happen in one that is not final.
    """
    came = {start: None}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if what := wrong(state):
            raise Broken(what, _path(came, state))
        steps = list(successors(state))
        if not is_final(state) and all(what.startswith(TROUBLE) for what, _ in steps):
            raise Broken("nothing can happen any more by itself", _path(came, state))
        for what, following in steps:
            if following not in came:
                came[following] = (state, what)
                waiting.append(following)
        if len(came) > limit:
            raise RuntimeError(f"more than {limit} states")
    return len(came)


def _path(came, state):
    path = []
    while came[state] is not None:
        state, what = came[state]
        path.append(what)
    return path[::-1]
