"""Training commands that start at once: this process has imported everything and forks one child for each job that it reads.

A job is a line of JSON: `argv` of rils-train, `log` for its output, and perhaps `fsize` (no file may grow beyond so many bytes, as on a full disk) and
`plain` (root, too, may write only where permissions say so). Answers are the child's process number and, when it has ended, its exit code.
"""
import ctypes, json, os, resource, sys

import torch
from rils_nb import harness, train

def plain():
    "Give up the right of root to write everywhere (CAP_DAC_OVERRIDE)."
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~2
    assert libc.capset(header, sets) == 0

def child(job):
    "Become a training command."
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    out = os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2): os.dup2(out, fd)
    if 'fsize' in job: resource.setrlimit(resource.RLIMIT_FSIZE, (job['fsize'], resource.RLIM_INFINITY))
    if job.get('plain') and os.geteuid() == 0: plain()
    sys.argv = ['rils-train', *job['argv']]
    sys.exit(train.main())

if __name__ == '__main__':
    torch.set_num_threads(1)
    harness.import_tasks()
    for line in sys.stdin:
        pid = os.fork()
        if not pid: child(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
