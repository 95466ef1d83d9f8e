"""``python -I -m broker.flows``: how the processes of flow records are started.

python -m broker.flows export --pipeline NAME     records out of the lanes, to exports and spool
python -m broker.flows store --pipeline NAME      records out of the spool, into the store
"""

from __future__ import annotations

import argparse
import sys

from broker.core import log
from broker.core.dumps import leave_memory_out
from broker.core.errors import EXIT_CONFIG, TapmeshError
from broker.core.shm import open_pipeline
from broker.flows.stopping import Stopping
from broker.flows.store.base import StoreError
from broker.privileges import sandbox


def main() -> int:
    """Exit status 78 (EX_CONFIG) with the reason logged when starting again would be of no use, 1 when it may help."""
    leave_memory_out()
    parser = argparse.ArgumentParser(prog="python -m broker.flows", description="Processes of flow records")
    parser.add_argument("process", choices=("export", "store"))
    parser.add_argument("--pipeline", required=True)
    arguments = parser.parse_args()
    log.configure()
    if reason := sandbox.enter("companion"):
        log.get(pipeline=arguments.pipeline).warning("sandbox_missing", reason=reason)
    stopping = Stopping()
    try:
        pipeline = open_pipeline(arguments.pipeline)
        if arguments.process == "export":
            from broker.flows.exporter import Exporter

            Exporter(pipeline).run(stopping)
        else:
            from broker.flows.store import loop

            loop.run(pipeline, stopping)
    except (StoreError, OSError) as error:
        log.get(pipeline=arguments.pipeline).error("process_failed", process=arguments.process, reason=str(error))
        return 1
    except TapmeshError as error:
        log.get(pipeline=arguments.pipeline).error("start_refused", process=arguments.process, reason=str(error))
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
