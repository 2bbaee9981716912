"""A run that is stopped, killed, starved or lied to: what stands afterwards, and what it says."""
import os, random, re, shutil, signal, subprocess, sys, time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from rils_nb.core import read_jsonl, verify_checksums
from rils_nb.evals.harness import evaluate
from rils_nb.data.readers import open_source
from rils_nb.data.packing import pack
from rils_nb.config import Config
from rils_nb.methods.base import make
from rils_nb.training.runs import EMA, WEIGHTS, load, newest_checkpoint, read_tensors, save
from rils_nb.train import fit
import two_stops
from starting import ENV, nursery

FILES = WEIGHTS, EMA, 'trainer.safetensors'
EXACT = ['--batch', '16', '--precision', 'float32', '--log_every', '1', '--ema', '0.9', '--data', 'scenes:n=64', '--eval_data', '']
SMALL = [*EXACT, '--method', 'mae', '--opts', 'decoder_width=32,decoder_depth=1,decoder_heads=2']

def until(holds, seconds=600):
    "Wait for something to become true."
    end = time.time() + seconds
    while not (got := holds()):
        assert time.time() < end, 'it never happened'
        time.sleep(0.002)
    return got

def children(pid): return [int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
def steps_of(run): return [r['step'] for r in read_jsonl(run/'log.jsonl')]
def saved(run): return [int(p.name[-7:]) for p in sorted((run/'checkpoints').glob('step-*'))]
def left_aside(run): return [p for p in run.rglob('*') if p.name.startswith('.')]

def same(a, b, files=FILES):
    "The newest checkpoints of two runs are equal bit for bit."
    assert newest_checkpoint(a).name == newest_checkpoint(b).name
    for file in files:
        x, y = (read_tensors(newest_checkpoint(r)/file) for r in (a, b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), file

# kill -9

def kill_and_resume(nursery, d, argv, kills, steps, every):
    "Kill a run again and again, every second time while a checkpoint is being written; then let it end."
    argv, rng, hit = [*argv, '--steps', steps, '--save_every', every], random.Random(0), 0
    assert nursery.run([*argv, '--out', d/'whole'], d/'log')[0] == 0
    run, argv = d/'run', [*argv, '--out', d/'run', '--resume']
    for k in range(kills):
        before, made = max(saved(run), default=0), len(steps_of(run))
        pid = nursery.start([*argv, '--workers', k % 3], d/'log')
        if k % 2:
            until(lambda: any((run/'checkpoints').glob('.step-*')) or not Path(f'/proc/{pid}').exists())
            time.sleep(rng.uniform(0, 0.02))
        else:  # at any moment of the next steps; half of the run at most goes by in all kills together
            made += rng.randint(1, max(1, steps // (2 * kills)))
            until(lambda: len(steps_of(run)) >= made or not Path(f'/proc/{pid}').exists())
        if Path(f'/proc/{pid}').exists(): os.kill(pid, signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL, 'the run ended before it was killed: give it more steps'
        for p in (run/'checkpoints').glob('step-*'):
            assert not verify_checksums(p)
            for file in FILES: read_tensors(p/file)
        now, logged = max(saved(run), default=0), max(steps_of(run), default=0)
        assert now >= before and logged - now <= 2 * every, (before, now, logged)  # the last save may have been under way, not the one before
        hit += bool(left_aside(run))
    assert hit >= kills // 3, 'hardly a kill fell into a save'
    code, said = nursery.run(argv, d/'log')
    assert code == 0, said
    same(d/'whole', run)
    assert steps_of(run) == list(range(1, steps + 1)) and not left_aside(run) and 'damaged' not in said

def test_three_kills(nursery, tmp_path): kill_and_resume(nursery, tmp_path, SMALL, kills=3, steps=200, every=2)

@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('argv,steps,every', [(EXACT, 100, 1), (SMALL, 500, 2)], ids=['rils', 'mae'])
def test_twenty_kills(nursery, tmp_path, argv, steps, every): kill_and_resume(nursery, tmp_path, argv, 20, steps, every)

# A disk, a loader, data

def clear(code, said, words):
    "Exit code 2, and one line that says why."
    errors = [line for line in said.splitlines() if 'error' in line.lower()]
    assert code == 2 and len(errors) == 1 and errors[0].startswith('error: ') and words in errors[0] and 'Traceback' not in said, said

def test_a_full_disk(nursery, tmp_path):
    argv = [*SMALL, '--steps', 2000, '--save_every', 5, '--out', tmp_path/'run']
    pid = nursery.start(argv, tmp_path/'log')
    until(lambda: saved(tmp_path/'run'))
    os.kill(pid, signal.SIGTERM)
    assert nursery.wait() == 128 + signal.SIGTERM
    at = saved(tmp_path/'run')[-1]
    clear(*nursery.run([*argv, '--resume'], tmp_path/'log', fsize=2**20), 'File too large')     # EFBIG, which stands for ENOSPC
    assert saved(tmp_path/'run')[-1] == at and max(steps_of(tmp_path/'run')) < at + 30 and not left_aside(tmp_path/'run')
    load(tmp_path/'run')
    clear(*nursery.run([*argv, '--resume'], tmp_path/'log', fsize=80), 'cannot write `')         # not even a line of the log

def test_a_read_only_folder(nursery, tmp_path):
    (tmp_path/'locked').mkdir(mode=0o555)
    clear(*nursery.run([*SMALL, '--steps', 2, '--out', tmp_path/'locked'/'run'], tmp_path/'log', plain=True), 'Permission denied')
    argv = [*SMALL, '--steps', 2, '--save_every', 1, '--out', tmp_path/'run']
    assert nursery.run(argv, tmp_path/'log')[0] == 0
    shutil.rmtree(tmp_path/'run'/'checkpoints'/'step-0000002')
    (tmp_path/'run'/'checkpoints').chmod(0o555)
    clear(*nursery.run([*argv, '--resume'], tmp_path/'log', plain=True), 'Permission denied')
    load(tmp_path/'run')

def test_a_killed_loader(nursery, tmp_path):
    pid = nursery.start([*SMALL, '--steps', 5000, '--save_every', 5, '--workers', 2, '--out', tmp_path/'run'], tmp_path/'log')
    until(lambda: saved(tmp_path/'run'))
    os.kill(children(pid)[0], signal.SIGKILL)
    clear(nursery.wait(), (tmp_path/'log').read_text(), 'a data loading process died')
    load(tmp_path/'run')

def test_data_that_vanish(nursery, tmp_path):
    pack(open_source('scenes:n=64'), tmp_path/'s', per_shard=16)
    argv = [*SMALL, '--data', tmp_path/'s-*.tar', '--steps', 4, '--save_every', 2, '--out', tmp_path/'run']
    assert nursery.run(argv, tmp_path/'log')[0] == 0
    shutil.rmtree(tmp_path/'run'/'checkpoints'/'step-0000004')
    (tmp_path/'s-000003.tar').unlink()
    clear(*nursery.run([*argv, '--resume'], tmp_path/'log'), 'shards were added, removed or changed')
    assert saved(tmp_path/'run') == [2]

def test_a_folder_that_vanishes_in_mid_run(nursery, tmp_path):
    (tmp_path/'pictures').mkdir()
    for i in range(64):
        Image.new('RGB', (32, 32), (4 * i, 0, 0)).save(tmp_path/'pictures'/f'{i}.png')
        (tmp_path/'pictures'/f'{i}.txt').write_text('red')
    nursery.start([*SMALL, '--data', tmp_path/'pictures', '--steps', 5000, '--save_every', 5, '--out', tmp_path/'run'], tmp_path/'log')
    until(lambda: saved(tmp_path/'run'))
    os.rename(tmp_path/'pictures', tmp_path/'elsewhere')
    clear(nursery.wait(), (tmp_path/'log').read_text(), 'No such file or directory')
    load(tmp_path/'run')

def test_an_evaluation_is_interrupted(nursery, tmp_path):
    argv = [*EXACT, '--tasks', 'retrieval', '--steps', 3, '--out', tmp_path/'run']
    pid = nursery.start([*argv, '--eval_samples', 20_000, '--eval_data', 'scenes:split=val,n=20000', '--eval_every', 2, '--save_every', 50], tmp_path/'log')
    until(lambda: 2 in steps_of(tmp_path/'run'))
    time.sleep(0.5)
    os.kill(pid, signal.SIGTERM)
    assert nursery.wait() == 128 + signal.SIGTERM, (tmp_path/'log').read_text()
    assert saved(tmp_path/'run') == [2] and not (tmp_path/'run'/'results.jsonl').exists()
    small = ['--eval_samples', 50, '--eval_data', 'scenes:split=val,n=50', '--eval_every', 2, '--resume']
    assert nursery.run([*argv, *small], tmp_path/'log')[0] == 0
    assert [r['step'] for r in read_jsonl(tmp_path/'run'/'results.jsonl')] == [2, 3]              # made up for

# Two processes

@pytest.fixture(scope='module')
def two(nursery, tmp_path_factory):
    "A function that has two processes go through a case of two_stops.py, once: what came of each run, and the samples of each step."
    d = tmp_path_factory.mktemp('two')
    @cache
    def case(name):
        nursery.together('two_stops:begin', name, d/name, log=d/f'{name}.log')
        rows = [read_jsonl(d/name/f'{rank}.jsonl') for rank in (0, 1)]
        for rank in (0, 1): assert {(r['world'], r['rank']) for r in rows[rank]} == {(2, rank)}
        keys = [a + b for a, b in zip(*([k for r in rs for k in r['keys']] for rs in rows))]
        return SimpleNamespace(run=d/name/'run', came=[[r['came'] for r in rs] for rs in rows], keys=keys)
    case.folder = d
    return case

def alone(run, keep=4, **fields):
    "The run of two_stops.py by one process, with only the checkpoint of step `keep`; the samples of each step."
    two_stops.Told.keys = []
    AcceleratorState._reset_state(reset_partial_state=True)  # what an earlier test of this process left
    assert fit(replace(two_stops.BASE, out=str(run), processes=1, **fields)) == 0
    for p in (run/'checkpoints').glob('step-*'):
        if keep and int(p.name[-7:]) != keep: shutil.rmtree(p)
    return two_stops.Told.keys

def test_two_processes_agree_to_stop_and_resume_twice(two):
    whole, stopped = two('whole'), two('stopped')
    assert whole.came == [[0], [0]]
    assert stopped.came == [[signal.SIGTERM, signal.SIGTERM, 0]] * 2                     # one was told, both left
    assert saved(stopped.run) == [3, 4, 7, 8, 9] and steps_of(stopped.run) == list(range(1, 10))
    same(whole.run, stopped.run)
    assert stopped.keys == whole.keys

def alike(a, b):
    "The newest checkpoints of two runs are equal but for the order of sums."
    for file in FILES:
        x, y = (read_tensors(newest_checkpoint(r)/file) for r in (a, b))
        for k in x: torch.testing.assert_close(x[k], y[k], rtol=0, atol=2e-5, msg=lambda m: f'{a} {k}: {m}')

def test_two_then_one(two, tmp_path):
    whole = two('whole')
    shutil.copytree(whole.run, tmp_path/'run')
    for step in (8, 9): shutil.rmtree(tmp_path/'run'/'checkpoints'/f'step-000000{step}')
    assert alone(tmp_path/'run', keep=0, resume=True) == whole.keys[4:]
    alike(tmp_path/'run', whole.run)

def test_one_then_two(two):
    alone(two.folder/'grown'/'run')
    whole, grown = two('whole'), two('grown')
    assert grown.came == [[0], [0]] and grown.keys == whole.keys[4:]
    alike(grown.run, whole.run)

def near(a, b):
    for file in FILES:
        x, y = (read_tensors(newest_checkpoint(r)/file) for r in (a, b))
        assert x.keys() == y.keys()
        for k in x: torch.testing.assert_close(x[k], y[k], rtol=0, atol=2e-6, msg=lambda m: f'{a} {file} {k}: {m}')

def test_weights_in_shards(two):
    "FSDP: told to stop, evaluated, resumed; its checkpoints are those of DDP."
    whole, sharded = two('whole'), two('sharded')
    assert sharded.came == [[signal.SIGTERM, signal.SIGTERM, 0]] * 2 and sharded.keys == whole.keys
    sums = {r['step']: r['metrics']['sum'] for r in read_jsonl(sharded.run/'results.jsonl')}
    assert list(sums) == [3, 4, 5, 6]                                                    # step 3 was made up for; none after step 6 was asked for
    assert sums[4] == pytest.approx(float(sum(v.double().abs().sum() for v in read_tensors(whole.run/'checkpoints'/'step-0000004'/EMA).values())), rel=1e-6)
    best = max(sums, key=sums.get)
    assert newest_checkpoint(sharded.run/'checkpoints'/'best').name == f'step-{best:07}'
    near(sharded.run, whole.run)

def test_clipped_in_shards(two): near(two('clipped_in_shards').run, two('clipped').run)

def test_one_nan_in_one_of_two_processes(two):
    case = two('one_nan')
    assert case.came == [[0], [0]] and all(v.isfinite().all() for v in read_tensors(newest_checkpoint(case.run)/WEIGHTS).values())

@pytest.mark.parametrize('name', ['nan', 'steep'])
def test_steps_that_stay_unusable(two, name):
    case = two(name)
    for words, in case.came: assert 'not finite for 5 steps up to step 10' in words and 'the last good checkpoint stands' in words
    assert newest_checkpoint(case.run).name == 'step-0000005'

@pytest.mark.parametrize('name', ['one_steep', 'one_steep_with_all', 'one_steep_in_shards'])
def test_an_infinite_slope_in_one_of_two_processes(two, name):
    case = two(name)
    assert case.came == [[0], [0]]
    assert saved(case.run) == [1, 2, 3, 4, 5, 7, 8, 9]                                   # none after the step that was skipped
    assert [r['skipped'] for r in read_jsonl(case.run/'log.jsonl')] == [0] * 5 + [1] + [0] * 3
    files = list((case.run/'checkpoints').glob('step-*/*.safetensors'))
    assert len(files) == 3 * 8 and all(v.isfinite().all() for f in files for v in read_tensors(f).values())

@pytest.mark.parametrize('name', ['evaluating', 'evaluating_in_turns', 'evaluating_alone'])
def test_two_processes_are_stopped_in_an_evaluation(two, name):
    "Both are told, or one while the other waits for its part, or for its end. Two of these evaluations would take an hour."
    case = two(name)
    assert case.came == [[signal.SIGTERM]] * 2 and saved(case.run) == [3] and not (case.run/'results.jsonl').exists()

def test_an_evaluation_that_fails_in_one_of_two_processes(two):
    assert two('evaluation_fails').came == [['UserError: the cable is out']] * 2

def test_two_processes_divide_an_evaluation(two):
    "Each encodes its part, and the figures are those of one process, to the last digit."
    run = two('divided_work').run
    assert [int((run/f'encoded-{rank}').read_text()) for rank in (0, 1)] == [16 + 16, 16 + 2]  # batches of 16, 16, 16, 2
    together = {f'{r["task"]}/{k}': v for r in read_jsonl(run/'results.jsonl') for k, v in r['metrics'].items() if r['task'] != 'divided'}
    assert len(together) > 20 and together == evaluate(run, batch=16, tasks=['retrieval', 'zeroshot', 'probe', 'scenes', 'zeroshot_segmentation'])

def test_data_that_one_of_two_processes_lacks(two):
    case = two('no_data')
    (first,), (second,) = case.came
    assert first.startswith('UserError: another process') and second.startswith('LocalError: --data: n of the scenes is a whole number')
    assert not case.run.exists()

def test_a_full_disk_under_two_processes(two):
    case = two('full')
    (first,), (second,) = case.came
    assert 'File too large' in first and 'could not write a checkpoint' in second
    assert saved(case.run) == [] and not left_aside(case.run) and max(steps_of(case.run)) < 50

def test_rils_eval_in_two_processes(nursery, tmp_path):
    (tmp_path/'run').mkdir()
    save(make(Config(method='clip')), tmp_path/'run')
    nursery.together('two_stops:measure', tmp_path/'run', tmp_path/'two.jsonl', log=tmp_path/'log')
    two_stops.measure(str(tmp_path/'run'), tmp_path/'one.jsonl')
    one, two = (read_jsonl(tmp_path/f'{n}.jsonl') for n in ('one', 'two'))
    assert [r['task'] for r in two] == ['retrieval', 'probe'] and one == two
    assert (tmp_path/'log').read_text().count('i2t_r10') == 1                            # one process speaks for both

CLI = ['-m', 'rils_nb.train', *SMALL, '--steps', '100000', '--save_every', '10', '--workers', '1', '--processes', '2', '--out']


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('what', ['stop', 'kill', 'loader'])
def test_what_the_launcher_says(tmp_path, what):
    "Two processes under torch.distributed.run: it is told to stop; process 1 is killed; a data loading process of process 1 is killed."
    with open(tmp_path/'log', 'w') as f:
        launcher = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', *CLI, str(tmp_path/'run')], stdout=f, stderr=f, env=ENV)
    until(lambda: len(saved(tmp_path/'run')) == 2)
    second = next(p for p in children(launcher.pid) if b'RANK=1' in Path(f'/proc/{p}/environ').read_bytes().split(b'\0'))
    t = time.time()
    if what == 'stop': launcher.terminate()
    else: os.kill(second if what == 'kill' else children(second)[0], signal.SIGKILL)
    code, seconds, said = launcher.wait(300), time.time() - t, (tmp_path/'log').read_text()
    assert code == 1 and seconds < (20 if what == 'stop' else 40), said
    lines = re.findall(r'(?:error: |stopped by).*', said)  # behind half a line of the other process, perhaps
    words = dict(stop=['continue with --resume'], kill=['another process of this run ended'], loader=['a data loading process died', 'another process of this run ended'])[what]
    assert len(lines) <= len(words) and words[0] in ' '.join(lines), said
    load(tmp_path/'run')


# A run of before

def test_a_run_of_before_goes_on(nursery, tmp_path):
    "tests/old_run was begun by commit c77e152, before the modules were divided; `expected` is what that commit ended with. Other processors round otherwise."
    shutil.copytree(Path(__file__).parent/'old_run', tmp_path/'old_run')
    before = load_file(tmp_path/'old_run'/'checkpoints'/'step-0000003'/WEIGHTS)
    nursery.together('old_run:begin', tmp_path/'old_run', log=tmp_path/'log', ranks=1)
    assert steps_of(tmp_path/'old_run') == [1, 2, 3, 4, 5, 6]
    expected, after = load_file(tmp_path/'old_run'/'expected.safetensors'), read_tensors(newest_checkpoint(tmp_path/'old_run')/WEIGHTS)
    assert before.keys() == after.keys() == expected.keys() and (before['decoder.head.weight'] - after['decoder.head.weight']).abs().max() > 1e-4
    for k in expected: torch.testing.assert_close(after[k], expected[k], rtol=0, atol=1e-5, msg=lambda m: f'{k}: {m}')
