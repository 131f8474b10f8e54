"""Encoding in several processes: the same results in the same order, and nothing left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from encoding_cases import same_encoding, transcript_of
from tokenizers_real import tiny_tokenizer

from psyfast.data.encode import Protocol, encode_many
from psyfast.data.records import Transcript
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.workers import LOOK_AHEAD, map_in_order
from psyfast.errors import DataError, RunError

TOKENIZER_TOKENS = (" <<", ">>.")


def transcripts(count: int) -> list[Transcript]:
    return [
        transcript_of(
            f"Trial {nth}: <<{nth}>>. Then <<A>> or <<é>>\n" * (nth % 7 + 1), [["A", "B"]] * (3 * (nth % 7 + 1))
        )
        for nth in range(count)
    ]


@pytest.mark.parametrize("protocol", list(Protocol))
def test_the_same_results_for_any_number_of_workers(protocol: Protocol) -> None:
    tokenizer = tiny_tokenizer(*TOKENIZER_TOKENS)
    alone = list(encode_many(transcripts(40), tokenizer, protocol, context_limit=200))
    for num_workers in (1, 2):
        several = encode_many(transcripts(40), tokenizer, protocol, context_limit=200, num_workers=num_workers)
        assert all(map(same_encoding, several, alone))
        assert next(several, None) is None


def test_the_look_ahead_is_bounded() -> None:
    taken = 0

    def counted() -> Iterator[Transcript]:
        nonlocal taken
        for transcript in transcripts(200):
            taken += 1
            yield transcript

    encoded = encode_many(counted(), tiny_tokenizer(), Protocol.EXACT, num_workers=1)
    for done in range(1, 6):
        next(encoded)
        assert taken <= done + LOOK_AHEAD
    encoded.close()
    assert not multiprocessing.active_children()


def fail_on_the_third(transcript: Transcript, tokenizer: Tokenizer) -> str:
    if "<<2>>" in transcript.text:
        raise DataError("the third")
    return transcript.text


def die(transcript: Transcript, tokenizer: Tokenizer) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_an_error_in_a_worker_comes_through_and_ends_the_workers() -> None:
    results = map_in_order(fail_on_the_third, transcripts(20), tiny_tokenizer(), 2)
    assert len([next(results), next(results)]) == 2
    with pytest.raises(DataError, match="the third"):
        next(results)
    assert not multiprocessing.active_children()


def test_an_error_in_the_source_comes_through() -> None:
    def broken() -> Iterator[Transcript]:
        yield from transcripts(3)
        raise DataError("line 4")

    with pytest.raises(DataError, match="line 4"):
        list(encode_many(broken(), tiny_tokenizer(), Protocol.EXACT, num_workers=1))
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_an_error() -> None:
    with pytest.raises(RunError, match="ended before its work was done"):
        list(map_in_order(die, transcripts(3), tiny_tokenizer(), 1))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "endless.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import itertools, multiprocessing, signal, sys
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
            sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}, {str(here.parents[1])!r}]
            from encoding_cases import transcript_of
            from psyfast.data.encode import Protocol, encode_many
            from tokenizers_real import tiny_tokenizer

            if __name__ == "__main__":
                endless = itertools.repeat(transcript_of("a <<A>> " * 2000))
                for nth, _ in enumerate(encode_many(endless, tiny_tokenizer(), Protocol.EXACT, num_workers=2)):
                    if nth == 3:
                        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    try:
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.kill()
        _, errors = process.communicate(timeout=60)
        assert ("KeyboardInterrupt" in errors) == (how is signal.SIGINT)
        deadline = time.monotonic() + 30
        while any(map(_is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(_is_running, workers))
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of them have ended, as they should
            os.killpg(process.pid, signal.SIGKILL)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
