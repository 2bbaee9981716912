"""Who takes part in benchmarks/step.py and benchmarks/operations.py: methods of this package, open_clip's CLIP and models of checkouts, each with a batch."""
import contextlib, importlib, sys
from dataclasses import replace
from functools import cache

import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.loss import ClipLoss
from rils_nb.config import Config
from rils_nb.core import hash_key
from rils_nb.data.loader import loader
from rils_nb.methods.base import make
from rils_nb.models.vit import SIZES
from rils_nb.methods.rils import RILS
from rils_nb.training.starts import find_teacher

def make_batch(
    n,    # images
    side, # of the images in pixels
):  # -> dict
    "Images of noise, captions of 12 to 20 tokens, and what the loader tells of them."
    lengths = torch.randint(12, 21, (n,))
    tokens = torch.randint(1, 49000, (n, 20)) * (torch.arange(20) < lengths[:, None])
    tokens[torch.arange(n), lengths - 1] = 49407
    return dict(image=torch.randint(256, (n, 3, side, side), dtype=torch.uint8), tokens=tokens, words=int(lengths.sum()), ids=torch.arange(n),
                keys=torch.tensor([hash_key(0, 0, i) for i in range(n)]))

def more_views(
    model, # Method
    batch, # dict
):  # -> dict
    "What a method asks for beyond image and caption, made from noise as the loader makes it."
    n = len(batch['image'])
    class Noise:
        sizes = [n]
        def __len__(self): return n
        def read(self, i): return dict(image=torch.randint(256, (3, 256, 256), dtype=torch.uint8), captions=['noise'])
    views = model.views if isinstance(model.views, dict) else dict.fromkeys(model.views)
    made = next(iter(loader(replace(model.config, batch=n), Noise(), {k: v for k, v in views.items() if k not in batch})))
    return {k: v for k, v in made.items() if k not in batch and torch.is_tensor(v)}

def make_ours(
    name,     # of a method; `rils@SHARE` with a given share of matched images; `+compile` at the end
    device,   # to compute on
    **fields, # of Config
):  # -> Method
    "A method of this package."
    @cache  # a step makes no operation of it
    def matched(n, device): return torch.arange(n, device=device) < round(float(share) * n)
    class Given(RILS):
        def compare(self, z_i, z_t, batch): return super().compare(z_i, z_t, batch)[0], matched(len(z_i), z_i.device)
    method, at, share = name.removesuffix('+compile').partition('@')
    timm_name = SIZES[fields['size']].timm
    opts = f'teacher=timm:{timm_name},teacher_width={_width(timm_name)}' if method == 'milan' else ''
    model = make(Config(method=method, opts=opts, compile=name.endswith('+compile'), **fields))
    with contextlib.redirect_stdout(sys.stderr): find_teacher(model, device)
    if at: model.__class__ = Given
    return model.to(device)

def _width(name):
    import timm
    with torch.device('meta'): return timm.create_model(name).embed_dim

class Other(torch.nn.Module):
    "A model and loss of somebody else on the same batch: pixels normalised on the device as ours are, captions padded to 77 unless they are cut."
    def __init__(self,
        model,   # of the other library
        forward, # function of it, normalised images and tokens -> loss
        cut=False, # captions are as long as the batch's longest
    ):
        super().__init__()
        self.model, self.loss, self.cut = model, forward, cut
        for n, v in (('mean', OPENAI_DATASET_MEAN), ('std', OPENAI_DATASET_STD)): self.register_buffer(n, torch.tensor(v).view(3, 1, 1))
    def forward(self, batch):
        image = (batch['image'].float() / 255 - self.mean) / self.std
        tokens = batch['tokens'] if self.cut else torch.nn.functional.pad(batch['tokens'], (0, 77 - batch['tokens'].shape[1]))
        return dict(loss=self.loss(self.model, image, tokens))
    @torch.no_grad()
    def after_step(self): self.model.logit_scale.clamp_(0, 4.6052)

def cut_text(model):  # open_clip's CLIP, changed in place
    "Let it take captions that are shorter than its context: the mask and the positions are sliced."
    def encode_text(text, normalize=False):
        n = text.shape[1]
        x = model.token_embedding(text) + model.positional_embedding[:n]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:n, :n]))
        x = x[torch.arange(len(x), device=x.device), text.argmax(1)] @ model.text_projection
        return torch.nn.functional.normalize(x, dim=-1) if normalize else x
    model.encode_text = encode_text

def from_open_clip(
    name,  # `open_clip clip`, with `+cut`, `+compile`
    model, # open_clip's CLIP
):  # -> module
    "open_clip's CLIP with its loss."
    loss = ClipLoss()
    if cut := '+cut' in name: cut_text(model)
    other = Other(model, lambda m, image, tokens: loss(**m(image, tokens)), cut)
    if name.endswith('+compile'): other.model.compile()
    return other

def from_checkout(
    name,  # `NAME MODEL`
    paths, # dict: NAME -> path of a repository with `models.py` and `get_loss`, as SLIP and RILS have them
):  # -> module
    "A model of a checkout with its loss."
    import numpy, timm.models.registry  # a name of older timm, which is still there but asks to be imported
    repo, model = name.removesuffix('+compile').split(' ')
    if repo not in paths: sys.exit(f'error: `{name}` needs --checkout {repo}=PATH')
    sys.path.insert(0, paths[repo])
    numpy.float = float  # gone since numpy 1.24; the released code uses it
    models = importlib.import_module('models')
    loss = models.get_loss(model, 0.1, 1.)
    return Other(getattr(models, model)(), lambda m, image, tokens: loss(m(image, tokens))['loss'])
