"""The end of a process that is one of several."""

import os
import sys

import torch.distributed as dist


def leave_process_group() -> None:
    """Close the process group and end the process, successfully.

    gloo's threads live as long as a model or a device mesh that uses the group, and a process that is taken down in
    the usual way while they run may abort after all its work is done.
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
