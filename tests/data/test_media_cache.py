"""Decoding ahead in threads and the cache on disk: the same samples whoever decodes them, once a content, bounded, whatever dies half-way."""

import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.numpy import save_file

from gapclose.core.hashing import content_digest
from gapclose.data import media as media_module
from gapclose.data.config import DataConfig
from gapclose.data.item_set import Decoding, Framing, ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.media import MediaLoader, decode, faults
from gapclose.data.media_cache import MediaCache
from gapclose.data.video import Video
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import observe
from gapclose.observe.request import ObservationRequest

RATE = 16_000


def item(ident: str, *parts: tuple[str, str]) -> Item:
    options = [Option(text="a", concept="x"), Option(text="b", concept="y")]
    content = [{"type": kind, "path": path} for kind, path in parts]
    return Item(id=ident, clip=ident, split="fit", modality="v", messages=[{"role": "user", "content": content}], options=options)


@pytest.fixture
def files(tmp_path) -> Path:
    """A picture and a sound, and a copy of each under another name."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 7, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    sound = 0.3 * rng.standard_normal(4000)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", sound, 8000)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that were decoded."""
    found: list[str] = []

    def counting(kind, path, rate, framing):
        found.append(path.name)
        return decode(kind, path, rate, framing)

    monkeypatch.setattr(media_module, "decode", counting)
    return found


def same(one, other) -> bool:
    if isinstance(one, Video):
        return np.array_equal(one.frames, other.frames) and one.seconds == other.seconds
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_what_the_cache_gives_is_what_was_decoded(files):
    """Pictures, sounds and films, bit for bit and of the same types."""
    cache = MediaCache(files / "cache", 1)
    film = Video(frames=np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8), seconds=1 / 3)
    for number, value in enumerate(
        (decode("image", files / "a.png", None, Framing()), decode("audio", files / "a.wav", RATE, Framing()), film)
    ):
        place = cache.directory / f"{number}.safetensors"
        assert cache.get(place) is None
        cache.put(place, value)
        again = cache.get(place)
        assert type(again) is type(value) and same(again, value)
        assert not isinstance(value, np.ndarray) or (again.dtype, again.shape) == (value.dtype, value.shape)


def test_a_content_is_decoded_once_for_all(files, decoded):
    """For a copy under another name too, and for whoever comes later; other settings are another entry."""
    how = {"decoding": Decoding(workers=0, cache=files / "cache")}
    first = MediaLoader(files, RATE, **how)
    values = [first.load("image", "a.png"), first.load("audio", "a.wav"), first.load("image", "b.png"), first.load("audio", "b.wav")]
    assert decoded == ["a.png", "a.wav"]
    later = MediaLoader(files, RATE, **how, blank=("image",))
    assert same(later.load("audio", "a.wav"), values[1]) and set(np.asarray(later.load("image", "a.png")).ravel().tolist()) == {128}
    assert len(decoded) == 2
    MediaLoader(files, 2 * RATE, **how).load("audio", "a.wav")
    assert decoded == ["a.png", "a.wav", "a.wav"]
    plain = MediaLoader(files, RATE)
    assert all(same(plain.load(k, p), v) for (k, p), v in zip([("image", "a.png"), ("audio", "a.wav")], values, strict=False))


def test_a_file_that_changed_is_another_content(files, decoded):
    how = {"decoding": Decoding(workers=0, cache=files / "cache")}
    before = MediaLoader(files, RATE, **how).load("audio", "a.wav")
    digest = content_digest(files / "a.wav")
    soundfile.write(files / "a.wav", 0.2 * np.random.default_rng(2).standard_normal(4000), 8000)  # as many bytes
    os.utime(files / "a.wav", ns=(1, 1))
    assert content_digest(files / "a.wav") != digest
    assert not same(MediaLoader(files, RATE, **how).load("audio", "a.wav"), before) and len(decoded) == 2


def test_an_edit_in_the_midst_of_a_large_file_is_seen(tmp_path):
    """By the digest, and so by what observations and splits are told apart by."""
    content = np.random.default_rng(0).bytes(9 << 20)
    (tmp_path / "a.wav").write_bytes(content)
    (tmp_path / "b.wav").write_bytes(content[: 4 << 20] + bytes(1 << 20) + content[5 << 20 :])
    assert content_digest(tmp_path / "a.wav") != content_digest(tmp_path / "b.wav")
    (tmp_path / "b.wav").rename(tmp_path / "c.wav")
    items = ItemSet(root=tmp_path, name="m", concepts=("x", "y"), alarm=(), items=(item("one", ("audio", "a.wav")),))
    before = items.fingerprint()
    (tmp_path / "c.wav").replace(tmp_path / "a.wav")
    assert items.fingerprint() != before


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_entry_is_decoded_again(files, decoded, damage):
    """And fixed; files under temporary names, left by a process that died, are nobody's entry."""
    how = {"decoding": Decoding(workers=0, cache=files / "cache")}
    value = MediaLoader(files, RATE, **how).load("audio", "a.wav")
    (entry,) = (files / "cache").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "foreign": b"something else altogether"}[damage])
    (files / "cache" / f".{entry.name}.1-2.tmp").write_bytes(whole[:100])
    assert same(MediaLoader(files, RATE, **how).load("audio", "a.wav"), value) and len(decoded) == 2
    assert entry.read_bytes() == whole


def refuse(*_, **__):
    raise PermissionError(1, "Operation not permitted")


def test_an_entry_of_somebody_else_s_is_read_and_stays(files, decoded, monkeypatch):
    """A file of a shared directory whose times only its owner may set."""
    how = {"decoding": Decoding(workers=0, cache=files / "cache")}
    value = MediaLoader(files, RATE, **how).load("audio", "a.wav")
    (entry,) = (files / "cache").iterdir()
    monkeypatch.setattr(os, "utime", refuse)
    assert same(MediaLoader(files, RATE, **how).load("audio", "a.wav"), value) and decoded == ["a.wav"] and entry.is_file()
    monkeypatch.setattr("gapclose.data.media_cache.load_file", refuse)
    assert MediaCache(files / "cache", 1).get(entry) is None and entry.is_file()


@pytest.mark.parametrize(
    "tensors", [None, {"other": np.zeros(3)}, {"image": np.zeros((1, 2, 3, 4))}, {"frames": np.zeros((1, 2, 2, 3), np.uint8)}]
)
def test_what_is_no_entry_goes_where_it_may(tmp_path, monkeypatch, tensors):
    """Damaged, or with tensors of something else: taken for nothing, also where it cannot be removed."""
    place = tmp_path / "a.safetensors"
    if tensors is None:
        place.write_bytes(b"something else altogether")
    else:
        save_file(tensors, place)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert MediaCache(tmp_path, 1).get(place) is None and place.is_file()
    assert MediaCache(tmp_path, 1).get(place) is None and not place.exists()


def test_faults_are_not_kept(files):
    """A fixed file is decoded; a fault is reported each time."""
    how = {"decoding": Decoding(workers=0, cache=files / "cache")}
    (files / "c.wav").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"c\.wav: the audio file is empty"):
            MediaLoader(files, RATE, **how).load("audio", "c.wav")
    with pytest.raises(ValueError, match=r"gone\.wav: no such audio file"):
        MediaLoader(files, RATE, **how).load("audio", "gone.wav")
    (files / "c.wav").write_bytes((files / "a.wav").read_bytes())
    assert len(MediaLoader(files, RATE, **how).load("audio", "c.wav")) == 8000


def test_the_directory_is_bounded_by_what_was_used_last(tmp_path):
    """The least recently used goes first, what alone is too much is not stored."""
    cache = MediaCache(tmp_path, 10_000 / 1e9)
    places = [tmp_path / f"{n}.safetensors" for n in range(3)]
    for n, place in enumerate(places[:2]):
        cache.put(place, np.full(1000, n, dtype=np.float32))
        os.utime(place, ns=(n, n))
    assert cache.get(places[0]) is not None  # used now, so the other one is the older
    cache.put(places[2], np.full(1000, 2, dtype=np.float32))
    assert [p.exists() for p in places] == [True, False, True]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 10_000
    cache.put(tmp_path / "large.safetensors", np.zeros(10_000, dtype=np.float32))
    assert not (tmp_path / "large.safetensors").exists()


def _busy(directory: str, seed: int, wrong) -> None:
    """One of several processes that write and read the same few entries, in a directory that is too small for all of them."""
    cache, rng = MediaCache(Path(directory), 20_000 / 1e9), np.random.default_rng(seed)
    for _ in range(150):
        n = int(rng.integers(8))
        found = cache.get(Path(directory) / f"{n}.safetensors")
        if found is None:
            cache.put(Path(directory) / f"{n}.safetensors", np.full(1000, n, dtype=np.float32))
        elif len(found) != 1000 or not (found == n).all():
            wrong.value += 1


@pytest.mark.slow
def test_processes_that_share_a_directory_never_read_half_an_entry(tmp_path):
    context = multiprocessing.get_context("spawn")
    wrong = context.Value("i", 0)
    workers = [context.Process(target=_busy, args=(str(tmp_path), seed, wrong)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [w.exitcode for w in workers] == [0, 0] and wrong.value == 0
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 25_000 and not list(tmp_path.glob(".*"))


def test_media_are_decoded_ahead_in_threads(files, monkeypatch):
    """While the caller does something else, and once however often a file is asked for."""
    decoded, threads = [], set()

    def slow(kind, path, rate, framing):
        threads.add(threading.current_thread().name)
        time.sleep(0.02)
        decoded.append(path.name)
        return decode(kind, path, rate, framing)

    monkeypatch.setattr(media_module, "decode", slow)
    media = MediaLoader(files, RATE, decoding=Decoding(workers=2))
    items = [item("one", ("image", "a.png"), ("audio", "a.wav")), item("two", ("image", "a.png"), ("audio", "b.wav"))]
    media.ahead(items)
    media.ahead(items)
    deadline = time.monotonic() + 20
    while len(decoded) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(decoded) == ["a.png", "a.wav", "b.wav"] and all(name.startswith("media") for name in threads)
    assert len(media.load("audio", "b.wav")) == 8000 and media.load("image", "a.png") is media.load("image", "a.png")
    media.ahead(items)
    assert len(decoded) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_names_the_item_that_asked(files, workers):
    """In a thread or not, when the item is loaded and not before."""
    (files / "c.wav").write_bytes(b"")
    media = MediaLoader(files, RATE, decoding=Decoding(workers=workers))
    media.ahead([item("one", ("audio", "c.wav")), item("two", ("audio", "c.wav"))])
    with pytest.raises(ValueError, match=r"c\.wav: item 'one': the audio file is empty; replace it"):
        media.load("audio", "c.wav")


def test_observations_do_not_depend_on_workers_or_cache(loaded, digits, tmp_path, decoded):
    """Bit for bit: with none, with two, with a cold and with a warm cache, which decodes nothing any more."""
    few = replace(digits.select(split="fit"), items=digits.select(split="fit").items[:12])
    config = ObserveConfig(batch_size=4, shard_batches=2, max_new_tokens=2)
    ways = {
        "none": Decoding(workers=0),
        "two": Decoding(workers=2),
        "cold": Decoding(cache=tmp_path / "cache"),
        "warm": Decoding(cache=tmp_path / "cache"),
    }
    found, counts = {}, {}
    for name, decoding in ways.items():
        before = len(decoded)
        found[name] = observe(
            loaded, replace(few, decoding=decoding), tmp_path / name, config, ObservationRequest(layers=[3], generate=True)
        )
        counts[name] = len(decoded) - before
    for name in ("two", "cold", "warm"):
        assert torch.equal(found[name].scores, found["none"].scores) and found[name].answers == found["none"].answers
        assert torch.equal(found[name].residuals[3], found["none"].residuals[3])
    distinct = len({content_digest(few.root / p) for i in few for _, p in i.media})
    tried = 2  # the picture and the sound of the clip on which a first try continues answers
    assert counts["none"] == counts["two"] == len({p for i in few for _, p in i.media}) + tried
    assert 0 < counts["cold"] <= counts["none"] and counts["cold"] >= distinct and counts["warm"] == 0


def test_checking_films_leaves_them_in_the_cache(tmp_path, decoded):
    """What the check has decoded, the observation finds."""
    pytest.importorskip("av")
    from gapclose.data.digits.videos import write_film

    pictures = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    write_film(tmp_path / "a.mp4", pictures, None)
    decoding = Decoding(workers=0, cache=tmp_path / "cache")
    items = ItemSet(
        root=tmp_path,
        name="m",
        concepts=("x", "y"),
        alarm=(),
        items=(item("one", ("video", "a.mp4")),),
        framing=Framing(frames=3),
        decoding=decoding,
    )
    assert not faults(items) and decoded == ["a.mp4"]
    film = MediaLoader(tmp_path, RATE, framing=items.framing, decoding=decoding).load("video", "a.mp4")
    assert decoded == ["a.mp4"] and same(film, decode("video", tmp_path / "a.mp4", None, items.framing))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="data.workers is -1; it must not be negative"):
        DataConfig(workers=-1)
    with pytest.raises(ValueError, match="data.cache_gb is 0; it must be above 0"):
        DataConfig(cache_gb=0)
