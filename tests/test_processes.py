"""What only several real processes can show."""
import os, subprocess, sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ENV = dict(os.environ, OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='1')

def launch(args, log, timeout=300):
    "Start two processes; their output goes to a file, because workers that are left behind keep pipes open."
    with open(log, 'w') as f:
        code = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', *map(str, args)],
                              stdout=f, stderr=subprocess.STDOUT, env=ENV, timeout=timeout).returncode
    return code, Path(log).read_text()

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    d = tmp_path_factory.mktemp('two')
    code, log = launch([HERE/'three_steps.py', d/'two.pt'], d/'log')
    assert code == 0, log
    return torch.load(d/'two.pt')

@pytest.mark.parametrize('run', ['clip', 'mae', 'mae_clip', 'rils', 'rils_one_sided', 'rils_none_matched', 'rils_prototypes'])
def test_two_processes_equal_one(two, run):
    from three_steps import three_steps
    a, b = two[run], three_steps(run)
    assert (a.pop('world'), b.pop('world')) == (2, 1)
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-6, msg=lambda m: f'{run} {k}: {m}')
    if run in ('rils', 'rils_one_sided'): assert b['grad/decoder.head.weight'].abs().max() > 1e-4  # the reconstruction was at work
