"""What only several real processes can show."""
import os, signal, subprocess, sys, time
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from starting import ENV, nursery
from rils_nb.core import read_jsonl
from rils_nb.training.runs import WEIGHTS, newest_checkpoint, read_tensors
from three_steps import OTHERS, RUNS, bf16_step, plain, three_steps

def launch(args, log, timeout=900, n=2):
    "Start two processes, or n; their output goes to a file, because workers that are left behind keep pipes open."
    with open(log, 'w') as f:
        code = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(n), *map(str, args)],
                              stdout=f, stderr=subprocess.STDOUT, env=ENV, timeout=timeout).returncode
    return code, Path(log).read_text()

one = lru_cache(1)(three_steps)  # runs that share their plain one are neighbours

# every method in two processes; in parts and in shards, too, where the machinery is tested or somebody asks for the long tests
LONG = [run for run in RUNS if run != plain(run) and plain(run) in OTHERS]

@pytest.mark.parametrize('run', [pytest.param(r, marks=[pytest.mark.slow, pytest.mark.long] if r in LONG else ()) for r in sorted(RUNS, key=plain)])
def test_two_processes_equal_one(nursery, tmp_path, run):
    nursery.together('three_steps:begin', run, tmp_path/'two.pt', log=tmp_path/'log')
    a, b = torch.load(tmp_path/'two.pt'), dict(one(plain(run)))  # the plain run by one process
    assert (a.pop('world'), b.pop('world')) == (2, 1)
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-6, msg=lambda m: f'{run} {k}: {m}')
    if run in ('rils', 'rils_one_sided'): assert b['grad/decoder.head.weight'].abs().max() > 1e-4  # the reconstruction was at work

def test_joined_passes_in_two_processes_equal_those_in_one(nursery, tmp_path):
    """Under autocast a token is rounded as in one process, and the gradient of a weight once in each process before it is summed, in place of once in all:
    so the two differ by less than one of them does from float64."""
    nursery.together('three_steps:begin_bf16', tmp_path/'two.pt', log=tmp_path/'log')
    two, single, exact = torch.load(tmp_path/'two.pt'), bf16_step(), bf16_step('float64')
    depths = [found.pop('joined').tolist() for found in (two, single, exact)]
    assert depths[0] == depths[1] == [2] * len(depths[0]) != [] == depths[2]
    apart = lambda a, b: sum((a[k] - b[k]).square().sum() for k in exact).sqrt()
    assert 0 < apart(two, single) < apart(single, exact)

TINY = ['--data', 'scenes:n=64', '--eval_data', '', '--batch', '16', '--precision', 'float32', '--log_every', '1']

def weights(run): return read_tensors(newest_checkpoint(run)/WEIGHTS)

@pytest.mark.slow
def test_trainer_with_two_processes_equals_one(tmp_path):
    code, log = launch(['-m', 'rils_nb.train', *TINY, '--steps', '4', '--eps', '0.01', '--processes', '2', '--workers', '1', '--out', tmp_path/'two'], tmp_path/'log')
    assert code == 0 and '2 processes x 8' in log, log
    subprocess.run([sys.executable, '-m', 'rils_nb.train', *TINY, '--steps', '4', '--eps', '0.01', '--out', str(tmp_path/'one')], env=ENV, check=True, timeout=900, capture_output=True)
    a, b = weights(tmp_path/'two'), weights(tmp_path/'one')
    moved = 0
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=2e-5, msg=lambda m: f'{k}: {m}')
        moved += (a[k] - b[k]).abs().sum() > 0
    assert moved, 'bit for bit equal: were there two processes?'

@pytest.mark.slow
@pytest.mark.long
def test_streams_in_any_number_of_processes(tmp_path):
    "The order of samples depends on --streams and not on who reads them; with one stream the weights are others."
    def train(n, streams):
        code, log = launch(['-m', 'rils_nb.train', *TINY, '--steps', 6, '--eps', '0.01', '--streams', streams, '--processes', n, '--out', tmp_path/f'{n}-{streams}'], tmp_path/'log', n=n)
        assert code == 0 and (n == 1 or f'{n} processes x {16 // n}' in log), log
        return weights(tmp_path/f'{n}-{streams}')
    one, others, other_order = train(1, 4), [train(n, 4) for n in (2, 4)], train(1, 1)
    for weights_of in others:
        for k in one: torch.testing.assert_close(weights_of[k], one[k], rtol=0, atol=2e-5, msg=lambda m: f'{k}: {m}')
    assert any((one[k] - other_order[k]).abs().max() > 1e-3 for k in one)

@pytest.mark.parametrize('signum', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=[pytest.mark.slow, pytest.mark.long])])  # nbs/training/31_stops.ipynb has Ctrl-C
def test_stopped_by_a_signal_and_resumed(nursery, tmp_path, signum):
    argv = [*TINY, '--size', 'test', '--steps', 60]
    assert nursery.run([*argv, '--out', tmp_path/'whole'], tmp_path/'log')[0] == 0
    pid = nursery.start([*argv, '--out', tmp_path/'run'], tmp_path/'log')
    while len(read_jsonl(tmp_path/'run'/'log.jsonl')) < 3: time.sleep(0.01)
    os.kill(pid, signum)
    assert nursery.wait() == 128 + signum, (tmp_path/'log').read_text()
    assert 3 <= int(newest_checkpoint(tmp_path/'run').name[-7:]) < 60 and 'continue with --resume' in (tmp_path/'log').read_text()
    code, said = nursery.run([*argv, '--out', tmp_path/'run', '--resume', '--workers', 2], tmp_path/'log')
    assert code == 0, said
    a, b = weights(tmp_path/'whole'), weights(tmp_path/'run')
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_more_processes_asked_for_than_started(tmp_path):
    code, log = launch(['-m', 'rils_nb.train', *TINY, '--steps', '1', '--processes', '4', '--out', tmp_path/'run'], tmp_path/'log')
    assert code != 0 and log.count('error: --processes 4 asked for, 2 started') == 1, log
    assert not (tmp_path/'run').exists()
