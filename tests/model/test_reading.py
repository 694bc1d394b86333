"""The way from token ids to the attention kernel stays short enough to be read at a sitting."""

from __future__ import annotations

from benchmarks.reading import lines_by_room, path_of_a_token

MOST_LINES, MOST_FILES = 140, 6


def test_the_path_of_a_token_is_short() -> None:
    path = path_of_a_token()
    files = {one.file for one in path}
    assert {"model/transformer.py", "model/stack.py", "model/attention.py", "model/attend.py"} <= files
    assert sum(one.n_lines for one in path) <= MOST_LINES, path
    assert len(files) <= MOST_FILES, files


def test_every_room_is_counted() -> None:
    rooms = lines_by_room()
    assert {"model", "data", "training", "inference", "server", "."} <= set(rooms)
    assert all(rooms.values())
