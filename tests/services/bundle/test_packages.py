"""Damage in every part of a bundle is refused before an import sends anything."""

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.core.errors import ConfigError, RequestInvalid
from proxy.core.names import Digest, Repo, Tag, Target, sha256
from proxy.core.records import Descriptor, TagRecord
from proxy.services.bundle import signatures
from proxy.services.bundle.archive import Sink, open_sink, put
from proxy.services.bundle.contents import (
    NAME,
    SIGNATURE,
    BundledBlob,
    BundledTag,
    Contents,
    parse,
)
from proxy.services.bundle.foreign import Naming
from proxy.services.bundle.layout import blob_name, files_for_others
from proxy.services.bundle.packages import Package, open_package
from tests.fakes import content

IMAGE = content.image("one", layers=(3000, 20))
MANIFEST = Digest(IMAGE.digest)
TARGET = Target("docker.io", Repo("library/one"))
Members = dict[str, tarfile.TarInfo]
Change = Callable[[bytearray, Members], None]


def contents() -> Contents:
    found = Contents("outside", "tests", 1.0)
    bodies = {MANIFEST: IMAGE.manifest} | {Digest(d): body for d, body in IMAGE.blobs.items()}
    for digest, body in bodies.items():
        media_type = IMAGE.media_type if digest == MANIFEST else None
        found.blobs[digest] = BundledBlob(digest, len(body), media_type, is_public=True)
    descriptor = Descriptor(IMAGE.media_type, MANIFEST, len(IMAGE.manifest))
    found.tags = [BundledTag(TARGET, Tag("1"), TagRecord(descriptor, 1.0))]
    found.links = {TARGET: [*bodies]}
    return found


def write(sink: Sink, key: Path, found: Contents) -> None:
    others = files_for_others(found, {MANIFEST: IMAGE.manifest})
    found.files = {name: sha256(body) for name, body in others.items()}
    text = found.to_json()
    put(sink, NAME, text)
    put(sink, SIGNATURE, signatures.sign(text, signatures.read_private_key(key)).encode())
    for name, body in others.items():
        put(sink, name, body)
    for blob in found.included:
        body = IMAGE.manifest if blob.digest == MANIFEST else IMAGE.blobs[blob.digest]
        put(sink, blob_name(blob.digest), body)
    sink.finish()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signatures.write_key(tmp_path / "key", "outside")
    return tmp_path / "key"


@pytest.fixture
def bundle(key: Path, tmp_path: Path) -> Path:
    path = tmp_path / "one.tar"
    write(open_sink(str(path), None), key, contents())
    return path


def opened(path: Path, key: Path) -> Package:
    return open_package(path, signatures.read_public_keys(Path(f"{key}.pub")), Naming())


def verified(package: Package) -> int:
    try:
        return sum(package.verify())
    finally:
        package.tree.close()


def test_what_was_written_is_read(bundle: Path, key: Path) -> None:
    package = opened(bundle, key)
    assert package.signer is not None
    assert package.signer.name == "outside"
    assert package.contents == contents_with_files(package)
    assert verified(package) == len(IMAGE.manifest) + sum(map(len, IMAGE.blobs.values()))


def contents_with_files(package: Package) -> Contents:
    found = contents()
    found.files = package.contents.files
    return found


@pytest.mark.parametrize("size", [1024 * 1024, 1500, 512, 100])
def test_parts_of_any_size_join(key: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "parts.tar"
    write(open_sink(str(path), size), key, contents())
    assert verified(opened(path, key)) > 0
    first = path.with_name("parts.tar.001")
    assert verified(opened(first, key)) > 0
    joined = b"".join(part.read_bytes() for part in sorted(tmp_path.glob("parts.tar.*")))
    with tarfile.open(fileobj=io.BytesIO(joined)) as archive:
        assert archive.getnames()[0] == NAME


def test_parts_in_another_order_are_refused(key: Path, tmp_path: Path) -> None:
    path = tmp_path / "parts.tar"
    write(open_sink(str(path), 4096), key, contents())
    first, second, third = (path.with_name(f"parts.tar.00{n}") for n in (1, 2, 3))
    second.rename(tmp_path / "x")
    third.rename(second)
    (tmp_path / "x").rename(third)
    assert first.exists()
    with pytest.raises(RequestInvalid):
        verified(opened(path, key))


def test_a_directory_is_the_same(key: Path, tmp_path: Path) -> None:
    write(open_sink(f"{tmp_path / 'bundle'}/", None), key, contents())
    assert verified(opened(tmp_path / "bundle", key)) > 0
    blob = tmp_path / "bundle" / blob_name(MANIFEST)
    body = blob.read_bytes()
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    with pytest.raises(RequestInvalid, match="links are never followed"):
        verified(opened(tmp_path / "bundle", key))
    blob.unlink()
    blob.write_bytes(body[:-1] + b" ")
    with pytest.raises(RequestInvalid, match="other bytes in the bundle"):
        verified(opened(tmp_path / "bundle", key))
    (tmp_path / "bundle" / "extra").write_text("x")
    with pytest.raises(RequestInvalid, match="do not name: extra"):
        opened(tmp_path / "bundle", key)


def test_what_a_killed_export_left_gets_into_no_bundle(key: Path, tmp_path: Path) -> None:
    left = tmp_path / "bundle.partial/blobs"
    left.mkdir(parents=True)
    (left / "private").write_text("of another export")
    with pytest.raises(ConfigError, match=r"bundle\.partial: left by an export"):
        open_sink(f"{tmp_path / 'bundle'}/", None)
    (left / "private").unlink()
    left.rmdir()
    write(open_sink(f"{tmp_path / 'bundle'}/", None), key, contents())
    assert verified(opened(tmp_path / "bundle", key)) > 0


def flip(name: str, at: int = 10) -> Change:
    def change(body: bytearray, members: Members) -> None:
        body[members[name].offset_data + at] ^= 1

    return change


def cut(body: bytearray, members: Members) -> None:
    del members
    del body[len(body) // 2 :]


def broken_header(body: bytearray, members: Members) -> None:
    body[max(members.values(), key=lambda one: one.offset).offset + 3] ^= 1


def swapped(body: bytearray, members: Members) -> None:
    """Exchange two neighbours, which are right in themselves."""
    first, second = sorted(members.values(), key=lambda one: one.offset)[-2:]
    end = second.offset_data + -(-second.size // 512) * 512
    body[first.offset : end] = body[second.offset : end] + body[first.offset : second.offset]


def without_last(body: bytearray, members: Members) -> None:
    last = max(members.values(), key=lambda one: one.offset)
    del body[last.offset :]
    body += bytes(1024)


def added(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Change:
    def change(body: bytearray, members: Members) -> None:
        del members
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        body[0:0] = member.tobuf(tarfile.USTAR_FORMAT)

    return change


def huge_header(body: bytearray, members: Members) -> None:
    del members
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 1 << 33
    body[0:0] = member.tobuf(tarfile.GNU_FORMAT)


def huge_file(body: bytearray, members: Members) -> None:
    del members
    member = tarfile.TarInfo("bomb")
    member.size = 1 << 40
    body[0:0] = member.tobuf(tarfile.GNU_FORMAT)


def cut_off_sparse(body: bytearray, members: Members) -> None:
    del members
    member = tarfile.TarInfo("sparse")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482] = tarfile.GNUTYPE_SPARSE, 1  # more of its map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    body[:] = header


DAMAGE: dict[str, tuple[Change, str]] = {
    "contents": (flip(NAME), "does not match the contents"),
    "signature": (flip(SIGNATURE, 40), "signature"),
    "index": (flip("index.json"), "index.json: not what the contents file says"),
    "loadable": (flip("manifest.json"), "manifest.json: not what the contents file says"),
    "layout": (flip("oci-layout"), "oci-layout: not what the contents file says"),
    "manifest": (flip(blob_name(MANIFEST)), "other bytes in the bundle"),
    "layer": (flip(blob_name(Digest(IMAGE.layers[0]))), "other bytes in the bundle"),
    "truncated": (cut, ""),
    "header": (broken_header, "missing in the bundle"),
    "reordered": (swapped, "in another order"),
    "left out": (without_last, "1 files are missing in the bundle"),
    "parent": (added("../outside"), "leads out of the archive"),
    "parent inside": (added("blobs/../../outside"), "leads out of the archive"),
    "absolute": (added("/etc/passwd"), "leads out of the archive"),
    "backslash": (added("..\\outside"), "leads out of the archive"),
    "extra": (added("extra"), "do not name: extra"),
    "twice": (added("oci-layout"), "oci-layout: twice in the archive"),
    "symlink": (added("link", tarfile.SYMTYPE, "/etc/passwd"), "a link, not a file"),
    "hard link": (added("hard", tarfile.LNKTYPE, "oci-layout"), "a link, not a file"),
    "device": (added("null", tarfile.CHRTYPE), "a device, not a file"),
    "fifo": (added("pipe", tarfile.FIFOTYPE), "a device, not a file"),
    "huge header": (huge_header, ""),
    "bomb": (huge_file, "cut off"),
    "sparse": (cut_off_sparse, "a damaged one"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_is_refused(bundle: Path, key: Path, damage: str) -> None:
    change, words = DAMAGE[damage]
    with tarfile.open(bundle) as archive:
        members = {member.name: member for member in archive}
    body = bytearray(bundle.read_bytes())
    change(body, members)
    bundle.write_bytes(body)
    with pytest.raises(RequestInvalid) as error:
        verified(opened(bundle, key))
    assert words in error.value.message


def test_a_bundle_that_is_refused_stays_open_nowhere(bundle: Path, key: Path) -> None:
    bundle.write_bytes(tarfile.TarInfo("extra").tobuf() + bundle.read_bytes())
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(RequestInvalid, match="do not name: extra"):
        opened(bundle, key)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_blob_of_another_size_stays_open_nowhere(key: Path, tmp_path: Path) -> None:
    write(open_sink(f"{tmp_path / 'bundle'}/", None), key, contents())
    package = opened(tmp_path / "bundle", key)
    os.truncate(tmp_path / "bundle" / blob_name(MANIFEST), 1)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(RequestInvalid, match="1 instead of"):
        package.open(package.contents.blobs[MANIFEST])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    package.tree.close()


def test_every_flipped_byte_is_noticed_or_harmless(bundle: Path, key: Path) -> None:
    """Padding and times of headers may change; whatever is read is right."""
    whole = bundle.read_bytes()
    for at in range(0, len(whole), 37):
        bundle.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            package = opened(bundle, key)
        except RequestInvalid:
            continue
        assert package.contents == contents_with_files(package)
        try:
            verified(package)
        except RequestInvalid:
            continue


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no tar archive"),
        (b"nothing of the kind" * 100, "no tar archive"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "it is compressed; first: gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "it is compressed; first: zstd -d"),
        (bytes(10240), "without files"),
    ],
    ids=["empty", "text", "gzip", "zstd", "zeros"],
)
def test_what_is_no_archive_says_so(tmp_path: Path, body: bytes, words: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(body)
    with pytest.raises(RequestInvalid, match=words):
        open_package(path, None, Naming())


@pytest.mark.parametrize("size", [-1024, 200 * 1024 * 1024])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_wrong_size_is_not_read(tmp_path: Path, kind: bytes, size: int) -> None:
    member = tarfile.TarInfo("header")
    member.type, member.size = kind, size
    path = tmp_path / "x.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 256 * 1024 * 1024)
    tracemalloc.start()
    try:
        with pytest.raises(RequestInvalid, match="a damaged one"):
            open_package(path, None, Naming())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


@pytest.mark.parametrize(
    "wrong",
    [{"blobs": ["x"]}, {"links": []}, {"tags": [5]}, {"files": 5}, {"created_at": 10**400}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_contents_of_another_shape_are_refused(wrong: dict[str, object]) -> None:
    document = json.loads(contents().to_json())
    with pytest.raises(RequestInvalid):
        parse(json.dumps(document | wrong).encode())


@pytest.mark.parametrize("named", ["tags", "links"])
def test_contents_name_no_other_content_than_they_list(named: str) -> None:
    document = json.loads(contents().to_json())
    other = {"tags": [], "links": {}}
    with pytest.raises(RequestInvalid, match="is named and not among the blobs"):
        parse(json.dumps(document | other | {"blobs": [], named: document[named]}).encode())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"version": 1', b'"version": 2', "a newer Millpond wrote it"),
        (b'"millpond-bundle"', b'"something else"', "not the contents file of a bundle"),
        (b'"size": ', b'"size": -', "is no size"),
        (b"docker.io/library/one:1", b"docker.io/library/ONE:1", "is not a repository name"),
        (b"docker.io/library/one:1", b"one:1", "has no registry"),
        (b'"checked_at": 1.0', b'"checked_at": -1', "is no time"),
        (b'"checked_at": 1.0', b'"checked_at": 1' + b"0" * 400, "too large"),
        (b'"blobs": [', b'"blobs": [1,', "an entry is no object"),
        (b'"tags"', b'"tugs"', "'tags' is missing"),
    ],
)
def test_contents_that_make_no_sense_are_refused(
    tmp_path: Path, key: Path, old: bytes, new: bytes, words: str
) -> None:
    text = contents().to_json()
    assert old in text
    text = text.replace(old, new)
    sink = open_sink(str(tmp_path / "x.tar"), None)
    put(sink, NAME, text)
    put(sink, SIGNATURE, signatures.sign(text, signatures.read_private_key(key)).encode())
    sink.finish()
    with pytest.raises(RequestInvalid, match=words):
        opened(tmp_path / "x.tar", key)
