"""Compiled blocks: the same losses, and no new program for every new number of matched images."""
import pytest
import torch

@pytest.mark.slow
@pytest.mark.long
def test_compiled_blocks_are_compiled_once():
    from rils_nb.config import Config
    from rils_nb.methods import METHODS, make
    from rils_nb.rils import RILS
    from torch._dynamo.utils import counters
    class Given(RILS):
        def compare(self, z_i, z_t, batch): return super().compare(z_i, z_t, batch)[0], torch.arange(len(z_i)) < self.hits
    METHODS['given'] = Given
    eager, compiled = make(Config(method='given')), make(Config(method='given', compile=True))
    g, graphs = torch.Generator().manual_seed(0), []
    for step, hits in enumerate([0, 2, 1, 5, 9, 16, 3, 7, 0, 12]):
        n, length = 16, 8 + step
        tokens = torch.randint(1, 49000, (n, length), generator=g)
        tokens[torch.arange(n), torch.randint(4, length, (n,), generator=g)] = 49407
        batch = dict(image=torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), tokens=tokens, keys=torch.arange(n) + 100 * step)
        losses = []
        for m in (eager, compiled):
            m.hits = hits
            m.zero_grad()
            loss = m(batch)['loss']
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for (name, p), q in zip(eager.named_parameters(), compiled.parameters()):
            if p.grad is not None: torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5, msg=lambda m: f'{name}: {m}')
        graphs.append(counters['stats']['unique_graphs'])
    print('programs after each step:', graphs)
    assert graphs[0] >= 3 and graphs[-1] <= 8 and graphs[3] == graphs[-1], graphs

@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('fields', [dict(opts='local_targets=true'), dict(masking='semantic')], ids=str)
def test_what_overhears_a_block_hears_every_step_of_a_compiled_one(fields):
    from rils_nb.config import Config
    from rils_nb.loader import loader
    from rils_nb.methods import make
    from rils_nb.scenes import Scenes
    eager, compiled = make(Config(batch=8, **fields)), make(Config(batch=8, compile=True, **fields))
    for step, batch in zip(range(3), loader(Config(batch=8), Scenes(n=64), eager.views, steps=3)):
        losses = [m(batch)['loss'].item() for m in (eager, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4), step
