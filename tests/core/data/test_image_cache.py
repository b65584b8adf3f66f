"""Decoded images on disk: shared, bounded, and nobody's loss, whatever becomes of the file or of the process that makes it."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal

import pytest
import torch

from core.data import image_cache
from core.data.datasets import open_dataset
from core.data.image_cache import Entry, find, make
from core.data.tiers import Piece
from core.errors import is_no_room
from core.spec import DatasetSpec

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12, of forks

SMALL = Entry("a" * 64, (6, 3, 4, 4))


def quiet(_):
    pass


def pixels_of(entry):
    samples, *shape = entry.shape
    return torch.arange(samples, dtype=torch.uint8).view(-1, 1, 1, 1).expand(samples, *shape)


def pieces_of(entry, lost=()):
    """Two images at a time."""
    pixels = pixels_of(entry)
    for first in range(0, len(pixels), 2):
        yield Piece(pixels[first : first + 2], {one - first: "broken" for one in lost if first <= one < first + 2})


def keep(folder, entry=SMALL, *, limit=1 << 20, pieces=None, unchanged=True, say=quiet):
    return make(folder, entry, limit=limit, pieces=pieces or (lambda: pieces_of(entry)), unchanged=lambda: unchanged, say=say)


def never():
    raise AssertionError("these images are decoded already")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@contextlib.contextmanager
def making(folder):
    """Another process that has written its first piece, and a pipe: what is sent there lets it go on."""
    context = multiprocessing.get_context("fork")
    (told, tell), (hear, go) = context.Pipe(duplex=False), context.Pipe(duplex=False)

    def pieces():
        first, *rest = pieces_of(SMALL)
        yield first
        tell.send("began")
        hear.recv()
        yield from rest

    other = context.Process(target=keep, args=(folder,), kwargs={"pieces": pieces})
    other.start()
    try:
        assert told.poll(30)
        yield other, go
    finally:
        other.kill()
        other.join(30)


def test_an_entry_is_what_was_made_and_says_what_could_not_be_read(tmp_path):
    made = keep(tmp_path, pieces=lambda: pieces_of(SMALL, lost=(3,)))
    for stored in (made, find(tmp_path, SMALL, quiet)):
        assert torch.equal(stored.pixels, pixels_of(SMALL))
        assert stored.sound.tolist() == [True, True, True, False, True, True]
    assert names(tmp_path) == [SMALL.name]
    assert torch.equal(keep(tmp_path, pieces=never).pixels, made.pixels)


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path):
    with making(tmp_path) as (other, go):
        said = []

        def waits(line):  # it is let go by the one that waits for it
            said.append(line)
            go.send("on")

        stored = keep(tmp_path, pieces=never, say=waits)
        other.join(30)
        assert other.exitcode == 0
    assert torch.equal(stored.pixels, pixels_of(SMALL))
    assert said == ["another job decodes these images already; waiting for it"]
    assert names(tmp_path) == [SMALL.name]


def test_what_a_killed_process_left_is_made_anew(tmp_path):
    with making(tmp_path) as (other, _):
        os.kill(other.pid, signal.SIGKILL)
        other.join(30)
    assert find(tmp_path, SMALL, quiet) is None
    assert names(tmp_path) == [f".{SMALL.name}.part"]
    assert torch.equal(keep(tmp_path, say=never).pixels, pixels_of(SMALL)), "nobody is waited for"
    assert names(tmp_path) == [SMALL.name]


def test_what_a_killed_process_left_goes_with_the_next_entry(tmp_path):
    with making(tmp_path) as (other, _):
        other.kill()
        other.join(30)
    later = Entry("b" * 64, SMALL.shape)
    keep(tmp_path, later, limit=later.size)
    assert names(tmp_path) == [later.name]


def test_without_locks_each_makes_its_own_and_no_harm_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    with making(tmp_path):
        stored = keep(tmp_path)
    assert torch.equal(stored.pixels, pixels_of(SMALL))
    assert torch.equal(find(tmp_path, SMALL, quiet).pixels, stored.pixels)


@pytest.mark.parametrize("harm", [lambda file: file.truncate(SMALL.size - 1), lambda file: file.write(b"[")])
def test_a_damaged_entry_is_thrown_away(tmp_path, harm):
    keep(tmp_path)
    with (tmp_path / SMALL.name).open("r+b") as file:
        harm(file)
    said = []
    assert find(tmp_path, SMALL, said.append) is None
    assert said == ["decoded images on disk are damaged; they are made anew"]
    assert names(tmp_path) == []


def test_the_least_recently_used_goes_first_and_none_that_is_mapped(tmp_path):
    entries = [Entry(letter * 64, SMALL.shape) for letter in "abcdef"]
    for age, entry in enumerate(entries[:3]):
        keep(tmp_path, entry)
        os.utime(tmp_path / entry.name, (age, age))
    mapped = find(tmp_path, entries[1], quiet)
    find(tmp_path, entries[0], quiet)  # used again, and let go
    os.utime(tmp_path / entries[1].name, (0, 0))
    limit = 3 * SMALL.size
    there = keep(tmp_path, entries[3], limit=limit)
    assert names(tmp_path) == [one.name for one in (entries[0], entries[1], entries[3])]
    keep(tmp_path, entries[4], limit=limit)
    assert names(tmp_path) == [one.name for one in (entries[1], entries[3], entries[4])]
    with pytest.raises(OSError, match="do not fit the cache") as full:
        keep(tmp_path, entries[5], limit=2 * SMALL.size, pieces=never)
    assert is_no_room(full.value)
    assert names(tmp_path) == [one.name for one in (entries[1], entries[3], entries[4])], "nothing goes in vain"
    assert torch.equal(mapped.pixels, there.pixels)


def test_an_entry_that_is_deleted_while_it_is_mapped_or_made_is_whole(tmp_path):
    folder = tmp_path / "images"
    mapped = keep(folder)
    shutil.rmtree(folder)

    def pieces():
        yield from pieces_of(SMALL)
        shutil.rmtree(folder)

    made = keep(folder, pieces=pieces)
    assert not folder.exists()
    assert torch.equal(made.pixels, pixels_of(SMALL))
    assert torch.equal(mapped.pixels, made.pixels)


def test_a_disk_that_is_full_in_the_middle_leaves_nothing_behind(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def pieces():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        yield from pieces_of(SMALL)

    try:
        with pytest.raises(OSError, match="File too large") as full:
            keep(tmp_path, pieces=pieces)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_no_room(full.value)
    assert names(tmp_path) == []


def test_a_disk_keeps_a_twentieth_free(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=20 * 1000, free=1000 + SMALL.size)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage)
    assert image_cache.room(tmp_path / "not/yet", 1 << 40) == SMALL.size
    keep(tmp_path)
    usage = usage._replace(free=usage.free - 1)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage)
    other = Entry("b" * 64, SMALL.shape)
    keep(tmp_path, other)
    assert names(tmp_path) == [other.name], "the older one made room"


def test_files_that_change_while_they_are_decoded_leave_no_entry(tmp_path):
    assert torch.equal(keep(tmp_path, unchanged=False).pixels, pixels_of(SMALL))
    assert names(tmp_path) == []


def test_an_entry_goes_by_the_state_of_every_file_and_by_what_is_made_of_it(places, draw):
    draw({"pets/cats": 2, "pets/dogs": 2, "birds/cats": 2, "birds/dogs": 2})

    def entry(source="folder:pets", size=8):
        return image_cache.entry_of(open_dataset(DatasetSpec(source=source), places, 0).train, size, 3).name

    def fingerprint():
        return open_dataset(DatasetSpec(source="folder:pets"), places, 0).fingerprint

    same = entry(), fingerprint()
    assert (entry(), fingerprint()) == same
    assert entry(size=16) != same[0] != entry(source="folder:birds")
    one = places.inputs / "pets/cats/0.png"
    with one.open("r+b") as file:
        file.write(one.read_bytes())
    os.utime(one, ns=(0, 0))
    assert entry() != same[0], "a file that is rewritten in place may have other pixels"
    assert fingerprint() == same[1]
