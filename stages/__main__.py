"""``python -m stages``: how processes of the data path are started.

python -m stages host --pipeline NAME                                  the stage host: forks workers on the supervisor's word
python -m stages KIND --pipeline NAME [--lane L] [--worker W]          one worker, for supervisord, systemd or a shell
python -m stages only STAGE --directory DIR --dump FILE                one stage alone, what it wrote as JSON lines
python -m stages judge                                                 what a policy does with packets: stages/judge/process.py
python -m stages compile [--cpu CPU] [--out FILE]                      compile the kernels, so that nobody has to wait for it later
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from broker.core import log
from broker.core.dumps import leave_memory_out
from broker.core.errors import EXIT_CONFIG, TapmeshError
from broker.core.layout import PATH, STAGES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stages", description="Processes of the tapmesh data path")
    commands = parser.add_subparsers(dest="command", required=True)
    host = commands.add_parser("host", help="fork workers on the supervisor's word")
    host.add_argument("--pipeline", required=True)
    for kind in STAGES:
        worker = commands.add_parser(kind, help=f"one {kind} worker")
        worker.add_argument("--pipeline", required=True)
        worker.add_argument("--lane", type=int, default=0)
        worker.add_argument("--worker", type=int, default=0)
        worker.add_argument("--wait", type=float, default=30.0, metavar="SECONDS", help="for the pipeline to appear (default 30)")
    only = commands.add_parser("only", help="run one stage alone and dump what it wrote as JSON lines")
    only.add_argument("stage", choices=PATH)
    only.add_argument("--directory", type=Path, required=True, help="holds generation-1 and policy-1")
    only.add_argument("--dump", required=True, metavar="FILE", help="'-' for standard output")
    commands.add_parser("judge", help="say what a policy does with the packets that come on standard input, and why")
    build = commands.add_parser("compile", help="compile the kernels, so that nobody has to wait for it later")
    build.add_argument("--cpu", default="host", help="host (default), or a level such as x86-64-v3, for machines that have at least that")
    build.add_argument("--out", type=Path, metavar="FILE", help="the shared object (default: in the cache directory)")
    return parser


def main() -> int:
    """Exit status 78 (EX_CONFIG) with the reason logged when starting again would be of no use."""
    leave_memory_out()
    arguments = _parser().parse_args()
    log.configure()
    try:
        if arguments.command == "compile":
            from stages.warm import compile_here

            compile_here(arguments.out, arguments.cpu)
            return 0
        if arguments.command == "host":
            from stages.host import Host

            return Host(arguments.pipeline).serve()
        if arguments.command == "only":
            from stages.only import run_only

            return run_only(arguments.stage, arguments.directory, arguments.dump)
        if arguments.command == "judge":
            from stages.judge.process import serve

            return serve()
        from stages.warm import warm
        from stages.worker import await_pipeline, run_worker

        logger = log.get(pipeline=arguments.pipeline, stage=arguments.command)
        warm(lambda line: logger.info("kernels_compiling", progress=line), (arguments.command,))
        return run_worker(await_pipeline(arguments.pipeline, arguments.wait), arguments.lane, arguments.command, arguments.worker)
    except TapmeshError as error:
        log.get().error("start_refused", reason=str(error))
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
