"""Long work says how far it is where no terminal shows a bar."""

import logging
import time

from llmcfsr_merlin.runtime.progress import Progress, announced, said_seconds


def test_a_log_gets_a_line_after_ten_seconds_then_after_twice_as_long(caplog):
    now = [0.0]
    with caplog.at_level(logging.INFO), Progress(100, "encode", "items", clock=lambda: now[0]) as progress:
        for _ in range(100):
            now[0] += 1
            progress.update()
    lines = [record.getMessage().strip() for record in caplog.records]
    assert [line.split(" of ")[0] for line in lines] == ["encode: 10", "encode: 30", "encode: 70"]
    assert lines[0] == "encode: 10 of 100 items (10%), 1/s, about 2 min left"


def test_what_is_fast_or_done_by_another_process_says_nothing(caplog):
    now = [0.0]
    with caplog.at_level(logging.INFO):
        with Progress(5, "encode", "items", clock=lambda: now[0]) as progress:
            progress.update(5)
        hidden = Progress(5, "encode", "items", shown=False, clock=lambda: now[0])
        now[0] = 1000.0
        hidden.update()
    assert not caplog.records


def test_without_a_total_and_with_words_behind(caplog):
    now = [0.0]
    with caplog.at_level(logging.INFO), Progress(None, "rank", "users", clock=lambda: now[0], start=7) as progress:
        now[0] = 20.0
        progress.say("loss 0.5")
        progress.update(1000)
    assert caplog.records[0].getMessage().strip() == "rank: 1,007 users, 50/s, loss 0.5"


def test_work_that_cannot_be_counted_is_announced(caplog):
    with caplog.at_level(logging.INFO):
        with announced("export", first=0.02):
            time.sleep(0.3)
        count = len(caplog.records)
        time.sleep(0.1)
    assert count == len(caplog.records) >= 1 and "export: running for" in caplog.records[0].getMessage()


def test_durations():
    assert [said_seconds(seconds) for seconds in (4.2, 89, 600, 7200)] == ["4 s", "89 s", "10 min", "2.0 h"]
