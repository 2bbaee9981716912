"""What two processes do when one of them is told to stop, meets a NaN, lacks the data, or cannot write. Each case is a whole run; results go to a folder.

    python -m torch.distributed.run --nproc_per_node 2 tests/two_stops.py OUT
"""
import json, os, resource, signal, sys, threading, time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from rils_nb import harness, machine, train
from rils_nb.config import Config
from rils_nb.core import UserError, write_text
from rils_nb.processes import world
from rils_nb.methods import METHODS, MAE

RANK, OUT = int(os.environ.get('RANK', 0)), Path(sys.argv[1]) if __name__ == '__main__' else None
BASE = Config(method='told', opts='decoder_width=32,decoder_depth=1,decoder_heads=2', data='scenes:n=64', eval_data='', tasks='', batch=16, steps=9,
              eps=0.01, precision='float32', save_every=4, keep=9, log_every=1, processes=2, ema=0.9)

@METHODS.register('told')
class Told(MAE):
    "MAE to which something happens at a step, in one of the processes."
    plans, keys = {}, []  # (rank, step) -> what happens; the samples of each step
    def forward(self, batch):
        self.keys.append(batch['keys'].tolist())
        out, plan = super().forward(batch), self.plans.get((RANK, round(batch['progress'] * self.config.steps)))
        if plan == 'nan': out['loss'] = out['loss'] * float('nan')
        elif plan == 'steep':                                                # the same loss, with an infinite slope
            w = self.decoder.head.weight.flatten()[0]
            out['loss'] = out['loss'] + (w - w.detach()).sqrt()
        elif plan: os.kill(os.getpid(), plan)
        return out

@harness.task('endless')
def endless(model, config, source):
    write_text(OUT/'evaluating.now', '')
    time.sleep(60)
    return {}

def told_while_evaluating():
    "Stop this process once the evaluation is under way."
    while not (OUT/'evaluating.now').exists(): time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

@harness.task('weights')
def weights(model, config, source): return dict(sum=float(sum(p.double().abs().sum() for p in model.parameters())), n=1)

class Sharded(Accelerator):
    "What Accelerate does on GPUs whose config says FSDP2; on CPUs it would not."
    def __init__(self, **kwargs):
        AcceleratorState._reset_state()
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy='transformer_based_wrap')
        super().__init__(**kwargs, fsdp_plugin=plugin)
        self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin
        assert self.is_fsdp2
    def prepare(self, *args):
        model, optimizer = super().prepare(*args)
        assert isinstance(model, FSDPModule) and all(isinstance(p, DTensor) for p in model.parameters())
        return model, optimizer
    def end_training(self): AcceleratorState._reset_state()

def run(name, plans={}, **fields):
    "A run under OUT/name; what came of it is appended to OUT/RANK.json."
    Told.plans, Told.keys, t = plans, [], time.time()
    try: came = train.fit(replace(BASE, out=str(OUT/name), **fields))
    except UserError as e: came = f'{type(e).__name__}: {e}'
    came = dict(run=name, came=came, seconds=time.time() - t, world=world()[1], rank=world()[0], keys=Told.keys)
    with open(OUT/f'{RANK}.jsonl', 'a') as f: f.write(json.dumps(came) + '\n')

if __name__ == '__main__':
    torch.set_num_threads(1)
    Accelerator.end_training = lambda self: None  # the processes stay together for the next run
    TERM = signal.SIGTERM
    run('whole')
    run('stopped', {(1, 2): TERM})                           # process 1 alone is told, in step 2
    run('stopped', {(0, 6): TERM}, resume=True, workers=1)   # then process 0 alone, in step 6
    run('stopped', resume=True, workers=2)
    run('grown', resume=True)                                # begun by one process
    run('one_nan', {(1, 5): 'nan'})
    run('one_steep', {(1, 5): 'steep'}, save_every=1)
    run('one_steep_with_all', {(1, 5): 'steep'}, save_every=1, clip_grad=0.1, accum=2, eval_data='scenes:split=val,n=50', tasks='weights', eval_every=1, best='weights/sum')
    run('steep', {(1, s): 'steep' for s in range(5, 99)}, steps=30, save_every=1)
    run('nan', {(1, s): 'nan' for s in range(5, 99)}, steps=30, save_every=1)
    threading.Thread(target=told_while_evaluating).start()
    run('evaluating', steps=3, eval_data='scenes:split=val,n=50', tasks='endless')
    machine.Accelerator = Sharded
    run('sharded', {(1, 2): TERM})
    run('sharded', {(0, 6): TERM}, resume=True, eval_data='scenes:split=val,n=50', tasks='weights', eval_every=1, best='weights/sum')
    run('sharded', resume=True)
    run('one_steep_in_shards', {(1, 5): 'steep'}, save_every=1)
    run('clipped_in_shards', clip_grad=0.1, checkpointing=True, accum=2)
    machine.Accelerator = Accelerator
    run('clipped', clip_grad=0.1)
    run('no_data', data='scenes:n=64' if RANK == 0 else 'scenes:n=none')
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 if RANK == 0 else 2**30, resource.RLIM_INFINITY))
    run('full', steps=50)
    if RANK == 0: write_text(OUT/'done', '')
    sys.stdout.flush()
    os._exit(0)  # at the interpreter's end, gloo's threads sometimes abort after FSDP: one run of 24 (torch 2.15)
