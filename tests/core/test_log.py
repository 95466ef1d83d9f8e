"""The log never stops anybody, whatever has become of standard error."""

from __future__ import annotations

import os
import select
import subprocess
import sys

from tests.waiting import DEADLINE_S

WRITER = """
import sys
from broker.core import log
log.configure()
for i in range(int(sys.argv[1])):
    log.get().info("counted", i=i, padding="x" * int(sys.argv[2]))
if len(sys.argv) > 3:
    print("written", flush=True)
    sys.stdin.readline()
    log.get().info("last")
"""


def test_lines_that_nobody_reads_are_lost_and_counted_and_nobody_waits_for_their_reader() -> None:
    """A pipe holds 64 KiB: 200 lines of 600 bytes do not fit, whole lines of 9,000 bytes even less."""
    for n, padding in ((200, 600), (30, 9000)):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(n), str(padding), "wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=writer,
            text=True,
        )
        os.close(writer)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], DEADLINE_S)[0], "it waits for the reader of its log"
            first = os.read(reader, 1 << 20)
            process.stdin.write("\n")
            process.stdin.flush()
            process.wait(DEADLINE_S)
            lines = (first + os.read(reader, 1 << 20)).decode().splitlines()
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
            os.close(reader)
        whole = sum(line.endswith("}") for line in lines[:-1])
        assert 0 < whole < n
        assert f'"lines_lost": {n - whole}' in lines[-1]
        assert '"event": "last"' in lines[-1]


def test_without_standard_error_no_file_of_ours_takes_its_place() -> None:
    """What is opened next must not get number 2, or the log would be written into it."""
    program = "import os; os.close(2); from broker.core import log; log.configure(); print(os.open('/dev/null', os.O_RDONLY))"
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=True)
    assert int(ran.stdout) > 2


def test_a_reader_that_has_died_is_survived() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-c", WRITER, "5", "10"], stderr=writer, timeout=DEADLINE_S, check=False)
    os.close(writer)
    assert ran.returncode == 0


def test_lines_for_which_the_disk_has_no_room_are_counted() -> None:
    program = """
import os
from broker.core import log
log.configure()
kept, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 2)
for _ in range(3):
    log.get().info("lost")
os.dup2(kept, 2)
log.get().info("last")
"""
    ran = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=True)
    (line,) = ran.stderr.splitlines()
    assert '"lines_lost": 3' in line
