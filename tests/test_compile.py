"""Compiled blocks: the same losses, and no new program for every new number of matched images."""
from collections import Counter

import pytest
import torch
from small import light

@pytest.mark.parametrize('backend, steps', [('eager', 14), pytest.param('inductor', 200, marks=[pytest.mark.slow, pytest.mark.long])])
def test_blocks_are_compiled_in_the_first_steps(backend, steps, monkeypatch):
    "At most three programs for a kind of block, none after step 10, with 0 to all images matched and captions of many lengths. `eager` makes programs and runs them as they are."
    from rils_nb.models import blocks
    from rils_nb.config import Config
    from rils_nb.methods.base import METHODS, make
    from rils_nb.methods.rils import RILS
    from torch._dynamo.backends.registry import lookup_backend
    from torch._dynamo.utils import counters
    torch._dynamo.reset()
    counters.clear()
    class Given(RILS):
        def compare(self, z_i, z_t, batch): return super().compare(z_i, z_t, batch)[0], torch.arange(len(z_i)) < self.hits
    monkeypatch.setitem(METHODS, 'given', Given)
    kind, programs, when = [''], Counter(), []
    def counting(graph, inputs, **how):
        programs[kind[0]] += 1
        when.append(step)
        return lookup_backend(backend)(graph, inputs, **how)
    program = torch.compile(blocks._call, dynamic=True, backend=counting)
    def call(block, *args):
        kind[0] = type(block).__name__
        return program(block, *args)
    monkeypatch.setattr(blocks, '_compiled', lambda f: call)
    eager, compiled = (make(light(Config(method='given', compile=c))) for c in ('false', 'true'))
    g, n = torch.Generator().manual_seed(0), 16
    for step in range(steps):
        hits = (0, n)[step] if step < 2 else int(torch.randint(n + 1, (), generator=g))
        tokens = torch.randint(1, 49000, (n, 8 + step % 12), generator=g)
        ends = torch.randint(4, 8, (n,), generator=g)
        ends[:2] = torch.tensor([4, 7])                                                # never all equally long
        tokens[torch.arange(n), ends] = 49407
        batch = dict(image=torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), tokens=tokens, keys=torch.arange(n) + 100 * step)
        losses = []
        for m in (eager, compiled):
            m.hits = hits
            m.zero_grad()
            loss = m(batch)['loss']
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), step
        if step % 20 == 0:
            for (name, p), q in zip(eager.named_parameters(), compiled.named_parameters()):
                if p.grad is not None: torch.testing.assert_close(q[1].grad, p.grad, rtol=1e-3, atol=1e-5, msg=lambda m: f'{name}: {m}')
    print(f'{backend}: programs {dict(programs)}, made in steps {sorted(set(when))}')
    assert programs.keys() == {'EncoderBlock', 'TextBlock', 'DecoderBlock'} and max(programs.values()) <= 3, programs
    assert max(when) < 10, when
    assert not counters['graph_break'], counters['graph_break']                        # a block is one program, not several

@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('fields', [dict(opts='local_targets=true'), dict(masking='semantic')], ids=str)
def test_what_overhears_a_block_hears_every_step_of_a_compiled_one(fields):
    from rils_nb.config import Config
    from rils_nb.data.loader import loader
    from rils_nb.methods.base import make
    from rils_nb.data.scenes import Scenes
    eager, compiled = make(Config(batch=8, **fields)), make(Config(batch=8, compile='true', **fields))
    for step, batch in zip(range(3), loader(Config(batch=8), Scenes(n=64), eager.views, steps=3)):
        losses = [m(batch)['loss'].item() for m in (eager, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4), step
