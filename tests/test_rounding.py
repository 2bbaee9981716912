"""A step under autocast, with its copies of weights and its joint passes, beside plain autocast; both are compared with float64."""
import copy

import pytest
import torch
from rils_nb.config import Config
from rils_nb.data.loader import loader
from rils_nb.methods.base import make
from rils_nb.data.scenes import Scenes

PIXELS = 'decoder_width=64,decoder_depth=2,decoder_heads=4'

def loss_and_grads(method, batch, call, autocast=True):
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): loss = call(method, batch)['loss']
    return loss.item(), torch.autograd.grad(loss, [p for p in method.parameters() if p.requires_grad])

def error(grads, exact):  # each parameter counts alike, however large its gradient is
    return torch.stack([((a - b).norm() / b.norm()).square() for a, b in zip(grads, exact)]).mean().sqrt().item()

@pytest.mark.parametrize('name, opts', [('clip', ''), ('mae_clip', PIXELS), ('rils', 'every_image=true'), ('rils', 'every_image=true,visible_patches=true')])
def test_errors_are_not_larger_than_those_of_autocast(name, opts):
    """Both round the operands of the same products to 8 bits, so their errors are of one size; ours rounds some sums once and not twice.
    Whether an image is matched may depend on a rounding, so all of them are reconstructed. The loss is one number, and its error may be small by chance:
    it is compared with what one rounding of each operand of the last products allows, 2 x 2**-9 of logits that a temperature has multiplied by 14 and 25."""
    config = Config(method=name, opts=opts, batch=8)
    method, errors, losses = make(config).train(), [], []
    for batch in (dict(b, progress=1.) for b in loader(config, Scenes(n=24), method.views, steps=3)):
        ref, exact = loss_and_grads(copy.deepcopy(method).double(), batch, type(method).__call__, autocast=False)
        ours, theirs = (loss_and_grads(method, batch, call) for call in (type(method).__call__, torch.nn.Module.__call__))  # the latter has no copies
        errors.append([error(grads, exact) for _, grads in (ours, theirs)])
        losses.append([abs(loss - ref) for loss, _ in (ours, theirs)])
    ours, theirs = torch.tensor(errors).square().mean(0).sqrt().tolist()
    print(f'{name} {opts}: relative error of the gradient {ours:.3%}, autocast {theirs:.3%}; of the loss {losses}')
    assert 0 < theirs < 0.1 and ours < 1.05 * theirs, errors
    assert all(a < 2 * 2**-9 * 25 for a, _ in losses), losses
