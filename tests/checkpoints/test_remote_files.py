"""Remote checkpoints equal local ones, and only the ranges that are read are fetched, each once."""

import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import fsspec
import huggingface_hub
import pytest
import torch
import transformers
import zoo
from range_server import RangeServer, serving
from safetensors.torch import load_file, save_file

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.checkpoints import range_cache, remote_files, remote_folder
from embspace_lens.checkpoints.checkpoint import Checkpoint, ranges_of
from embspace_lens.checkpoints.remote_files import RemoteFiles
from embspace_lens.checkpoints.small_files import fetch_small_files
from embspace_lens.weights.booting import boot
from embspace_lens.weights.offloading import boot_offloaded

N_LAYERS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sharded checkpoint of 3.2 MB, whose layers are large beside its headers."""
    path = tmp_path_factory.mktemp("checkpoint")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=zoo.D_VOCAB,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path, max_shard_size="500KB")
    zoo.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def stored(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(remote_files, "PIECE_BYTES", 16_384)


@pytest.fixture
def server(folder) -> Iterator[RangeServer]:
    with serving(folder) as server:
        yield server


def partials(cache: range_cache.RangeCache) -> list[str]:
    return [path.name for path in cache.folder.glob("*/*") if not range_cache.RANGE_NAME.fullmatch(path.name)]


def assert_same(checkpoint: Checkpoint, stored: dict[str, torch.Tensor]) -> None:
    assert checkpoint.keys() == stored.keys()
    assert all(torch.equal(checkpoint[name].read(), tensor) for name, tensor in stored.items())


def assert_each_byte_sent_once(server: RangeServer) -> None:
    for (file, _, stop), (next_file, next_start, _) in pairwise(sorted(server.ranges_sent)):
        assert file != next_file or stop <= next_start


# -- Parameters and bytes


def test_all_parameters_equal_the_stored_ones(server, stored):
    assert_same(Checkpoint.of_url(server.url), stored)


def test_every_fsspec_protocol_is_read_alike(folder, stored):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/hub/model", recursive=True)
    checkpoint = Checkpoint.of_url("memory://hub/model")
    assert_same(checkpoint, stored)
    assert "config.json" in checkpoint.files.names() and "generation_config.json" in checkpoint.files.names()
    assert_same(Checkpoint.of_url(folder.as_uri()), stored)


def test_hub_is_read_by_ranges(server, stored, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url, "token": False})
    checkpoint = Checkpoint.of_url("hf://organisation/model")
    n_bytes = server.n_bytes
    name = "model.layers.3.mlp.up_proj.weight"
    assert torch.equal(checkpoint[name].read(), stored[name])
    assert server.n_bytes - n_bytes == stored[name].nbytes
    assert checkpoint.files.exists("config.json") and not checkpoint.files.exists("absent.json")
    assert "tokenizer.json" in checkpoint.files.names()


def test_nothing_but_headers_is_fetched_until_a_parameter_is_read(server, folder):
    checkpoint = Checkpoint.of_url(server.url)
    headers = sum(8 + int.from_bytes(shard.read_bytes()[:8], "little") for shard in folder.glob("*.safetensors"))
    index = (folder / "model.safetensors.index.json").stat().st_size
    assert server.n_bytes == checkpoint.files.bytes_read == headers + index
    name = "model.layers.3.mlp.up_proj.weight"
    checkpoint[name].read()
    assert server.n_bytes - headers - index == checkpoint[name].numel() * 4


def test_reading_one_layer_fetches_that_layer(server, folder, stored, tmp_path):
    checkpoint = Checkpoint.of_url(server.url)
    headers = server.n_bytes
    local = fetch_small_files(checkpoint.files, tmp_path / "small")
    small = server.n_bytes - headers
    lens = EmbeddingLens(boot_offloaded(str(local), checkpoint))
    expected = EmbeddingLens(boot(str(folder)))
    layer = sum(tensor.nbytes for name, tensor in stored.items() if ".layers.5." in name)
    outside = sum(tensor.nbytes for name, tensor in stored.items() if ".layers." not in name)
    for reading in (
        lambda lens: lens.neurons(layer=5, k=3),
        lambda lens: lens.ov(layer=5, k=3),
        lambda lens: lens.qk(layer=5, k=3),
    ):
        assert reading(lens).equals(reading(expected))
    fetched = server.n_bytes - small - headers
    assert 0 < fetched <= 1.05 * layer + outside
    assert checkpoint.files.bytes_read == server.n_bytes


def test_each_byte_is_fetched_once(server, stored):
    checkpoint = Checkpoint.of_url(server.url, cache=False)
    for name in [*checkpoint, *checkpoint]:
        checkpoint[name].read()
    assert_each_byte_sent_once(server)


def test_parts_of_a_range_that_were_fetched_are_not_fetched_again(server, stored):
    checkpoint = Checkpoint.of_url(server.url)
    name = "model.embed_tokens.weight"
    for row in (3, 4, 50):
        assert torch.equal(checkpoint[name][row].read(), stored[name][row])
    assert torch.equal(checkpoint[name].read(), stored[name])
    assert torch.equal(checkpoint[name][7].read(), stored[name][7])
    assert_each_byte_sent_once(server)


def test_bytes_at_any_position_can_be_viewed_as_numbers(tmp_path):
    content = torch.arange(200, dtype=torch.uint8)
    (tmp_path / "file").write_bytes(bytes(content))
    files = RemoteFiles(tmp_path.as_uri())
    assert torch.equal(files.read("file", 3, 203 - 3), content[3:])
    for start in range(3, 20):  # parts of the range that is in the cache
        part = files.read("file", start, start + 16)
        assert torch.equal(part.view(torch.int64), content[start : start + 16].clone().view(torch.int64))


def test_empty_ranges_are_not_fetched(tmp_path):
    save_file({"empty": torch.zeros(0, 3), "full": torch.ones(2)}, tmp_path / "model.safetensors")
    assert Checkpoint.of_url(tmp_path.as_uri())["empty"].read().shape == (0, 3)
    (tmp_path / "file").write_bytes(bytes(8))
    files = RemoteFiles(tmp_path.as_uri(), cache=False)
    assert len(files.read("file", 4, 4)) == 0
    assert not list(files.cache.folder.iterdir())


# -- The cache


def test_second_session_fetches_and_writes_nothing(server, stored):
    first = Checkpoint.of_url(server.url)
    assert_same(first, stored)
    n_bytes = server.n_bytes
    files = {path: path.stat().st_ino for path in first.files.cache.folder.glob("*/*")}
    again = Checkpoint.of_url(server.url)
    assert_same(again, stored)
    assert server.n_bytes == n_bytes and again.files.bytes_read == 0
    assert files == {path: path.stat().st_ino for path in first.files.cache.folder.glob("*/*")}


@pytest.mark.full
def test_second_process_fetches_nothing(server, stored):
    assert_same(Checkpoint.of_url(server.url), stored)
    n_bytes = server.n_bytes
    code = (
        "import sys; from embspace_lens.checkpoints.checkpoint import Checkpoint\n"
        "c = Checkpoint.of_url(sys.argv[1]); print(sum(c[name].read().nbytes for name in c), c.files.bytes_read)"
    )
    result = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(sum(tensor.nbytes for tensor in stored.values())), "0"]
    assert server.n_bytes == n_bytes


def test_cache_can_be_left_out(server, stored, tmp_path):
    checkpoint = Checkpoint.of_url(server.url, cache=False)
    assert_same(checkpoint, stored)
    assert not (tmp_path / "cache").exists()


def test_changed_file_is_fetched_again(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(8)}, path)
    with serving(tmp_path) as server:
        assert Checkpoint.of_url(server.url)["weight"].read().sum() == 8
        save_file({"weight": torch.full((8,), 2.0)}, path)
        assert Checkpoint.of_url(server.url)["weight"].read().sum() == 16


def test_cache_smaller_than_the_model_loses_nothing(server, stored, monkeypatch):
    monkeypatch.setenv("EMBSPACE_LENS_CACHE_GB", "0.0002")
    checkpoint = Checkpoint.of_url(server.url)
    assert_same(checkpoint, stored)
    kept = sum(path.stat().st_size for path in (checkpoint.files.cache.folder).glob("*/*"))
    assert kept <= 200_000


def test_values_outlive_their_file_in_the_cache(server, stored):
    checkpoint = Checkpoint.of_url(server.url)
    name = "model.layers.0.mlp.up_proj.weight"
    values = checkpoint[name].read()
    for path in checkpoint.files.cache.folder.glob("*/*"):
        path.unlink()
    assert torch.equal(values, stored[name])
    assert torch.equal(checkpoint[name].read(), stored[name])


def test_full_disk_is_one_sentence_and_leaves_nothing(server, monkeypatch):
    def full(path: Path, position: int, data: bytes) -> None:
        if position > 30_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, position, data)

    write = remote_files.write_at
    checkpoint = Checkpoint.of_url(server.url)
    before = {path.name for path in checkpoint.files.cache.folder.glob("*/*")}
    monkeypatch.setattr(remote_files, "write_at", full)
    with pytest.raises(EmbspaceError) as raised:
        checkpoint["model.layers.0.mlp.up_proj.weight"].read()
    assert str(raised.value) == (
        f"The cache in {checkpoint.files.cache.folder} cannot be written: No space left on device. Free space there, lower "
        "its bound (EMBSPACE_LENS_CACHE_GB), or choose another folder (EMBSPACE_LENS_CACHE)."
    )
    assert {path.name for path in checkpoint.files.cache.folder.glob("*/*")} == before


def test_interrupt_leaves_the_cache_whole(server, stored, monkeypatch):
    def interrupted(path: Path, position: int, data: bytes) -> None:
        if position > 30_000:
            raise KeyboardInterrupt
        write(path, position, data)

    write = remote_files.write_at
    checkpoint = Checkpoint.of_url(server.url)
    name = "model.layers.0.mlp.up_proj.weight"
    with monkeypatch.context() as patch:
        patch.setattr(remote_files, "write_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint[name].read()
    assert not partials(checkpoint.files.cache)
    assert torch.equal(checkpoint[name].read(), stored[name])


# -- Reading ahead


def test_range_read_ahead_is_not_fetched_by_the_read(server, stored):
    checkpoint = Checkpoint.of_url(server.url)
    names = [name for name in checkpoint if ".layers.2." in name]
    checkpoint.files.read_ahead([each for name in names for each in ranges_of(checkpoint[name])])
    assert all(torch.equal(checkpoint[name].read(), stored[name]) for name in names)
    checkpoint.files.close()
    assert_each_byte_sent_once(server)


def test_read_waits_for_a_range_that_is_being_fetched(server, stored, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow(path: Path, position: int, data: bytes) -> None:
        started.set()
        assert go_on.wait(10)
        write(path, position, data)

    write = remote_files.write_at
    checkpoint = Checkpoint.of_url(server.url)
    monkeypatch.setattr(remote_files, "write_at", slow)
    name = "model.layers.0.mlp.up_proj.weight"
    checkpoint.files.read_ahead(ranges_of(checkpoint[name]))
    assert started.wait(10)
    values = []
    reader = threading.Thread(target=lambda: values.append(checkpoint[name].read()))
    reader.start()
    go_on.set()
    reader.join()
    assert torch.equal(values[0], stored[name])
    assert_each_byte_sent_once(server)


def test_errors_of_reading_ahead_come_up_at_the_read(server, stored, monkeypatch):
    checkpoint = Checkpoint.of_url(server.url)
    server.refuse = 500
    name = "model.layers.0.mlp.up_proj.weight"
    checkpoint.files.read_ahead([*ranges_of(checkpoint[name]), ("model.safetensors", 0, 8), ("absent", 0, 8)])
    with pytest.raises(EmbspaceError, match="the server answered with status 500"):
        checkpoint[name].read()
    server.refuse = None
    assert torch.equal(checkpoint[name].read(), stored[name])
    checkpoint.files.close()
    assert not partials(checkpoint.files.cache)


def test_closing_leaves_no_part_of_a_range(server, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def blocked(path: Path, position: int, data: bytes) -> None:
        started.set()
        go_on.wait(10)

    checkpoint = Checkpoint.of_url(server.url)
    monkeypatch.setattr(remote_files, "write_at", blocked)
    checkpoint.files.read_ahead(ranges_of(checkpoint["model.layers.0.mlp.up_proj.weight"]))
    assert started.wait(10) and partials(checkpoint.files.cache)
    checkpoint.files.close()
    assert not partials(checkpoint.files.cache)
    go_on.set()


def test_ranges_beyond_the_queue_are_ignored(server):
    files = RemoteFiles(server.url)
    files.close()  # nothing is taken from the queue
    files.read_ahead([("config.json", 0, 1)] * (remote_files.READ_AHEAD_RANGES + 1))
    assert files._ahead.qsize() == remote_files.READ_AHEAD_RANGES


# -- Servers and connections


@pytest.mark.parametrize("behaviour", [{"drop_every": 3}, {"short_every": 3}, {"busy_every": 3}], ids=str)
def test_broken_responses_lose_nothing(folder, stored, behaviour, monkeypatch):
    monkeypatch.setattr(remote_folder, "N_ATTEMPTS", 20)
    with serving(folder, **behaviour) as server:
        checkpoint = Checkpoint.of_url(server.url)
        assert_same(checkpoint, stored)
        assert server.n_responses > 30
        assert not partials(checkpoint.files.cache)


def test_broken_connection_is_one_sentence_in_the_end(folder, monkeypatch):
    with serving(folder) as server:
        checkpoint = Checkpoint.of_url(server.url)
        server.drop_every = 1
        name = "model.layers.0.mlp.up_proj.weight"
        file, *_ = next(ranges_of(checkpoint[name]))
        with pytest.raises(EmbspaceError) as raised:
            checkpoint[name].read()
        assert not partials(checkpoint.files.cache)
        assert str(raised.value) == (
            f"{server.url}/{file} could not be fetched: the connection broke (ClientPayloadError). Check the address, the "
            "connection and, for private files, the login."
        )


def test_responses_that_are_always_short_are_one_sentence(folder):
    with serving(folder) as server:
        checkpoint = Checkpoint.of_url(server.url)
        server.short_every = 1
        with pytest.raises(EmbspaceError, match=r"could not be fetched: 128 of 256 bytes arrived\. Check"):
            checkpoint["model.norm.weight"].read()


def test_server_without_ranges_is_refused_before_it_sends_a_shard(tmp_path):
    size = 64 * 2**20
    save_file({"large": torch.zeros(size, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with serving(tmp_path, ranges=False) as server:
        with pytest.raises(EmbspaceError) as raised:
            Checkpoint.of_url(server.url)
        assert str(raised.value) == (
            f"The server of {server.url} ignores range requests, so that no single weight can be fetched. Download the "
            "checkpoint and give its folder, or use another server."
        )
        assert server.n_bytes < size / 4


def test_index_that_cannot_be_fetched_is_not_damaged(folder):
    with serving(folder, busy_every=1) as server:
        with pytest.raises(
            EmbspaceError, match=r"index\.json could not be fetched: the server answered with status 503\."
        ):
            Checkpoint.of_url(server.url)


def test_server_that_states_no_size_is_refused(server, monkeypatch):
    files = RemoteFiles(server.url)
    monkeypatch.setattr(files.folder._file_system, "info", lambda path: {"type": "file", "size": None})
    with pytest.raises(EmbspaceError, match=r"config\.json could not be fetched: the server does not state its size\."):
        files.text("config.json")


def test_missing_files_do_not_exist(server):
    files = RemoteFiles(server.url)
    assert files.exists("config.json") and not files.exists("absent.json")
    with pytest.raises(EmbspaceError, match=r"absent.json could not be fetched: there is no such file"):
        files.size("absent.json")


def test_folder_is_no_file(tmp_path):
    (tmp_path / "config.json").mkdir()
    assert not RemoteFiles(tmp_path.as_uri()).exists("config.json")


def test_missing_shard_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with serving(tmp_path) as server, pytest.raises(EmbspaceError) as raised:
        Checkpoint.of_url(server.url)
    assert str(raised.value) == (
        f"{server.url} is not complete: one of {len(shards)} files of weights is missing, such as {shards[1].name}. "
        "Download or copy the rest."
    )


def test_unsafe_weights_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"0")
    with serving(tmp_path) as server, pytest.raises(EmbspaceError, match="stored as Python objects"):
        Checkpoint.of_url(server.url)


def test_truncated_shard_is_refused(tmp_path):
    save_file({"weight": torch.ones(8)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with serving(tmp_path) as server, pytest.raises(EmbspaceError, match="is truncated or damaged"):
        Checkpoint.of_url(server.url)


def test_server_that_cannot_be_reached_is_not_a_missing_file(folder):
    with serving(folder) as server:
        url = server.url
    with pytest.raises(EmbspaceError, match=r"could not be fetched: Connection refused\."):
        Checkpoint.of_url(url)


def test_denied_access_is_not_repeated(folder):
    with serving(folder, refuse=401) as server:
        with pytest.raises(EmbspaceError, match="the server answered with status 401"):
            Checkpoint.of_url(server.url)
    with serving(folder, missing_status=403) as server:  # as object stores answer to those who may not list files
        assert not RemoteFiles(server.url).exists("absent.json")


def test_credentials_are_in_no_message(folder):
    with serving(folder) as server:
        url = server.url.replace("://", "://user:secret@") + "/?signature=secret"
        checkpoint = Checkpoint.of_url(url)
        server.refuse = 500
        with pytest.raises(EmbspaceError) as raised:
            checkpoint["model.norm.weight"].read()
    assert "secret" not in str(raised.value) + repr(checkpoint) and "user" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert not any(b"secret" in path.read_bytes() for path in checkpoint.files.cache.folder.glob("*/*"))


@pytest.mark.parametrize("url", ["nonsense://host/folder", "s3a+b://host"])
def test_unknown_protocol_is_one_sentence(url):
    with pytest.raises(EmbspaceError) as raised:
        Checkpoint.of_url(url)
    assert str(raised.value) == (
        f"{url} is not an address of a folder of files. Give one such as hf://…, https://…, s3://… or gs://…."
    )


def test_missing_library_is_named(monkeypatch):
    def missing(*_args, **_options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote_folder, "url_to_fs", missing)
    with pytest.raises(EmbspaceError) as raised:
        Checkpoint.of_url("s3://bucket/model")
    assert str(raised.value) == ("s3://bucket/model needs a library that is not installed: Install s3fs to access S3.")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("hf://a/b", True), ("HTTPS://host", True), ("memory://a", True), ("a/b", False), ("C:\\a", False), ("/a", False)],
)
def test_addresses_are_told_from_paths(name, expected):
    assert remote_folder.is_url(name) is expected
