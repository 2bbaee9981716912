"""The run in tests/old_run, a size of its own so that it is small, and how it goes on."""
from dataclasses import replace
from pathlib import Path

from timm.models import register_model
from rils_nb.config import from_json
from rils_nb.models.vit import SIZES, Size, _laptop_vit
from rils_nb.train import fit

@register_model
def rils_nano_patch8_32(pretrained=False, **kwargs): return _laptop_vit('rils_nano_patch8_32', 32, 32, 1, pretrained, **kwargs)
SIZES['nano'] = Size('rils_nano_patch8_32', 8, native=32)

def begin(folder): assert fit(replace(from_json((Path(folder)/'config.json').read_text()), out=folder, resume=True)) == 0
