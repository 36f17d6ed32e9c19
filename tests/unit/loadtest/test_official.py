"""What RocketMQ's benchmark programs print."""

from __future__ import annotations

from loadtest.official import CONSUMER_FIGURES, PRODUCER_FIGURES, last_report

PRODUCER = """topic: t1, threadCount: 64, messageSize: 128, keyEnable: false
Current Time: 2026-11-22 15:32:49,671 | Send TPS: 7514 | Max RT(ms): 776 | Average RT(ms):   8.951 | Send Failed: 0 | Response Failed: 0
Current Time: 2026-11-22 15:32:50,670 | Send TPS: 7767 | Max RT(ms): 780 | Average RT(ms):   8.318 | Send Failed: 2 | Response Failed: 1
"""  # noqa: E501
CONSUMER = (
    "Current Time: 2026-11-22 15:32:50,670 | Consume TPS: 20800 | AVG(B2C) RT(ms):   7.312 | "
    "AVG(S2C) RT(ms):   6.100 | MAX(B2C) RT(ms): 95 | MAX(S2C) RT(ms): 90 | Consume Fail: 0\n"
)


def test_last_report_of_the_producer() -> None:
    """The newest line counts: it covers the ten seconds before the end."""
    assert last_report(PRODUCER, PRODUCER_FIGURES) == {
        "reported_rate": 7767.0,
        "round_trip_ms": 8.318,
        "round_trip_max_ms": 780.0,
        "send_failed": 2.0,
        "response_failed": 1.0,
    }


def test_last_report_of_the_consumer() -> None:
    assert last_report(CONSUMER, CONSUMER_FIGURES) == {
        "consume_rate": 20800.0,
        "born_to_consume_ms": 7.312,
        "born_to_consume_max_ms": 95.0,
    }


def test_no_report_yet() -> None:
    """The first one comes after ten seconds; until then there is only the header."""
    assert last_report(PRODUCER.splitlines()[0], PRODUCER_FIGURES) == {}
