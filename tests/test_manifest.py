"""Manifests of every kind, here and in a bucket: which rows, where they lie, what is refused."""

import csv
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from tests.memory_files import FlakyFileSystem, memory_files
from tpu import listing
from tpu.locations import absolute, folder_of, is_url, join, schemes_of, suffix_of
from tpu.manifest import RESULT_COLUMNS, ManifestError, read_manifest
from videomae_jax.tables import TableError, csv_table, text_table

VIDEOS = ["clips/Z.MP4", "clips/a b.mp4", "clips/deep/er/x.webm", "clips/ü.mov"]
OTHERS = ["clips/notes.txt", "clips/.hidden.mp4", "clips/.cache/x.mp4", "clips/mp4"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a folder of clips."""
    for name in (*VIDEOS, *OTHERS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bucket():
    with memory_files({f"/{name}": b"video" for name in (*VIDEOS, *OTHERS)}):
        yield "memory://"


def write(path, content):
    """A file here or in the bucket, as bytes, text, or a table for Parquet."""
    if isinstance(content, pa.Table):
        sink = io.BytesIO()
        pq.write_table(content, sink)
        content = sink.getvalue()
    elif isinstance(content, str):
        content = content.encode()
    if is_url(str(path)):
        import fsspec

        with fsspec.open(path, "wb") as file:
            file.write(content)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    return str(path)


def paths_of(source, **options):
    return read_manifest(str(source), **options).table["path"].to_pylist()


# Folders and globs


def test_a_folder_is_its_videos(here):
    manifest = read_manifest("clips")
    assert manifest.table["path"].to_pylist() == VIDEOS
    assert [manifest.location(row) for row in range(len(manifest))] == [
        str(here / name) for name in VIDEOS
    ]
    assert manifest.table.schema == pa.schema([("path", pa.string())])


@pytest.mark.parametrize("written", ["clips/", "./clips", "{here}/clips", "file://{here}/clips"])
def test_paths_begin_as_the_folder_is_written(here, written):
    written = written.format(here=here)
    assert paths_of(written) == [f"{written.rstrip('/')}/{name[6:]}" for name in VIDEOS]
    manifest = read_manifest(written)
    assert os.path.exists(manifest.location(0).removeprefix("file://"))


def test_the_current_directory(here):
    assert paths_of(".") == [f"./{name}" for name in VIDEOS]


def test_a_folder_in_a_bucket(bucket):
    manifest = read_manifest("memory://clips")
    assert manifest.table["path"].to_pylist() == [f"memory://{name}" for name in VIDEOS]
    assert manifest.location(0) == "memory://clips/Z.MP4"


def test_links_are_followed_but_not_round(here):
    (here / "elsewhere").mkdir()
    (here / "elsewhere/far.mp4").touch()
    (here / "clips/link").symlink_to(here / "elsewhere")
    (here / "clips/deep/up").symlink_to(here / "clips")
    assert paths_of("clips") == sorted([*VIDEOS, "clips/link/far.mp4"])


def test_the_order_is_that_of_code_points(here):
    names = ["clips/B.mp4", "clips/\U0001f600.mp4", "clips/\uff21.mp4", "clips/b.mp4"]
    for name in names:
        (here / name).touch()
    assert paths_of("clips") == sorted([*VIDEOS, *names])


def test_many_files_come_in_portions(here, monkeypatch):
    monkeypatch.setattr(listing, "PORTION", 3)
    assert paths_of("clips") == VIDEOS


GLOBS = {
    "clips/*.mp4": ["clips/a b.mp4"],
    "clips/**/*.webm": ["clips/deep/er/x.webm"],
    "clips/**/*.mp4": ["clips/a b.mp4"],
    "clips/*": ["clips/Z.MP4", "clips/a b.mp4", "clips/ü.mov"],
    "clips/*.*": ["clips/Z.MP4", "clips/a b.mp4", "clips/ü.mov"],
    "clips/**": VIDEOS,
    "clips/*/*/?.webm": ["clips/deep/er/x.webm"],
    "cl[h-j]ps/[!a-z]*": ["clips/Z.MP4", "clips/ü.mov"],
    "clips/n*.txt": ["clips/notes.txt"],
}


@pytest.mark.parametrize("pattern", GLOBS)
def test_globs(here, pattern):
    assert paths_of(pattern) == GLOBS[pattern]
    assert paths_of(here / pattern) == [str(here / name) for name in GLOBS[pattern]]


@pytest.mark.parametrize("pattern", GLOBS)
def test_globs_in_a_bucket(bucket, pattern):
    assert paths_of(bucket + pattern) == [bucket + name for name in GLOBS[pattern]]


def test_a_glob_looks_no_deeper_than_it_says(here, monkeypatch):
    seen = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or scan(path))
    paths_of("clips/*.mp4")
    assert seen == ["clips/"]


def test_a_name_with_brackets_is_a_name_first(here):
    (here / "clips [x]").mkdir()
    (here / "clips [x]" / "a*.mp4").touch()
    assert paths_of("clips [x]") == ["clips [x]/a*.mp4"]
    assert paths_of("clips [x]/a*.mp4") == ["clips [x]/a*.mp4"]


def test_one_video(here, bucket):
    assert paths_of("clips/a b.mp4") == ["clips/a b.mp4"]
    assert paths_of("memory://clips/Z.MP4") == ["memory://clips/Z.MP4"]


# Text


def test_text_is_a_path_a_line(here):
    write("list.txt", "\ufeffa b.mp4 \r\n\r\n \t\n\"q\",'x'.mp4\n#c.mp4\n\n/abs.mp4\na b.mp4 ")
    manifest = read_manifest("list.txt")
    expected = ["a b.mp4 ", "\"q\",'x'.mp4", "#c.mp4", "/abs.mp4", "a b.mp4 "]
    assert manifest.table["path"].to_pylist() == expected
    assert manifest.location(0) == str(here / "a b.mp4 ")
    assert manifest.location(3) == "/abs.mp4"


@pytest.mark.parametrize("suffix", [".txt", ".lst", ".list", ".files", ""])
def test_any_other_suffix_is_text(here, suffix):
    assert paths_of(write(f"list{suffix}", "one.mp4\ntwo.mp4")) == ["one.mp4", "two.mp4"]


LINES = st.lists(st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=6))


@hypothesis.given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_text_is_read_as_python_reads_it(lines, end, last, marked):
    text = end.join(lines) + end * last
    found = text_table(text.encode("utf-8-sig" if marked else "utf-8"))["path"].to_pylist()
    if not marked:
        text = text.removeprefix("\ufeff")
    assert found == [line for line in text.split(end) if re.search(r"[^ \t\f\v]", line)]


def test_a_list_may_come_from_a_pipe(here):
    root = Path(__file__).parents[1]
    code = "import sys; from tpu.manifest import read_manifest as r; print(len(r(sys.argv[1])))"
    command = f"{sys.executable} -c '{code}' <(printf '/a.mp4\\n/b.mp4\\n')"
    found = subprocess.run(
        ["bash", "-c", command], cwd=root, capture_output=True, text=True, check=False
    )
    assert found.stdout == "2\n", found.stderr


# CSV


def test_csv_columns_pass_through(here):
    write("list.csv", 'n,path,text,x\n1,a.mp4,"one, ""two""\nthree",0.5\n,b.mp4,,2\n')
    table = read_manifest("list.csv").table
    assert table.schema == pa.schema(
        [("path", pa.string()), ("n", pa.int64()), ("text", pa.string()), ("x", pa.float64())]
    )
    assert table.to_pylist() == [
        {"path": "a.mp4", "n": 1, "text": 'one, "two"\nthree', "x": 0.5},
        {"path": "b.mp4", "n": None, "text": "", "x": 2.0},
    ]


def test_tabs_separate_in_tsv(here):
    write("list.tsv", "\ufeffpath\tlabel\r\na, b.mp4\tx\r\n")
    assert read_manifest("list.tsv").table.to_pylist() == [{"path": "a, b.mp4", "label": "x"}]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["0", "-7", "999999999999999999"], pa.int64()),
        (["007"], pa.string()),
        (["1234567890123456789"], pa.string()),
        (["+1"], pa.string()),
        (["-0"], pa.float64()),
        (["1", "2.50", "1e-05", ""], pa.float64()),
        (["1234567890123456.5"], pa.string()),
        (["nan"], pa.string()),
        (["true"], pa.string()),
        (["2024-01-01"], pa.string()),
        (["NA", "null", ""], pa.string()),
        (["", ""], pa.string()),
    ],
)
def test_a_column_is_numbers_where_that_loses_nothing(values, kind):
    text = "path,x\n" + "".join(f"a.mp4,{value}\n" for value in values)
    column = csv_table(text.encode(), ",")["x"]
    assert column.type == kind
    read = {pa.int64(): int, pa.float64(): float, pa.string(): str}[kind]
    blank = "" if kind == pa.string() else None
    assert column.to_pylist() == [read(value) if value else blank for value in values]


def test_a_late_word_makes_a_column_text():
    # Megabytes after the reader could have made up its mind.
    text = "path,x\n" + "some/long/path/to/a/video.mp4,1\n" * 100_000 + "a.mp4,one\n"
    column = csv_table(text.encode(), ",")["x"]
    assert column.type == pa.string()
    assert column[-1].as_py() == "one"


def test_a_cell_of_several_lines_may_lie_anywhere():
    # Also across the end of what is parsed at a time, a megabyte.
    cell = "many words,\n" * 50
    text = "path,x\n" + f'a.mp4,"{cell}"\n' * 4_000
    column = csv_table(text.encode(), ",")["x"]
    assert column.unique().to_pylist() == [cell]
    assert len(column) == 4_000


CELLS = st.text(st.characters(exclude_characters="\0\r", codec="utf-8"), max_size=5)


@hypothesis.given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
def test_csv_is_read_as_python_wrote_it(rows):
    sink = io.StringIO()
    csv.writer(sink).writerows([("path", "x"), *rows])
    table = csv_table(sink.getvalue().encode(), ",")
    assert table["path"].to_pylist() == [path for path, _ in rows]
    if table["x"].type == pa.string():
        assert table["x"].to_pylist() == [cell for _, cell in rows]


# Parquet

TABLE = pa.table({"label": [3, None], "path": ["a.mp4", "/b.mp4"], "tags": [["x"], []]})


def test_parquet_columns_keep_their_types(here):
    write("list.parquet", TABLE)
    manifest = read_manifest("list.parquet")
    assert manifest.table.equals(TABLE.select(["path", "label", "tags"]))
    assert manifest.location(0) == str(here / "a.mp4")


def test_how_strings_are_stored_is_no_type(here):
    kinds = [pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.string()]
    found = []
    for kind in kinds:
        table = TABLE.set_column(1, "path", TABLE["path"].cast(kind))
        found.append(read_manifest(write("list.parquet", table)))
    assert len({manifest.digest for manifest in found}) == 1
    assert all(manifest.table["path"].type == pa.string() for manifest in found)


@pytest.mark.parametrize("source", ["parts", "parts/*.parquet", "pa*/*.parquet", "{here}/parts"])
def test_parquet_files_follow_one_another(here, source):
    write("parts/deep/.x.parquet", b"not this one")
    write("parts/2.parquet", TABLE.slice(1))
    write("parts/1.parquet", TABLE.slice(0, 1))
    manifest = read_manifest(source.format(here=here))
    assert manifest.table.equals(TABLE.select(["path", "label", "tags"]))
    assert manifest.location(0) == str(here / ("a.mp4" if source[:3] == "pa*" else "parts/a.mp4"))


def test_parquet_files_in_a_bucket(bucket):
    write("memory://parts/1.parquet", TABLE)
    write("memory://parts/2.parquet", TABLE)
    for source in ("memory://parts", "memory://parts/*.parquet"):
        manifest = read_manifest(source)
        assert len(manifest) == 4
        assert manifest.location(2) == "memory://parts/a.mp4"
        assert manifest.location(3) == "/b.mp4"


def test_a_folder_of_videos_beside_a_parquet_file_is_videos(here):
    write("clips/list.parquet", TABLE)
    assert paths_of("clips") == VIDEOS


def test_files_after_the_limit_are_not_read(here):
    write("parts/1.parquet", TABLE)
    write("parts/2.parquet", b"damaged")
    assert paths_of("parts", limit=2) == ["a.mp4", "/b.mp4"]
    with pytest.raises(ManifestError, match=r"parts: parts/2\.parquet is no Parquet file"):
        read_manifest("parts", limit=3)


def test_files_with_other_columns_are_refused(here):
    write("parts/1.parquet", TABLE)
    write("parts/2.parquet", TABLE.drop_columns(["label"]))
    with pytest.raises(ManifestError, match=r"parts/2\.parquet has other columns than parts/1"):
        read_manifest("parts")


# Roots and locations


def test_relative_paths_are_meant_from_where_the_manifest_lies(here, monkeypatch):
    write("lists/list.txt", "../clips/a b.mp4\n/x.mp4\ngs+none://x\n".replace("gs+none", "memory"))
    locations = [f"{here}/lists/../clips/a b.mp4", "/x.mp4", "memory://x"]
    first = read_manifest("lists/list.txt")
    monkeypatch.chdir(here / "clips")
    second = read_manifest(f"{here}/lists/list.txt")
    third = read_manifest("../lists/list.txt")
    assert first.digest == second.digest == third.digest
    assert [second.location(row) for row in range(3)] == locations


def test_a_root_goes_before_relative_paths(here, bucket):
    write("lists/list.csv", "path\nZ.MP4\n../x.mp4\n")
    found = {}
    for root in ("clips", "clips/", f"{here}/clips", "memory://clips", "memory://clips/"):
        manifest = read_manifest("lists/list.csv", root=root)
        found[root] = manifest.digest
    assert len(set(found.values())) == 2
    assert manifest.location(0) == "memory://clips/Z.MP4"
    assert manifest.location(1) == "memory://x.mp4"
    assert read_manifest("lists/list.csv", root="clips").location(0) == str(here / "clips/Z.MP4")


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.parquet"])
def test_manifests_in_a_bucket(bucket, name):
    contents = {".txt": "one.mp4\n/two.mp4\n", ".csv": "path\none.mp4\n/two.mp4\n"}
    table = pa.table({"path": ["one.mp4", "/two.mp4"]})
    source = write(f"memory://lists/{name}", contents.get(Path(name).suffix, table))
    manifest = read_manifest(source)
    assert manifest.location(0) == "memory://lists/one.mp4"
    assert manifest.location(1) == "/two.mp4"
    # One content, one digest, whatever held it.
    write("memory://lists/other.parquet", table)
    assert manifest.digest == read_manifest("memory://lists/other.parquet").digest


def test_a_manifest_in_an_archive(here, bucket):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("lists/list.txt", "a.mp4\n../b.mp4\n")
        archive.writestr("videos/c.mp4", b"")
    write("memory://pack.zip", sink.getvalue())
    manifest = read_manifest("zip://lists/list.txt::memory://pack.zip")
    assert manifest.location(0) == "zip://lists/a.mp4::memory://pack.zip"
    assert manifest.location(1) == "zip://b.mp4::memory://pack.zip"
    assert paths_of("zip://videos::memory://pack.zip") == ["zip://videos/c.mp4::memory://pack.zip"]
    assert paths_of("zip://*/*.mp4::memory://pack.zip") == ["zip://videos/c.mp4::memory://pack.zip"]


def test_the_current_directory_is_asked_for(here):
    source = write("lists/list.txt", "/abs.mp4\nclips/a b.mp4\n")
    message = "a b.mp4 is not in .*lists but in the current directory; say --root ."
    with pytest.raises(ManifestError, match=message):
        read_manifest(source)
    assert read_manifest(source, root=".").location(1) == str(here / "clips/a b.mp4")
    # There in both: the manifest's own folder is as good as it says.
    write("lists/clips/a b.mp4", "")
    assert read_manifest(source).root == str(here / "lists")


def test_no_video_is_looked_for(here):
    assert len(read_manifest(write("list.txt", "nowhere.mp4\n/none.mp4\n"))) == 2


@pytest.mark.parametrize(
    ("folder", "path", "joined"),
    [
        ("/data", "a.mp4", "/data/a.mp4"),
        ("/data", "../a.mp4", "/data/../a.mp4"),
        ("/data", "/a.mp4", "/a.mp4"),
        ("", "clips/a.mp4", "clips/a.mp4"),
        ("/data", "s3://b/a.mp4", "s3://b/a.mp4"),
        ("gs://b", "a.mp4", "gs://b/a.mp4"),
        ("gs://b/c", "./d/../../e//a.mp4", "gs://b/e/a.mp4"),
        ("gs://b/c", "x//a..mp4", "gs://b/c/x//a..mp4"),
        ("simplecache::gs://b/c", "../a.mp4", "simplecache::gs://b/a.mp4"),
        ("zip://in::gs://b/x.zip", "a.mp4", "zip://in/a.mp4::gs://b/x.zip"),
    ],
)
def test_join(folder, path, joined):
    assert join(folder, path) == joined


@pytest.mark.parametrize(
    ("location", "folder", "suffix"),
    [
        ("/data/x.TXT", "/data", ".txt"),
        ("gs://b/c/x.csv", "gs://b/c", ".csv"),
        ("gs://x.csv", "gs://", ".csv"),
        ("https://host/c/x.csv?token=a/b.txt", "https://host/c", ".csv"),
        ("gs://b/what?.csv", "gs://b", ".csv"),
        ("zip://c/x.csv::gs://b/x.zip", "zip://c::gs://b/x.zip", ".csv"),
        ("file:///data/x", "/data", ""),
        ("/a.b/c", "/a.b", ""),
    ],
)
def test_parts_of_a_location(location, folder, suffix):
    assert folder_of(location) == folder
    assert suffix_of(location) == suffix


def test_roots_are_absolute(here):
    assert absolute(".") == str(here)
    assert absolute("gs://b/c/") == "gs://b/c"
    assert absolute("file:///x/") == "/x"


def test_schemes():
    assert schemes_of("simplecache::gs://b/x") == ["simplecache", "gs"]
    assert schemes_of("zip://a::gs://b/x") == ["zip", "gs"]
    assert schemes_of("/a::b") == []


# The digest


def test_the_digest_is_of_rows_and_root(here):
    base = read_manifest(write("list.csv", "path,n\na.mp4,1\nb.mp4,2\n"))
    same = read_manifest(write("list.tsv", 'path\tn\r\n"a.mp4"\t1\r\nb.mp4\t2'))
    assert base.digest == same.digest
    others = [
        read_manifest(write("list.csv", "path,n\nb.mp4,2\na.mp4,1\n")),
        read_manifest(write("list.csv", "path,n\na.mp4,1\n")),
        read_manifest(write("list.csv", "path,m\na.mp4,1\nb.mp4,2\n")),
        read_manifest(write("list.csv", "path,n\na.mp4,1\nb.mp4,x\n")),
        read_manifest("list.tsv", root="clips"),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6
    assert re.fullmatch("[0-9a-f]{64}", base.digest)


def test_the_limit_is_as_good_as_a_shorter_manifest(here):
    long = read_manifest(write("list.txt", "a.mp4\n\nb.mp4\nc.mp4\n"), limit=2)
    short = read_manifest(write("list.txt", "a.mp4\nb.mp4\n"), limit=9)
    assert long.table["path"].to_pylist() == ["a.mp4", "b.mp4"]
    assert long.digest == short.digest


def test_an_absolute_folder_is_the_same_from_everywhere(here, monkeypatch):
    first = read_manifest(str(here / "clips")).digest
    monkeypatch.chdir("/")
    assert read_manifest(str(here / "clips")).digest == first


def test_paths_may_repeat(here):
    assert paths_of(write("list.txt", "a.mp4\na.mp4\n")) == ["a.mp4", "a.mp4"]


# What is refused

REFUSED = {
    "no rows": ("x.txt", "\n \n\r\n", "x.txt: has no rows"),
    "empty": ("x.csv", "", "x.csv: is empty"),
    "header only": ("x.csv", "path,label\n", "x.csv: has no rows"),
    "no rows in Parquet": ("x.parquet", TABLE.slice(0, 0), "x.parquet: has no rows"),
    "no path": ("x.csv", "file,label\na,b\n", r"no column `path` \(but file, label\); name the"),
    "another case": ("x.csv", "Path\na\n", r"no column `path` \(but Path\)"),
    "an empty path": ("x.csv", "path,n\na,1\n ,2\n", r"row 1 \(the first is 0\) has no path but"),
    "a null": ("x.parquet", pa.table({"path": ["a", None]}), r"row 1 .* has no path but None"),
    "byte 0": ("x.parquet", pa.table({"path": ["a\0b"]}), r"row 0 .* but 'a\\x00b'"),
    "numbers": ("x.parquet", pa.table({"path": [1]}), "column `path` must be text, is int64"),
    "twice": ("x.csv", "path,a,a\nx,1,2\n", "has several columns `a`; rename"),
    "twice but for case": ("x.csv", "path,ID,id\nx,1,2\n", "has several columns `ID`"),
    "no name": ("x.csv", ",path\n0,x\n", "column 1 has no name; name it, or leave out the index"),
    "ragged": ("x.csv", "path,n\na,1\nb\n", "x.csv: can't be parsed .*Expected 2 columns, got 1"),
    "Latin-1": ("x.txt", b"a.mp4\n\xfc.mp4\n", r"x.txt: is not UTF-8 \(line 2\); save it as UTF-8"),
    "Latin-1 CSV": ("x.csv", b"path\na\n\xfc\n", r"x.csv: is not UTF-8 \(line 3\)"),
    "Latin-1 header": ("x.csv", b"path,\xfc\na,b\n", r"x.csv: is not UTF-8 \(line 1\)"),
    "UTF-16": ("x.txt", "a.mp4\n".encode("utf-16"), "x.txt: is no text"),
    "UTF-16 CSV": ("x.csv", "path\na.mp4\n".encode("utf-16"), r"x.csv: is not UTF-8 \(line 1\)"),
    "a video by another name": ("x.txt", b"\0\0\0 ftypisom", "x.txt: is no text"),
    "no Parquet": ("x.parquet", b"PAR1 not", "x.parquet: is no Parquet file that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("place", ["", "memory://lists/"])
def test_refused(here, bucket, case, place):
    name, content, message = REFUSED[case]
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(write(place + name, content))
    assert str(caught.value).startswith(place + name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", [*sorted(RESULT_COLUMNS), "Error"])
def test_columns_of_the_results_are_refused(here, column):
    source = write("x.parquet", pa.table({"path": ["a"], column: [1]}))
    with pytest.raises(ManifestError, match=f"`{column}` would stand in the results twice; rename"):
        read_manifest(source)


def test_two_columns_of_one_name_in_parquet(here):
    table = pa.table([["a"], [1], [2]], names=["path", "x", "x"])
    with pytest.raises(ManifestError, match="has several columns `x`"):
        read_manifest(write("x.parquet", table))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.txt", r"^missing.txt: doesn't exist; check the path$"),
        ("missing/*.mp4", r"missing/\*.mp4: doesn't exist; check the path"),
        ("clips/*.xyz", r"clips/\*.xyz: has no videos"),
        ("clips/none", "clips/none: doesn't exist"),
        ("empty", "empty: has no videos"),
        ("memory://missing.csv", "memory://missing.csv: doesn't exist"),
        ("memory://clips/*.xyz", r"clips/\*.xyz: has no videos"),
        ("clips/notes.txt/x", r"can't be read \(NotADirectoryError: Not a directory: clips/notes"),
        ("nosuch://b/x.txt", "^nosuch:// is no scheme that fsspec knows; check it$"),
        ("zip://a.txt::nosuch://b", "^nosuch:// is no scheme"),
    ],
)
def test_what_is_not_there(here, bucket, source, message):
    (here / "empty").mkdir()
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(source)
    assert "\n" not in str(caught.value)


def test_fsspec_has_the_code_but_not_what_it_imports(monkeypatch):
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    message = "https:// needs what is not installed; pip install aiohttp"
    with pytest.raises(ManifestError, match=f"^{message}$"):
        read_manifest("https://127.0.0.1/list.txt")


@pytest.mark.parametrize("source", ["gs://bucket/list.txt", "list.txt"])
def test_what_is_not_installed(here, monkeypatch, source):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    write("list.txt", "/a.mp4\ngs://bucket/b.mp4\n")
    with pytest.raises(ManifestError, match=r"^gs:// needs what is not installed; pip install gcs"):
        read_manifest(source)


def test_a_root_needs_what_opens_it(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ManifestError, match="pip install gcsfs"):
        read_manifest(write("list.txt", "a.mp4\n"), root="gs://bucket")


@pytest.mark.parametrize("package", ["fsspec", "pyarrow"])
def test_without_the_extra(here, monkeypatch, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    source = "memory://x.txt" if package == "fsspec" else write("x.txt", "a.mp4\n")
    with pytest.raises(ManifestError, match=re.escape("pip install 'videomae-jax[batch]'")):
        read_manifest(source)


@pytest.mark.parametrize("source", ["clips", "clips/*.mp4", "clips/Z.MP4"])
def test_a_root_is_for_lists(here, source):
    with pytest.raises(ManifestError, match="nothing in it is relative to --root"):
        read_manifest(source, root="x")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(here, limit):
    with pytest.raises(ManifestError, match=f"must be at least 1, got {limit}"):
        read_manifest("clips", limit=limit)


def test_a_name_that_is_no_text(here):
    Path(os.fsdecode(b"clips/\xff.mp4")).touch()
    with pytest.raises(ManifestError, match=r"clips: b'clips/\\xff.mp4' is no name in UTF-8"):
        read_manifest("clips")


def test_a_scheme_has_errors_of_its_own(bucket):
    write("memory://list.txt", "/a.mp4\n")
    with_words = type("NoSuchBucket", (Exception,), {})("There is\nno bucket")
    FlakyFileSystem.errors = [with_words]
    with pytest.raises(ManifestError, match=r"read \(NoSuchBucket: There is no bucket\)$"):
        read_manifest("flaky://list.txt")
    FlakyFileSystem.errors = [PermissionError(13, "Forbidden")]
    with pytest.raises(ManifestError, match=r"\(PermissionError: Forbidden\)$"):
        read_manifest("flaky://list.txt")


def test_a_bucket_in_trouble_is_asked_again(bucket):
    write("memory://list.txt", "/a.mp4\n")
    FlakyFileSystem.errors = [ConnectionResetError("reset")]
    assert paths_of("flaky://list.txt") == ["/a.mp4"]


def test_an_odd_file_is_refused_in_words():
    @hypothesis.given(st.binary(max_size=40))
    def check(content):
        for read in (text_table, lambda content: csv_table(content, ",")):
            try:
                table = read(content)
            except TableError:
                continue
            assert all(isinstance(name, str) for name in table.column_names)
            table.validate(full=True)

    check()
