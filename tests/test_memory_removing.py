"""A model's files in the Hugging Face cache, deleted: which, and what is left where that fails."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from taskrouter.errors import CheckpointMissing, FilesNotDownloaded, FilesShared, RemovalFailed
from taskrouter.memory.hub import locate, locate_gguf, on_hub
from taskrouter.memory.removing import Deletion, Needed, plan
from tests.hub_cache import CONFIG, TOKENIZER, HubCache, commit, disk_fails, use, weights

TINY = "org/tiny"
REF = 40
WHOLE = len(CONFIG) + len(TOKENIZER) + len(weights(1000)) + REF


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    found = HubCache(tmp_path / "hub")
    use(found, monkeypatch)
    return found


def is_there(cache: HubCache, revision: str | None = None) -> bool:
    """What a preflight finds."""
    try:
        locate(TINY, revision=revision, base_dir=cache.folder.parent)
    except CheckpointMissing:
        return False
    return True


def test_all_of_a_repository_goes_and_nothing_of_another(cache: HubCache) -> None:
    cache.model("org/other", "c", "main")
    before = cache.files()
    cache.model(TINY, "a", "main")
    found = plan(TINY)
    assert (found.repo, found.revisions, found.kept, found.bytes) == (TINY, (commit("a"),), (), WHOLE)
    assert is_there(cache), "a plan deletes nothing"
    found.execute()
    assert cache.files() == before
    assert not is_there(cache)
    assert plan(TINY) == Deletion(TINY)


def test_what_another_revision_uses_as_well_stays(cache: HubCache) -> None:
    cache.model(TINY, "a", "v1")
    kept = cache.files()
    cache.model(TINY, "b", "main", values=2000)
    found = plan(TINY, "main")
    assert (found.revisions, found.kept, found.bytes) == ((commit("b"),), (commit("a"),), len(weights(2000)))
    found.execute()
    assert cache.files() == kept
    assert (is_there(cache, "v1"), is_there(cache)) == (True, False)


def test_who_names_no_revision_loses_all_but_what_others_name(cache: HubCache) -> None:
    for letter, values, refs in (("a", 1000, ("v1",)), ("b", 2000, ()), ("c", 3000, ("main",))):
        cache.model(TINY, letter, *refs, values=values)
    found = plan(TINY, None, [Needed("say/old", "v1"), Needed("say/gone", "v0")])
    assert (found.revisions, found.kept) == ((commit("b"), commit("c")), (commit("a"),))
    assert found.bytes == len(weights(2000)) + len(weights(3000))
    found.execute()
    assert is_there(cache, "v1")


@pytest.mark.parametrize(
    ("own", "others", "named"),
    [
        (None, [Needed("a/b")], ["a/b"]),
        (None, [Needed("a/b", "main"), Needed("c/d", commit("a")), Needed("e/f", "v1")], ["a/b", "c/d"]),
        ("main", [Needed("a/b")], ["a/b"]),
        ("v1", [Needed("a/b", anything=True)], ["a/b"]),
        (commit("b"), [Needed("a/b", "v1")], ["a/b"]),
    ],
)
def test_what_others_need_is_refused_naming_them(
    cache: HubCache, own: str | None, others: list[Needed], named: list[str]
) -> None:
    cache.model(TINY, "a", "main")
    cache.model(TINY, "b", "v1", values=2000)
    with pytest.raises(FilesShared, match=f"org/tiny are needed by {', '.join(named)}, too; nothing was deleted"):
        plan(TINY, own, others)


def test_what_is_not_in_the_cache_is_no_error(cache: HubCache) -> None:
    others = [Needed("a/b", anything=True)]
    assert plan(TINY, None, others) == Deletion(TINY)
    cache.model(TINY, "a", "main")
    found = plan(TINY, "v9")
    assert (found.revisions, found.kept, found.bytes) == ((), (commit("a"),), 0)
    found.execute()
    assert is_there(cache)


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    for place in (tmp_path / "nowhere", tmp_path / "file"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
        assert plan(TINY) == Deletion(TINY)
        (tmp_path / "file").touch()


def test_a_repository_that_is_a_link_to_elsewhere_is_left_alone(cache: HubCache, tmp_path: Path) -> None:
    cache.model(TINY, "a", "main")
    cache.repo(TINY).rename(tmp_path / "mine")
    cache.repo(TINY).symlink_to(tmp_path / "mine")
    with pytest.raises(FilesNotDownloaded, match="models--org--tiny in the Hugging Face cache is a link"):
        plan(TINY)
    assert is_there(cache)


def test_a_deletion_that_is_cut_off_at_any_point_leaves_no_half_and_is_finished_by_the_next(cache: HubCache) -> None:
    def whole(after: int) -> int:
        cache.model(TINY, "a", "main")
        cache.model(TINY, "b", "v1", values=2000)
        found = plan(TINY)
        with disk_fails(after, OSError(errno.EIO, "Input/output error")) as asked:
            if after >= 100:
                found.execute()
                return len(asked)
            with pytest.raises(
                RemovalFailed, match=r"models--org--tiny.* could not be deleted \(Input/output"
            ) as caught:
                found.execute()
        freed = caught.value.freed_bytes
        assert ("nothing was deleted" in str(caught.value)) == (after == 0)
        assert str(cache.folder) not in str(caught.value)
        assert is_there(cache) == (after == 0)
        assert is_there(cache, "v1") == (after <= 1)
        again = plan(TINY)
        assert freed + again.bytes == found.bytes
        again.execute()
        assert cache.files() == set()
        return 0

    steps = whole(100)
    assert steps > 15
    for after in range(steps):
        whole(after)


def test_one_revision_is_deleted_in_an_order_that_leaves_no_half(cache: HubCache) -> None:
    for after in range(6):
        cache.model(TINY, "a", "main")
        kept = cache.files()
        cache.model(TINY, "b", "v1", values=2000)
        with disk_fails(after, OSError(errno.EROFS, "Read-only file system")), pytest.raises(RemovalFailed):
            plan(TINY, "v1").execute()
        assert is_there(cache)
        assert kept <= cache.files()
        assert is_there(cache, "v1") == (after == 0)
        plan(TINY).execute()
        assert cache.files() == set()


def test_a_file_of_gguf_is_the_first_to_go(cache: HubCache) -> None:
    cache.add(TINY, "a", {"README.md": b"hello", "tiny-q4.gguf": b"GGUF"}, "main")
    with disk_fails(1, OSError(errno.EIO, "Input/output error")) as asked, pytest.raises(RemovalFailed):
        plan(TINY).execute()
    assert asked[0].endswith("tiny-q4.gguf")
    with pytest.raises(CheckpointMissing):
        locate_gguf(TINY, "tiny-q4.gguf", base_dir=cache.folder.parent)


def test_a_denial_that_the_library_only_logs_is_an_error(cache: HubCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.model(TINY, "a", "main")
    caplog.set_level(logging.CRITICAL)
    denied, told = PermissionError(errno.EACCES, "Permission denied"), r"models--org--tiny/\S+ .*permission denied"
    with disk_fails(1, denied), pytest.raises(RemovalFailed, match=told) as caught:
        plan(TINY).execute()
    assert caught.value.freed_bytes == 0
    assert not is_there(cache)


def test_a_folder_that_can_not_be_written_to_is_found_out_before_anything_goes(
    cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.model(TINY, "a", "main")
    before, closed = cache.files(), cache.repo(TINY) / "blobs"

    def access(path: Path, mode: int) -> bool:
        return not (mode & os.W_OK and Path(path) == closed)  # root may write anywhere

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(RemovalFailed, match=r"tiny/blobs .*can't be written to.*; nothing was deleted"):
        plan(TINY).execute()
    assert cache.files() == before


def test_what_vanishes_meanwhile_is_no_harm_and_what_comes_is_told(cache: HubCache) -> None:
    cache.model(TINY, "a", "main")
    cache.model(TINY, "b", "v1", values=2000)
    found = plan(TINY, "v1")
    (cache.repo(TINY) / "refs" / "v1").unlink()
    found.execute()
    assert is_there(cache)
    assert not cache.snapshot(TINY, "b").exists()


def test_of_a_damaged_repository_only_all_can_go(cache: HubCache) -> None:
    cache.model(TINY, "a", "main")
    (cache.snapshot(TINY, "a") / "model.safetensors").resolve().unlink()
    with pytest.raises(RemovalFailed, match=r"revision v1: .*damaged \(.*Nothing was deleted") as caught:
        plan(TINY, "v1")
    assert str(cache.folder) not in str(caught.value)
    with pytest.raises(FilesShared, match="a/b"):
        plan(TINY, None, [Needed("a/b", "v2")])
    found = plan(TINY)
    assert (found.revisions, found.bytes) == ((commit("a"),), len(CONFIG) + len(TOKENIZER) + REF)
    found.execute()
    assert cache.files() == set()


def test_what_a_deletion_left_without_any_snapshot_goes_with_the_next(cache: HubCache) -> None:
    cache.model(TINY, "a", "main")
    for path in [*cache.snapshot(TINY, "a").iterdir(), cache.repo(TINY) / "refs" / "main"]:
        path.unlink()
    cache.snapshot(TINY, "a").rmdir()
    found = plan(TINY)
    assert (found.revisions, found.bytes) == ((), WHOLE - REF)
    found.execute()
    assert cache.files() == set()


def test_a_cache_that_can_not_be_read_says_so(cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def scan(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", scan)
    with pytest.raises(RemovalFailed, match=r"can't be read .Permission denied.; nothing was deleted"):
        plan(TINY)


def test_what_is_a_hub_id_and_what_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "tiny").mkdir()
    assert on_hub("org/other", tmp_path)
    assert on_hub("gpt2", tmp_path)
    for path in ("org/tiny", "./org/other", "/org/other", "~/tiny", "a/b/c", "../x/y"):
        assert not on_hub(path, tmp_path)
