"""What two processes do when one of them is told to stop, meets a NaN, lacks the data, or cannot write.

Each case is a function of a `Case`, and a group of processes of its own (nursery.py), so that one which fails fails alone.
"""
import json, os, resource, signal, time
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from rils_nb import train
from rils_nb.evals import harness
from rils_nb.training import machine
from rils_nb.config import Config
from rils_nb.core import Registry, UserError, write_text
from rils_nb.evals.features import features
from rils_nb.training.processes import map_sharded, world
from rils_nb.methods.base import METHODS
from rils_nb.methods.rils import MAE

BASE = Config(method='told', opts='decoder_width=32,decoder_depth=1,decoder_heads=2', data='scenes:n=64', eval_data='', tasks='', batch=16, steps=9,
              eps=0.01, precision='float32', save_every=4, keep=9, log_every=1, processes=2, ema=0.9)

@METHODS.register('told')
class Told(MAE):
    "MAE to which something happens at a step, in one of the processes."
    plans, keys = {}, []  # (rank, step) -> what happens; the samples of each step
    def forward(self, batch):
        self.keys.append(batch['keys'].tolist())
        out, plan = super().forward(batch), self.plans.get((world()[0], round(batch['progress'] * self.config.steps)))
        if plan == 'nan': out['loss'] = out['loss'] * float('nan')
        elif plan == 'steep':                                                # the same loss, with an infinite slope
            w = self.decoder.head.weight.flatten()[0]
            out['loss'] = out['loss'] + (w - w.detach()).sqrt()
        elif plan: os.kill(os.getpid(), plan)
        return out

@harness.task('endless', auto=False)
def endless(model, config, source):
    "An evaluation in which both processes are told to stop."
    other = Path(config.out).with_name('pid-1')
    os.kill(int(other.read_text()), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3600)
    return {}

@harness.task('turns', auto=False)
def turns(model, config, source):
    "Work in turns, in which process 1 is told to stop in its second part; process 0 waits for it."
    def part(k):
        if k == 3: os.kill(os.getpid(), signal.SIGTERM)
        return k
    return dict(sum=float(sum(map_sharded(range(9), part))), n=1)

@harness.task('hours', auto=False)
def hours(model, config, source):
    "Process 0 is told to stop in long work of its own; process 1 has come to the end of the evaluation."
    if world()[0] == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)
    return dict(n=1)

@harness.task('fails', auto=False)
def fails(model, config, source):
    "Process 1 alone meets an error; process 0 waits for its part."
    def part(k):
        if k == 3: raise UserError('the cable is out')
        return k
    return dict(sum=float(sum(map_sharded(range(9), part))), n=1)

@harness.task('divided', auto=False)
def divided(model, config, source):
    "Features, and how many images this process had to encode for them."
    own = []
    def encode(x):
        own.append(len(x))
        return model.encode_image(x)
    n = len(features(model, source, 0, config.batch, encode=encode)['index'])
    write_text(Path(config.out)/f'encoded-{world()[0]}', str(sum(own)))
    return dict(n=n)

@harness.task('weights', auto=False)
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

class Case:
    "Runs of one case, in one of two processes; what came of them is appended to OUT/RANK.jsonl."
    def __init__(self, out): self.out, self.rank = Path(out), world()[0]
    def run(self, plans={}, name='run', **fields):
        Told.plans, Told.keys = plans, []
        try: came = train.fit(replace(BASE, out=str(self.out/name), **fields))
        except UserError as e: came = f'{type(e).__name__}: {e}'
        row = dict(run=name, came=came, world=world()[1], rank=self.rank, keys=Told.keys)
        with open(self.out/f'{self.rank}.jsonl', 'a') as f: f.write(json.dumps(row) + '\n')

CASES = Registry('case')
case, TERM = CASES.register(), signal.SIGTERM
EVALUATED = dict(eval_data='scenes:split=val,n=50', tasks='weights', eval_every=1, best='weights/sum')

def begin(name, out):
    "One of the two processes of a case."
    Path(out).mkdir(parents=True, exist_ok=True)
    Accelerator.end_training = lambda self: None  # the processes stay together for the next run
    CASES[name](Case(out))

def measure(model, out):
    "What `rils-eval` does under a launcher."
    harness.evaluate_command(dict(model=model, tasks='retrieval,probe', data='scenes:split=val,n=50', batch=16, out=out, device='cpu'), dict(train_samples=200))

@case
def whole(c): c.run()
@case
def stopped(c):
    c.run({(1, 2): TERM})                           # process 1 alone is told, in step 2
    c.run({(0, 6): TERM}, resume=True, workers=1)   # then process 0 alone, in step 6
    c.run(resume=True, workers=2)
@case
def grown(c): c.run(resume=True)                    # begun by one process
@case
def one_nan(c): c.run({(1, 5): 'nan'})
@case
def nan(c): c.run({(1, s): 'nan' for s in range(5, 99)}, steps=30, save_every=1)
@case
def one_steep(c): c.run({(1, 5): 'steep'}, save_every=1)
@case
def one_steep_with_all(c): c.run({(1, 5): 'steep'}, save_every=1, clip_grad=0.1, accum=2, **EVALUATED)
@case
def steep(c): c.run({(1, s): 'steep' for s in range(5, 99)}, steps=30, save_every=1)
@case
def evaluating(c):
    write_text(c.out/f'pid-{c.rank}', str(os.getpid()))
    dist.barrier()
    c.run(steps=3, eval_data='scenes:split=val,n=50', tasks='endless')
@case
def evaluating_in_turns(c): c.run(steps=3, eval_data='scenes:split=val,n=50', tasks='turns')
@case
def evaluating_alone(c): c.run(steps=3, eval_data='scenes:split=val,n=50', tasks='hours')
@case
def evaluation_fails(c): c.run(steps=3, eval_data='scenes:split=val,n=50', tasks='fails')
@case
def divided_work(c): c.run(steps=3, method='clip', opts='', eval_data='scenes:split=val,n=50', tasks='divided,retrieval,zeroshot,probe,scenes,zeroshot_segmentation')
@case
def sharded(c):
    machine.Accelerator = Sharded
    c.run({(1, 2): TERM})
    c.run({(0, 6): TERM}, resume=True, **EVALUATED)
    c.run(resume=True)
@case
def one_steep_in_shards(c):
    machine.Accelerator = Sharded
    c.run({(1, 5): 'steep'}, save_every=1)
@case
def clipped(c): c.run(clip_grad=0.1)
@case
def clipped_in_shards(c):
    machine.Accelerator = Sharded
    c.run(clip_grad=0.1, checkpointing=True, accum=2)
@case
def no_data(c): c.run(data='scenes:n=64' if c.rank == 0 else 'scenes:n=none')
@case
def full(c):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 if c.rank == 0 else 2**30, resource.RLIM_INFINITY))
    c.run(steps=50)
