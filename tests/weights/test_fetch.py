"""Every way in which a download can end, tested with a local server."""

import errno
import hashlib
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from splitattn import web
from splitattn.architectures import ARCHITECTURES
from splitattn.cli import main
from splitattn.errors import WeightsError
from splitattn.nn.resnest import ResNeSt
from splitattn.weights import cache as cache_module
from splitattn.weights import catalogue, download
from splitattn.weights.cache import expected_sha256, fetch, verify
from splitattn.weights.catalogue import WeightsEntry, entries
from tests.nn.networks import small
from tests.weights.conftest import (
    BODY,
    Server,
    breaks_off,
    files_in,
    in_turn,
    make_entry,
    refuses,
    sends,
    stalls,
)


def one_line(error: pytest.ExceptionInfo[WeightsError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_good_file_is_downloaded_once_and_then_taken_from_the_cache(
    server: Server, cache: Path
) -> None:
    entry = make_entry(server.add("/a", sends(BODY)))
    received: list[tuple[int, int | None]] = []

    path = fetch(entry, progress=lambda *step: received.append(step))

    assert path == cache / "weights.pth"
    assert path.read_bytes() == BODY
    assert fetch(entry) == path
    assert len(server.requests) == 1
    assert files_in(cache) == ["weights.pth"]
    assert received[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in received] == sorted(done for done, _ in received)


def test_a_body_without_a_length_is_read_to_its_end(server: Server) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    received: list[tuple[int, int | None]] = []
    entry = make_entry(server.add("/a", reply))
    assert fetch(entry, progress=lambda *step: received.append(step)).read_bytes() == BODY
    assert received[-1] == (len(BODY), None)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_status_is_reported_with_where_to_put_the_file(
    server: Server, cache: Path, status: int
) -> None:
    entry = make_entry(server.add("/a", refuses(status)))
    with pytest.raises(WeightsError, match=f"/a: HTTP {status}") as error:
        fetch(entry)
    assert str(cache / "weights.pth") in one_line(error)
    assert entry.sha256 in one_line(error)
    assert len(server.requests) == 1
    assert files_in(cache) == []


def test_a_file_with_another_hash_is_never_handed_out(server: Server, cache: Path) -> None:
    entry = make_entry(server.add("/a", sends(b"something else")))
    with pytest.raises(WeightsError, match="another file, with sha256 ") as error:
        fetch(entry)
    one_line(error)
    assert files_in(cache) == []


def test_a_body_that_stays_truncated_is_reported_with_its_size(server: Server, cache: Path) -> None:
    entry = make_entry(server.add("/a", breaks_off(BODY, 1000)))
    with pytest.raises(WeightsError, match=f"broke off after 1000 of {len(BODY)} bytes") as error:
        fetch(entry)
    one_line(error)
    assert len(server.requests) == 5
    assert files_in(cache) == []


def test_a_server_that_stalls_is_given_up(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.2)
    entry = make_entry(server.add("/a", stalls(BODY, 0, server.closing)))
    with pytest.raises(WeightsError, match="/a: too slow, 0 bytes in 0") as error:
        fetch(entry)
    one_line(error)
    assert len(server.requests) == 1
    assert files_in(cache) == []


def test_a_server_that_stalls_half_way_is_asked_for_the_rest(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.5)
    half = len(BODY) // 2
    entry = make_entry(server.add("/a", in_turn(stalls(BODY, half, server.closing), sends(BODY))))
    assert fetch(entry).read_bytes() == BODY
    assert server.requests == [("/a", None), ("/a", f"bytes={half}-")]


def test_a_server_that_stalls_after_hardly_a_byte_is_not_asked_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.2)
    entry = make_entry(server.add("/a", stalls(BODY, 1000, server.closing)))
    with pytest.raises(WeightsError, match="/a: too slow, 1,000 bytes in 0"):
        fetch(entry)
    assert len(server.requests) == 1


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, cache: Path) -> None:
    entry = make_entry(server.add("/a", in_turn(breaks_off(BODY, 300_000), sends(BODY))))
    assert fetch(entry).read_bytes() == BODY
    assert server.requests == [("/a", None), ("/a", "bytes=300000-")]
    assert files_in(cache) == ["weights.pth"]


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server: Server) -> None:
    replies = in_turn(breaks_off(BODY, 300_000), sends(BODY, ranges=False))
    entry = make_entry(server.add("/a", replies))
    assert fetch(entry).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_body_that_is_sent_again_replaces_what_came_before(server: Server) -> None:
    short = BODY[:1000]
    replies = in_turn(breaks_off(BODY, 300_000), sends(short, ranges=False))
    assert fetch(make_entry(server.add("/a", replies), body=short)).read_bytes() == short


def test_the_second_url_is_used_when_the_first_server_is_not_there(server: Server) -> None:
    # Port 9 of the loopback address is the discard service, which nobody runs.
    entry = make_entry("http://127.0.0.1:9/a", server.add("/b", sends(BODY)))
    assert fetch(entry).read_bytes() == BODY


def test_the_second_url_is_used_when_the_first_has_no_such_file(server: Server) -> None:
    entry = make_entry(server.add("/a", refuses(404)), server.add("/b", sends(BODY)))
    assert fetch(entry).read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/a", "/b"]


def test_when_all_urls_fail_the_error_has_the_reason_of_each(server: Server, cache: Path) -> None:
    entry = make_entry(
        server.add("/a", refuses(404)),
        server.add("/b", sends(b"something else")),
        server.add("/c", refuses(403)),
    )
    with pytest.raises(
        WeightsError, match=r"/a: HTTP 404.*/b: another file.*/c: HTTP 403"
    ) as error:
        fetch(entry)
    one_line(error)
    assert files_in(cache) == []


def test_a_damaged_cached_file_is_discarded_and_fetched_again(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    (cache / "weights.pth").write_bytes(BODY[:-1])
    entry = make_entry(server.add("/a", sends(BODY)))
    with caplog.at_level(logging.WARNING):
        assert fetch(entry).read_bytes() == BODY
    assert "weights.pth" in caplog.text


def test_a_damaged_cached_file_that_cannot_be_replaced_is_gone(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "weights.pth").write_bytes(BODY[:-1])
    with pytest.raises(WeightsError):
        fetch(make_entry(server.add("/a", refuses(404))))
    assert files_in(cache) == []


def test_leftovers_of_a_killed_process_do_no_harm(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(b"left behind" * 1_000_000)
    assert fetch(make_entry(server.add("/a", sends(BODY)))).read_bytes() == BODY
    assert files_in(cache) == ["weights.pth"]


def test_an_interrupted_download_leaves_nothing(server: Server, cache: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(make_entry(server.add("/a", sends(BODY))), progress=interrupt)
    assert files_in(cache) == []


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    entry = make_entry(server.add("/a", sends(BODY)))
    real_open = os.open

    def read_only(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(WeightsError, match=r"Read-only.*SPLITATTN_CACHE") as error:
        fetch(entry)
    one_line(error)
    assert server.requests == []


def test_a_cache_below_a_file_is_named_with_its_variable(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPLITATTN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match="SPLITATTN_CACHE") as error:
        fetch(make_entry(server.add("/a", sends(BODY))))
    one_line(error)


def test_a_read_only_cache_that_holds_the_file_is_good_enough(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / "weights.pth").write_bytes(BODY)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    assert fetch(make_entry("http://127.0.0.1:9/a")) == cache / "weights.pth"


def test_a_full_disk_is_not_blamed_on_the_network(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_part(path: Path, mode: str) -> io.FileIO:
        return FullDisk(str(path), mode) if path.suffix == ".part" else io.FileIO(str(path), mode)

    monkeypatch.setattr(Path, "open", open_part)
    with pytest.raises(WeightsError, match=r"No space left.*SPLITATTN_CACHE"):
        fetch(make_entry(server.add("/a", sends(BODY))))
    assert len(server.requests) == 1
    assert files_in(cache) == []


def test_offline_the_error_says_which_file_to_put_where(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry(server.add("/a", sends(BODY)))
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    with pytest.raises(WeightsError, match="SPLITATTN_OFFLINE") as error:
        fetch(entry)
    message = one_line(error)
    assert str(cache / "weights.pth") in message
    assert entry.sha256 in message
    assert "--weights" in message
    assert server.requests == []

    cache.mkdir()
    (cache / "weights.pth").write_bytes(BODY)
    assert fetch(entry) == cache / "weights.pth"


def test_a_mirror_replaces_scheme_and_host_and_keeps_the_path(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("/base/releases/a.pth", sends(BODY))
    monkeypatch.setenv("SPLITATTN_MIRROR", f"{server.url}/base/")
    entry = make_entry("https://weights.invalid/releases/a.pth")
    assert fetch(entry).read_bytes() == BODY
    assert server.requests == [("/base/releases/a.pth", None)]


def test_a_mirror_must_be_a_web_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITATTN_MIRROR", "file:///etc")
    with pytest.raises(WeightsError, match=r"http://.*file:///etc"):
        fetch(make_entry("https://weights.invalid/a"))


def test_the_cache_follows_the_platform_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SPLITATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_module.cache_folder() == tmp_path / "splitattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_module.cache_folder() == tmp_path / ".cache" / "splitattn"


FETCH_ON_SIGNAL = """
import sys
from splitattn.weights.cache import fetch
from tests.weights.conftest import make_entry
entry = make_entry(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(fetch(entry).stat().st_size)
"""


def test_two_processes_that_want_the_same_file_download_it_once(server: Server) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        sends(BODY)(handler)

    command = [sys.executable, "-c", FETCH_ON_SIGNAL, server.add("/a", slow)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    root = Path(__file__).parents[2]
    with (
        subprocess.Popen(command, cwd=root, **pipes) as first,
        subprocess.Popen(command, cwd=root, **pipes) as second,
    ):
        for process in (first, second):
            assert process.stdout.readline() == "ready\n"
        for process in (first, second):
            process.stdin.write("\n")
            process.stdin.flush()
        for process in (first, second):
            assert process.stdout.read() == f"{len(BODY)}\n"
    assert len(server.requests) == 1


def test_an_embedded_file_is_found_in_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "cache.py"))
    entry = make_entry()
    with pytest.raises(WeightsError, match="missing or damaged"):
        fetch(entry)
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "weights.pth").write_bytes(BODY)
    assert fetch(entry).read_bytes() == BODY


def test_each_attempt_waits_a_little_longer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(WeightsError):
        fetch(make_entry(server.add("/a", breaks_off(BODY, 10))))
    assert waits == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("length", [True, False], ids=["length", "no-length"])
def test_no_more_is_received_than_the_file_can_have(
    server: Server, cache: Path, length: bool
) -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(2**40))
        handler.end_headers()
        with suppress(ConnectionError):
            while not server.closing.is_set():
                handler.wfile.write(bytes(2**16))
                sent += 2**16

    entry = make_entry(server.add("/a", endless), size=len(BODY))
    with pytest.raises(WeightsError, match=r"more than the 1,048,576 bytes that the file may have"):
        fetch(entry)
    assert sent < 64 * len(BODY)
    assert len(server.requests) == 1
    assert files_in(cache) == []


def test_a_size_that_is_unknown_is_bounded_by_the_models_tensors() -> None:
    for entry in entries():
        tensors = ARCHITECTURES[entry.model].parameters(len(entry.classes))
        halves = 2 * tensors  # the embedded weights are float16, and their size is known
        known = entry.size and halves < entry.size < 1.1 * halves
        assert known if entry.pinned else 8 < entry.most_bytes / tensors < 9.1


State = dict[str, torch.Tensor]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """A function that makes a file of a small network of 1,000 classes, called resnest14."""
    monkeypatch.setitem(ARCHITECTURES, "resnest14", small())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = ResNeSt(small(), num_classes=1000).state_dict()

    def make(change: Callable[[State], object] = len) -> bytes:
        change(state)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    return make


def partly_known(server: Server, content: bytes) -> WeightsEntry:
    digits = hashlib.sha256(content).hexdigest()[:8]
    url = server.add("/a", sends(content))
    return make_entry(url, model="resnest14", sha256=digits)


def test_the_whole_hash_is_recorded_on_first_use_and_a_change_is_refused(
    server: Server, cache: Path, network: Callable[..., bytes]
) -> None:
    content = network()
    entry = partly_known(server, content)
    path = fetch(entry)
    record = cache / "weights.pth.sha256"
    digest = hashlib.sha256(content).hexdigest()
    assert record.read_text() == f"{digest}  weights.pth\n"
    assert expected_sha256(entry) == verify(entry) == digest
    record.unlink()
    assert verify(entry) == digest
    assert record.read_text() == f"{digest}  weights.pth\n", "verify must record the hash too"
    # `sha256=""` stands for a forged file with the same first digits, which takes minutes to find.
    forged = network(lambda state: state["fc.bias"].fill_(1))
    other = replace(entry, sha256="")
    record.write_text(f"{digest}\n")
    path.write_bytes(forged)
    server.add("/a", sends(forged))
    with pytest.raises(WeightsError, match=digest):
        verify(other)
    with pytest.raises(WeightsError, match=f"another file, with sha256 .*{digest}"):
        fetch(other)
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state["fc.bias"][7].fill_(1e6), "labels all of them 7"),
        (lambda state: state["fc.weight"].zero_(), "labels all of them"),
        (lambda state: state["bn1.weight"].zero_(), "labels all of them"),
        (lambda state: state["conv1.0.weight"].fill_(3e38), "must give finite outputs"),
        (lambda state: state["bn1.running_var"].fill_(-1), "numbers in bn1.running_var"),
        (lambda state: state["bn1.bias"][0].fill_(float("nan")), "numbers in bn1.bias"),
        (lambda state: state["fc.bias"].resize_(3), "fc.weight has shape"),
        (lambda state: state.update(extra=torch.zeros(3)), "1 are unexpected"),
    ],
)
def test_a_file_with_the_right_digits_must_be_a_plausible_network(
    server: Server,
    network: Callable[..., bytes],
    change: Callable[[State], object],
    reason: str,
) -> None:
    with pytest.raises(WeightsError, match=reason):
        fetch(partly_known(server, network(change)))


@pytest.mark.parametrize("named", ["resnest14:test", "file"])
def test_a_file_that_was_put_into_the_cache_is_tried_before_its_name_matches(
    server: Server,
    cache: Path,
    network: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    named: str,
) -> None:
    content = network(lambda state: state["bn1.weight"].zero_())
    monkeypatch.setattr(catalogue, "CATALOGUE", (partly_known(server, content),))
    path = cache / "weights.pth"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        main(["weights", "verify", str(path) if named == "file" else named])
    answer = capsys.readouterr()
    assert answer.out == ""
    assert "labels all of them" in answer.err


def test_a_match_of_a_few_digits_is_reported_as_such(
    server: Server,
    network: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entry = partly_known(server, network())
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    path = fetch(entry)
    for target in ("resnest14:test", str(path)):
        with pytest.raises(SystemExit):
            main(["weights", "verify", target])
        out = capsys.readouterr().out
        assert "name matches" in out
        assert "the publisher gives 8 of 64 digits of its sha256" in out
        assert "ok" not in out
