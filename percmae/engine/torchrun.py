"""torchrun with exit codes that say what happened.

``python -m percmae.engine.torchrun [torchrun's options] -- pretrain …`` starts ``percmae pretrain
…`` as torchrun does, with options from the command line or PET_* variables. torchrun itself ends
with 1 for everything; in a cluster the exit code decides whether a pod is replaced. Here it is:

- the exit code of the process that failed first (128 + N when signal N killed it);
- 128 + N when torchrun itself was told to stop by signal N (after its processes have saved);
- PeerLost's when the other pods could not be found or were lost.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from percmae.errors import PeerLost


def torchrun(arguments: list[str]) -> int:
    """Run torchrun with its options, ``--`` and the arguments of ``percmae``; the exit code."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import get_args_parser, run

    if "--" not in arguments:
        print("percmae: error: torchrun's options, then --, then the verb", file=sys.stderr)
        return 2
    split = arguments.index("--")
    args = get_args_parser().parse_args(
        [*arguments[:split], "--module", "percmae", *arguments[split + 1 :]]
    )
    try:
        run(args)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    except (DistError, RendezvousError) as error:
        reason = " ".join(str(error).split())
        print(f"percmae: stopped: the other pods were not found: {reason}", file=sys.stderr)
        return PeerLost.exit_code
    return 0


def main() -> NoReturn:
    """The command."""
    raise SystemExit(torchrun(sys.argv[1:]))


if __name__ == "__main__":
    main()
