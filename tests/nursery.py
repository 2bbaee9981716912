"""Processes that start at once: this one has imported everything and forks a child for each job, or as many as are to work together.

A job is a line of JSON: `log` for its output and either `argv` of rils-train or `call`, a function as module:name with `args`. `ranks` children make a
group of gloo processes, without a port that somebody else could have taken. Further: `fsize` (no file may grow beyond so many bytes, as on a full
disk) and `plain` (root, too, may write only where permissions say so). Answers are the first child's process number and, when all have ended, the
first exit code that is not 0; a child that fails takes the others with it.
"""
import ctypes, importlib, json, os, resource, signal, sys, tempfile, traceback

import torch
import torch.distributed as dist
from rils_nb import train
from rils_nb.evals import harness

def plain():
    "Give up the right of root to write everywhere (CAP_DAC_OVERRIDE)."
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~2
    assert libc.capset(header, sets) == 0

def child(job, rank, meeting):
    "Become a training command, or one of several processes."
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    out = os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd in (1, 2): os.dup2(out, fd)
    if 'fsize' in job: resource.setrlimit(resource.RLIMIT_FSIZE, (job['fsize'], resource.RLIM_INFINITY))
    if job.get('plain') and os.geteuid() == 0: plain()
    if 'argv' in job:
        sys.argv = ['rils-train', *job['argv']]
        sys.exit(train.main())
    n = job['ranks']
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT='1')
    dist.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=n)
    module, _, name = job['call'].partition(':')
    code = 1
    try:
        getattr(importlib.import_module(module), name)(*job['args'])
        if dist.is_initialized(): dist.barrier()  # Accelerate ends the group with a training
        code = 0
    except BaseException: traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # at the interpreter's end, gloo's threads sometimes abort after FSDP: one run of 24 (torch 2.15)

def serve(job):
    "Fork the children of a job, say the first one's number, wait for all, say how they ended."
    open(job['log'], 'w').close()
    with tempfile.TemporaryDirectory() as d:
        pids = {}
        for rank in range(job.get('ranks', 1)):
            pid = os.fork()
            if not pid: child(job, rank, f'{d}/meeting')
            pids[pid] = rank
        print(next(iter(pids)), flush=True)
        code, left = 0, set(pids)
        while left:
            pid, status = os.wait()
            left.discard(pid)
            ended = os.waitstatus_to_exitcode(status)
            if ended and not code:
                code = ended
                for p in left: os.kill(p, signal.SIGKILL)
        print(code, flush=True)

if __name__ == '__main__':
    torch.set_num_threads(1)
    harness.import_tasks()
    for name in ('small', 'three_steps', 'two_stops'): importlib.import_module(name)
    for line in sys.stdin: serve(json.loads(line))
