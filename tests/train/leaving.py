"""A program of which two processes enter a group, train a little and leave the group, again and again."""

import sys

import torch
from tiny import group_threads
from torch.nn.parallel import DistributedDataParallel

from clearstate.train.session import Session

if __name__ == "__main__":  # RANK FOLDER ROUNDS
    rank, folder, rounds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    for number in range(rounds):
        torch.distributed.init_process_group("gloo", f"file://{folder}/{number}", rank=rank, world_size=2)
        session = Session.__new__(Session)
        session.model = DistributedDataParallel(torch.nn.Linear(8, 1))
        session.optimiser = torch.optim.Adam(session.model.parameters())
        for _ in range(3):
            session.model(torch.ones(4, 8)).mean().backward()
            session.optimiser.step()
        torch.distributed.all_reduce(torch.ones(3))
        session.close()
        assert not group_threads()
