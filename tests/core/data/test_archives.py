"""Archives: what is read of them, and what a stranger cannot do with one."""

from __future__ import annotations

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile

import pytest

from core.data.archives import DEEPEST, Bounds, members
from core.errors import SpecError

BOUNDS = Bounds(files=20, bytes=100_000, why_files="GRAFT_FILES", why_bytes="GRAFT_BYTES")
KINDS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]
FILES = {"a": None, "a/1.bin": b"one", "a/empty": b"", "b/2.bin": bytes(range(256)) * 100}


@pytest.fixture
def read(tmp_path):
    """`read(archive)`: the content of each file, None for a folder."""

    def read(archive, bounds=BOUNDS):
        path = tmp_path / "archive"
        path.write_bytes(archive)
        return {str(one.path): None if one.folder else b"".join(one.pieces()) for one in members(path, bounds)}

    return read


@pytest.fixture
def refusal(read):
    def refusal(archive, bounds=BOUNDS):
        with pytest.raises(SpecError) as caught:
            read(archive, bounds)
        (fault,) = caught.value.faults
        assert fault.pointer == ""
        return fault.message

    return refusal


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_packed_is_read(read, pack, kind):
    assert read(pack(FILES, kind)) == FILES


def test_a_tar_in_the_format_of_long_names_is_read(read, pack):
    name = "/".join(["n" * 60] * 6) + "/grün.png"
    assert read(pack({name: b"x"})) == {name: b"x"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_nobody_reads_is_passed_over(tmp_path, pack, kind):
    (tmp_path / "archive").write_bytes(pack(FILES, kind))
    assert [str(one.path) for one in members(tmp_path / "archive", BOUNDS)] == list(FILES)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../out.png", "leads out of the archive"),
        ("a/../../out.png", "leads out of the archive"),
        ("/etc/cron.d/x", "leads out of the archive"),
        ("C:/windows/x", "leads out of the archive"),
        ("a/" * DEEPEST + "x", "too long or too deep"),
        ("a/" + "n" * 256, "too long or too deep"),
        ("/".join(["n" * 200] * 6), "too long or too deep"),
        ("a\nb.png", "control character"),
    ],
)
def test_a_name_that_is_no_place_in_a_dataset_is_refused(refusal, pack, kind, name, said):
    message = refusal(pack({"a/1": b"", name: b"x"}, kind))
    assert said in message
    assert len(message) < 500


def test_a_name_with_a_nul_is_refused_in_a_zip_and_in_a_tar(refusal, pack):
    assert "control character" in refusal(pack({"cats/1.pngX.exe": b"x"}, "zip").replace(b"pngX.exe", b"png\0.exe"))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"path": "cats/1.png\0.exe"}
        archive.addfile(info)
    assert "control character" in refusal(file.getvalue())


def test_a_name_that_is_no_text_is_refused(refusal):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("cats/\udcff.png"))
    assert "no UTF-8, 'cats/\\udcff.png'" in refusal(file.getvalue())


def test_a_zip_of_macos_or_of_old_windows_has_the_names_that_were_meant(read, pack):
    composed, decomposed = "gr\u00fcn/1.png", "gru\u0308n/1.png"
    said = pack({decomposed: b"x"}, "zip")
    unsaid = bytearray(said)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag that says UTF-8
        at = said.index(mark) + flags
        unsaid[at : at + 2] = struct.pack("<H", struct.unpack_from("<H", said, at)[0] & ~0x800)
    assert read(said) == read(bytes(unsaid)) == {composed: b"x"}
    assert read(pack({"cats\\1.png": b"x"}, "zip")) == {"cats/1.png": b"x"}
    assert read(pack({"caf\u00e9/1.png".encode("cp437").decode("latin1"): b"x"}, "zip"))


@pytest.mark.parametrize("kind", ["symlink", "hard link", "device", "fifo"])
def test_what_is_neither_a_file_nor_a_folder_is_refused(refusal, kind):
    types = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("cats/1.png")
        info.type, info.linkname = types[kind], "/etc/passwd"
        archive.addfile(info)
    message = refusal(file.getvalue())
    assert message.startswith("'cats/1.png' is a ")
    assert ("--dereference" in message) == ("link" in kind)


def test_a_symlink_in_a_zip_is_refused(refusal):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("cats/1.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "'cats/1.png' is a link" in refusal(file.getvalue())


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_stopped_by_the_bytes_that_come_out_of_it(tmp_path, pack, kind):
    bomb = pack({"cats/1.png": b"first", "cats/2.png": bytes(5_000_000)}, kind)
    assert len(bomb) < 10_000
    (tmp_path / "archive").write_bytes(bomb)
    pieces = (piece for one in members(tmp_path / "archive", Bounds(files=9, bytes=3_000_000)) for piece in one.pieces())
    out = []
    with pytest.raises(SpecError, match=r"more than 3000000 bytes \(the limit"):
        out.extend(len(piece) for piece in pieces)
    assert sum(out) <= 3_000_000


def test_a_bomb_that_lies_of_its_size_is_stopped_too(refusal, pack):
    bomb = bytearray(pack({"cats/1.png": bytes(5_000_000)}, "zip"))
    for mark, size in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", bomb, bomb.index(mark) + size, 10)
    assert "damaged" in refusal(bytes(bomb)), "it has more bytes than it says: they do not come out"


def test_a_bomb_in_a_member_that_nobody_reads_is_stopped(tmp_path, pack):
    (tmp_path / "archive").write_bytes(pack({"readme": bytes(5_000_000), "cats/1.png": b""}, "tar.gz"))
    with pytest.raises(SpecError, match="more than 100000 bytes"):
        list(members(tmp_path / "archive", BOUNDS))


def test_a_bomb_behind_the_end_of_a_tar_is_stopped(refusal, pack):
    assert "GRAFT_BYTES" in refusal(gzip.compress(pack(FILES) + bytes(5_000_000)))


def test_zeros_that_stand_for_holes_are_no_way_past_the_limit(refusal):
    header = tarfile.TarInfo("cats/1.png")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"777777777777"  # the real size: 64 GiB
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert "sparse" in refusal(bytes(block) + bytes(1024))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_more_files_than_the_limit_are_refused(refusal, pack, kind):
    assert "more than 20 files (GRAFT_FILES)" in refusal(pack({f"cats/{number}": b"" for number in range(21)}, kind))


def test_an_encrypted_zip_is_refused(refusal, pack):
    archive = bytearray(pack({"cats/1.png": b"secret"}, "zip"))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        archive[archive.index(mark) + flags] |= 1
    assert "encrypted" in refusal(bytes(archive))


@pytest.mark.parametrize("kind", KINDS)
def test_wherever_an_archive_is_cut_off_that_is_seen(refusal, pack, kind):
    whole = pack({"a/1.bin": bytes(range(256)) * 4, "b/2.bin": b"x" * 1024}, kind)
    end = len(whole.rstrip(b"\0")) + 1 if kind == "tar" else len(whole)  # a tar is padded with zeros
    for cut in {1, 2, 3, 100, 511, 512, 1024, 1536, 2048, end // 2, end - 1}:
        if cut < end:
            assert refusal(whole[:cut]), cut


def test_a_damaged_byte_of_a_compressed_archive_is_seen(refusal, pack):
    for kind in ("zip", "tar.gz"):
        whole = bytearray(pack({"a/1.bin": bytes(range(256)) * 4}, kind))
        if kind == "zip":
            whole[60] ^= 0x55
        else:
            whole[-6] ^= 0x55  # of the checksum itself
        assert "damaged" in refusal(bytes(whole))


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"<html>", b"Rar!\x1a\x07\x00", b"7z\xbc\xaf\x27\x1c", b"\0" * 100]
)
def test_what_is_no_archive_is_told_what_is_one(refusal, content):
    assert "neither a zip nor a tar" in refusal(content)


def test_names_that_mean_the_same_are_the_same(read, pack):
    assert read(pack({"./cats//1.png": b"x"})) == {"cats/1.png": b"x"}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_to_its_bytes_an_archive_is_read_or_refused(read, pack, kind):
    whole, draw, refused = pack({"a/1.bin": b"one", "b": None, "b/2.bin": bytes(range(256))}, kind), random.Random(0), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3, 20])):
            at = draw.randrange(len(damaged))
            damaged[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        try:
            read(bytes(damaged))
        except SpecError:
            refused += 1
    assert refused > 30
