"""What only several real processes can show."""
import os, signal, subprocess, sys, time
from functools import cache
from pathlib import Path

import pytest
import torch
from three_steps import RUNS, three_steps

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

one = cache(three_steps)

@pytest.mark.parametrize('run', RUNS)
def test_two_processes_equal_one(two, run):
    a, b = two[run], dict(one(run.removesuffix('_fsdp').removesuffix('_accum')))  # the plain run by one process
    assert (a.pop('world'), b.pop('world')) == (2, 1)
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-6, msg=lambda m: f'{run} {k}: {m}')
    if run in ('rils', 'rils_one_sided'): assert b['grad/decoder.head.weight'].abs().max() > 1e-4  # the reconstruction was at work

TINY = ['--data', 'scenes:n=64', '--eval_data', '', '--batch', '16', '--precision', 'float32', '--log_every', '1']

def weights(run):
    from rils_nb.runs import WEIGHTS, newest, read_tensors
    return read_tensors(newest(run)/WEIGHTS)

@pytest.mark.slow
def test_trainer_with_two_processes_equals_one(tmp_path):
    code, log = launch(['-m', 'rils_nb.train', *TINY, '--steps', '4', '--eps', '0.01', '--processes', '2', '--workers', '1', '--out', tmp_path/'two'], tmp_path/'log')
    assert code == 0 and '2 processes x 8' in log, log
    subprocess.run([sys.executable, '-m', 'rils_nb.train', *TINY, '--steps', '4', '--eps', '0.01', '--out', str(tmp_path/'one')], env=ENV, check=True, timeout=200, capture_output=True)
    a, b = weights(tmp_path/'two'), weights(tmp_path/'one')
    moved = 0
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=2e-5, msg=lambda m: f'{k}: {m}')
        moved += (a[k] - b[k]).abs().sum() > 0
    assert moved, 'bit for bit equal: were there two processes?'

@pytest.mark.slow
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_and_resumed(tmp_path, signum):
    args = [sys.executable, '-m', 'rils_nb.train', *TINY, '--steps', '60']
    subprocess.run([*args, '--out', str(tmp_path/'whole')], env=ENV, check=True, timeout=200, capture_output=True)
    with open(tmp_path/'out', 'w') as f:
        run = subprocess.Popen([*args, '--out', str(tmp_path/'run')], env=ENV, stdout=f, stderr=subprocess.STDOUT)
        log = tmp_path/'run'/'log.jsonl'
        for _ in range(600):
            if log.exists() and len(log.read_text().splitlines()) >= 3: break
            time.sleep(0.1)
        run.send_signal(signum)
        assert run.wait(timeout=20) == 128 + signum, (tmp_path/'out').read_text()
    from rils_nb.runs import newest
    assert 3 <= int(newest(tmp_path/'run').name[-7:]) < 60
    assert 'continue with --resume' in (tmp_path/'out').read_text()
    subprocess.run([*args, '--out', str(tmp_path/'run'), '--resume', '--workers', '2'], env=ENV, check=True, timeout=200, capture_output=True)
    a, b = weights(tmp_path/'whole'), weights(tmp_path/'run')
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_more_processes_asked_for_than_started(tmp_path):
    code, log = launch(['-m', 'rils_nb.train', *TINY, '--steps', '1', '--processes', '4', '--out', tmp_path/'run'], tmp_path/'log')
    assert code != 0 and log.count('error: --processes 4 asked for, 2 started') == 1, log
    assert not (tmp_path/'run').exists()
