import os
import time

from retouch.engine.phase_clock import PhaseClock, measure_process_age


def test_each_phase_lasts_from_the_end_of_the_one_before() -> None:
    began_s = time.perf_counter()
    clock = PhaseClock()
    clock.end("first")
    clock.end("second")
    took_s = time.perf_counter() - began_s
    assert list(clock.phases_s) == ["first", "second"]
    assert 0 <= sum(clock.phases_s.values()) <= took_s


def test_the_age_of_a_process_grows_with_it_and_is_no_more_than_the_machines() -> None:
    age_s = measure_process_age()
    assert 0 < age_s < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert measure_process_age() >= age_s


def test_a_child_is_younger() -> None:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, str(measure_process_age()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert float(os.read(reading, 99)) < measure_process_age()
    os.close(reading)
    os.close(writing)
