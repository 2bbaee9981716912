"""Pre-train vision encoders from image-caption pairs: contrastive learning and masked reconstruction in language space."""
__version__ = '0.1.0'

import os as _os, sys as _sys
WAIT_VARIABLES = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'  # what a waiting OpenMP thread does; read once, when torch is imported (nbs/training/30_machine.ipynb)
if 'torch' not in _sys.modules and not any(v in _os.environ for v in WAIT_VARIABLES): _os.environ.update(GOMP_SPINCOUNT='0', KMP_BLOCKTIME='0')

from warnings import filterwarnings as _filterwarnings
_filterwarnings('ignore', 'IProgress not found')  # a notebook without ipywidgets shows lines in place of a bar (nbs/00_core.ipynb): nothing to warn of

_HOMES = dict(Config='config', recipe='config', fit='train', load='evals.libraries:load_model', open_source='data.readers', evaluate='evals.harness', search='plots.viz', export='exports')
__all__ = list(_HOMES)

def __getattr__(name):  # what takes seconds to import is imported when it is first used
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    module, _, home = _HOMES[name].partition(':')
    globals()[name] = value = getattr(import_module(f'{__name__}.{module}'), home or name)
    return value

def __dir__(): return [*globals(), *__all__]
