import gc
import mmap
from pathlib import Path

from igniterd.resident import _clean, collect_rarely, trim_rss

SIZE = 32 * 2**20


def test_pages_of_a_file_that_were_only_read_are_given_back_and_can_be_read_again(
    tmp_path: Path,
) -> None:
    content = bytes(range(256)) * (SIZE // 256)
    (tmp_path / "file").write_bytes(content)
    with (
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] == content
        assert trim_rss() > SIZE // 2
        assert mapped[:] == content


def test_what_was_written_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"file" * 1024)
    with (tmp_path / "file").open("rb") as file:
        private = mmap.mmap(
            file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    private[:4] = b"ours"
    trim_rss()
    assert private[:8] == b"oursfile"
    private.close()


SMAPS = """\
7f0000000000-7f0000004000 r-xp 00000000 00:00 1 /usr/lib/code.so
Rss:                  16 kB
Anonymous:             0 kB
Swap:                  0 kB
7f0000004000-7f0000008000 r-xp 00000000 00:00 1 /usr/lib/with a breakpoint.so
Anonymous:             4 kB
7f0000008000-7f000000c000 r--p 00004000 00:00 1 /usr/lib/relocated.so
Anonymous:            16 kB
7f0000008000-7f000000c000 r--p 00004000 00:00 1 /usr/lib/relocated and swapped.so
Anonymous:             0 kB
Swap:                 16 kB
7f000000c000-7f0000010000 rw-p 00008000 00:00 1 /usr/lib/data.so
Anonymous:             0 kB
7f0000010000-7f0000014000 r--s 00000000 00:00 2 /var/shared
Anonymous:             0 kB
7f0000014000-7f0000018000 r--p 00000000 00:00 3 /dev/nvidia0
Anonymous:             0 kB
7f0000018000-7f000001c000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f000001c000-7f0000020000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
7f0000020000-7f0000024000 r--p 00000000 00:00 4 /usr/lib/constants of code.so (deleted)
Anonymous:             0 kB
"""


def test_only_what_is_the_same_in_its_file_is_given_back() -> None:
    assert list(_clean(SMAPS)) == [
        (0x7F0000000000, 0x7F0000004000),
        (0x7F0000020000, 0x7F0000024000),
    ]


def test_a_process_that_collects_rarely_still_collects() -> None:
    before = gc.get_threshold()
    try:
        collect_rarely()
        assert all(now > was > 0 for now, was in zip(gc.get_threshold(), before, strict=True))
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
